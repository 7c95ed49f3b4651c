"""Whether guided digits are what was asked for, and what guidance costs in variety: CFG and
classifier guidance, by strength.

    invdiff bench --suite conditional data=mnist.npz [classifier=FILE] [samples=500] [--dtype
    bfloat16]

Protocol: equally many digits of each class, the same noise for every setting, DDPM. They are judged
by a small network of this module, trained on clean digits (a minute or two) and kept in
``classifier``, by default beside the data: neither the sampler nor its guide knows it. Classifier
guidance steers the network without a label; w = 0 and s = 0 are that network alone, w = 1 is plain
conditional sampling.

as asked  share of digits that the judge calls by their label, with its 95 % interval (Wilson)
variety   mean distance between two digits of one label, each of mean 0 and unit norm, over the same
          figure of as many real test digits: below 1 they are more alike than real ones. Noise and
          spoilt digits raise it, so read it beside ``as asked``; real digits under shuffled labels,
          which is what w = 0 can reach, have about 1.14
NFE       network evaluations per digit; classifier guidance adds a gradient of the classifier in
          each step
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import make_grid
from tqdm import trange

from invdiff.benchmarks.dataset import image_hash
from invdiff.benchmarks.schema import Cell, Record, Result, Task, key
from invdiff.benchmarks.suite import Suite
from invdiff.benchmarks.tables import markdown
from invdiff.device import choose_device
from invdiff.files import sha256, write_atomically
from invdiff.images import write_image
from invdiff.loading.model import load_model
from invdiff.network import Denoiser
from invdiff.sampling import Method, NonFiniteError, make_method
from invdiff.sampling.method import describe
from invdiff.solving import Restoration, generate
from invdiff.zoo.data import Digits

SIZE, CLASSES = 32, 10
LEAST_ACCURACY = 0.99


def judge_network() -> nn.Sequential:
    """Clean digits (B, 1, 32, 32) in [0, 1] to logits."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(64 * (SIZE // 8) ** 2, 128),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(128, CLASSES),
    )


def train_judge(data: Path, steps: int = 1500, batch_size: int = 128) -> nn.Sequential:
    """Trains the judge on the training part; the global random state stays as it is."""
    draw = Digits(data, SIZE, "train", seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = judge_network().train()
        optimiser = torch.optim.Adam(net.parameters())
        rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for _ in trange(steps, desc="judge"):
            batch = draw(batch_size)
            assert batch.label is not None
            loss = F.cross_entropy(net((batch.x0 + 1) / 2), batch.label)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
    return net


def judge(file: Path) -> nn.Sequential:
    """The judge of a file."""
    from safetensors.torch import load_file

    net = judge_network()
    net.load_state_dict(load_file(file))
    return net.eval().requires_grad_(False)


def calls(net: nn.Module, x: Tensor) -> Tensor:
    """The labels that the judge gives, (B,)."""
    return torch.cat([net(part).argmax(1) for part in x.split(500)])


def interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n."""
    z = 1.96
    centre, half = (
        share + z**2 / (2 * n),
        z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)),
    )
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def variety(x: Tensor, labels: Tensor) -> float:
    """Mean distance between two images of one label, each of mean 0 and unit norm: grey haze does
    not count."""
    flat = x.flatten(1)
    unit = F.normalize(flat - flat.mean(1, keepdim=True), dim=1)
    return float(torch.stack([F.pdist(unit[labels == c]).mean() for c in range(CLASSES)]).mean())


class Conditional(Suite):
    """Every method at every combination of its values; each cell is a task of its own."""

    def tasks(self, config: Mapping[str, Any]) -> list[Task]:
        """The judge is trained here if it is not at hand.

        Raises:
            ValueError: no data, a number of samples that is not the same for each class, a judge
                that is not good enough.
        """
        n, (data, file) = config["samples"], _files(config)
        if n % CLASSES or n < 2 * CLASSES:
            raise ValueError(
                f"samples must be a multiple of {CLASSES}, at least {2 * CLASSES}, got {n}"
            )
        if not data.is_file():
            raise ValueError(
                "data must be an mnist.npz with x_train, y_train, x_test and y_test, and "
                f"{data} is no file"
            )
        run = {k: config[k] for k in ("samples", "steps", "batch_size", "seed")}
        rows = []
        for label, values in _chosen(config["methods"]):
            name = values.pop("name", label)
            # With its defaults, so that another default is another cell.
            own = run | {"name": name, "method": _described(make_method(name, **values))}
            rows.append({"label": label, "values": values, "run": own})
        common = {"judge": _judged(file, data), "model": _identity(config)}
        return [[row | common] for row in rows]

    def context(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Where the files are."""
        data, file = _files(config)
        return {"data": str(data), "classifier": str(file)}

    def context_of(
        self, cell: Cell, source: str | None, network: str | None, allow_pickle: bool
    ) -> dict[str, Any]:
        """``source`` is the file of the digits, with the judge beside it."""
        if source is None:
            raise ValueError(
                "this record is judged with digits: --input mnist.npz, with "
                "mnist.judge.safetensors beside it"
            )
        return self.context({"data": source, "classifier": None})

    def evaluate(self, task: Task, folder: Path, context: Mapping[str, Any]) -> list[Result]:
        """Generates the digits of one setting and has them judged; fifty of them are drawn into
        ``pictures/``."""
        (cell,) = task
        data, classifier = context["data"], context["classifier"]
        _check_files(cell, data, classifier)
        denoiser, n = _denoiser(cell["model"]), cell["run"]["samples"]
        labels = torch.arange(n) % CLASSES
        try:
            result = _generated(cell, denoiser, labels)
        except NonFiniteError as error:
            return [{"diverged": str(error)}]
        x = result.x.cpu()
        share = float((calls(judge(Path(classifier)), x) == labels).float().mean())
        picture = Path("pictures") / f"{key(cell)}.png"
        (folder / picture).parent.mkdir(exist_ok=True)
        write_image(folder / picture, make_grid(x[:50], nrow=10))
        found = {
            "as_asked": share,
            "interval": list(interval(share, n)),
            "variety": variety(x, labels) / _real_variety(data, n),
        }
        cost = {"nfe": result.nfe, "nbe": result.nbe, "seconds": result.seconds}
        return [found | cost | {"restoration": image_hash(x), "files": {"samples": str(picture)}}]

    def report(self, config: Mapping[str, Any], records: Sequence[Record]) -> str:
        """One row for each setting."""
        return markdown(_row(r["cell"], r.get("result", {})) for r in records)


def _check_files(cell: Cell, data: str, classifier: str) -> None:
    for file, wanted in ((data, cell["judge"]["data"]), (classifier, cell["judge"]["weights"])):
        if not Path(file).is_file() or sha256(Path(file)) != wanted:
            raise ValueError(
                f"{file} is not the file of this cell, whose SHA-256 begins with {wanted[:12]}"
            )


def _denoiser(model: Mapping[str, Any]) -> Denoiser:
    """The network of a cell, if it is the one that is meant."""
    denoiser = _model(model["name"], model["dtype"], model["device"])
    if (denoiser.hash, _guide(denoiser)) != (model["weights"], model["guide"]):
        raise ValueError(
            f"the weights of {model['name']} are not those of this cell ({model['weights'][:12]})"
        )
    return denoiser


def _generated(cell: Cell, denoiser: Denoiser, labels: Tensor) -> Restoration:
    run = cell["run"]
    return generate(
        denoiser,
        (len(labels), 1, SIZE, SIZE),
        make_method(run["name"], label=labels, **cell["values"]),
        steps=run["steps"],
        seed=run["seed"],
        batch_size=run["batch_size"],
    )


def _judged(file: Path, data: Path) -> dict[str, Any]:
    """The identity of the judge and the digits, and its accuracy; trained if it is not there."""
    if not file.exists():
        from safetensors.torch import save

        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, save(train_judge(data).state_dict()))
    clean, truth = _test_digits(data)
    accuracy = float((calls(judge(file), clean) == truth).float().mean())
    if accuracy < LEAST_ACCURACY:
        raise ValueError(
            f"the judge in {file} knows {100 * accuracy:.1f} % of the test digits, less "
            f"than {100 * LEAST_ACCURACY:.0f} %; delete the file "
            "to train it again"
        )
    return {"weights": sha256(file), "data": sha256(data), "accuracy": round(accuracy, 4)}


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of the network and its classifier, with their precision."""
    found = {
        "name": config["model"],
        "dtype": config["dtype"],
        "device": str(choose_device(config["device"])),
    }
    denoiser = _model(**found)
    return found | {
        "weights": denoiser.hash,
        "guide": _guide(denoiser),
        "spacing": denoiser.schedule.spacing,
    }


def _chosen(methods: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Labels with each combination of their values."""
    for label, values in methods.items():
        lists = [v if isinstance(v, list) else [v] for v in (values or {}).values()]
        yield from (
            (label, dict(zip(values or {}, options, strict=True))) for options in product(*lists)
        )


def _described(method: Method) -> Any:
    return describe([*method.chain, method.transition, method.itinerary])


def _files(config: Mapping[str, Any]) -> tuple[Path, Path]:
    """Of the digits, and of the judge."""
    data = Path(config["data"]).expanduser().absolute()
    return data, Path(
        config["classifier"] or data.with_suffix(".judge.safetensors")
    ).expanduser().absolute()


@cache
def _model(name: str, dtype: str, device: str) -> Denoiser:
    """A network, loaded once a process."""
    return load_model(name, dtype=getattr(torch, dtype)).to(torch.device(device))


def _guide(denoiser: Denoiser) -> str | None:
    """The weights of the classifier that comes with a network."""
    guide = denoiser.classifier
    return (
        Denoiser(guide.net, schedule=guide.schedule).hash
        if guide is not None and isinstance(guide.net, nn.Module)
        else None
    )


@cache
def _test_digits(data: Path) -> tuple[Tensor, Tensor]:
    """Those of the test part, (N, 1, 32, 32) in [0, 1], and their labels."""
    test = Digits(data, SIZE, "test", seed=0)
    return test.x.float() / 255, test.y


@cache
def _real_variety(data: str, samples: int) -> float:
    """The variety of as many real digits."""
    clean, truth = _test_digits(Path(data))
    chosen = torch.cat([(truth == c).nonzero()[: samples // CLASSES, 0] for c in range(CLASSES)])
    return variety(clean[chosen], truth[chosen])


def _row(cell: Cell, result: Result) -> dict[str, str]:
    row = {
        "setting": ", ".join(
            [
                cell["label"],
                *(
                    f"{k} = {v:g}" if isinstance(v, float) else f"{k} = {v}"
                    for k, v in cell["values"].items()
                ),
            ]
        )
    }
    if "as_asked" not in result:
        return row | {"as asked": "diverged" if "diverged" in result else "failed"}
    low, high = (100 * v for v in result["interval"])
    row |= {
        "as asked": f"{100 * result['as_asked']:.1f} % ({low:.1f} to {high:.1f})",
        "variety": f"{result['variety']:.2f}",
    }
    return row | {"NFE": f"{result['nfe']:g}", "seconds": f"{result['seconds']:.0f}"}

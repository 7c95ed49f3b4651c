"""Whether guided digits are what was asked for, and what guidance costs in variety: CFG and classifier guidance, by strength.

    python -m invdiff.benchmarks.conditional --data mnist.npz --classifier FILE --output FOLDER [--samples 500] [--dtype bfloat16]

Protocol: equally many digits of each class, the same noise for every setting, DDPM. They are judged by a small network of this
module, trained on clean digits (a minute or two) and kept in ``--classifier``: neither the sampler nor its guide knows it. Classifier
guidance steers the network without a label; w = 0 and s = 0 are that network alone, w = 1 is plain conditional sampling.

as asked    share of digits that the judge calls by their label, with its 95 % interval (Wilson)
variety     mean distance between two digits of one label, each of mean 0 and unit norm, over the same figure of as many real test
            digits: below 1 they are more alike than real ones. Noise and spoilt digits raise it, so read it beside ``as asked``;
            real digits under shuffled labels, which is what w = 0 can reach, have about 1.14
NFE         network evaluations per digit; classifier guidance adds a gradient of the classifier in each step

One record per setting goes to ``FOLDER/conditional.json`` when it is done; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import make_grid
from tqdm import trange

from invdiff.benchmarks.tables import markdown
from invdiff.denoiser import Denoiser
from invdiff.files import sha256, write_atomically
from invdiff.guidance.cfg import CFG
from invdiff.guidance.classifier import ClassifierGuidance
from invdiff.images import write_image
from invdiff.registry import load_model
from invdiff.restoration import generate
from invdiff.zoo.data import Digits

SIZE, CLASSES = 32, 10
LEAST_ACCURACY = 0.99


def judge_network() -> nn.Sequential:
    """Clean digits (B, 1, 32, 32) in [0, 1] to logits."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (SIZE // 8) ** 2, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, CLASSES))


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


def judge(file: Path, data: Path) -> nn.Sequential:
    """The judge of ``file``, trained and written there if it is not."""
    from safetensors.torch import load_file, save

    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, save(train_judge(data).state_dict()))
    net = judge_network()
    net.load_state_dict(load_file(file))
    return net.eval().requires_grad_(False)


def calls(net: nn.Module, x: Tensor) -> Tensor:
    """The labels that the judge gives, (B,)."""
    return torch.cat([net(part).argmax(1) for part in x.split(500)])


def interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n."""
    z = 1.96
    centre, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def variety(x: Tensor, labels: Tensor) -> float:
    """Mean distance between two images of one label, each of mean 0 and unit norm: grey haze does not count."""
    flat = x.flatten(1)
    unit = F.normalize(flat - flat.mean(1, keepdim=True), dim=1)
    return float(torch.stack([F.pdist(unit[labels == c]).mean() for c in range(CLASSES)]).mean())


def evaluate(
    denoiser: Denoiser, guidance: CFG | ClassifierGuidance, net: nn.Module, labels: Tensor, real: float, args: argparse.Namespace
) -> tuple[dict[str, Any], Tensor]:
    """Generates and judges; returns the record and the digits. ``real`` is the variety of real digits."""
    shape = (len(labels), 1, SIZE, SIZE)
    result = generate(denoiser, shape, guidance, steps=args.steps, seed=args.seed, batch_size=args.batch_size, progress=True)
    share = float((calls(net, result.x) == labels).float().mean())
    record = {"as_asked": round(share, 4), "interval": [round(v, 4) for v in interval(share, len(labels))]}
    record |= {"variety": round(variety(result.x, labels) / real, 4), "nfe": result.nfe, "seconds": round(result.seconds, 1)}
    return record, result.x


def row(setting: str, record: dict[str, Any]) -> dict[str, Any]:
    """A record as a line of the table."""
    low, high = (100 * v for v in record["interval"])
    shown = {"setting": setting, "as asked": f"{100 * record['as_asked']:.1f} % ({low:.1f} to {high:.1f})"}
    return shown | {"variety": f"{record['variety']:.2f}", "NFE": f"{record['nfe']:g}", "seconds": f"{record['seconds']:.0f}"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m invdiff.benchmarks.conditional", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz with {x,y}_{train,test}")
    parser.add_argument("--classifier", type=Path, required=True, help="file of the judge; trained if it does not exist")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="digits32")
    parser.add_argument("--samples", type=int, default=500, help="digits per setting")
    parser.add_argument("--w", type=float, nargs="*", default=[0, 1, 2, 4], help="strengths of CFG")
    parser.add_argument("--s", type=float, nargs="*", default=[0, 1, 4], help="strengths of classifier guidance")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", help="of the network; its classifier stays in float32")
    args = parser.parse_args(argv)
    if args.samples % CLASSES or args.samples < 2 * CLASSES:
        parser.error(f"--samples must be a multiple of {CLASSES}, at least {2 * CLASSES}, got {args.samples}")
    args.output.mkdir(parents=True, exist_ok=True)

    net, test = judge(args.classifier, args.data), Digits(args.data, SIZE, "test", seed=0)
    clean = test.x.float() / 255
    accuracy = float((calls(net, clean) == test.y).float().mean())
    print(f"judge: {100 * accuracy:.2f} % of {len(clean)} test digits", flush=True)
    if accuracy < LEAST_ACCURACY:
        parser.error(f"the judge of {args.classifier} is below {100 * LEAST_ACCURACY:.0f} %; delete the file to train it again")
    chosen = torch.cat([(test.y == c).nonzero()[: args.samples // CLASSES, 0] for c in range(CLASSES)])
    real = variety(clean[chosen], test.y[chosen])

    denoiser = load_model(args.model, dtype=getattr(torch, args.dtype))
    labels = torch.arange(args.samples) % CLASSES
    settings: dict[str, CFG | ClassifierGuidance] = {f"CFG, w = {w:g}": CFG(labels, w=w) for w in args.w}
    settings |= {f"classifier, s = {s:g}": ClassifierGuidance(labels, s=s) for s in args.s}
    run = {key: getattr(args, key) for key in ("samples", "steps", "batch_size", "seed", "dtype")}
    run |= {
        "weights": denoiser.hash,
        "spacing": denoiser.schedule.spacing,
        "judge": sha256(args.classifier),
        "judge_accuracy": round(accuracy, 4),
    }
    if (guide := denoiser.classifier) is not None and isinstance(guide.net, nn.Module):
        run["guide"] = Denoiser(guide.net, schedule=guide.schedule).hash

    file = args.output / "conditional.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for name, guidance in settings.items():
        if found.get(name, {}).get("run") != run:
            record, x = evaluate(denoiser, guidance, net, labels, real, args)
            found[name] = record | {"run": run}
            write_atomically(file, json.dumps(found, indent=2) + "\n")
            write_image(args.output / f"{name.replace(', ', '-').replace(' = ', '')}.png", make_grid(x[:50], nrow=10))
        print(json.dumps({name: {k: v for k, v in found[name].items() if k != "run"}}), flush=True)
    print(markdown(row(name, found[name]) for name in settings))


if __name__ == "__main__":
    main()

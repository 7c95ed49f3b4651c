"""Operators × methods × models × images × seeds: restorations that are scored against the truth.

Every method sees the same measurements: each is simulated once, kept in ``measurements/`` and
identified by its hash. Images of one shape are restored in batches, always the same ones; image k
has its own noise, whatever batch it is in. A cell is one image restored by one row of the table;
its record is described by ``record.schema.json``.

What a suite of the kind ``grid`` says (``configs/suite/base/grid.yaml`` has the values where it is
silent):

images     of :class:`~invdiff.benchmarks.dataset.Dataset`
operators  label: parameters, with ``name`` where the label is neither an operator nor a protocol
methods    label: values, a list is a sweep over every combination; ``name`` where it is not the
           label (a list is a chain); ``preset``; ``operators``: only under these labels. Values
           that are not given are those of ``invdiff solve`` for this model and operator.
baselines  likewise, of :mod:`invdiff.benchmarks.baselines`
models     label: options of ``load_model``, with ``name`` where it is not the label
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.benchmarks.baselines import Unfit, make_baseline
from invdiff.benchmarks.dataset import SCIKIT_IMAGE, Dataset, image_hash, summary
from invdiff.benchmarks.digest import of_code, operator_version
from invdiff.benchmarks.harness import Cell, Record, Result, Suite, Task, digest, key
from invdiff.benchmarks.leaderboard import markdown, tables
from invdiff.benchmarks.scoring import identity, score
from invdiff.config.compose import build_method, build_operator, compose, override_value
from invdiff.device import choose_device, peak_memory_mb, reset_peak_memory
from invdiff.images import std_map, write_image
from invdiff.itineraries import Straight
from invdiff.loading.model import is_registered, load_model
from invdiff.network import Denoiser, count_evaluations
from invdiff.network.hashing import weights_hash
from invdiff.problem import Measurement
from invdiff.sampling import Method, NonFiniteError
from invdiff.sampling.method import describe
from invdiff.solving import solve
from invdiff.solving.plan import complete
from invdiff.solving.solve import check_solve

TOP = ("steps", "num_samples", "transition", "itinerary")
"""What stands beside a method's own parameters and is not one of them."""
OF_RUN = ("guidance", "transition", "itinerary", "steps", "num_samples", "preset")
"""What a row takes of the configuration that ``invdiff solve`` would run; operator and noise are
the benchmark's."""


def problem(
    label: str,
    given: Mapping[str, Any],
    config: Mapping[str, Any],
    images: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What rows have to share in order to be compared."""
    overrides = [f"operator.{k}={override_value(v)}" for k, v in given.items() if k != "name"]
    overrides += [f"{k}={config[k]}" for k in ("sigma", "gain") if config[k] is not None]
    composed = compose(
        given.get("name", label), ["none"], next(iter(config["models"])), "none", overrides
    )
    if composed["sigma"] < 0 or composed["gain"] < 0:
        raise ValueError(
            f"sigma and gain must be at least 0, got {composed['sigma']} and {composed['gain']}"
        )
    data = {k: v for k, v in config["images"].items() if k in ("crop", "size", "channels")}
    data |= {"source": SCIKIT_IMAGE if config["images"]["source"] == SCIKIT_IMAGE else "files"}
    return {
        "name": label,
        "operator": composed["operator"],
        "operator_version": operator_version(build_operator(composed)),
        "sigma": composed["sigma"],
        "gain": composed["gain"],
        "images": data | summary(images),
        "seeds": list(config["seeds"]),
        "metrics": {name: identity(name) for name in config["metrics"]},
    }


def _batches(images: Sequence[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Images of one shape in a row, at most ``size`` at once."""
    batch: list[dict[str, Any]] = []
    for image in images:
        if batch and (len(batch) == size or image["shape"] != batch[0]["shape"]):
            yield batch
            batch = []
        batch.append(image)
    yield batch


def _rows(operator: str, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the cells of a row have in common: methods on every model, then baselines."""
    target = config["operators"][operator] or {}
    fixed = [f"operator.{k}={override_value(v)}" for k, v in target.items() if k != "name"]
    for (model_label, options), (label, values) in product(
        config["models"].items(), _chosen(config["methods"], operator)
    ):
        names, preset = values.pop("name", label), values.pop("preset", config["preset"])
        overrides = [
            f"{'' if k.partition('.')[0] in TOP else 'guidance.'}{k}={override_value(v)}"
            for k, v in values.items()
        ]
        overrides += [
            f"{k}={config[k]}"
            for k in ("steps", "num_samples")
            if config[k] is not None and k not in values
        ]
        name = (options or {}).get("name", model_label)
        composed = compose(
            target.get("name", operator),
            [names] if isinstance(names, str) else names,
            name,
            preset,
            fixed + overrides,
        )
        run = {k: composed[k] for k in OF_RUN}
        made = build_method(run)
        pieces = [*made.chain, made.transition, made.itinerary]
        run |= {
            "method": describe(made),
            "version": digest([of_code(type(piece)) for piece in pieces if piece is not None])[:12],
        }
        yield {
            "label": label,
            "kind": "method",
            "values": values,
            "run": run,
            "model": _model(model_label, config),
        }
    for label, values in _chosen(config["baselines"], operator):
        baseline = make_baseline(values.pop("name", label), **values)
        run = {
            "name": config["baselines"][label]["name"]
            if "name" in (config["baselines"][label] or {})
            else label
        }
        run |= {"parameters": asdict(baseline), "version": of_code(type(baseline))}
        for model_label in config["models"] if baseline.network else [None]:
            yield {
                "label": label,
                "kind": "baseline",
                "values": values,
                "run": run,
                "model": model_label and _model(model_label, config),
            }


def _chosen(
    entries: Mapping[str, Any] | None, operator: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Labels with each combination of their values, of those that are meant for this operator."""
    for label, values in (entries or {}).items():
        values = dict(_flat(values or {}))
        only, fixed = (
            values.pop("operators", None),
            {k: values.pop(k) for k in ("name", "preset") if k in values},
        )
        if only is None or operator in only:
            for options in product(*(v if isinstance(v, list) else [v] for v in values.values())):
                yield label, fixed | dict(zip(values, options, strict=True))


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values with ``transition: {name: heun}`` written as ``transition.name: heun``, so that it can
    be swept."""
    for name, value in values.items():
        if name in ("transition", "itinerary") and isinstance(value, Mapping):
            yield from ((f"{name}.{k}", v) for k, v in value.items())
        else:
            yield name, value


def _model(label: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a network and what it computes in. Where its file is stays out of it: others
    have it elsewhere."""
    name, options, dtype = _named(label, config)
    loaded = model(
        name, dtype, "cpu", json.dumps(options), config["allow_pickle"]
    )  # this need not be where cells run
    return {
        "name": _shown(name),
        "options": options,
        **_identity(loaded),
        "dtype": dtype,
        "device": _device(config["device"]),
    }


def _named(label: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any], str]:
    """Name or path, options and dtype of a suite's model."""
    options = dict(config["models"][label] or {})
    return options.pop("name", label), options, options.pop("dtype", config["dtype"])


def _shown(name: str) -> str:
    """A path without its folder, anything else as it is."""
    return Path(name).name if not is_registered(name) and Path(name).exists() else name


def _device(wanted: str) -> str:
    """The kind of device that cells run on; which one of several is the launcher's business."""
    if ":" in wanted:
        raise ValueError(
            f"--device {wanted} names one of several devices; give --device "
            f"{wanted.partition(':')[0]}, and CUDA_VISIBLE_DEVICES"
        )
    return choose_device(wanted).type if wanted == "auto" else wanted


@cache
def model(name: str, dtype: str, device: str, options: str, allow_pickle: bool) -> Denoiser:
    """A network, loaded once a process; ``options`` as JSON."""
    loaded = load_model(
        name,
        allow_pickle=allow_pickle,
        dtype=getattr(torch, dtype),
        **{"channels_last": True} | json.loads(options),
    )
    return loaded.to(torch.device(device))


def _results(
    task: Task, folder: Path, truth: Tensor, measurement: Measurement, denoiser: Denoiser | None
) -> list[Result]:
    cell, device = task[0], denoiser.device if denoiser else None
    resettable = reset_peak_memory(device)
    try:
        samples, cost = (_by_baseline if cell["kind"] == "baseline" else _by_method)(
            task, measurement, denoiser
        )
    except (Unfit, NonFiniteError) as error:
        if len(task) > 1:  # it may be one image's doing: each is tried alone
            alone = [
                (task[k : k + 1], folder, truth[k : k + 1], measurement.select([k]), denoiser)
                for k in range(len(task))
            ]
            return [result for arguments in alone for result in _results(*arguments)]
        # A scale that is too large is a finding, not a failure.
        return [{"refused" if isinstance(error, Unfit) else "diverged": str(error)}]
    shared = (
        {"samples": len(samples)}
        | cost
        | {"peak_memory_mb": peak_memory_mb(device) if resettable else None}
    )
    found = []
    for k, (one, scores) in enumerate(
        zip(
            task,
            score(measurement, samples, truth, list(cell["benchmark"]["metrics"])),
            strict=True,
        )
    ):
        own = measurement.select([k])
        result = (
            {"measurement": own.hash, "restoration": image_hash(samples[:, k])} | scores | shared
        )
        found.append(
            result
            | {
                "files": _pictures(
                    folder, key(one), one["image"]["hash"], truth[k], own, samples[:, k]
                )
            }
        )
    return found


def _network(wanted: Mapping[str, Any], models: Mapping[str, str], allow_pickle: bool) -> Denoiser:
    """The network of a cell, where the cell is to run; ``models`` says where those that are not
    registered are."""
    name = models.get(wanted["name"], wanted["name"])
    denoiser = model(
        name,
        wanted["dtype"],
        str(choose_device(wanted["device"])),
        json.dumps(wanted["options"]),
        allow_pickle,
    )
    if (found := _identity(denoiser)) != {k: wanted[k] for k in found}:
        raise ValueError(
            f"{name} is not the network of this cell: {found}, not "
            f"{ {k: wanted[k] for k in found} }"
        )
    return denoiser


def _identity(denoiser: Denoiser) -> dict[str, Any]:
    """Digests of a network's weights and of how they are read: prediction, levels of the schedule,
    range, autoencoder."""
    levels = [
        [f"{float(value):.6g}" for value in (level.t, level.alpha, level.sigma)]
        for level in Straight()(denoiser.schedule, 8)
    ]
    reading: list[Any] = [denoiser.predicts, levels, denoiser.data_range, denoiser.clip]
    if (encoder := denoiser.autoencoder) is not None:
        reading += [
            encoder.channels,
            encoder.factor,
            encoder.data_range,
            None if encoder.net is None else weights_hash(encoder.net),
        ]
    return {"weights": denoiser.hash, "reading": digest(reading)[:12]}


def measured(cell: Cell, truth: Tensor, ids: Sequence[int], folder: Path) -> Measurement:
    """The measurement of a batch: read if some row has asked for it before, else simulated and
    kept."""
    benchmark = cell["benchmark"]
    same = {k: benchmark[k] for k in ("operator", "operator_version", "sigma", "gain")} | {
        "seed": cell["seed"],
        "batch": cell["batch"],
    }
    file = folder / "measurements" / f"{digest(same)[:16]}.safetensors"
    if file.exists():
        return Measurement.load(file)
    operator = build_operator(benchmark)
    measurement = operator.measure(
        truth, sigma=benchmark["sigma"], seed=cell["seed"], gain=benchmark["gain"], image_ids=ids
    )
    file.parent.mkdir(exist_ok=True)
    measurement.save(file)
    return measurement


def _image(dataset: Dataset, wanted: Mapping[str, Any]) -> Tensor:
    """An image, if it is the one that is meant."""
    x = dataset[wanted["name"]]
    if image_hash(x) != wanted["hash"]:
        raise ValueError(
            f"the image {wanted['name']} in {dataset.source} is not the one of this cell "
            f"(SHA-256 {image_hash(x)[:12]}, not "
            f"{wanted['hash'][:12]}): another file, crop or size"
        )
    return x


def _by_method(
    task: Task, measurement: Measurement, denoiser: Denoiser | None
) -> tuple[Tensor, dict[str, float]]:
    """Samples (S, B, C, H, W), and what one of them costs."""
    assert denoiser is not None
    cell, ids = task[0], [c["image"]["index"] for c in task]
    run, method = cell["run"], build_method(cell["run"])
    options: dict[str, Any] = {"steps": run["steps"], "seed": cell["seed"], "image_ids": ids}
    try:
        check_solve(measurement, denoiser, method, **options)
    except ValueError as error:
        raise Unfit(str(error)) from error
    _warm_up(denoiser, measurement, method)
    n = run["num_samples"]
    result = solve(measurement, denoiser, method, num_samples=n, **options)
    together = (
        n if complete(method).particles else 1
    )  # a sample of a particle system costs the whole system
    cost = {"nfe": result.nfe, "nbe": result.nbe, "seconds": result.seconds / (len(ids) * n)}
    return result.samples.cpu(), {k: round(together * v, 4) for k, v in cost.items()}


def _warm_up(denoiser: Denoiser, measurement: Measurement, method: Method) -> None:
    """Two steps before a process's first run with a network and shape: it pays for what later ones
    have, and is not to be timed."""
    if (known := (id(denoiser), measurement.image_shape, len(measurement))) not in _warm:
        _warm.add(known)
        with contextlib.suppress(ValueError):  # a method that refuses so few steps goes without
            solve(measurement, denoiser, method, steps=2)


_warm: set[Any] = set()


def _by_baseline(
    task: Task, measurement: Measurement, denoiser: Denoiser | None
) -> tuple[Tensor, dict[str, float]]:
    """The same of a baseline, which gives one sample."""
    cell, ids = task[0], [c["image"]["index"] for c in task]
    baseline = make_baseline(cell["run"]["name"], **cell["run"]["parameters"])
    if not baseline.network and (name := cell["run"]["name"]) not in _warm:  # likewise
        _warm.add(name)
        baseline(measurement.select([0]))
    begun = time.perf_counter()
    with count_evaluations() as evaluations:
        x = baseline(measurement, denoiser, seed=cell["seed"], image_ids=ids)
    cost = {
        "nfe": evaluations.forward,
        "nbe": evaluations.backward,
        "seconds": time.perf_counter() - begun,
    }
    return x[None].cpu(), {k: round(v / len(ids), 4) for k, v in cost.items()}


def _pictures(
    folder: Path, name: str, image: str, truth: Tensor, measurement: Measurement, samples: Tensor
) -> dict[str, str]:
    """Writes what people look at; returns the files' names. Truth and measurement are shared
    between rows."""
    pictures = {"truth": (image[:16], truth), "restoration": (name, samples[0])}
    y = measurement.y
    if y.shape[1] in (1, 3) and y.ndim == 4 and not y.is_complex():
        pictures["measurement"] = (measurement.hash[:16], y[0])
    if len(samples) > 1:
        pictures |= {
            "mean": (f"{name}-mean", samples.mean(0)),
            "std": (f"{name}-std", std_map(samples.std(0))),
        }
    (folder / "pictures").mkdir(exist_ok=True)
    files = {what: f"pictures/{stem}.png" for what, (stem, _) in pictures.items()}
    for what, (_, picture) in pictures.items():
        if what not in ("truth", "measurement") or not (folder / files[what]).exists():
            write_image(folder / files[what], picture)
    return files


class Grid(Suite):
    """Methods and baselines on photographs, operators, networks and seeds: every combination is a
    cell."""

    def tasks(self, config: Mapping[str, Any]) -> list[Task]:
        """Every row of the table on every operator, seed and batch of images.

        Raises:
            ValueError: what does not exist or cannot be composed; nothing has run then.
        """
        for kind in ("operators", "models"):
            if not config[kind]:
                raise ValueError(f"the suite has no {kind}; give --{kind.removesuffix('s')} NAME")
        if not config["methods"] and not config["baselines"]:
            raise ValueError("the suite has no methods; give --method NAME or --baseline NAME")
        if not config["seeds"]:
            raise ValueError("the suite has no seeds; give seeds=[0]")
        images = Dataset.of(config["images"]).identities()
        batches = list(_batches(images, config["batch_size"]))
        problems = {
            label: problem(label, given or {}, config, images)
            for label, given in config["operators"].items()
        }
        found = []
        for (label, benchmark), seed in product(problems.items(), config["seeds"]):
            for row, batch in product(_rows(label, config), batches):
                found.append(
                    [
                        {"benchmark": benchmark, "image": image, "seed": seed, "batch": batch} | row
                        for image in batch
                    ]
                )
        return found

    def context(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Where images and networks are, and whether pickled checkpoints may be opened; cells
        depend on none of it."""
        images = dict(config["images"])
        if images["source"] != SCIKIT_IMAGE:
            images["source"] = str(Path(images["source"]).expanduser().absolute())
        names = [_named(label, config)[0] for label in config["models"]]
        models = {
            _shown(name): str(Path(name).absolute())
            for name in names
            if _shown(name) != name or "/" not in name and not is_registered(name)
        }
        return {"images": images, "models": models, "allow_pickle": config["allow_pickle"]}

    def context_of(
        self, cell: Cell, source: str | None, network: str | None, allow_pickle: bool
    ) -> dict[str, Any]:
        """The same for a recorded cell: its images are in ``source``, a file, folder or glob,
        unless they are scikit-image's, its network is ``network``, unless its name says it."""
        images = {
            k: v
            for k, v in cell["benchmark"]["images"].items()
            if k in ("source", "crop", "size", "channels")
        }
        if images["source"] != SCIKIT_IMAGE:
            if source is None:
                raise ValueError(
                    "the images of this record are files; say where: --input FOLDER with "
                    f"{cell['image']['name']}"
                )
            images["source"] = source
        models = (
            {} if network is None or cell["model"] is None else {cell["model"]["name"]: network}
        )
        return {
            "images": images | {"names": [image["name"] for image in cell["batch"]]},
            "models": models,
            "allow_pickle": allow_pickle,
        }

    def evaluate(self, task: Task, folder: Path, context: Mapping[str, Any]) -> list[Result]:
        """Restores the images of a batch and scores each."""
        dataset, cell = Dataset.of(context["images"]), task[0]
        models, allow_pickle = context.get("models", {}), context.get("allow_pickle", False)
        truth = torch.cat([_image(dataset, c["image"]) for c in task])
        measurement = measured(cell, truth, [c["image"]["index"] for c in task], folder)
        denoiser = None if cell["model"] is None else _network(cell["model"], models, allow_pickle)
        return _results(task, folder, truth, measurement, denoiser)

    def report(self, config: Mapping[str, Any], records: Sequence[Record]) -> str:
        """One table for each operator."""
        return markdown(tables(records))

"""The cells of a grid, from the configuration of its suite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from invdiff.benchmarks.baselines import make_baseline
from invdiff.benchmarks.dataset import SCIKIT_IMAGE, Dataset, summary
from invdiff.benchmarks.digest import of_code, operator_version
from invdiff.benchmarks.grid.networks import model_of, named, shown
from invdiff.benchmarks.harness import Cell, Record, Task, digest
from invdiff.benchmarks.leaderboard import markdown, tables
from invdiff.benchmarks.scoring import identity
from invdiff.config.compose import build_method, build_operator, compose, override_value
from invdiff.loading.model import is_registered
from invdiff.sampling.method import describe

TOP = ("steps", "num_samples", "transition", "itinerary")
"""What stands beside a method's own parameters and is not one of them."""


OF_RUN = ("guidance", "transition", "itinerary", "steps", "num_samples", "preset")
"""What a row takes of the configuration that ``invdiff solve`` would run; operator and noise are
the benchmark's."""


def tasks(config: Mapping[str, Any]) -> list[Task]:
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


def context(config: Mapping[str, Any]) -> dict[str, Any]:
    """Where images and networks are, and whether pickled checkpoints may be opened; cells depend on
    none of it."""
    images = dict(config["images"])
    if images["source"] != SCIKIT_IMAGE:
        images["source"] = str(Path(images["source"]).expanduser().absolute())
    names = [named(label, config)[0] for label in config["models"]]
    models = {
        shown(name): str(Path(name).absolute())
        for name in names
        if shown(name) != name or "/" not in name and not is_registered(name)
    }
    return {"images": images, "models": models, "allow_pickle": config["allow_pickle"]}


def context_of(
    cell: Cell, source: str | None, network: str | None, allow_pickle: bool
) -> dict[str, Any]:
    """The same for a recorded cell: its images are in ``source``, a file, folder or glob, unless
    they are scikit-image's, its network is ``network``, unless its name says it."""
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
    models = {} if network is None or cell["model"] is None else {cell["model"]["name"]: network}
    return {
        "images": images | {"names": [image["name"] for image in cell["batch"]]},
        "models": models,
        "allow_pickle": allow_pickle,
    }


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
            "model": model_of(model_label, config),
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
                "model": model_label and model_of(model_label, config),
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


def report(config: Mapping[str, Any], records: Sequence[Record]) -> str:
    """One table for each operator."""
    return markdown(tables(records))

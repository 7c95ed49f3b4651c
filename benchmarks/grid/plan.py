"""The cells of a grid, from the configuration of its suite."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

from invdiff.benchmarks.baselines import make_baseline
from invdiff.benchmarks.dataset import SCIKIT_IMAGE, Dataset, summary
from invdiff.benchmarks.digest import of_code, operator_version
from invdiff.benchmarks.grid.networks import identity_of
from invdiff.benchmarks.schema import Benchmark, GridCell, Image, Row, breaches, digest
from invdiff.benchmarks.scoring import identity
from invdiff.config import build_method, build_operator, compose, override_value
from invdiff.sampling.method import describe

SHOWN = ("cond", "prompt", "negative_prompt")
TOP = ("steps", "num_samples", "transition", "itinerary", *SHOWN)
"""Values of a row that are not parameters of its method; :data:`SHOWN` are what its network is
conditioned on."""

OF_RUN = ("guidance", "transition", "itinerary", "steps", "num_samples", "preset")
"""The keys of a row that come from the configuration that ``invdiff solve`` would run; operator and
noise are the benchmark's."""


def plan(config: Mapping[str, Any]) -> list[list[GridCell]]:
    """Every row of the table on every operator, seed and batch of images; a list for each batch.

    Raises:
        ValueError: what does not exist or cannot be composed; nothing has run then.
    """
    for kind in ("operators", "models"):
        if not config[kind]:
            raise ValueError(f"the suite has no {kind}; give --{kind.removesuffix('s')} NAME")
    if not config["methods"] and not config["baselines"]:
        raise ValueError("the suite has no methods; give --method NAME or --baseline NAME")
    _check_numbers(config)
    images = Dataset.of(config["images"]).identities()
    batches = list(_batches(images, config["batch_size"]))
    problems = {
        label: benchmark_of(label, given or {}, config, images)
        for label, given in config["operators"].items()
    }
    found: list[list[GridCell]] = []
    for (label, benchmark), seed in product(problems.items(), config["seeds"]):
        rows = [*_methods(label, config), *_baselines(label, config)]
        for row, batch in product(rows, batches):
            cells = [_cell(benchmark, image, seed, batch, row) for image in batch]
            if row is rows[0] or batch is batches[0]:
                _check(cells[0])
            found.append(cells)
    return found


def _check_numbers(config: Mapping[str, Any]) -> None:
    seeds, size = config["seeds"], config["batch_size"]
    if not isinstance(seeds, list) or not all(type(s) is int and s >= 0 for s in seeds):
        raise ValueError(f"seeds must be a list of whole numbers, at least 0, got {seeds!r}")
    if not seeds:
        raise ValueError("the suite has no seeds; give seeds=[0]")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ, got {seeds}")
    if type(size) is not int or size < 1:
        raise ValueError(f"batch_size must be a whole number, at least 1, got {size!r}")


def _check(cell: GridCell) -> None:
    """Refuses what no record may have before anything has run, instead of after."""
    plain = json.loads(json.dumps(cell))
    if wrong := breaches(plain, "cell"):
        raise ValueError(f"the row {cell['label']!r} cannot be recorded: {wrong[0]}")


def _cell(benchmark: Benchmark, image: Image, seed: int, batch: list[Image], row: Row) -> GridCell:
    return {
        "benchmark": benchmark,
        "image": image,
        "seed": seed,
        "batch": batch,
        "label": row["label"],
        "kind": row["kind"],
        "values": row["values"],
        "run": row["run"],
        "model": row["model"],
    }


def benchmark_of(
    label: str, given: Mapping[str, Any], config: Mapping[str, Any], images: Sequence[Image]
) -> Benchmark:
    """The benchmark, which rows share in order to be compared."""
    overrides = [f"operator.{k}={override_value(v)}" for k, v in given.items() if k != "name"]
    overrides += [f"{k}={config[k]}" for k in ("sigma", "gain") if config[k] is not None]
    composed = compose(
        given.get("name", label), ["none"], next(iter(config["models"])), "none", overrides
    )
    if composed["sigma"] < 0 or composed["gain"] < 0:
        raise ValueError(
            f"sigma and gain must be at least 0, got {composed['sigma']} and {composed['gain']}"
        )
    data = config["images"]
    return {
        "name": label,
        "operator": composed["operator"],
        "operator_version": operator_version(build_operator(composed)),
        "sigma": composed["sigma"],
        "gain": composed["gain"],
        "images": {
            "crop": data["crop"],
            "size": data["size"],
            "channels": data["channels"],
            "source": SCIKIT_IMAGE if data["source"] == SCIKIT_IMAGE else "files",
            **summary(images),
        },
        "seeds": list(config["seeds"]),
        "metrics": {name: identity(name) for name in config["metrics"]},
    }


def _batches(images: Sequence[Image], size: int) -> Iterator[list[Image]]:
    """Images of one shape in a row, at most ``size`` at once."""
    batch: list[Image] = []
    for image in images:
        if batch and (len(batch) == size or image["shape"] != batch[0]["shape"]):
            yield batch
            batch = []
        batch.append(image)
    yield batch


def _methods(operator: str, config: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of methods, on every model."""
    for (label, options), (method, values) in product(
        config["models"].items(), _chosen(config["methods"], operator)
    ):
        names, preset = values.pop("name", method), values.pop("preset", config["preset"])
        names = [names] if isinstance(names, str) else names
        yield {
            "label": method,
            "kind": "method",
            "values": values,
            "run": _run(
                operator, names, preset, values, (options or {}).get("name", label), config
            ),
            "model": identity_of(label, config),
        }


def _run(
    operator: str,
    names: Sequence[str],
    preset: str,
    values: Mapping[str, Any],
    model: str,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """The run of a row, as ``invdiff solve`` would compose it, and its version."""
    target = config["operators"][operator] or {}
    overrides = [f"operator.{k}={override_value(v)}" for k, v in target.items() if k != "name"]
    overrides += [
        f"{'' if k.partition('.')[0] in TOP else 'guidance.'}{k}={override_value(v)}"
        for k, v in values.items()
    ]
    overrides += [
        f"{k}={override_value(config[k])}"
        for k in ("steps", "num_samples", "prompt", "negative_prompt")
        if config[k] is not None and k not in values
    ]
    composed = compose(target.get("name", operator), list(names), model, preset, overrides)
    run = {k: composed[k] for k in OF_RUN} | {k: composed[k] for k in SHOWN if composed[k]}
    made = build_method(run)
    pieces = [p for p in (*made.chain, made.transition, made.itinerary) if p is not None]
    version = digest([of_code(type(piece)) for piece in pieces])[:12]
    return run | {"method": describe(made), "version": version}


def _baselines(operator: str, config: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of baselines, on every model where they need one."""
    for label, values in _chosen(config["baselines"], operator):
        name = values.pop("name", label)
        baseline = make_baseline(name, **values)
        version = of_code(type(baseline))
        for model in config["models"] if baseline.network else [None]:
            yield {
                "label": label,
                "kind": "baseline",
                "values": values,
                "run": {"name": name, "parameters": asdict(baseline), "version": version},
                "model": None if model is None else identity_of(model, config),
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
        if name in ("transition", "itinerary", "cond") and isinstance(value, Mapping):
            yield from ((f"{name}.{k}", v) for k, v in value.items())
        else:
            yield name, value

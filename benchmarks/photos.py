"""Methods on photographs: restorations of fixed crops with one network, scored against the truth (``invdiff bench --suite frontier``).

A crop is the centre square of a Kodak photograph, ``crop`` pixels a side, made ``size`` pixels a side by averaging. A cell restores all
crops with one method, one set of values and one operator; lists of values are a sweep over every combination. Values that a suite
does not give are those of ``invdiff solve`` for this model, method and operator: its presets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.benchmarks.harness import Cell, Record
from invdiff.benchmarks.quality import scores
from invdiff.benchmarks.tables import markdown
from invdiff.config import build_method, build_operator, compose
from invdiff.denoiser import Denoiser
from invdiff.images import read_image
from invdiff.registry import load_model
from invdiff.restoration import check_solve, solve
from invdiff.sampling import NonFiniteError

TOP = ("steps", "num_samples")
"""What stands beside a method's own parameters and is not one of them."""


@cache
def crops(folder: str, numbers: tuple[int, ...], crop: int, size: int) -> Tensor:
    """(N, 3, size, size) in [0, 1] of kodimNN.png."""
    images = []
    for number in numbers:
        image = read_image(Path(folder) / f"kodim{number:02d}.png", channels=3)
        top, left = ((n - crop) // 2 for n in image.shape[-2:])
        images.append(F.avg_pool2d(image[..., top : top + crop, left : left + crop], crop // size))
    return torch.cat(images)


@cache
def model(name: str, dtype: str) -> Denoiser:
    return load_model(name, dtype=getattr(torch, dtype), channels_last=True)


def context(config: Mapping[str, Any]) -> dict[str, Any]:
    """What cells need and do not depend on: where the photographs are."""
    return {"photos": str(config["photos"])}


def cells(config: dict[str, Any]) -> list[Cell]:
    """Every method with every combination of its values, on every operator."""
    data = {"numbers": config["numbers"], "crop": config["crop"], "size": config["size"]}
    truth = crops(str(config["photos"]), tuple(config["numbers"]), config["crop"], config["size"])
    data |= {"images": hashlib.sha256(truth.numpy().tobytes()).hexdigest()}
    common = {"model": config["model"], "dtype": config["dtype"], "weights": model(config["model"], config["dtype"]).hash}
    found = []
    for (label, values), (operator, parameters) in product(config["methods"].items(), config["operators"].items()):
        values = dict(values or {})
        name, preset = values.pop("name", label), values.pop("preset", "auto")
        only = values.pop("operators", None)
        if only is not None and operator not in only:
            continue
        fixed = [f"operator.{k}={v}" for k, v in (parameters or {}).items()] + [f"sigma={config['sigma']}"]
        for chosen in product(*([(k, v) for v in (options if isinstance(options, list) else [options])] for k, options in values.items())):
            overrides = [f"{k}={v}" if k in TOP or "." in k else f"guidance.{k}={v}" for k, v in chosen]
            run = compose(operator, [name], config["model"], preset, fixed + overrides)
            found.append({"method": label, "operator": operator, "values": dict(chosen), "run": run, **data, **common})
    return found


def evaluate(cell: Cell, photos: str) -> dict[str, Any]:
    """Restores all crops; means over them of the scores, evaluations and seconds per image."""
    truth, run = crops(photos, tuple(cell["numbers"]), cell["crop"], cell["size"]), cell["run"]
    denoiser, method = model(cell["model"], cell["dtype"]), build_method(run)
    measurement = build_operator(run).measure(truth, sigma=run["sigma"], seed=run["seed"], gain=run["gain"])
    options: dict[str, Any] = {"steps": run["steps"], "seed": run["seed"]}
    try:
        check_solve(measurement, denoiser, method, **options)
    except ValueError as error:
        return {"refused": str(error)}
    n = run["num_samples"]
    try:
        result = solve(measurement, denoiser, method, num_samples=n, **options)
    except NonFiniteError as error:  # a scale that is too large is a finding of a sweep, not a failure
        return {"diverged": str(error)}
    found = {"measurement": measurement.hash, "sample": scores(result.x, truth)} | ({"mean": scores(result.mean, truth)} if n > 1 else {})
    together = n if method.particles else 1  # a sample of a particle system costs the whole system
    cost = {"nfe": result.nfe, "nbe": result.nbe, "seconds": result.seconds / (len(truth) * n)}
    return found | {k: round(together * v, 4) for k, v in cost.items()}


def report(config: dict[str, Any], records: Sequence[Record]) -> str:
    """One table for each operator, every cell a row, best LPIPS first."""
    parts = []
    for operator in config["operators"]:
        own = [r for r in records if r["cell"]["operator"] == operator and "sample" in r.get("result", {})]
        rows = [row(r) for r in sorted(own, key=lambda r: r["result"]["sample"]["lpips"])]
        parts.append(f"{operator}:\n\n{markdown(rows)}" + "".join(f"\n\n{line}" for line in without(records, operator)))
    return "\n\n".join(parts)


def without(records: Sequence[Record], operator: str) -> list[str]:
    """What has no figures, and why."""
    found = []
    for record in records:
        why = record.get("failure", {}).get("error") or record.get("result", {}).get("refused") or record.get("result", {}).get("diverged")
        if why and record["cell"]["operator"] == operator:
            found.append(f"- {record['cell']['method']} {record['cell']['values']}: {why}")
    return found


def row(record: Record) -> dict[str, Any]:
    """A cell as a line of a table."""
    cell, result = record["cell"], record["result"]
    figures = {"LPIPS": f"{result['sample']['lpips']:.3f}", "PSNR": f"{result['sample']['psnr']:.2f}"}
    figures |= {"mean's PSNR": f"{result['mean']['psnr']:.2f}"} if "mean" in result else {}
    values = ", ".join(f"{k} {v}" for k, v in cell["values"].items() if k != "steps")
    cost = {"steps": cell["run"]["steps"], "NFE": f"{result['nfe']:g}", "NBE": f"{result['nbe']:g}", "s per image": result["seconds"]}
    return {"method": cell["method"], "values": values} | figures | cost

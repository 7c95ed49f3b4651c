"""How good restorations with a model are: fixed crops of Kodak24, several operators, beside classical baselines.

    python -m invdiff.benchmarks.quality --photos KODAK24 --output FOLDER [--operator inpaint sr blur] [--method dps] [key=value ...]
    python -m invdiff.benchmarks.quality ... --operator sr --method sr3 --model sr3x4 sigma=0,0.025 steps=25,50 transition.name=ddpm,ddim

Protocol: the centre 128x128 of twelve Kodak photographs (01, 03, ..., 23), sigma 0.025, metrics over all pixels, averaged over the
images. Overrides and presets are those of ``invdiff solve``; as in Hydra, values with commas between them are a sweep, run in every
combination. One JSON record per run, named by operator, method and overrides, is written when it is done, and the same command goes
on from there. At the end all records of the folder are printed as a table: several methods may share one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.benchmarks.metrics import lpips, psnr, ssim
from invdiff.benchmarks.tables import markdown
from invdiff.cascade import RESAMPLING
from invdiff.config import build_method, build_operator, compose
from invdiff.files import write_atomically
from invdiff.images import grid, read_image, write_image
from invdiff.measurement import Measurement
from invdiff.registry import load_model
from invdiff.restoration import solve

SIZE = 128
NUMBERS = range(1, 24, 2)


def crops(folder: Path) -> Tensor:
    """The protocol's twelve crops, (12, 3, 128, 128)."""
    images = []
    for number in NUMBERS:
        image = read_image(folder / f"kodim{number:02d}.png", channels=3)
        top, left = (image.shape[-2] - SIZE) // 2, (image.shape[-1] - SIZE) // 2
        images.append(image[..., top : top + SIZE, left : left + SIZE])
    return torch.cat(images)


def baseline(operator: str, measurement: Measurement) -> tuple[str, Tensor]:
    """What a user would do without a network: biharmonic inpainting, bicubic upsampling, the blurred image itself."""
    y = measurement.y
    if operator == "inpaint":
        from skimage.restoration import inpaint_biharmonic

        missing = (measurement.operator.state["mask"].expand(measurement.image_shape)[0] == 0).numpy()
        filled = [inpaint_biharmonic(image.permute(1, 2, 0).double().numpy(), missing, channel_axis=-1) for image in y]
        return "biharmonic", torch.stack([torch.from_numpy(f).permute(2, 0, 1) for f in filled]).float().clamp(0, 1)
    if y.shape[1:] != measurement.image_shape:
        return "bicubic", RESAMPLING["bicubic"](y.expand(-1, 3, -1, -1), measurement.image_shape[-1] // y.shape[-1]).clamp(0, 1)
    return "measurement", y.clamp(0, 1)


def scores(x: Tensor, truth: Tensor) -> dict[str, float]:
    """Means over the images, to five digits."""
    return {m.__name__: round(float(m(x, truth).mean()), 5) for m in (psnr, ssim, lpips)}


def evaluate(
    photos: Tensor, measurement: Measurement, config: dict[str, Any], denoiser: Any, progress: bool = True
) -> tuple[dict[str, Any], list[Tensor]]:
    """Restores and scores; returns the record and the pictures (truth, measurement, baseline, restored[, mean])."""
    result = solve(
        measurement,
        denoiser,
        build_method(config),
        steps=config["steps"],
        seed=config["seed"],
        num_samples=config["num_samples"],
        batch_size=None if config["batch_size"] == "auto" else config["batch_size"],
        progress=progress,
    )
    begun = time.perf_counter()
    name, base = baseline(config["operator"]["name"], measurement)
    base_seconds = time.perf_counter() - begun
    record: dict[str, Any] = {"baseline": {"name": name} | scores(base, photos), "sample": scores(result.x, photos)}
    pictures = [photos, measurement.y, base, result.x]
    if config["num_samples"] > 1:
        record["mean"] = scores(result.mean, photos)
        pictures.append(result.mean)
    record |= {"lpips_ratio": round(record["sample"]["lpips"] / record["baseline"]["lpips"], 4)}
    record |= {"nfe": result.nfe, "nbe": result.nbe, "seconds_per_sample": round(result.seconds / (len(photos) * config["num_samples"]), 3)}
    record["baseline"]["seconds"] = round(base_seconds / len(photos), 5)
    return record | {"method": result.config["method"]}, pictures


def combinations(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Hydra's sweeps, ``key=a,b``, as one list of overrides for each combination."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] if o.is_sweep_override() else [text]
        for text, o in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True)
    ]
    return list(product(*choices))


def rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records as lines of a table, each measurement's baseline before what was made of it."""
    lines: list[dict[str, Any]] = []
    for measured in dict.fromkeys(r["measurement"] for r in records):
        of = [r for r in records if r["measurement"] == measured]
        config, base = of[0]["config"], of[0]["baseline"]
        shown = {"operator": config["operator"]["name"], "sigma": config["sigma"]}
        lines.append(
            shown
            | {"method": base["name"], "transition": "", "steps": "", "itinerary": ""}
            | _figures(base, base["seconds"])
            | {"LPIPS ratio": 1}
        )
        for r in sorted(of, key=lambda r: r["lpips_ratio"]):
            name = f"{'+'.join(g['name'] for g in r['config']['guidance'])}, {r['config']['model']['name']}"
            run = {"method": name, "transition": r["method"]["transition"]["name"], "steps": r["config"]["steps"]}
            run["itinerary"] = " ".join(str(v) for v in r["method"]["itinerary"].values() if v is not None)
            run |= _figures(r["sample"], r["seconds_per_sample"]) | {"LPIPS ratio": r["lpips_ratio"], "NFE": f"{r['nfe']:g}"}
            lines.append(shown | run | ({"mean's PSNR": f"{r['mean']['psnr']:.2f}"} if "mean" in r else {}))
    return lines


def _figures(found: dict[str, Any], seconds: float) -> dict[str, str]:
    figures = {"PSNR": f"{found['psnr']:.2f}", "SSIM": f"{found['ssim']:.3f}", "LPIPS": f"{found['lpips']:.3f}"}
    return figures | {"s per image": f"{seconds:.2g}"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m invdiff.benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder with kodim01.png ... kodim24.png")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--operator", nargs="+", default=["inpaint", "sr", "blur"])
    parser.add_argument("--method", default="dps")
    parser.add_argument("--model", default="photo64")
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--images", type=int, default=len(NUMBERS), help="only the first N crops, for sweeps")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("overrides", nargs="*")
    args, rest = parser.parse_known_args(argv)
    if any(r.startswith("-") for r in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    photos = crops(args.photos)[: args.images]
    denoiser = load_model(args.model, dtype=getattr(torch, args.dtype), channels_last=True)
    weights = denoiser.hash
    args.output.mkdir(parents=True, exist_ok=True)
    overrides = [o for o in args.overrides + rest]
    operators = [o for o in args.operator if "=" not in o]
    overrides += [o for o in args.operator if "=" in o]  # argparse gives trailing key=value to the last open list
    for operator, chosen in product(operators, combinations(overrides)):
        config = compose(operator, [args.method], args.model, args.preset, chosen)
        measurement = build_operator(config).measure(photos, sigma=config["sigma"], seed=config["seed"], gain=config["gain"])
        run = {"config": config, "measurement": measurement.hash, "weights": weights}
        run |= {"spacing": denoiser.schedule.spacing, "dtype": args.dtype}
        name = "-".join([operator, args.method, *chosen]).replace("/", "_")
        file = args.output / f"{name}.json"
        record = json.loads(file.read_text()) if file.exists() else {}
        if {k: record.get(k) for k in run} != run:
            record, pictures = evaluate(photos, measurement, config, denoiser)
            record = run | record
            panels = [grid([p[k] for p in pictures], columns=len(pictures)) for k in range(min(4, len(photos)))]
            write_image(args.output / f"{name}.png", torch.cat(panels, dim=-2))
            write_atomically(file, json.dumps(record, indent=2) + "\n")
        print(json.dumps({"run": name} | {k: v for k, v in record.items() if k not in (*run, "method")}), flush=True)
    print(markdown(rows([json.loads(file.read_text()) for file in sorted(args.output.glob("*.json"))])))


if __name__ == "__main__":
    main()

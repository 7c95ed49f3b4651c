"""Blind deblurring: how near a run that estimates the kernel comes to one that knows it.

    python -m invdiff.benchmarks.blind --input FOLDER --output FOLDER [--method ddrm]
        [--method diffpir] [--steps 30] [--images 12]

The centre 64x64 of photographs halved in size are blurred by kernels of 9 to 15 pixels with noise
of 0.02, border circular, and restored three times by each method from the same noise:

    known    with the true kernel
    wrong    with the Gaussian that the estimation starts from (sigma = k / 6)
    blind    with kernel=unknown, with kernel=unknown_gaussian where the true one is a Gaussian, and
             with every --prior NAME, a registered network of kernels that diffuse with the image

kernel error  ‖w − w true‖ / ‖w true‖, mean over the images
gap closed    (LPIPS wrong − LPIPS blind) / (LPIPS wrong − LPIPS known); none where the true kernel
              restores no better than the wrong one

Every run is kept in ``blind.json``; the same command goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff import images
from invdiff.benchmarks.metrics import lpips, psnr
from invdiff.benchmarks.tables import markdown
from invdiff.files import write_atomically
from invdiff.loading.model import load_model
from invdiff.operators.blur import Blur, blur
from invdiff.plugins.registry import load
from invdiff.problem import Measurement
from invdiff.sampling import make_method
from invdiff.solving import solve

SIDE, SIGMA = 64, 0.02
VALUES: dict[str, dict[str, float]] = {
    "ddrm": {"eta": 0.5},
    "diffpir": {"lmbda": 1, "zeta": 0.6},
    "dps": {"zeta": 5},
}
"""Of the presets for blurs, of 100 steps; others have their general ones."""
PER_STEP = {("dps", "zeta")}
"""Which of them is a length that the steps share, so that fewer are longer."""


def kernels() -> dict[str, Blur]:
    """The true blurs by name."""
    made = {
        f"motion, {size}": blur("motion", kernel_size=size, intensity=0.8, seed=seed)
        for size, seed in ((13, 2), (9, 1), (15, 3))
    }
    return made | {
        f"gaussian {sigma} px, {size}": blur("gaussian", sigma=sigma, kernel_size=size)
        for sigma, size in ((1.2, 15), (0.9, 9))
    }


def values(method: str, steps: int) -> dict[str, float]:
    """The values of a method in a run of so many steps."""
    return {
        name: value * 100 / steps if (method, name) in PER_STEP else value
        for name, value in VALUES.get(method, {}).items()
    }


def crops(folder: str, count: int) -> Tensor:
    """The photographs, (count, 3, SIDE, SIDE)."""
    made = []
    for path in images.find_images(folder)[:count]:
        x = F.avg_pool2d(images.read_image(path, 3), 2)
        if min(x.shape[-2:]) < SIDE:
            raise ValueError(f"{path} is too small: it must have {2 * SIDE} pixels on each side")
        top, left = ((n - SIDE) // 2 for n in x.shape[-2:])
        made.append(x[..., top : top + SIDE, left : left + SIDE])
    return torch.cat(made)


def table(records: list[dict[str, Any]]) -> str:
    """A row for every blind run, beside the runs that know and that err."""
    by = {(r["method"], r["blur"], r["run"]): r for r in records}
    rows = []
    for record in records:
        method, name = record["method"], record["blur"]
        known, wrong = by.get((method, name, "known")), by.get((method, name, "wrong"))
        if record["run"] in ("known", "wrong") or known is None or wrong is None:
            continue
        gap = wrong["lpips"] - known["lpips"]
        closed = (wrong["lpips"] - record["lpips"]) / gap if gap > 0 else None
        rows.append(
            {
                "method": method,
                "true blur": name,
                "kernel": record["run"],
                "kernel error": f"{record['kernel_error']:.2f} ({wrong['kernel_error']:.2f})",
                "LPIPS known": f"{known['lpips']:.3f}",
                "wrong": f"{wrong['lpips']:.3f}",
                "blind": f"{record['lpips']:.3f}",
                "gap closed": "none" if closed is None else f"{100 * closed:.0f} %",
                "PSNR known": f"{known['psnr']:.2f}",
                "wrong ": f"{wrong['psnr']:.2f}",
                "blind ": f"{record['psnr']:.2f}",
            }
        )
    return markdown(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes ``blind.json`` and ``blind.md``."""
    parser = argparse.ArgumentParser(prog="python -m invdiff.benchmarks.blind")
    parser.add_argument("--input", required=True, help="folder of photographs")
    parser.add_argument("--output", required=True)
    parser.add_argument("--method", action="append", help="repeat for several (default: ddrm)")
    parser.add_argument("--prior", action="append", default=[], help="network of kernels; repeat")
    parser.add_argument("--model", default="photo64")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--images", type=int, default=12)
    args = parser.parse_args(argv)
    folder = Path(args.output)
    file = folder / "blind.json"
    asked = {k: v for k, v in vars(args).items() if k not in ("output", "method", "prior")}
    kept: dict[str, Any]
    kept = json.loads(file.read_text()) if file.is_file() else {"asked": asked, "records": []}
    if not isinstance(kept, dict) or kept["asked"] != asked:
        parser.error(f"{file} is of another run; choose another --output")
    records: list[dict[str, Any]] = kept["records"]
    done = {(r["method"], r["blur"], r["run"]) for r in records}
    try:
        methods = {n: make_method(n, **values(n, args.steps)) for n in args.method or ["ddrm"]}
        denoiser, truth = load_model(args.model), crops(args.input, args.images)
        for prior in args.prior:
            load("models", prior)
    except ValueError as problem:
        parser.error(str(problem))
    folder.mkdir(parents=True, exist_ok=True)
    for (method, made), (name, operator) in product(methods.items(), kernels().items()):
        true = operator.make_kernel()
        measured = operator.measure(truth, sigma=SIGMA, seed=0)
        size = len(true)
        runs: dict[str, str | Tensor] = {}
        runs |= {"known": true, "wrong": blur("unknown", kernel_size=size).make_kernel()}
        runs |= {run: run for run in ("unknown", "unknown_gaussian", *args.prior)}
        if not name.startswith("gaussian"):
            del runs["unknown_gaussian"]
        for run, kernel in runs.items():
            if (method, name, run) in done:
                continue
            own = blur(kernel, kernel_size=size)
            if run in args.prior:
                own = blur("unknown", kernel_size=size, prior=run)
            given = Measurement(measured.y, own, SIGMA)
            result = solve(given, denoiser, made, steps=args.steps, seed=0)
            w = result.estimate("kernel")[0][:, 0].double() if own.unknown else own.make_kernel()
            error = torch.linalg.matrix_norm(w - true) / torch.linalg.matrix_norm(true)
            x = result.x.clamp(0, 1)
            records.append(
                {
                    "method": method,
                    "blur": name,
                    "run": run,
                    "kernel_error": float(error.mean()),
                    "lpips": float(lpips(x, truth).mean()),
                    "psnr": float(psnr(x, truth).mean()),
                    "seconds": result.seconds,
                }
            )
            write_atomically(file, json.dumps(kept, indent=1) + "\n")
    text = table(records)
    write_atomically(folder / "blind.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()

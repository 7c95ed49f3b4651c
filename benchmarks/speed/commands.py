"""Whole commands: the time before the first step, images together, boards of many records."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from invdiff.benchmarks.records import name_of
from invdiff.benchmarks.speed.measure import bare, in_turn, state
from invdiff.images import sample_photo, write_image
from invdiff.loading.model import load_model

RECORDS = 10_000


def start(rounds: int) -> dict[str, Any]:
    """`solve` with a single step, in a process of its own, beside `import torch` in another."""
    with tempfile.TemporaryDirectory() as folder:
        solve = ["-m", "invdiff", "solve", "--quiet", "--overwrite", "--output", f"{folder}/out"]
        contenders = {
            "import torch": partial(_process, "-c", "import torch"),
            "solve, its own photograph": partial(_process, *solve, "--steps", "1"),
            "solve, DPS": partial(_process, *solve, "--method", "dps", "--steps", "1"),
        }
        seconds = in_turn(contenders, rounds)
    torch_alone = seconds.pop("import torch")
    return {
        name: {
            "over import torch": round(taken / torch_alone, 2),
            "goal": 1.8,
            "seconds": round(taken, 2),
        }
        for name, taken in seconds.items()
    }


def together(rounds: int) -> dict[str, Any]:
    """Eight images of 64x64 as one batch beside one after the other: DDRM, 100 steps, as commands;
    and the network alone, which bounds what the command can gain, beside products of matrices of
    2048x2048, which bound what the network can."""
    denoiser, tries, evaluations = load_model("photo64"), 10 * rounds, 5
    one, eight = state(1), state(8)
    evaluate = partial(bare, denoiser, steps=evaluations, backward=False)
    alone = in_turn({"1": partial(evaluate, one), "8": partial(evaluate, eight)}, tries)
    with FlopCounterMode(display=False) as count:
        bare(denoiser, eight, steps=evaluations, backward=False)
    matrix = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    multiply = in_turn({"product": partial(torch.mm, matrix, matrix)}, tries)["product"]
    most = 2 * 2048**3 / multiply
    with tempfile.TemporaryDirectory() as folder:
        photo, images = sample_photo(128)[0], Path(folder) / "in"
        images.mkdir()
        for k in range(8):
            write_image(images / f"{k}.png", photo[..., 8 * k : 8 * k + 64, 8 * k : 8 * k + 64])
        solve = ["-m", "invdiff", "solve", "--quiet", "--overwrite", "--input", str(images)]
        solve += ["--method", "ddrm", "--steps", "100", "--output", f"{folder}/out"]
        contenders = {size: partial(_process, *solve, "--batch-size", size) for size in ("1", "8")}
        seconds = in_turn(contenders, rounds)
    return {
        "8 images of 64x64, ddrm, 100 steps": {
            "images a second, together over one at a time": round(seconds["1"] / seconds["8"], 2),
            "goal": 1.5,
        },
        "the network alone": {
            "images a second, together over one at a time": round(8 * alone["1"] / alone["8"], 2),
            "of the operations a second of a matrix product": round(
                count.get_total_flops() / alone["8"] / most, 2
            ),
        },
    }


def board(rounds: int) -> dict[str, Any]:
    """`leaderboard` over many records: those of a small run, under other names of images."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options = ["--quiet", "--output", str(run), "--operator", "sr", "--method", "ddrm"]
        small = ["images.limit=1", "methods.ddrm.steps=2", "lossless=false"]
        _process("-m", "invdiff", "bench", "--suite", "quick", *options, *small)
        record = json.loads(next(run.glob("*.json")).read_text())
        many, hundred = Path(folder) / "many", list(range(100))
        many.mkdir()
        (many / "pictures").symlink_to(run / "pictures")
        cell, kept = record["cell"], record["cell"]["label"]
        cell["benchmark"]["seeds"] = hundred
        for row, seed in product(range(RECORDS // 100), hundred):
            cell |= {"label": f"{kept} {row}", "seed": seed}
            (many / name_of(record)).write_text(json.dumps(record))
        tables = partial(_process, "-m", "invdiff", "leaderboard", str(many))
        seconds = in_turn({"board": tables}, rounds)["board"]
    return {f"{RECORDS:,} records": {"seconds": round(seconds, 1), "goal": 6.0}}


def _process(*arguments: str) -> None:
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)}: {run.stderr}")

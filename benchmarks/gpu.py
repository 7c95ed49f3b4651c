"""What a GPU computes, held against the CPU; where it is made to wait; what the loop costs there.

    python -m invdiff.benchmarks.gpu [--device cuda] [--output FOLDER] [--only agreement waits loop]

Three tables, of ``photo64`` and 64x64 images. *agreement*: every method with the first operator
that it takes and every operator with the first method that takes it, on both devices from the same
seed, in float32 without TF32; the largest difference between their images in [0, 1]. *waits*: how
often a step makes the host wait for the device, as CUDA's own watch counts it. *loop*: seconds of a
step over those of the network's bare evaluations, and the peak memory, in float32 without and with
TF32 and in bfloat16. Prints them, writes ``gpu.json`` into the folder, and ends with exit code 1
where devices differ or wait. Where there is no GPU it says so; ``--device cpu`` holds the CPU
against itself, which tries the command.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from invdiff.benchmarks.environment import environment
from invdiff.benchmarks.speed.measure import bare, in_turn
from invdiff.benchmarks.tables import markdown
from invdiff.device import choose_device, peak_memory_mb, reset_peak_memory
from invdiff.files import write_atomically
from invdiff.images import sample_photo
from invdiff.loading.model import load_model
from invdiff.network import Denoiser
from invdiff.plugins.registry import list_plugins
from invdiff.problem import Measurement, make_operator
from invdiff.solving import solve
from invdiff.solving.solve import check_solve

SIZE, STEPS = 64, 4
CLOSE = 5e-3
"""Of two devices in float32; an image of 8 bits has steps of 4e-3."""
FIRST = ("inpaint", "sr", "blur")
"""Operators that are tried before the others."""
TIMED = ("none", "dps", "diffpir", "ddrm")
BATCHES = (1, 16)


def measurements() -> dict[str, Measurement]:
    """One of every registered operator that needs no parameters, on the CPU."""
    photo, found = sample_photo(SIZE)[0], dict[str, Measurement]()
    for name in dict.fromkeys((*FIRST, *list_plugins("operators"))):
        try:
            found[name] = make_operator(name).measure(photo, sigma=0.05)
        except (TypeError, ValueError):  # needs a file, or an image of another kind
            continue
    return found


def pairs(denoiser: Denoiser, given: dict[str, Measurement]) -> list[tuple[str, str]]:
    """Every method with the first operator that it takes, and every operator with the first method
    that takes it; those that nothing fits, such as methods that need labels, are left out."""
    methods, found = list_plugins("guidance"), set[tuple[str, str]]()
    for method in methods:
        fitting = (o for o, measurement in given.items() if _fits(denoiser, method, measurement))
        found |= {(method, operator) for operator in islice(fitting, 1)}
    for operator, measurement in given.items():
        if operator not in {known for _, known in found}:
            takers = (m for m in methods if m != "none" and _fits(denoiser, m, measurement))
            found |= {(method, operator) for method in islice(takers, 1)}
    return sorted(found)


def _fits(denoiser: Denoiser, method: str, measurement: Measurement) -> bool:
    try:
        check_solve(measurement, denoiser, method, steps=STEPS)
    except (TypeError, ValueError):
        return False
    return True


def agreement(device: torch.device, rounds: int) -> dict[str, Any]:
    """The largest difference between the images of both devices, and of what."""
    networks = load_model("photo64"), load_model("photo64").to(device)
    given, found = measurements(), dict[str, Any]()
    with precision("float32"):
        for method, operator in pairs(networks[0], given):
            here, there = (
                solve(given[operator].to(network.device), network, method, steps=STEPS).x.cpu()
                for network in networks
            )
            difference = float((here - there).abs().max())
            found[f"{method}, {operator}"] = {
                "difference": f"{difference:.1e}",
                "close": difference <= CLOSE,
            }
    return found


def waits(device: torch.device, rounds: int) -> dict[str, Any]:
    """How often each step makes the host wait: of twice as many steps the waits more, so that those
    of getting ready are left out."""
    if device.type != "cuda":
        return {}
    denoiser, given, found = load_model("photo64").to(device), measurements(), dict[str, Any]()
    for method, operator in pairs(denoiser, given):
        run = partial(solve, given[operator].to(device), denoiser, method)
        run(steps=STEPS)  # what is made once waits once
        few, many = (_waits_of(partial(run, steps=steps)) for steps in (STEPS, 2 * STEPS))
        found[f"{method}, {operator}"] = {"waits a step": (many - few) / STEPS}
    return found


def _waits_of(run: Any) -> int:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing CUDA" in str(w.message) for w in caught)


def loop(device: torch.device, rounds: int) -> dict[str, Any]:
    """Seconds of a step over those of the bare evaluations, and the peak memory."""
    found = {}
    for name in ("float32", "tf32", "bfloat16"):
        dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
        denoiser = load_model("photo64", dtype=dtype, channels_last=True).to(device)
        for batch in BATCHES:
            photo = sample_photo(SIZE)[0].expand(batch, -1, -1, -1).contiguous()
            measurement = make_operator("inpaint").measure(photo, sigma=0.05).to(device)
            x = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
            steps, x = 5 * STEPS, x.to(device)
            runs = {
                "forward": partial(bare, denoiser, x, steps, False),
                "backward": partial(bare, denoiser, x, steps, True),
            } | {
                method: partial(solve, measurement, denoiser, method, steps=steps)
                for method in TIMED
            }
            with precision(name):
                seconds = in_turn(
                    {k: partial(_whole, run, device) for k, run in runs.items()}, rounds
                )
            for method in TIMED:
                reset_peak_memory(device)
                result = solve(measurement, denoiser, method, steps=steps)
                evaluations = seconds["backward" if result.nbe else "forward"]
                found[f"{method}, {name}, B = {batch}"] = {
                    "ms a step": round(1000 * seconds[method] / steps, 2),
                    "over bare evaluations": round(seconds[method] / evaluations, 2),
                    "peak memory, MiB": peak_memory_mb(device),
                }
    return found


def _whole(run: Any, device: torch.device) -> None:
    """A run to its end: what was sent to a GPU is waited for."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Multiplication of float32 in full, or as TF32 where the GPU has it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


PARTS = {part.__name__: part for part in (agreement, waits, loop)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m invdiff.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, help="folder for gpu.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    try:
        device = choose_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else environment()["processor"]
    found: dict[str, Any] = {"device": name, "environment": environment()}
    print(f"{name}, torch {torch.__version__}\n")
    for part in args.only:
        found[part] = PARTS[part](device, args.rounds)
        rows = [{part: key, **figures} for key, figures in found[part].items()]
        print(
            f"{markdown(rows) if rows else f'{part}: nothing to count on {device.type}'}\n",
            flush=True,
        )
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output / "gpu.json", json.dumps(found, indent=2) + "\n")
    wrong = [k for k, row in found.get("agreement", {}).items() if not row["close"]]
    wrong += [k for k, row in found.get("waits", {}).items() if row["waits a step"] > 0]
    if wrong:
        print(f"{len(wrong)} differ or wait: {'; '.join(wrong)}")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())

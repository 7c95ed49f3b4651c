"""``python -m invdiff.benchmarks.speed``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from invdiff.benchmarks import speed
from invdiff.benchmarks.speed.commands import board, start, together
from invdiff.benchmarks.speed.free import free
from invdiff.benchmarks.speed.loops import conditional, overhead, peers
from invdiff.benchmarks.speed.problems import operators, solvers, tiled, windows
from invdiff.benchmarks.tables import markdown
from invdiff.files import write_atomically

PARTS = {
    part.__name__: part
    for part in (
        *(overhead, conditional, free, peers, operators, solvers, tiled, windows),
        *(start, together, board),
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m invdiff.benchmarks.speed",
        description=speed.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, help="folder for speed.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {"threads": args.threads, "torch": torch.__version__}
    for part in args.only:
        found[part] = PARTS[part](args.rounds)
        rows = [
            {part: name, **(figures if isinstance(figures, dict) else {"measured": figures})}
            for name, figures in found[part].items()
        ]
        print(f"{markdown(rows)}\n", flush=True)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output / "speed.json", json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

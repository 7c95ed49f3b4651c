"""``invdiff bench``: a suite of measurements, cell by cell, and its table."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from invdiff.benchmarks import harness
from invdiff.commands import check_paths
from invdiff.config import compose_suite
from invdiff.files import write_atomically
from invdiff.registry import check_names


def run(args: argparse.Namespace) -> None:
    """Evaluates the cells that are not finished yet, then writes ``results.md`` and prints it.

    Raises:
        ValueError: a suite, method or override that does not exist; cells that failed, once all others are done.
    """
    check_paths(args, ("output",))
    if args.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {args.workers}")
    config: dict[str, Any] = compose_suite(args.suite, args.overrides)
    if args.method:
        check_names(f"suite {args.suite!r} (--method)", args.method, list(config["methods"]))
        config["methods"] = {name: config["methods"][name] for name in args.method}
    folder = Path(args.output or f"invdiff-bench-{args.suite}")
    suite = importlib.import_module(f"invdiff.benchmarks.{config['kind']}")
    cells = suite.cells(config)
    records = harness.run(suite.__name__, cells, suite.context(config), folder, args.workers, progress=not args.quiet)
    table = suite.report(config, records)
    write_atomically(folder / "results.md", table + "\n")
    if not args.quiet:
        print(table)
    harness.check(records, folder)
    if not args.quiet:
        print(f"{len(cells)} cells -> {folder}/results.md", file=sys.stderr)

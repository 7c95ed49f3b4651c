"""``invdiff leaderboard``: result folders as tables; folders that are checked, and merged."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from invdiff.benchmarks.leaderboard import (
    COSTS,
    SECTIONS,
    Table,
    add_set_scores,
    cautions,
    markdown,
    tables,
)
from invdiff.benchmarks.records import benchmark_hash, merge, problems, read_records
from invdiff.commands.common import check_paths
from invdiff.files import write_atomically

OPTIONS = {
    "show": {
        "format",
        "output",
        "baseline",
        "benchmark",
        "metric",
        "set_score",
        "weights",
        "pictures",
    },
    "validate": set(),
    "merge": {"output"},
}
"""That each action takes."""


def run(args: argparse.Namespace) -> None:
    """Shows, validates or merges; which one is the first argument, ``validate`` or ``merge``, where
    it is one of these.

    Raises:
        ValueError: options that the action has not; records that do not compare; of ``validate``,
            that something is wrong.
    """
    check_paths(args, ("output",))
    action, folders = (
        (args.folders[0], args.folders[1:])
        if args.folders[0] in OPTIONS
        else ("show", args.folders)
    )
    if not folders:
        raise ValueError(
            f"`invdiff leaderboard {action}` needs a folder of records (a folder that is "
            f"called {action} is ./{action})"
        )
    for name in OPTIONS["show"] - OPTIONS[action]:
        if getattr(args, name) is not None:
            raise ValueError(f"`invdiff leaderboard {action}` has no --{name.replace('_', '-')}")
    {"show": _show, "validate": _validate, "merge": _merge}[action](folders, args)


def _show(folders: Sequence[str], args: argparse.Namespace) -> None:
    output = None if args.output in (None, "-") else Path(args.output)
    form = args.format or "markdown"
    if form == "html" and output is None:
        raise ValueError("the page is a file; say which: --output leaderboard.html")
    found = tables(read_records(folders), args.baseline, args.benchmark, args.metric)
    for table in found if args.set_score else ():
        add_set_scores(table, args.set_score, args.weights and Path(args.weights))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    if form != "markdown":  # which has them in its text
        for caution in dict.fromkeys(c for table in found for c in cautions(table)):
            warnings.warn(caution, stacklevel=2)
    if form == "html":
        from invdiff.benchmarks.leaderboard import page

        assert output is not None
        page.write(
            {"format": 1, "tables": found},
            output,
            page.PICTURES if args.pictures is None else args.pictures,
        )
        return
    text = FORMATS[form](found, output.parent if output else Path())
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomically(output, text)


def _validate(folders: Sequence[str], args: argparse.Namespace) -> None:
    wrong, records = problems(folders)
    for line in wrong:
        print(" ".join(line.split()))
    if wrong:
        raise ValueError(
            f"{len(wrong)} problems in {', '.join(folders)}; {len(records)} records have none"
        )
    kinds = Counter(
        next(
            k
            for k in ("failure", "refused", "diverged", "metrics")
            if k in record or k in record.get("result", {})
        )
        for record in records
    )
    words = {
        "metrics": "with results",
        "failure": "failed",
        "refused": "refused",
        "diverged": "diverged",
    }
    counts = Counter(
        (record["cell"]["benchmark"]["name"], benchmark_hash(record["cell"])) for record in records
    )
    said = ", ".join(f"{kinds[kind]} {word}" for kind, word in words.items() if kinds[kind])
    print(
        f"{len(records)} records are valid ({said}): "
        f"{', '.join(f'{name} {hashed} ({n})' for (name, hashed), n in counts.items())}"
    )


def _merge(folders: Sequence[str], args: argparse.Namespace) -> None:
    if args.output is None:
        raise ValueError("say where the merged records go: --output FOLDER")
    records = merge(folders, Path(args.output))
    print(f"{len(records)} records -> {args.output}", file=sys.stderr)


def _markdown(found: Sequence[Table], base: Path) -> str:
    return markdown(found) + "\n"


def _json(found: Sequence[Table], base: Path) -> str:
    """With folders relative to where it is written, so that it can be published."""

    def placed(table: Table) -> Table:
        rows = [
            row
            | {
                "cells": [
                    cell | {"folder": _relative(cell["folder"], base)} for cell in row["cells"]
                ]
            }
            for row in table["rows"]
        ]
        return table | {"rows": rows}

    return (
        json.dumps(
            {"format": 1, "tables": [placed(table) for table in found]}, indent=2, allow_nan=False
        )
        + "\n"
    )


def _relative(folder: str, base: Path) -> str:
    return Path(os.path.relpath(folder, base)).as_posix()


def _csv(found: Sequence[Table], base: Path) -> str:
    """A line for each row and benchmark, every figure in full."""
    lines: list[dict[str, Any]] = []
    for table in found:
        for row in table["rows"]:
            line = {"benchmark": table["benchmark"]["name"], "hash": table["benchmark"]["hash"]}
            line |= {name: row[name] for name in ("id", "label", "kind")} | {
                "model": (row["model"] or {}).get("name")
            }
            line |= {"values": json.dumps(row["values"])} | {
                name: row[name] for name in ("complete", "images", "of")
            }
            for section, prefix in [
                *zip(SECTIONS, ("", "mean_", "spread_"), strict=True),
                ("paired", "paired_"),
            ]:
                for name, score in row[section].items():
                    line |= {
                        f"{prefix}{name}{'' if k == 'mean' else f'_{k}'}": v
                        for k, v in score.items()
                    }
            line |= {name: row["cost"][name] for name in COSTS}
            lines.append(line | {"problems": "; ".join(row["problems"])})
    columns = [
        name
        for name in dict.fromkeys(k for line in lines for k in line)
        if any(line.get(name) is not None for line in lines)
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def _inert(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula, marked as text: records come from
    strangers."""
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )


FORMATS: dict[str, Callable[[Sequence[Table], Path], str]] = {
    "markdown": _markdown,
    "csv": _csv,
    "json": _json,
}
"""Those that are text."""

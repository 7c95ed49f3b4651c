"""Tables as text for other programs: CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from invdiff.benchmarks.leaderboard.types import COSTS, Row, Table

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Text that begins so is a formula to a spreadsheet."""


def to_json(tables: Sequence[Table], base: Path) -> str:
    """Tables with folders relative to ``base``, where the text is written, so that it can be
    published."""
    found = [{**table, "rows": [_placed(row, base) for row in table["rows"]]} for table in tables]
    return json.dumps({"format": 1, "tables": found}, indent=2, allow_nan=False) + "\n"


def _placed(row: Row, base: Path) -> Mapping[str, Any]:
    cells = []
    for cell in row["cells"]:
        folder = cell["folder"]
        placed = None if folder is None else Path(os.path.relpath(folder, base)).as_posix()
        cells.append({**cell, "folder": placed})
    return {**row, "cells": cells}


def to_csv(tables: Sequence[Table], base: Path) -> str:
    """A line for each row and benchmark, every figure in full. Records come from strangers: text
    that a spreadsheet would take for a formula is marked as text, in headers too."""
    lines = [dict(_line(table, row)) for table in tables for row in table["rows"]]
    columns = [
        name
        for name in dict.fromkeys(k for line in lines for k in line)
        if any(line.get(name) is not None for line in lines)
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_inert, columns))
    writer.writerows([_inert(line.get(name)) for name in columns] for line in lines)
    return text.getvalue()


def _line(table: Table, row: Row) -> Iterator[tuple[str, Any]]:
    yield "benchmark", table["benchmark"]["name"]
    yield "hash", table["benchmark"]["hash"]
    yield from ((name, row[name]) for name in ("id", "label", "kind"))
    yield "model", row["model"] and row["model"]["name"]
    yield "values", json.dumps(row["values"])
    yield from ((name, row[name]) for name in ("complete", "images", "of"))
    sections: dict[str, Mapping[str, Mapping[str, Any]]] = {
        "": row["scores"],
        "mean_": row["mean"],
        "spread_": row["spread"],
        "paired_": row["paired"],
    }
    for prefix, section in sections.items():
        for name, score in section.items():
            for part, value in score.items():
                yield f"{prefix}{name}{'' if part == 'mean' else f'_{part}'}", value
    yield from ((name, row["cost"][name]) for name in COSTS)
    yield "problems", "; ".join(row["problems"])
    yield "warnings", "; ".join(row["warnings"]) or None


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value

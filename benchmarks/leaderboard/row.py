"""One row of a table, from the records of its cells."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from invdiff.benchmarks.leaderboard.types import COSTS, SECTIONS, Cell, Row, Score, Values
from invdiff.benchmarks.schema import Benchmark, Better, Figures, Record, result_of, without_folders
from invdiff.benchmarks.statistics import interval, per_image

Cells = dict[tuple[int, int], Record]
"""The records of a row, by image and seed."""


@dataclass(frozen=True)
class Context:
    """The number of images, the names that are known of them, seeds and metrics (name -> which way
    is better) of a table."""

    count: int
    names: Mapping[int, str]
    seeds: Sequence[int]
    better: Mapping[str, Better]

    @classmethod
    def of(
        cls, benchmark: Benchmark, records: Sequence[Record], better: Mapping[str, Better]
    ) -> Context:
        """Of the records of a benchmark."""
        names = {image["index"]: image["name"] for r in records for image in r["cell"]["batch"]}
        return cls(benchmark["images"]["count"], names, benchmark["seeds"], better)

    def name(self, image: int) -> str:
        """Of an image; one that no record names is numbered."""
        return self.names.get(image, f"image {image}")

    def missing(self, cells: Cells) -> Iterator[int]:
        """The images of the cells that a row lacks, in order."""
        places = product(range(self.count), self.seeds)
        return (image for image, seed in places if (image, seed) not in cells)


def row_of(name: str, label: str, cells: Cells, context: Context) -> Row:
    """A row without ranks and differences.

    Args:
        name: a digest of what its cells share, its id.
        label: that no other row has.
        cells: its records.
        context: of the table.
    """
    records, count, seeds = list(cells.values()), context.count, context.seeds
    cell = records[0]["cell"]
    done = {k: r for k, r in sorted(cells.items()) if "metrics" in result_of(r)}
    seeds_of = Counter(image for image, _ in done)
    return {
        "id": name,
        "label": label,
        "method": cell["label"],
        "kind": cell["kind"],
        "values": cell["values"],
        "model": cell["model"],
        "complete": len(done) == count * len(seeds),
        "images": sum(n == len(seeds) for n in seeds_of.values()),
        "of": count,
        "problems": _problems(cells, context),
        "warnings": _warnings(done),
        "scores": _scores(done, SECTIONS["scores"], context.better),
        "mean": _scores(done, SECTIONS["mean"], context.better),
        "spread": _scores(done, SECTIONS["spread"], None),
        "paired": {},
        "cost": _cost([r["result"] for r in done.values()]),
        "environment": _environment(records),
        "cells": [_cell(r) for r in done.values()],
    }


def _scores(cells: Cells, part: str, wanted: Mapping[str, Better] | None) -> dict[str, Score]:
    """The figures of a part of the results: those wanted, else all; of the metrics each that is
    wanted, measured or not."""
    there = dict.fromkeys(n for r in cells.values() for n in r["result"].get(part, {}))
    if wanted is None:
        names = list(there)
    else:
        names = [n for n in wanted if part == "metrics" or n in there]
    found: dict[str, Score] = {}
    for name in names:
        found[name] = {**interval(per_image(values_of(cells, part, name))), "rank": None}
    return found


def values_of(cells: Cells, part: str, name: str) -> Values:
    """A figure by image and seed, where there is one."""
    found = {k: result_of(r).get(part, {}).get(name) for k, r in cells.items()}
    return {k: v for k, v in found.items() if v is not None}


def _cell(record: Record) -> Cell:
    cell, result = record["cell"], record["result"]
    return {
        "image": cell["image"]["name"],
        "seed": cell["seed"],
        "metrics": result["metrics"],
        "files": result.get("files", {}),
        # Of a record that was not read from a file there is no folder.
        "folder": str(Path(record["file"]).parent) if "file" in record else None,
    }


def _problems(cells: Cells, context: Context) -> list[str]:
    """The reasons why a row is not complete, one line for each."""
    reasons: dict[tuple[str, str], list[int]] = {}
    for (image, _), record in sorted(cells.items()):
        for reason in _reasons(record, context.better):
            reasons.setdefault(reason, []).append(image)
    total = context.count * len(context.seeds)
    lines = [_problem(r, len(of), total, iter(of), context) for r, of in reasons.items()]
    if lack := total - len(cells):
        missing = _problem(("missing", ""), lack, total, context.missing(cells), context)
        return [missing, *lines]
    return lines


def _warnings(cells: Cells) -> list[str]:
    """What the records warn of, each once, with how many cells it is about."""
    counts = Counter(_alike(w) for r in cells.values() for w in r["result"].get("warnings", []))
    return [f"{n} of {len(cells)}: {text}" for text, n in counts.items()]


def _alike(warning: str) -> str:
    """A warning without its figures with a decimal point, which differ between images."""
    return re.sub(r"\d+\.\d+", "...", _line(warning))


def _problem(
    reason: tuple[str, str], count: int, total: int, images: Iterator[int], context: Context
) -> str:
    """A reason, of how many cells it is one, and the first of their images."""
    what, why = reason
    first: dict[int, None] = {}
    for image in images:
        first[image] = None
        if len(first) > 3:
            break
    names = ", ".join(context.name(image) for image in list(first)[:3])
    some = f" ({names}{', ...' if len(first) > 3 else ''})"
    which = "" if count == total else some
    return f"{count} of {total} {what}{which}{': ' if why else ''}{why}"


def _reasons(record: Record, better: Mapping[str, Better]) -> list[tuple[str, str]]:
    if "failure" in record:
        return [("failed", _line(record["failure"]["error"]))]
    result = record["result"]
    if stopped := [(k, _line(result[k])) for k in ("refused", "diverged") if k in result]:
        return stopped
    return [
        (f"without {name}", "")
        for name in better
        if better[name] and result["metrics"].get(name) is None
    ]


def _line(text: str) -> str:
    return without_folders(" ".join(text.split()))


def _cost(results: Sequence[Mapping[str, Any]]) -> Figures:
    """Means over the cells; of memory the largest."""
    given = {name: [r[name] for r in results if r.get(name) is not None] for name in COSTS}
    return {
        name: (max if name == "peak_memory_mb" else fmean)(values) if values else None
        for name, values in given.items()
    }


def _environment(records: Sequence[Record]) -> dict[str, Any]:
    """Of all cells: a value where they agree, the list of values where they do not."""
    names = dict.fromkeys(name for r in records for name in r["environment"])
    seen = {
        name: list(dict.fromkeys(r["environment"].get(name) for r in records)) for name in names
    }
    return {name: values[0] if len(values) == 1 else values for name, values in seen.items()}

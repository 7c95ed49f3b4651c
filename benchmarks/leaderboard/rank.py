"""Ranks, the order of rows, and the row that others are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from invdiff.benchmarks.leaderboard.types import Row
from invdiff.benchmarks.statistics import decimals


def rank(rows: Sequence[Row], better: Mapping[str, str | None]) -> None:
    """Marks the best and the second best, to the printed digits: what looks equal shares its
    rank."""
    for section, (name, direction) in product(("scores", "mean"), better.items()):
        column = [row[section][name] for row in rows if name in row[section]]
        digits, sign = (
            decimals(score["mean"] for score in column),
            {"higher": -1, "lower": 1}.get(direction or ""),
        )
        whole = [
            row
            for row in rows
            if row["complete"] and name in row[section] and _everywhere(row, section, name)
        ]
        printed = (
            sorted(sign * round(row[section][name]["mean"], digits) for row in whole)
            if sign
            else []
        )
        for row in whole if sign else []:
            rank = 1 + printed.index(sign * round(row[section][name]["mean"], digits))
            row[section][name]["rank"] = rank if rank <= 2 else None


def _everywhere(row: Row, section: str, name: str) -> bool:
    """Whether each image, and each of its seeds, has the figure; it may be undefined for some."""
    return row[section][name]["n"] == row["of"] and all(
        cell["metrics"].get(name) is not None for cell in row["cells"]
    )


def order(row: Row, ranked: str | None, better: Mapping[str, str | None]) -> tuple[Any, ...]:
    mean = row["scores"][ranked]["mean"] if ranked and row["complete"] else None
    sign = -1 if ranked and better[ranked] == "higher" else 1
    return (not row["complete"], mean is None, sign * (mean or 0), row["label"])


def reference_row(rows: Sequence[Row], plain: Mapping[str, str], wanted: str | None) -> str | None:
    """The label of the row that is meant, by its label in the table or, where that is one row's
    alone, in the suite."""
    if wanted is None or wanted in plain:
        return wanted
    meant = [label for label in (row["label"] for row in rows) if plain[label] == wanted]
    if len(meant) > 1:
        raise ValueError(
            f"--baseline {wanted!r} could be any of {len(meant)} rows; give one of "
            f"{', '.join(map(repr, meant))}"
        )
    return meant[0] if meant else None

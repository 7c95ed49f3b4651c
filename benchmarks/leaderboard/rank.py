"""Ranks, the order of rows, and the row that others are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from invdiff.benchmarks.leaderboard.types import Row, Score, Section
from invdiff.benchmarks.schema import Better
from invdiff.benchmarks.statistics import Interval, decimals

SIGN = {"higher": -1, "lower": 1}
"""Times which a figure is better when it is lower."""


FEWEST = 3
"""Images that a figure is a mean over, at least, before it is called the best."""


def rank(rows: Sequence[Row], better: Mapping[str, Better]) -> None:
    """Marks the best and the second best of the complete rows, where their intervals say so: the
    interval of the best overlaps no other's, that of the second none of those behind it."""
    sections: tuple[Section, ...] = ("scores", "mean")
    for section in sections:
        for name, direction in better.items():
            if direction is not None:
                _rank_column(rows, section, name, SIGN[direction])


def _rank_column(rows: Sequence[Row], section: Section, name: str, sign: int) -> None:
    column = [(row, row[section][name]) for row in rows if name in row[section]]
    whole = [score for row, score in column if row["complete"] and _everywhere(row, score, name)]
    step = 10.0 ** -decimals(score["mean"] for _, score in column)
    whole.sort(key=lambda score: sign * (score["mean"] or 0))
    for place, score in enumerate(whole[:2], 1):
        if score["n"] < FEWEST or not all(_apart(score, other, step) for other in whole[place:]):
            break
        score["rank"] = place


def _apart(a: Interval, b: Interval, step: float) -> bool:
    """Whether the intervals of two figures do not overlap, and the figures differ by a step of the
    printed digits."""
    if a["mean"] is None or b["mean"] is None or a["half"] is None or b["half"] is None:
        return False
    return abs(a["mean"] - b["mean"]) > max(step, a["half"] + b["half"])


def _everywhere(row: Row, score: Score, name: str) -> bool:
    """Whether each image, and each of its seeds, has the figure; it may be undefined for some."""
    return score["n"] == row["of"] and all(
        cell["metrics"].get(name) is not None for cell in row["cells"]
    )


def order(row: Row, better: Mapping[str, Better]) -> tuple[Any, ...]:
    """The sort key of rows: complete ones first, by the first metric that is ranked."""
    name, direction = next(((n, b) for n, b in better.items() if b is not None), (None, None))
    mean = row["scores"][name]["mean"] if name is not None and row["complete"] else None
    sign = SIGN[direction] if direction is not None else 1
    return (not row["complete"], mean is None, sign * (mean or 0), row["label"])


def reference_row(rows: Sequence[Row], wanted: str | None) -> Row | None:
    """The row that is meant, by its label in the table or, where that is one row's alone, in the
    suite.

    Raises:
        ValueError: the label in the suite is that of several rows.
    """
    by_label = {row["label"]: row for row in rows}
    if wanted in by_label:
        return by_label[wanted]
    meant = [row for row in rows if row["method"] == wanted]
    if len(meant) > 1:
        raise ValueError(
            f"--baseline {wanted!r} could be any of {len(meant)} rows; give one of "
            f"{', '.join(repr(row['label']) for row in meant)}"
        )
    return meant[0] if meant else None

"""The types of tables, which are plain data: ``invdiff leaderboard --format json`` writes them and
the HTML page reads them."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from invdiff.benchmarks.records import FIGURES
from invdiff.benchmarks.schema import Benchmark, Better, Figures, Network
from invdiff.benchmarks.statistics import Interval

Values = dict[tuple[int, int], float]
"""By image and seed."""
Section = Literal["scores", "mean", "spread"]
SECTIONS: dict[Section, str] = dict(zip(("scores", "mean", "spread"), FIGURES, strict=True))
"""Sections of a row, and the part of a result that each is about."""
COSTS = {"nfe": "NFE", "nbe": "NBE", "seconds": "s per sample", "peak_memory_mb": "peak MB"}


class Score(Interval):
    """A figure of a row: its mean and interval, and the rank of the best two."""

    rank: int | None


class Cell(TypedDict):
    """One image and seed of a row; its files are relative to the folder."""

    image: str
    seed: int
    metrics: Figures
    files: dict[str, str]
    folder: str | None


class Row(TypedDict):
    """One method, baseline or setting of a table.

    ``scores``, ``mean`` (of the posterior mean) and ``spread`` (of the samples) are figures by
    name; ``paired`` the differences of ranked metrics to the row that is compared with. ``images``
    of ``of`` are finished, ``problems`` say what is missing, ``warnings`` what
    ``invdiff solve`` would warn of. ``environment`` has a list where cells
    differ. ``cells`` are those with a result.
    """

    id: str
    label: str
    method: str
    kind: str
    values: dict[str, Any]
    model: Network | None
    complete: bool
    images: int
    of: int
    problems: list[str]
    warnings: list[str]
    scores: dict[str, Score]
    mean: dict[str, Score]
    spread: dict[str, Score]
    paired: dict[str, Interval]
    cost: Figures
    environment: dict[str, Any]
    cells: list[Cell]


class NamedBenchmark(Benchmark):
    """A benchmark and its hash."""

    hash: str


class RankedMetric(TypedDict):
    """A metric of a table, with the name that people write; better is None where it is not ranked,
    as consistency."""

    name: str
    title: str
    better: Better


class Table(TypedDict):
    """One benchmark: the complete rows first, by the first metric that is ranked; ``baseline`` is
    the label of the row that others are compared with."""

    benchmark: NamedBenchmark
    baseline: str | None
    metrics: list[RankedMetric]
    rows: list[Row]
    cautions: NotRequired[list[str]]

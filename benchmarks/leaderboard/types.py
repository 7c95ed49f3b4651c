"""The parts of a table."""

from __future__ import annotations

from typing import Any

from invdiff.benchmarks.records import FIGURES

Table = dict[str, Any]


Row = dict[str, Any]


Values = dict[tuple[int, int], float]
"""By image and seed."""


SECTIONS = dict(zip(("scores", "mean", "spread"), FIGURES, strict=True))
"""Of a row, and the part of a result that each is about."""


COSTS = {"nfe": "NFE", "nbe": "NBE", "seconds": "s per sample", "peak_memory_mb": "peak MB"}

"""Scores of whole sets of images, added to a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from invdiff.benchmarks.leaderboard.types import Row, Table
from invdiff.benchmarks.schema import Better
from invdiff.benchmarks.scoring import set_scores
from invdiff.images import read_image

BETTER: dict[str, Better] = {"fid": "lower", "kid": "lower", "is": "higher"}


def add_set_scores(table: Table, which: Sequence[str], weights: Path | None) -> None:
    """Adds scores of whole sets (:func:`~invdiff.benchmarks.scoring.set_scores`), of the
    restorations against the truths, to the complete rows.

    They are computed from the pictures, of 8 bits, one sample of each cell, and are not ranked:
    without an interval nothing says which differences are of chance. A bootstrap over images gives
    none, since FID falls with the number of different images.

    Raises:
        ValueError: the extra, the weights or pictures are missing.
    """
    table["metrics"] += [
        {"name": name, "title": name.upper(), "better": BETTER[name]} for name in which
    ]
    for row in table["rows"]:
        if row["complete"]:
            _score(row, which, weights)


def _score(row: Row, which: Sequence[str], weights: Path | None) -> None:
    restored, truth = (
        [
            read_image(Path(cell["folder"] or "") / cell["files"][what], channels=3)
            for cell in row["cells"]
        ]
        for what in ("restoration", "truth")
    )
    found = set_scores(restored, truth, which, weights)
    for name in which:
        row["scores"][name] = {"mean": found[name], "half": None, "n": len(restored), "rank": None}

"""Scores of whole sets of images, added to a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from invdiff.benchmarks.leaderboard.types import Table


def add_set_scores(table: Table, which: Sequence[str], weights: Path | None) -> None:
    """Adds scores of whole sets (:func:`~invdiff.benchmarks.scoring.set_scores`), of the
    restorations against the truths, to the complete rows.

    They are computed from the pictures, of 8 bits, one sample of each cell.

    Raises:
        ValueError: the extra, the weights or pictures are missing.
    """
    from invdiff.benchmarks.scoring import set_scores
    from invdiff.images import read_image

    better = {"fid": "lower", "kid": "lower", "is": "higher"}
    table["metrics"] += [{"name": name, "better": better[name]} for name in which]
    for row in table["rows"]:
        if row["complete"]:
            files = [
                [Path(cell["folder"]) / cell["files"][what] for cell in row["cells"]]
                for what in ("restoration", "truth")
            ]
            restored, truth = ([read_image(file, channels=3) for file in of] for of in files)
            found = set_scores(restored, truth, which, weights)
            row["scores"] |= {
                name: {"mean": found[name], "half": None, "n": len(restored), "rank": None}
                for name in which
            }
    for name in which:
        scores = [
            row["scores"][name]
            for row in table["rows"]
            if row["scores"].get(name, {}).get("mean") is not None
        ]
        for rank, score in enumerate(
            sorted(scores, key=lambda s: s["mean"], reverse=better[name] == "higher")[:2], 1
        ):
            score["rank"] = rank

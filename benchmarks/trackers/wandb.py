"""Weights & Biases: a run of the project ``invdiff``; ``WANDB_MODE=offline`` keeps it here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from invdiff.benchmarks.trackers.base import package


class WandB:
    """A figure ``row/figure`` for each figure of a record.

    Args:
        run: the name of the run.
        folder: of the records.

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self, run: str, folder: Path) -> None:
        self.run = package("wandb").init(project="invdiff", name=run, dir=str(folder))

    def log(self, step: int, row: str, values: Mapping[str, float]) -> None:
        """Logs the figures of a record."""
        self.run.log({f"{row}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Ends the run."""
        self.run.finish()

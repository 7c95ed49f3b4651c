"""TensorBoard: event files in ``FOLDER/tensorboard``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from invdiff.benchmarks.trackers.base import package


class TensorBoard:
    """A scalar ``row/figure`` for each figure of a record.

    Args:
        run: the name of the run.
        folder: of the records.

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self, run: str, folder: Path) -> None:
        package("tensorboard")
        self.writer = package("torch.utils.tensorboard").SummaryWriter(folder / "tensorboard")

    def log(self, step: int, row: str, values: Mapping[str, float]) -> None:
        """Logs the figures of a record."""
        for name, value in values.items():
            self.writer.add_scalar(f"{row}/{name}", value, step)

    def close(self) -> None:
        """Ends the run."""
        self.writer.close()

"""MLflow: a run of the experiment ``invdiff``, where ``MLFLOW_TRACKING_URI`` says, such as
``sqlite:///mlflow.db``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from invdiff.benchmarks.trackers.base import package


class MLflow:
    """A metric ``row/figure`` for each figure of a record.

    Args:
        run: the name of the run.
        folder: of the records.

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self, run: str, folder: Path) -> None:
        self.mlflow = package("mlflow")
        self.mlflow.set_experiment("invdiff")
        self.mlflow.start_run(run_name=run)

    def log(self, step: int, row: str, values: Mapping[str, float]) -> None:
        """Logs the figures of a record; MLflow admits few characters in names."""
        row = re.sub(r"[^\w\-. /]", "_", row)
        named = {re.sub(r"[^\w\-. /]", "_", f"{row}/{k}"): v for k, v in values.items()}
        self.mlflow.log_metrics(named, step=step)

    def close(self) -> None:
        """Ends the run."""
        self.mlflow.end_run()

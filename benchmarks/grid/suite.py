"""The suite ``grid``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invdiff.benchmarks.dataset import SCIKIT_IMAGE
from invdiff.benchmarks.grid.evaluate import evaluate
from invdiff.benchmarks.grid.networks import places
from invdiff.benchmarks.grid.plan import plan
from invdiff.benchmarks.leaderboard import markdown, tables
from invdiff.benchmarks.schema import Cell, Record, Result, Task
from invdiff.benchmarks.suite import Suite


class Grid(Suite):
    """Operators × methods × models × images × seeds; see :mod:`invdiff.benchmarks.grid`."""

    def tasks(self, config: Mapping[str, Any]) -> list[Task]:
        """Every row of the table on every operator, seed and batch of images."""
        return [list(batch) for batch in plan(config)]

    def context(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Where images and networks are, and whether pickled checkpoints may be opened."""
        images = dict(config["images"])
        if images["source"] != SCIKIT_IMAGE:
            images["source"] = str(Path(images["source"]).expanduser().absolute())
        return {
            "images": images,
            "models": places(config["models"], config),
            "allow_pickle": config["allow_pickle"],
            "lossless": config["lossless"],
        }

    def context_of(
        self, cell: Cell, source: str | None, network: str | None, allow_pickle: bool
    ) -> dict[str, Any]:
        """Images are in ``source`` unless they are scikit-image's; the network is ``network``
        unless its name says it."""
        images = {
            k: v
            for k, v in cell["benchmark"]["images"].items()
            if k in ("source", "crop", "size", "channels")
        }
        if images["source"] != SCIKIT_IMAGE:
            if source is None:
                raise ValueError(
                    "the images of this record are files; say where: --input FOLDER with "
                    f"{cell['image']['name']}"
                )
            images["source"] = source
        model = cell["model"]
        return {
            "images": images | {"names": [image["name"] for image in cell["batch"]]},
            "models": {} if network is None or model is None else {model["name"]: network},
            "allow_pickle": allow_pickle,
            "lossless": False,
        }

    def evaluate(self, task: Task, folder: Path, context: Mapping[str, Any]) -> Sequence[Result]:
        """Restores the images of a batch and scores each."""
        return evaluate(task, folder, **context)  # type: ignore[arg-type]

    def report(self, config: Mapping[str, Any], records: Sequence[Record]) -> str:
        """One table for each operator."""
        return markdown(tables(records))

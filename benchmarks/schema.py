"""The types of records, as ``record.schema.json`` has them, and whether a record keeps to it.

A record is plain data: what was run (its cell), with what, and what came out. Cells of a grid are
:class:`GridCell`; other suites have cells of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NotRequired, TypedDict

from jsonschema import Draft202012Validator

FORMAT = 3
"""Of the records; it is part of what makes a record that of a cell."""

Dtype = Literal["float16", "bfloat16", "float32", "float64"]
Better = Literal["higher", "lower"] | None
Cell = Mapping[str, Any]
"""Plain data that says all that a result depends on; its entries are the suite's."""
Task = list[Cell]
"""Cells that are evaluated together, such as the images of one batch."""
Result = Mapping[str, Any]
Figures = dict[str, float | None]
"""By name; None where a value is infinite or undefined."""


class Image(TypedDict):
    """An image of a benchmark: its place, name, shape (C, H, W) and the SHA-256 of its values."""

    index: int
    name: str
    shape: list[int]
    hash: str


class Images(TypedDict):
    """The images of a benchmark: how many, a hash of all, and how they were prepared."""

    count: int
    hash: str
    source: NotRequired[str]
    crop: NotRequired[int | None]
    size: NotRequired[int | None]
    channels: NotRequired[int]


class Metric(TypedDict):
    """All that the values of a metric depend on."""

    implementation: str
    version: str
    range: list[float]
    crop: int
    better: Better
    backend: NotRequired[str]
    network: NotRequired[str]


class Benchmark(TypedDict):
    """The problem; rows are comparable only where all of it is equal."""

    name: str
    operator: dict[str, Any]
    operator_version: str
    sigma: float
    gain: float
    images: Images
    seeds: list[int]
    metrics: dict[str, Metric]


class Weights(TypedDict):
    """Digests of a network's weights, and of how it is read."""

    weights: str | None
    reading: str


class Network(Weights):
    """A network and what it computes in."""

    name: str
    options: dict[str, Any]
    dtype: Dtype
    device: str


class Row(TypedDict):
    """What the cells of one row of a table have in common beside their benchmark."""

    label: str
    kind: Literal["method", "baseline"]
    values: dict[str, Any]
    run: dict[str, Any]
    model: Network | None


class GridCell(Row):
    """One image restored by one row of the table."""

    benchmark: Benchmark
    image: Image
    seed: int
    batch: list[Image]


class Environment(TypedDict):
    """Versions and machine. Seconds compare only under one processor and number of threads."""

    invdiff: str
    torch: str
    deepinv: NotRequired[str]
    python: str
    code: str
    git: str | None
    processor: str
    threads: int


class Scores(TypedDict):
    """The quality of one image: metrics of its samples; of several samples also those of their
    mean, and their spread."""

    metrics: Figures
    mean: NotRequired[Figures]
    spread: NotRequired[Figures]


class Cost(TypedDict):
    """The cost of one sample."""

    nfe: float
    nbe: float
    seconds: float
    peak_memory_mb: float | None


class Measured(Scores, Cost):
    """What came out of a cell of a grid."""

    measurement: str
    restoration: str
    samples: int
    files: dict[str, str]


class Failure(TypedDict):
    """An error that is no finding: the cell runs again the next time."""

    error: str
    traceback: str


class Record(TypedDict):
    """What a folder keeps of a cell, with either a result or a failure."""

    format: int
    suite: str
    cell: Any
    environment: Environment
    result: NotRequired[Any]
    failure: NotRequired[Failure]
    file: NotRequired[str]
    """Where it was read; in memory only."""


def key(cell: Cell) -> str:
    """A short name that changes with anything in the cell."""
    return digest({"format": FORMAT, "cell": cell})[:16]


def result_of(record: Record) -> Mapping[str, Any]:
    """The result of a record, empty where it has none."""
    return record.get("result") or {}


def digest(plain: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a grid's record."""
    file = files("invdiff.benchmarks").joinpath("record.schema.json")
    return json.loads(file.read_text(encoding="utf-8"))


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(schema())


def breaches(record: Mapping[str, Any]) -> list[str]:
    """Where a record breaks the schema, each as ``JSON path: what``."""
    errors = sorted(_validator().iter_errors(record), key=lambda e: e.json_path)
    return [f"{error.json_path}: {brief(error.message)}" for error in errors]


def brief(message: str, length: int = 200) -> str:
    """A message on one line, without its middle where it is longer than that."""
    line = " ".join(message.split())
    return line if len(line) <= length else f"{line[: length // 2]} ... {line[-length // 2 :]}"

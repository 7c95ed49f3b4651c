"""The types of records, as ``record.schema.json`` has them, and whether a record keeps to it.

A record is plain data: what was run (its cell), with what, and what came out. Cells of a grid are
:class:`GridCell`; other suites have cells of their own.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from importlib.resources import files
from itertools import chain, islice
from typing import Any, Literal, NotRequired, TypedDict

from jsonschema_rs import Draft202012Validator

FORMAT = 4
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
    title: NotRequired[str]
    backend: NotRequired[str]
    network: NotRequired[str]
    weights: NotRequired[str]


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
    """The part of a cell that all cells of a row share, beside their benchmark."""

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


class Values(TypedDict):
    """Files of the float32 values of an image and its samples."""

    truth: str
    samples: str


class Measured(Scores, Cost):
    """The result of a cell of a grid."""

    measurement: str
    restoration: str
    samples: int
    files: dict[str, str]
    hashes: dict[str, str]
    values: NotRequired[Values]
    warnings: NotRequired[list[str]]


class Failure(TypedDict):
    """An error that is no finding: the cell runs again the next time."""

    error: str
    traceback: str


class Record(TypedDict):
    """A record: a cell, with either a result or a failure."""

    format: int
    suite: str
    cell: Any
    environment: Environment
    result: NotRequired[Any]
    failure: NotRequired[Failure]
    file: NotRequired[str]
    """Where it was read; in memory only."""


def key(cell: Cell) -> str:
    """A short name that changes with anything that the cell's result depends on: which other
    images and seeds its benchmark has is left out, so that adding some renames no cell."""
    return digest({"format": FORMAT, "cell": alone(cell)})[:16]


def alone(cell: Cell) -> Cell:
    """A cell without what its benchmark says of other cells."""
    benchmark = cell.get("benchmark")
    return {**cell, "benchmark": problem_of(benchmark)} if isinstance(benchmark, Mapping) else cell


def problem_of(benchmark: Mapping[str, Any]) -> dict[str, Any]:
    """A benchmark without how many images and seeds it has, and which."""
    images = benchmark.get("images")
    kept = {k: v for k, v in benchmark.items() if k not in ("images", "seeds")}
    if isinstance(images, Mapping):
        kept["images"] = {k: v for k, v in images.items() if k not in ("count", "hash")}
    return kept


def result_of(record: Record) -> Mapping[str, Any]:
    """The result of a record, empty where it has none."""
    return record.get("result") or {}


def digest(plain: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def common_digest(plain: Any) -> str:
    """:func:`digest` of what many records share, such as their benchmark: computed once."""
    return _unmarshalled(marshal.dumps(plain, 2))  # of version 2: equal data has equal bytes


@lru_cache(1024)
def _unmarshalled(content: bytes) -> str:
    return digest(marshal.loads(content))


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a grid's record."""
    file = files("invdiff.benchmarks").joinpath("record.schema.json")
    return json.loads(file.read_text(encoding="utf-8"))


@cache
def _validator(part: str = "") -> Draft202012Validator:
    whole = schema()
    wanted = {"$defs": whole["$defs"], "$ref": f"#/$defs/{part}"} if part else whole
    return Draft202012Validator(wanted)


MOST_BREACHES = 100
"""So many are reported of one record."""


def breaches(record: Any, part: str = "") -> list[str]:
    """Where a record breaks the schema, each as ``JSON path: what``.

    Args:
        record: plain data from anywhere.
        part: of the schema's ``$defs`` that it is held against, instead of the whole.
    """
    if _suspicious(record) and (excess := _excess(record)) is not None:
        return [excess]
    if (validator := _validator(part)).is_valid(record):
        return []
    errors = islice(validator.iter_errors(record), MOST_BREACHES)
    return sorted(f"{_path(error.instance_path)}: {brief(error.message)}" for error in errors)


def _path(parts: Iterable[str | int]) -> str:
    """A place in plain data as a JSON path."""
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)


DEEPEST = 20
"""Levels of a record, one within another."""
MOST_VALUES = 50_000
"""Of a record, all levels together."""
LARGEST = 2**64
"""Of whole numbers; larger ones have no place in a 64-bit integer."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that steer a terminal or the direction of text, or that no file can hold."""


def _suspicious(value: Any) -> bool:
    """Whether plain data may have what :func:`_excess` looks for, found in a tenth of its time by
    going level by level; true of some that have not."""
    level, seen = [value], 0
    for _ in range(DEEPEST + 1):
        texts = [v for v in level if isinstance(v, str)]
        dicts = [v for v in level if isinstance(v, dict)]
        if not "".join(chain(texts, *dicts)).isprintable() or not all(
            -LARGEST <= v <= LARGEST for v in level if isinstance(v, int | float)
        ):
            return True
        inner = [v.values() for v in dicts] + [v for v in level if isinstance(v, list)]
        level = list(chain.from_iterable(inner))
        if not level:
            return False
        if (seen := seen + len(level)) >= MOST_VALUES:
            return True
    return True


def _excess(value: Any) -> str | None:
    """Where plain data has what no record needs, and programs trip over: it is too deep, a number
    is not finite or too large, a text has control characters."""
    pending, seen = [("$", value, 0)], 0
    while pending:
        path, value, depth = pending.pop()
        if (seen := seen + 1) > MOST_VALUES:
            return f"$: has more than {MOST_VALUES} values"
        if depth > DEEPEST:
            return f"{path}: is more than {DEEPEST} levels deep"
        if isinstance(value, dict):
            if any(_CONTROL.search(name) for name in value):
                return f"{path}: a name has control characters or half a surrogate pair"
            pending += ((f"{path}.{name}", inner, depth + 1) for name, inner in value.items())
        elif isinstance(value, list):
            pending += ((f"{path}[{i}]", inner, depth + 1) for i, inner in enumerate(value))
        elif isinstance(value, str) and _CONTROL.search(value):
            return f"{path}: has control characters or half a surrogate pair"
        elif isinstance(value, int) and abs(value) > LARGEST:
            return f"{path}: is a whole number of more than 64 bits"
        elif isinstance(value, float) and not math.isfinite(value):
            return f"{path}: is no finite number; what is infinite or undefined is null"
    return None


_FOLDERS = re.compile(r"""(?<![\w.:/\\])(?:[A-Za-z]:)?(?:[/\\][^\s/\\'"]+)+[/\\](?=[^\s/\\'"])""")
_QUOTED = re.compile(r"""(['"])(?:[A-Za-z]:)?[/\\][^'"\n]*[/\\](?=[^'"\n/\\]+\1)""")


def published(text: str, length: int) -> str:
    """A message as records keep it: no folders of this machine, no control characters, and its end
    where it is longer than that."""
    return without_folders(_CONTROL.sub("", text))[-length:]


def without_folders(text: str) -> str:
    """A text with the folders of absolute paths left out: they are of the machine that ran, and
    records and tables get published."""
    return _FOLDERS.sub(".../", _QUOTED.sub(r"\1.../", text))


def brief(message: str, length: int = 200) -> str:
    """A message on one line, without its middle where it is longer than that."""
    line = " ".join(message.split())
    return line if len(line) <= length else f"{line[: length // 2]} ... {line[-length // 2 :]}"

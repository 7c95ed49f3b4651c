"""Records of grids on disk: read, checked against ``record.schema.json``, merged into one
folder."""

from __future__ import annotations

import gc
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from invdiff.benchmarks.schema import (
    Record,
    breaches,
    brief,
    common_digest,
    key,
    result_of,
)
from invdiff.benchmarks.statistics import decimals
from invdiff.files import sha256, write_atomically

LARGEST_FILE = 4 << 20
"""Bytes of a record, at most."""
LARGEST_PICTURE = 1 << 26
"""Pixels of a picture, at most."""
FIGURES = ("metrics", "mean", "spread")
"""The parts of a result about quality."""


@contextmanager
def _without_collector() -> Iterator[None]:
    """While many records are read: plain data has no cycles, and looking for them in what is there
    already takes a third of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_without_collector()
def read_records(folders: Sequence[str | Path], strict: bool = False) -> list[Record]:
    """The records of grids in these folders and those below, each with where it was read,
    ``"file"``.

    JSON files that are no records are passed over. With a warning that names them, records are left
    out that are damaged, of an older format or of suites with tables of their own, and those that
    contradict records read before.

    Args:
        folders: that exist.
        strict: refuse the folders if a record is damaged or contradicts another.

    Raises:
        ValueError: a folder that does not exist; there are no records; as ``strict`` says.
    """
    records, damaged, others = list[Record](), list[str](), 0
    for file, content in _candidates(folders):
        if isinstance(content, ValueError):
            damaged.append(f"{file}: {content}")
        elif isinstance(content["cell"], dict) and "benchmark" not in content["cell"]:
            others += 1
        elif wrong := flaws(content) or [*_misnamed(_filed(content, file))]:
            damaged.append(f"{file}: {wrong[0]}")
        else:
            records.append(_filed(content, file))
    kept, contradictions = _reconciled(records)
    where = ", ".join(map(str, folders))
    found = {
        "damaged or of another format": damaged,
        "at odds with others": contradictions,
    }
    said = [f"{len(of)} {what}: {_first(of)}" for what, of in found.items() if of]
    if not kept:
        raise ValueError(
            f"no records of a grid in {where}; `invdiff bench --output FOLDER` writes them"
            + "".join(f". {line}" for line in said)
        )
    if strict and said:
        raise ValueError(". ".join(said))
    for line in said:
        warnings.warn(f"records are left out, {line}", stacklevel=2)
    if others:
        warnings.warn(
            f"{others} of the records in {where} are of suites with tables of their own and "
            "left out",
            stacklevel=2,
        )
    return kept


NAMED = 10
"""Of the records that are left out, so many are named in a message; validate names all."""


def _first(of: Sequence[str]) -> str:
    more = f"; and {len(of) - NAMED} more, which validate names" if len(of) > NAMED else ""
    return "; ".join(of[:NAMED]) + more


def finished_files(folder: Path) -> list[Path]:
    """The files of a folder, and of those below, that are records with a result, of any suite."""
    return [
        file
        for file, content in _candidates([folder])
        if isinstance(content, dict) and "result" in content
    ]


def problems(folders: Sequence[str | Path]) -> tuple[list[str], list[Record]]:
    """The problems of the records in these folders, a line each, ``file: JSON path: what``; and
    those with which nothing is.

    Every record is held against the schema, its file's name against its cell, its pictures against
    the disk, and all against each other.
    """
    wrong, sound = list[str](), list[Record]()
    for file, content in _candidates(folders):
        if isinstance(content, ValueError):
            wrong.append(f"{file}: $: {content}")
            continue
        record: Record = _filed(content, file)
        found = flaws(content) or [*_misnamed(record), *_bad_files(record)]
        wrong += [f"{file}: {flaw}" for flaw in found]
        if not found:
            sound.append(record)
    wrong += _reconciled(sound)[1]
    if not wrong and not sound:
        raise ValueError(
            f"no records in {', '.join(map(str, folders))}; `invdiff bench --output FOLDER` "
            "writes them"
        )
    return wrong, sound


def flaws(record: Any) -> list[str]:
    """Where a record breaks the schema or contradicts itself, each as ``JSON path: what``; its file
    and pictures aside."""
    if wrong := breaches(record):
        return wrong
    cell, found = record["cell"], []
    benchmark, image = cell["benchmark"], cell["image"]
    if image["index"] >= (count := benchmark["images"]["count"]):
        found.append(
            f"$.cell.image.index: {image['index']}, but the benchmark has {count} images, "
            "counted from 0"
        )
    if cell["seed"] not in benchmark["seeds"]:
        found.append(
            f"$.cell.seed: {cell['seed']} is none of the benchmark's seeds, {benchmark['seeds']}"
        )
    if set(result_of(record).get("files", {})) ^ set(result_of(record).get("hashes", {})):
        found.append("$.result.hashes: are not of the same pictures as files")
    if image not in cell["batch"]:
        found.append(f"$.cell.batch: does not hold the image itself, {image['name']}")
    if "metrics" in (result := record.get("result", {})) and (
        absent := benchmark["metrics"].keys() - result["metrics"].keys()
    ):
        found.append(
            f"$.result.metrics: lacks {', '.join(sorted(absent))}, which the benchmark asks "
            "for (null where it is undefined)"
        )
    return found


def benchmark_hash(cell: Mapping[str, Any]) -> str:
    """The hash of a cell's benchmark, 12 hex digits that change with anything in its benchmark."""
    return common_digest(cell["benchmark"])[:12]


def name_of(record: Mapping[str, Any]) -> str:
    """Where a record was read, else the name of its file."""
    return record.get("file") or f"{key(record['cell'])}.json"


def merged(records: Iterable[Record]) -> list[Record]:
    """One record for each cell, in order. Of several the first is kept, a result rather than a
    failure.

    Raises:
        ValueError: results of one cell whose figures differ in a printed digit; one image, or one
            measurement of it, that is not the same everywhere.
    """
    kept, contradictions = _reconciled(records)
    if contradictions:
        raise ValueError(contradictions[0])
    return kept


def _reconciled(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """One record for each cell, and why others contradict those before them."""
    kept: dict[str, Record] = {}
    seen: dict[tuple[Any, ...], tuple[str, Record]] = {}
    contradictions = []
    for record in records:
        # What was read was held against the name of its file.
        name = Path(record["file"]).stem if "file" in record else key(record["cell"])
        try:
            _check_shared(record, seen)
            kept[name] = _one(kept[name], record) if name in kept else record
        except ValueError as error:
            contradictions.append(str(error))
    return list(kept.values()), contradictions


def _check_shared(record: Record, seen: dict[tuple[Any, ...], tuple[str, Record]]) -> None:
    """Whether image and measurement are those of the records before; remembers them if so."""
    cell = record["cell"]
    shared: dict[tuple[Any, ...], str] = {("image",): cell["image"]["hash"]}
    if "measurement" in result_of(record):
        shared["measurement", cell["seed"]] = result_of(record)["measurement"]
    of = (benchmark_hash(cell), cell["image"]["index"])
    places = {(*what, *of): value for what, value in shared.items()}
    for place, value in places.items():
        known, other = seen.get(place, (value, record))
        if known != value:
            raise ValueError(
                f"{name_of(other)} and {name_of(record)} are of one benchmark, but not "
                f"of the same {place[0]} ({known[:12]} and "
                f"{value[:12]}): they cannot be compared. Machines may differ in the "
                "last bit; run all rows on one machine, or copy the "
                "measurements/ of the first folder to the others before they run"
            )
    seen |= {place: (value, record) for place, value in places.items() if place not in seen}


def merge(folders: Sequence[str | Path], output: Path) -> list[Record]:
    """Copies the records and their pictures into one folder; what is there already counts as the
    first of the folders.

    Nothing is written before all is checked. Each file appears whole, a record after its pictures.

    Raises:
        ValueError: what :func:`read_records` refuses, being strict; pictures that are not there,
            or differ under one name.
    """
    records = read_records([output, *folders] if output.is_dir() else folders, strict=True)
    if absent := [f"{name_of(r)}: {flaw}" for r in records for flaw in _bad_files(r)]:
        raise ValueError("; ".join(absent))
    files = _files_to_merge(records, output)
    (output / "pictures").mkdir(parents=True, exist_ok=True)
    for name, source in files.items():
        if not (output / name).exists():
            write_atomically(output / name, source.read_bytes())
    for record in records:
        source, target = Path(record["file"]), output / f"{key(record['cell'])}.json"
        if not (target.exists() and target.samefile(source)):
            write_atomically(target, source.read_bytes())
    return records


def _files_to_merge(records: Sequence[Record], output: Path) -> dict[str, Path]:
    """Where the pictures of records are, by name; what the output has already comes first.

    Raises:
        ValueError: two of one name are not the same.
    """
    found: dict[str, Path] = {}
    for record in records:
        for name in _files(record).values():
            source = Path(record["file"]).parent / name
            first = found.setdefault(name, output / name if (output / name).exists() else source)
            if first != source and sha256(first) != sha256(source):
                raise ValueError(
                    f"{source} is not the picture of that name in {first.parent.parent}; "
                    "remove one of them"
                )
    return found


def _json_files(folders: Sequence[str | Path]) -> Iterator[Path]:
    """Every JSON file below these folders, once."""
    seen = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; give folders that `invdiff bench` wrote")
        for file in sorted(folder.rglob("*.json")):
            if file.is_file() and (one := file.stat())[1:3] not in seen:  # inode and device
                seen.add(one[1:3])
                yield file


def _candidates(folders: Sequence[str | Path]) -> Iterator[tuple[Path, Any]]:
    """Every file below these folders that looks like a record, with its content, or why it has
    none."""
    for file in _json_files(folders):
        try:
            content = _parsed(file)
        except ValueError as error:
            yield file, error
            continue
        if _is_record(content):
            yield file, content


def _parsed(file: Path) -> Any:
    """The content of a JSON file; Python would read numbers that are not finite, which JSON has
    not.

    Raises:
        ValueError: it is none.
    """

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text} is no finite number; what is infinite or undefined is null")
        return value

    if file.stat().st_size > LARGEST_FILE:
        raise ValueError(f"has more than {LARGEST_FILE >> 20} MiB, which no record has")
    try:
        return json.loads(file.read_bytes(), parse_constant=number, parse_float=number)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _filed(content: Any, file: Path) -> Record:
    """The content of a file as a record that says where it was read."""
    return content | {"file": str(file)}


def _is_record(content: Any) -> bool:
    return isinstance(content, dict) and {"suite", "cell"} <= content.keys()


def _misnamed(record: Record) -> Iterator[str]:
    expected = f"{key(record['cell'])}.json"
    if Path(record["file"]).name != expected:
        yield f"$.cell: is that of a file {expected}; the cell was changed, or the file renamed"


def _files(record: Record) -> dict[str, str]:
    """The files of a record by their place in it."""
    result = result_of(record)
    return {
        f"$.result.{part}.{what}": name
        for part in ("files", "values")
        for what, name in result.get(part, {}).items()
    }


def _bad_files(record: Record) -> Iterator[str]:
    folder = Path(record["file"]).parent.resolve()
    for place, name in _files(record).items():
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):  # a link; what it leads to is nobody's business
            yield f"{place}: {name} leads out of the folder"
        elif not path.is_file():
            yield f"{place}: there is no {name}"
        elif path.suffix == ".png" and (why := _unreadable(path)):
            yield f"{place}: {name} cannot be read: {why}"
        elif path.suffix == ".png":
            wanted = result_of(record)["hashes"].get(place.rpartition(".")[2])
            if wanted != sha256(path):
                yield f"{place}: {name} is not the picture whose hash is in the record"


def _unreadable(path: Path) -> str:
    """Why a file is no picture."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.width * picture.height > LARGEST_PICTURE:
                return f"it has {picture.width}x{picture.height} pixels"
            picture.load()
    except Exception as error:  # Pillow raises many kinds
        return brief(str(error)) or type(error).__name__
    return ""


def _one(first: Record, second: Record) -> Record:
    """Which of two records of one cell is kept."""
    if "failure" in first or "failure" in second:
        return second if "failure" in first else first
    if difference := _difference(first["result"], second["result"]):
        threads = [record["environment"]["threads"] for record in (first, second)]
        why = "" if threads[0] == threads[1] else " (made with {} and {} threads)".format(*threads)
        raise ValueError(
            f"{name_of(first)} and {name_of(second)} are of one cell, but their results "
            f"differ{why}: {difference}. Remove one of them"
        )
    return first


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first figure of two results that differs by more than half a printed digit."""
    if (
        kinds := [next((k for k in ("refused", "diverged") if k in r), "measured") for r in (a, b)]
    )[0] != kinds[1]:
        return " and ".join(kinds)
    for part in FIGURES:
        ours, theirs = a.get(part, {}), b.get(part, {})
        for name in ours | theirs:
            x, y = ours.get(name), theirs.get(name)
            if x != y and (x is None or y is None or abs(x - y) > 0.5 * 10 ** -decimals([x, y])):
                return f"{part}.{name} is {x} and {y}"
    return None

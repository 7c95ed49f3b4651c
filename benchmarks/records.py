"""Records of grids on disk: read, checked against ``record.schema.json``, merged into one
folder."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from invdiff.benchmarks.schema import Record, breaches, brief, digest, key, result_of
from invdiff.benchmarks.statistics import decimals
from invdiff.files import write_atomically

FIGURES = ("metrics", "mean", "spread")
"""What a result says of quality."""


def read_records(folders: Sequence[str | Path]) -> list[Record]:
    """The records of grids in these folders and those below, each with where it was read,
    ``"file"``.

    JSON files that are no records are passed over; so are, with a warning, records of suites with
    tables of their own.

    Raises:
        ValueError: a folder that does not exist or has no records; records that are damaged, all of
            them by name.
    """
    records, damaged, others = [], [], 0
    for file, content in _candidates(folders):
        if isinstance(content, ValueError):
            damaged.append(f"{file}: {content}")
        elif isinstance(content["cell"], dict) and "benchmark" not in content["cell"]:
            others += 1
        elif wrong := flaws(content):
            damaged.append(f"{file}: {wrong[0]}")
        else:
            records.append(content | {"file": str(file)})
    where = ", ".join(map(str, folders))
    if damaged:
        raise ValueError(
            f"{len(damaged)} damaged: {'; '.join(damaged)}. Remove them and run the same "
            "`invdiff bench` again, which replaces them"
        )
    if others:
        warnings.warn(
            f"{others} of the records in {where} are of suites with tables of their own and "
            "left out",
            stacklevel=2,
        )
    if not records:
        raise ValueError(
            f"no records of a grid in {where}; `invdiff bench --output FOLDER` writes them"
        )
    return records


def problems(folders: Sequence[str | Path]) -> tuple[list[str], list[Record]]:
    """What is wrong with the records in these folders, a line each, ``file: JSON path: what``; and
    those with which nothing is.

    Every record is held against the schema, its file's name against its cell, its pictures against
    the disk, and all against each other.
    """
    wrong, sound = [], []
    for file, content in _candidates(folders):
        if isinstance(content, ValueError):
            wrong.append(f"{file}: $: {content}")
            continue
        record = content | {"file": str(file)}
        found = flaws(content) or [*_misnamed(record), *_bad_pictures(record)]
        wrong += [f"{file}: {flaw}" for flaw in found]
        if not found:
            sound.append(record)
    try:
        merged(sound)
    except ValueError as error:
        wrong.append(str(error))
    if not wrong and not sound:
        raise ValueError(
            f"no records in {', '.join(map(str, folders))}; `invdiff bench --output FOLDER` "
            "writes them"
        )
    return wrong, sound


def flaws(record: Mapping[str, Any]) -> list[str]:
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
    """What a cell belongs to, 12 hex digits that change with anything in its benchmark."""
    return digest(cell["benchmark"])[:12]


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
    kept: dict[str, Record] = {}
    seen: dict[tuple[Any, ...], tuple[str, Record]] = {}
    for record in records:
        cell = record["cell"]
        shared: dict[tuple[Any, ...], str] = {("image",): cell["image"]["hash"]}
        if "measurement" in record.get("result", {}):
            shared[("measurement", cell["seed"])] = record["result"]["measurement"]
        for what, value in shared.items():
            known, other = seen.setdefault(
                (*what, benchmark_hash(cell), cell["image"]["index"]), (value, record)
            )
            if known != value:
                raise ValueError(
                    f"{name_of(other)} and {name_of(record)} are of one benchmark, but not "
                    f"of the same {what[0]} ({known[:12]} and "
                    f"{value[:12]}): they cannot be compared. Machines may differ in the "
                    "last bit; run all rows on one machine, or copy the "
                    "measurements/ of the first folder to the others before they run"
                )
        name = key(cell)
        kept[name] = _one(kept[name], record) if name in kept else record
    return list(kept.values())


def merge(folders: Sequence[str | Path], output: Path) -> list[Record]:
    """Copies the records and their pictures into one folder; what is there already counts as the
    first of the folders.

    Nothing is written before all is checked. Each file appears whole, a record after its pictures.

    Raises:
        ValueError: what :func:`read_records` and :func:`merged` refuse; pictures that are not
            there.
    """
    records = merged(read_records([output, *folders] if output.is_dir() else folders))
    if absent := [f"{name_of(r)}: {flaw}" for r in records for flaw in _bad_pictures(r)]:
        raise ValueError("; ".join(absent))
    (output / "pictures").mkdir(parents=True, exist_ok=True)
    for record in records:
        source = Path(record["file"])
        for picture in _pictures(record).values():
            content = (source.parent / picture).read_bytes()
            if not (output / picture).exists():
                write_atomically(output / picture, content)
            elif (output / picture).read_bytes() != content:
                raise ValueError(
                    f"{source.parent / picture} is not the picture of that name in "
                    f"{output}; remove one of them"
                )
        target = output / f"{key(record['cell'])}.json"
        if not (target.exists() and target.samefile(source)):
            write_atomically(target, source.read_bytes())
    return records


def _json_files(folders: Sequence[str | Path]) -> Iterator[Path]:
    """Every JSON file below these folders, once."""
    seen = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; give folders that `invdiff bench` wrote")
        for file in sorted(folder.rglob("*.json")):
            if file.is_file() and file.resolve() not in seen:
                seen.add(file.resolve())
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

    try:
        return json.loads(file.read_bytes(), parse_constant=number, parse_float=number)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _is_record(content: Any) -> bool:
    return isinstance(content, dict) and {"suite", "cell"} <= content.keys()


def _misnamed(record: Record) -> Iterator[str]:
    expected = f"{key(record['cell'])}.json"
    if Path(record["file"]).name != expected:
        yield f"$.cell: is that of a file {expected}; the cell was changed, or the file renamed"


def _pictures(record: Record) -> dict[str, str]:
    found: dict[str, str] = result_of(record).get("files", {})
    return found


def _bad_pictures(record: Record) -> Iterator[str]:
    from PIL import Image

    folder = Path(record["file"]).parent.resolve()
    for what, name in _pictures(record).items():
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):  # a link; what it leads to is nobody's business
            yield f"$.result.files.{what}: {name} leads out of the folder"
        elif not path.is_file():
            yield f"$.result.files.{what}: there is no {name}"
        else:
            try:
                with Image.open(path, formats=["PNG"]) as picture:
                    picture.load()
            except Exception as error:  # Pillow raises many kinds
                yield f"$.result.files.{what}: {name} cannot be read: {brief(str(error))}"


def _one(first: Record, second: Record) -> Record:
    """Which of two records of one cell is kept."""
    if "failure" in first or "failure" in second:
        return second if "failure" in first else first
    if difference := _difference(first["result"], second["result"]):
        raise ValueError(
            f"{name_of(first)} and {name_of(second)} are of one cell, but their results "
            f"differ: {difference}. Remove one of them"
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

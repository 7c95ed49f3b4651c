"""Tables from records: one for each benchmark, a row for each method."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from invdiff.benchmarks.harness import Record, digest
from invdiff.benchmarks.leaderboard.labels import labels_of, leaves
from invdiff.benchmarks.leaderboard.rank import order, rank, reference_row
from invdiff.benchmarks.leaderboard.types import COSTS, SECTIONS, Row, Table, Values
from invdiff.benchmarks.records import benchmark_hash, merged
from invdiff.benchmarks.statistics import interval, paired, per_image


def tables(
    records: Iterable[Record],
    baseline: str | None = None,
    benchmark: str | None = None,
    metrics: Sequence[str] | None = None,
) -> list[Table]:
    """A table for each benchmark.

    Args:
        records: of grids, as the harness returns or
            :func:`~invdiff.benchmarks.records.read_records` reads them.
        baseline: label of the row that the others are compared with, image by image.
        benchmark: only the one whose hash begins so.
        metrics: only these, in this order.

    Raises:
        ValueError: two benchmarks of one name; a baseline, benchmark or metric that does not exist;
            records that :func:`~invdiff.benchmarks.records.merged` finds at odds.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(benchmark_hash(record["cell"]), []).append(record)
    if benchmark is not None:
        if len(chosen := [name for name in groups if name.startswith(benchmark)]) != 1:
            there = ", ".join(
                f"{name} ({group[0]['cell']['benchmark']['name']})"
                for name, group in groups.items()
            )
            raise ValueError(
                f"{len(chosen)} benchmarks have a hash that begins with {benchmark!r}; "
                f"there are {there}"
            )
        groups = {chosen[0]: groups[chosen[0]]}
    _refuse_mixing({name: group[0]["cell"]["benchmark"] for name, group in groups.items()})
    found = [_table(name, merged(group), baseline, metrics) for name, group in groups.items()]
    if baseline is not None and all(table["baseline"] is None for table in found):
        known = dict.fromkeys(row["label"] for table in found for row in table["rows"])
        raise ValueError(
            f"no row is called {baseline!r} (--baseline); there are {', '.join(map(repr, known))}"
        )
    return found


def _refuse_mixing(benchmarks: Mapping[str, Mapping[str, Any]]) -> None:
    by_name: dict[str, str] = {}
    for hashed, benchmark in benchmarks.items():
        if (other := by_name.setdefault(benchmark["name"], hashed)) != hashed:
            ours, theirs = leaves(benchmarks[other]), leaves(benchmark)
            fields = [k for k in ours | theirs if ours.get(k) != theirs.get(k)]
            told = "; ".join(
                f"{k} {ours.get(k, 'absent')} in {other}, {theirs.get(k, 'absent')} in {hashed}"
                for k in fields[:5]
            )
            raise ValueError(
                f"two benchmarks are called {benchmark['name']!r}, and rows of one do not "
                f"compare with rows of the other: {told}"
                f"{f'; and {len(fields) - 5} more' if len(fields) > 5 else ''}. Choose one "
                f"with --benchmark {other} or --benchmark {hashed}"
            )


def _table(
    hashed: str, records: Sequence[Record], baseline: str | None, chosen: Sequence[str] | None
) -> Table:
    benchmark = records[0]["cell"]["benchmark"]
    declared = {name: entry.get("better") for name, entry in benchmark["metrics"].items()}
    measured = {
        name
        for r in records
        for name, value in r.get("result", {}).get("metrics", {}).items()
        if value is not None
    }
    names = [*declared, *sorted(measured - declared.keys())]
    better = {name: declared.get(name) for name in names if name in measured or not measured}
    if chosen is not None:
        if unknown := [name for name in chosen if name not in better]:
            raise ValueError(
                f"{benchmark['name']} has no figures of {unknown[0]!r} (--metric); there "
                f"are {', '.join(better)}"
            )
        better = {name: better[name] for name in chosen}
    by_row: dict[str, dict[tuple[int, int], Record]] = {}
    for record in sorted(
        records, key=lambda r: "failure" in r
    ):  # of one image in several batches the first result counts
        cell = record["cell"]
        shared = {k: v for k, v in cell.items() if k not in ("benchmark", "image", "seed", "batch")}
        by_row.setdefault(digest(shared)[:12], {}).setdefault(
            (cell["image"]["index"], cell["seed"]), record
        )
    of_row = {name: list(group.values()) for name, group in by_row.items()}
    images = {i: f"image {i}" for i in range(benchmark["images"]["count"])}
    images |= {image["index"]: image["name"] for r in records for image in r["cell"]["batch"]}
    labels = labels_of({name: group[0]["cell"] for name, group in of_row.items()})
    rows = [_row(name, labels[name], group, images, better) for name, group in of_row.items()]
    rank(rows, better)
    ranked = next((name for name in better if better[name]), None)
    rows.sort(key=lambda row: order(row, ranked, better))
    reference = reference_row(
        rows, {labels[k]: group[0]["cell"]["label"] for k, group in of_row.items()}, baseline
    )
    by_label = {labels[name]: group for name, group in of_row.items()}
    for row in rows:
        if reference not in (None, row["label"]):
            ours, theirs = by_label[row["label"]], by_label[reference]
            pairs = {
                name: paired(_values(ours, "metrics", name), _values(theirs, "metrics", name))
                for name in better
                if better[name]
            }
            row["paired"] = {name: pair for name, pair in pairs.items() if pair["n"]}
    metrics = [{"name": name, "better": direction} for name, direction in better.items()]
    return {
        "benchmark": benchmark | {"hash": hashed},
        "baseline": reference,
        "metrics": metrics,
        "rows": rows,
    }


def _values(records: Sequence[Record], part: str, name: str) -> Values:
    """A figure by image and seed, where there is one."""
    found = {
        (r["cell"]["image"]["index"], r["cell"]["seed"]): r.get("result", {})
        .get(part, {})
        .get(name)
        for r in records
    }
    return {k: v for k, v in found.items() if v is not None}


def _row(
    name: str,
    label: str,
    records: Sequence[Record],
    images: Mapping[int, str],
    better: Mapping[str, str | None],
) -> Row:
    cell, by_cell = (
        records[0]["cell"],
        {(r["cell"]["image"]["index"], r["cell"]["seed"]): r for r in records},
    )
    measured = [r for r in records if "metrics" in r.get("result", {})]
    done = {(r["cell"]["image"]["index"], r["cell"]["seed"]) for r in measured}
    seeds = cell["benchmark"]["seeds"]
    row: Row = {"id": name, "label": label, "method": cell["label"]} | {
        k: cell[k] for k in ("kind", "values", "model")
    }
    row |= {"complete": len(done) == len(images) * len(seeds)}
    row |= {"images": sum(all((i, s) in done for s in seeds) for i in images), "of": len(images)}
    row["problems"] = _problems(
        {(i, s): by_cell.get((i, s)) for i, s in product(images, seeds)}, images, better
    )
    for section, part in SECTIONS.items():
        names = [
            n
            for n in better
            if part == "metrics" or any(n in r["result"].get(part, {}) for r in measured)
        ]
        if part == "spread":
            names = list(dict.fromkeys(n for r in measured for n in r["result"].get(part, {})))
        row[section] = {
            n: interval(per_image(_values(records, part, n))) | {"rank": None} for n in names
        }
    row |= {
        "paired": {},
        "cost": _cost([r["result"] for r in measured]),
        "environment": _environment(records),
    }
    row["cells"] = [
        {
            "image": r["cell"]["image"]["name"],
            "seed": r["cell"]["seed"],
            "metrics": r["result"]["metrics"],
        }
        | {"files": r["result"].get("files", {}), "folder": _folder(r)}
        for r in sorted(measured, key=lambda r: (r["cell"]["image"]["index"], r["cell"]["seed"]))
    ]
    return row


def _folder(record: Record) -> str | None:
    """What the names of its pictures are relative to; None of a record that was not read from a
    file."""
    return str(Path(record["file"]).parent) if "file" in record else None


def _problems(
    expected: Mapping[tuple[int, int], Record | None],
    images: Mapping[int, str],
    better: Mapping[str, str | None],
) -> list[str]:
    """What keeps a row from being complete, one line for each reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for (image, _), record in expected.items():
        for reason in _reasons(record, better):
            reasons.setdefault(reason, []).append(images[image])
    lines = []
    for (what, why), names in reasons.items():
        distinct = list(dict.fromkeys(names))
        which = (
            ""
            if len(names) == len(expected)
            else f" ({', '.join(distinct[:3])}{', ...' if len(distinct) > 3 else ''})"
        )
        lines.append(f"{len(names)} of {len(expected)} {what}{which}{': ' if why else ''}{why}")
    return lines


def _reasons(record: Record | None, better: Mapping[str, str | None]) -> list[tuple[str, str]]:
    if record is None:
        return [("missing", "")]
    if "failure" in record:
        return [("failed", _without_paths(record["failure"]["error"]))]
    result = record["result"]
    if stopped := [(k, _without_paths(result[k])) for k in ("refused", "diverged") if k in result]:
        return stopped
    return [
        (f"without {name}", "")
        for name in better
        if better[name] and result["metrics"].get(name) is None
    ]


def _without_paths(text: str) -> str:
    """One line, with the folders of absolute paths left out: they are of the machine that ran, and
    tables get published."""
    return re.sub(r"(?<![\w.:/])(?:/[^\s/'\"]+)+/(?=[^\s/'\"])", ".../", " ".join(text.split()))


def _cost(results: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over the cells; of memory the largest."""
    given = {name: [r[name] for r in results if r.get(name) is not None] for name in COSTS}
    return {
        name: (max if name == "peak_memory_mb" else fmean)(values) if values else None
        for name, values in given.items()
    }


def _environment(records: Sequence[Record]) -> dict[str, Any]:
    """Of all cells: a value where they agree, the list of values where they do not."""
    names = dict.fromkeys(name for r in records for name in r["environment"])
    seen = {
        name: list(dict.fromkeys(r["environment"].get(name) for r in records)) for name in names
    }
    return {name: values[0] if len(values) == 1 else values for name, values in seen.items()}

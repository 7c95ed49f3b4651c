"""Tables from records: one for each benchmark, a row for each method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from invdiff.benchmarks.leaderboard.labels import labels_of, leaves
from invdiff.benchmarks.leaderboard.rank import order, rank, reference_row
from invdiff.benchmarks.leaderboard.row import Cells, Context, row_of, values_of
from invdiff.benchmarks.leaderboard.types import Table
from invdiff.benchmarks.records import benchmark_hash, merged
from invdiff.benchmarks.schema import (
    Benchmark,
    Better,
    Record,
    common_digest,
    problem_of,
    result_of,
)
from invdiff.benchmarks.statistics import paired


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
    groups = grown(records)
    if benchmark is not None:
        groups = _chosen(groups, benchmark)
    _refuse_mixing({name: group[0]["cell"]["benchmark"] for name, group in groups.items()})
    found = [_table(name, group, baseline, metrics) for name, group in groups.items()]
    if baseline is not None and all(table["baseline"] is None for table in found):
        known = dict.fromkeys(row["label"] for table in found for row in table["rows"])
        raise ValueError(
            f"no row is called {baseline!r} (--baseline); there are {', '.join(map(repr, known))}"
        )
    return found


def grown(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each benchmark, by its hash, one for each cell. Runs with fewer images or
    seeds count for the largest one of the same problem that begins with the same images.

    Raises:
        ValueError: records that :func:`~invdiff.benchmarks.records.merged` finds at odds.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(benchmark_hash(record["cell"]), []).append(record)
    found: dict[str, list[Record]] = {}
    for name, group in sorted(groups.items(), key=lambda item: _extent(item[1]), reverse=True):
        larger = (other for other in found.values() if _continues(other, group))
        if (target := next(larger, None)) is None:
            found[name] = merged(group)
        else:
            benchmark = target[0]["cell"]["benchmark"]
            target += [{**r, "cell": {**r["cell"], "benchmark": benchmark}} for r in merged(group)]
    return {name: found[name] for name in groups if name in found}


def _extent(group: Sequence[Record]) -> tuple[int, int]:
    """How many images and seeds a benchmark has."""
    benchmark = group[0]["cell"]["benchmark"]
    return benchmark["images"]["count"], len(benchmark["seeds"])


def _continues(larger: Sequence[Record], smaller: Sequence[Record]) -> bool:
    """Whether one benchmark is another with more images or seeds."""
    ours, theirs = (group[0]["cell"]["benchmark"] for group in (larger, smaller))
    if problem_of(ours) != problem_of(theirs) or not set(theirs["seeds"]) <= set(ours["seeds"]):
        return False
    if _extent(larger) == _extent(smaller):
        return False
    known = {image["index"]: image["hash"] for r in larger for image in r["cell"]["batch"]}
    seen = {image["index"]: image["hash"] for r in smaller for image in r["cell"]["batch"]}
    return all(known.get(index, hashed) == hashed for index, hashed in seen.items())


def _chosen(groups: Mapping[str, list[Record]], benchmark: str) -> dict[str, list[Record]]:
    """The one group whose hash begins so."""
    chosen = {name: group for name, group in groups.items() if name.startswith(benchmark)}
    if len(chosen) != 1:
        there = ", ".join(
            f"{name} ({group[0]['cell']['benchmark']['name']})" for name, group in groups.items()
        )
        raise ValueError(
            f"{len(chosen)} benchmarks have a hash that begins with {benchmark!r}; "
            f"there are {there}"
        )
    return chosen


def _refuse_mixing(benchmarks: Mapping[str, Benchmark]) -> None:
    by_name: dict[str, str] = {}
    for hashed, benchmark in benchmarks.items():
        if (other := by_name.setdefault(benchmark["name"], hashed)) != hashed:
            ours, theirs = leaves(benchmarks[other]), leaves(benchmark)
            fields = [k for k in ours | theirs if ours.get(k) != theirs.get(k)]
            differences = "; ".join(
                f"{k} {ours.get(k, 'absent')} in {other}, {theirs.get(k, 'absent')} in {hashed}"
                for k in fields[:5]
            )
            more = f"; and {len(fields) - 5} more" if len(fields) > 5 else ""
            raise ValueError(
                f"two benchmarks are called {benchmark['name']!r}, and rows of one do not "
                f"compare with rows of the other: {differences}{more}. Choose one "
                f"with --benchmark {other} or --benchmark {hashed}"
            )


def _table(
    hashed: str, records: Sequence[Record], baseline: str | None, chosen: Sequence[str] | None
) -> Table:
    benchmark: Benchmark = records[0]["cell"]["benchmark"]
    titles = {name: entry.get("title", name) for name, entry in benchmark["metrics"].items()}
    better = _directions(benchmark, records, chosen)
    groups = _by_row(records)
    context = Context.of(benchmark, records, better)
    labels = labels_of({name: next(iter(cells.values()))["cell"] for name, cells in groups.items()})
    rows = [row_of(name, labels[name], cells, context) for name, cells in groups.items()]
    rank(rows, better)
    rows.sort(key=lambda row: order(row, better))
    reference = reference_row(rows, baseline)
    if reference is not None:
        for row in rows:
            if row is not reference:
                ours, theirs = groups[row["id"]], groups[reference["id"]]
                pairs = {
                    name: paired(
                        values_of(ours, "metrics", name),
                        values_of(theirs, "metrics", name),
                        among=len(rows) - 1,
                    )
                    for name in better
                    if better[name]
                }
                row["paired"] = {name: pair for name, pair in pairs.items() if pair["n"]}
    return {
        "benchmark": {**benchmark, "hash": hashed},
        "baseline": reference and reference["label"],
        "metrics": [
            {
                "name": name,
                "title": titles.get(name, name),
                "better": direction,
            }
            for name, direction in better.items()
        ],
        "rows": rows,
    }


def _directions(
    benchmark: Benchmark, records: Sequence[Record], chosen: Sequence[str] | None
) -> dict[str, Better]:
    """The metrics of a table, and which way each is better."""
    declared = {name: entry.get("better") for name, entry in benchmark["metrics"].items()}
    measured = {
        name
        for r in records
        for name, value in result_of(r).get("metrics", {}).items()
        if value is not None
    }
    names = [*declared, *sorted(measured - declared.keys())]
    better = {name: declared.get(name) for name in names if name in measured or not measured}
    if chosen is None:
        return better
    if unknown := [name for name in chosen if name not in better]:
        raise ValueError(
            f"{benchmark['name']} has no figures of {unknown[0]!r} (--metric); there "
            f"are {', '.join(better)}"
        )
    return {name: better[name] for name in chosen}


def _by_row(records: Sequence[Record]) -> dict[str, Cells]:
    """The records of each row by image and seed; of an image in several batches the first result
    counts."""
    found: dict[str, Cells] = {}
    for record in sorted(records, key=lambda r: "failure" in r):
        cell = record["cell"]
        shared = {k: v for k, v in cell.items() if k not in ("benchmark", "image", "seed", "batch")}
        place = (cell["image"]["index"], cell["seed"])
        found.setdefault(common_digest(shared)[:12], {}).setdefault(place, record)
    return found

"""Differences between two runs of the same problems, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from invdiff.benchmarks.leaderboard.rank import SIGN
from invdiff.benchmarks.leaderboard.types import Row, Table, Values
from invdiff.benchmarks.statistics import Interval, decimals, paired
from invdiff.benchmarks.tables import markdown

SAME = ("operator", "sigma", "gain")
"""Of a benchmark, what has to be equal: versions of code may differ, which is what is looked
for."""


class Change(TypedDict):
    """A figure of a row then and now; the difference is that of the images that both have, and its
    interval holds for all rows and metrics at once. The verdict is ``better``, ``worse``, ``gone``
    (a row that is missing or no longer complete), ``new``, or empty."""

    benchmark: str
    row: str
    metric: str
    then: float | None
    now: float | None
    difference: Interval
    digits: int
    verdict: str


def changes(then: Sequence[Table], now: Sequence[Table]) -> list[Change]:
    """Every ranked figure of every row of two runs. Benchmarks go by their names, rows by their
    labels, images by their names.

    Raises:
        ValueError: no benchmark or row in common; a benchmark whose problem is another now.
    """
    before, after = _by_name(then), _by_name(now)
    for name in before.keys() & after.keys():
        ours, theirs = (tables[name]["benchmark"] for tables in (before, after))
        if differing := [k for k in SAME if ours[k] != theirs[k]]:  # type: ignore[literal-required]
            raise ValueError(
                f"{name} is not the same problem in both: {', '.join(differing)} differs; figures "
                "of one do not compare with figures of the other"
            )
    pairs = [
        (table, row, _row(after.get(name), row["label"]))
        for name, table in before.items()
        for row in table["rows"]
    ]
    if not any(row for _, _, row in pairs):
        raise ValueError("the two have no row in common")
    among = sum(len(_ranked(table)) for table, _, row in pairs if row is not None)
    found = [c for table, ours, theirs in pairs for c in _of_row(table, ours, theirs, among)]
    for name, table in after.items():
        for row in table["rows"]:
            if _row(before.get(name), row["label"]) is None:
                found += [
                    {**change, "then": None, "now": change["then"], "verdict": "new"}
                    for change in _of_row(table, row, None, among)
                ]
    return found


def _of_row(table: Table, ours: Row, theirs: Row | None, among: int) -> Iterator[Change]:
    for name, sign in _ranked(table).items():
        then = ours["scores"][name]["mean"] if name in ours["scores"] else None
        now = theirs["scores"][name]["mean"] if theirs and name in theirs["scores"] else None
        digits = decimals([then, now])
        places: dict[str, int] = {}
        before, after = _values(ours, name, places), _values(theirs, name, places)
        difference = paired(after, before, among=max(among, 1))
        lost = ours["complete"] and not (theirs and theirs["complete"])
        yield {
            "benchmark": table["benchmark"]["name"],
            "row": ours["label"],
            "metric": name,
            "then": then,
            "now": now,
            "difference": difference,
            "digits": digits,
            "verdict": "gone" if lost else _verdict(difference, sign, digits),
        }


def _verdict(difference: Interval, sign: int, digits: int) -> str:
    mean, half = difference["mean"], difference["half"]
    if mean is None or half is None or abs(mean) <= max(half, 0.5 * 10.0**-digits):
        return ""
    return "worse" if sign * mean > 0 else "better"


def text(found: Sequence[Change]) -> str:
    """Changes as a Markdown table."""
    return markdown(
        {
            "benchmark": change["benchmark"],
            "method": change["row"],
            "metric": change["metric"],
            "then": _figure(change["then"], change["digits"]),
            "now": _figure(change["now"], change["digits"]),
            "difference": _difference(change["difference"], change["digits"]),
            "": change["verdict"],
        }
        for change in found
    )


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _difference(of: Interval, digits: int) -> str:
    half = "" if of["half"] is None else f" ± {of['half']:.{digits}f}"
    return "" if of["mean"] is None else f"{of['mean']:+.{digits}f}{half}"


def _by_name(tables: Sequence[Table]) -> dict[str, Table]:
    return {table["benchmark"]["name"]: table for table in tables}


def _row(table: Table | None, label: str) -> Row | None:
    rows = table["rows"] if table else []
    return next((row for row in rows if row["label"] == label), None)


def _ranked(table: Table) -> Mapping[str, int]:
    """The metrics that have a better, and the sign with which they are better when lower."""
    return {m["name"]: SIGN[m["better"]] for m in table["metrics"] if m["better"] is not None}


def _values(row: Row | None, name: str, places: dict[str, int]) -> Values:
    """A figure by image and seed; the images of both runs are numbered by their names."""
    return {
        (places.setdefault(cell["image"], len(places)), cell["seed"]): value
        for cell in (row["cells"] if row else [])
        if (value := cell["metrics"].get(name)) is not None
    }

"""Records from strangers: whatever they hold, a board neither crashes nor hangs, and is shown
without them."""

from __future__ import annotations

import copy
import json
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recorded import problem, record, row_of, stored

from invdiff.benchmarks import harness
from invdiff.benchmarks.leaderboard import markdown, tables
from invdiff.benchmarks.leaderboard.export import to_csv, to_json
from invdiff.benchmarks.leaderboard.page import render
from invdiff.benchmarks.records import flaws, problems, read_records


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


HOSTILE: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    -(10**400),
    1.7e308,
    5e-324,
    "",
    "x" * 5000,
    "\ud800",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202egnp.exe",
    "a\nb",
    "<script>alert(1)</script>",
    '=HYPERLINK("http://x")',
    "| a | b |\n| --- | --- |",
    "pictures/../../../etc/passwd",
    [],
    {},
    [[]] * 3000,
    [{"a": 1}, {"a": 1}, []] * 500,
    list(range(100_000)),
    nested(60),
    nested(400),
    {"": 1, "\ud800": 2, "\x1b": 3},
    {f"m{i}": i for i in range(2000)},
    10**12,
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in plain data."""
    yield path
    for name, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from places(inner, (*path, name))


def changed(whole: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    if not path:
        return value
    made = copy.deepcopy(whole)
    at = made
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return made


def renamed(whole: Any, path: tuple[Any, ...], name: str) -> Any:
    """A copy with one more entry of that name in the place's mapping."""
    made = copy.deepcopy(whole)
    at = made
    for step in path:
        at = at[step]
    if isinstance(at, dict):
        at[name] = next(iter(at.values()), 1)
    return made


def shown(folder: Path) -> None:
    """All that is made of a folder; nothing but a ValueError may come of records."""
    problems([folder])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = read_records([folder])
    found = tables(records)
    for text in (markdown(found), to_csv(found, folder), to_json(found, folder)):
        text.encode()
        assert "\x1b" not in text
    render({"tables": found}, lambda cell, kind: None)


def test_every_place_with_every_hostile_value(tmp_path: Path) -> None:
    """Of each kind one in a few, the same ones every time; a good record beside it is shown."""
    whole, chance = record(25.0, 1), random.Random(0)
    folder = stored(tmp_path, record(24.0, 0), whole)
    file = folder / f"{harness.key(whole['cell'])}.json"
    cases = [(path, value) for path in places(whole) for value in HOSTILE]
    begun = time.monotonic()
    for path, value in chance.sample(cases, 150):
        file.write_text(json.dumps(changed(whole, path, value)))
        shown(folder)
        assert time.monotonic() - begun < 60, (path, str(value)[:60])
        begun = time.monotonic()


def test_every_mapping_with_hostile_names(tmp_path: Path) -> None:
    whole = record(25.0, 1)
    folder = stored(tmp_path, record(24.0, 0), whole)
    file = folder / f"{harness.key(whole['cell'])}.json"
    names = ["\ud800", "\x1b[2J", '=HYPERLINK("x")', "x" * 5000, "a|b\n", "<img onerror=x>"]
    mappings = [path for path in places(whole) if renamed(whole, path, "x") != whole]
    cases = [(path, name) for path in mappings for name in names]
    for path, name in random.Random(0).sample(cases, 60):
        file.write_text(json.dumps(renamed(whole, path, name)))
        shown(folder)


@pytest.mark.parametrize("value", HOSTILE, ids=lambda v: repr(v)[:20])
def test_a_figure_is_a_number_of_a_size_that_prints(value: Any) -> None:
    made = record(25.0)
    made["result"]["metrics"]["psnr"] = value
    good = value is None or type(value) in (int, float) and abs(value) <= 1e9
    assert bool(flaws(made)) != good


def test_a_benchmark_of_very_many_images_and_seeds_is_a_row_with_most_of_it_missing() -> None:
    seeds = list(range(1000))
    images = problem()["images"] | {"count": 10_000_000}
    benchmark = problem(images=images, seeds=seeds)
    given = row_of([24.0, 25.0], benchmark=benchmark)
    assert not any(flaws(each) for each in given)
    begun = time.monotonic()
    (table,) = tables(given)
    (row,) = table["rows"]
    assert row["problems"] == ["9999999998 of 10000000000 missing (kodim01, kodim02, kodim03, ...)"]
    assert row["images"] == 0 and row["of"] == 10_000_000
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"",
        b"[" * 100_000,
        b'{"suite": "grid", "cell": ' + b"1" * 10_000 + b"}",
        b'{"suite": "grid", "cell": [], "format": 3}',
        b'{"suite": [], "cell": null}',
        b'{"suite": "grid", "cell": {"benchmark": 1}}',
        b" " * (5 << 20),
    ],
    ids=lambda c: repr(c[:20]),
)
def test_files_that_are_no_records(content: bytes, tmp_path: Path) -> None:
    folder = stored(tmp_path, record(24.0, 0))
    (folder / "0123456789abcdef.json").write_bytes(content)
    shown(folder)
    with pytest.warns(UserWarning, match="0123456789abcdef.json"):
        assert len(read_records([folder])) == 1


def test_what_contradicts_others_is_left_out_and_named(tmp_path: Path) -> None:
    good, other = record(24.0, 0), record(25.0, 0, label="other")
    other["result"]["measurement"] = "0" * 64
    folder = stored(tmp_path, good, other)
    with pytest.warns(UserWarning, match="1 at odds with others: .*not of the same measurement"):
        assert len(read_records([folder])) == 1
    with pytest.raises(ValueError, match="not of the same measurement"):
        read_records([folder], strict=True)


def test_a_record_under_another_name_is_left_out(tmp_path: Path) -> None:
    """So its cell cannot be changed after the fact."""
    folder = stored(tmp_path, record(24.0, 0), record(25.0, 1))
    file = folder / f"{harness.key(record(25.0, 1)['cell'])}.json"
    made = json.loads(file.read_text())
    made["cell"]["values"] = {"zeta": 2}
    file.write_text(json.dumps(made))
    with pytest.warns(UserWarning, match="the cell was changed, or the file renamed"):
        assert len(read_records([folder])) == 1

"""``invdiff leaderboard``: tables against scipy and by hand, what may not be mixed, the schema,
merging, the command."""

from __future__ import annotations

import copy
import csv
import io
import json
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from jsonschema import Draft202012Validator
from recorded import IMAGES, PHOTO64, identity, problem, record, row_of, stored

from invdiff.benchmarks import harness
from invdiff.benchmarks.leaderboard import Table, cautions, markdown, tables
from invdiff.benchmarks.records import benchmark_hash, flaws, merge, merged, problems, read_records
from invdiff.benchmarks.statistics import interval, paired, per_image
from invdiff.commands import main as cli


def rows(table: Table) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in table["rows"]}


def invdiff(*args: str | Path) -> int:
    return cli.main(["leaderboard", *map(str, args)])


FAILED = {"failure": {"error": "OSError: cannot read /home/someone/data/x.png", "traceback": "..."}}
REFUSED = {"result": {"refused": "ddrm needs an SVD"}}
DIVERGED = {"result": {"diverged": "non-finite at step 3"}}


# Statistics


def test_intervals_are_those_of_scipy() -> None:
    values = [24.1, 27.3, 25.0, 26.2, 29.9]
    found = interval(values)
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values)
    )
    assert found["n"] == 5
    assert (found["mean"] - found["half"], found["mean"] + found["half"]) == pytest.approx(
        (low, high), rel=1e-12
    )
    # By hand: of 1, 2, 3 the standard deviation is 1, and t_{0.975, 2} = 4.30265.
    assert interval([1.0, 2.0, 3.0]) == {
        "mean": 2.0,
        "half": pytest.approx(4.302653 / 3**0.5, rel=1e-6),
        "n": 3,
    }
    assert interval([1.0]) == {"mean": 1.0, "half": None, "n": 1}
    assert interval([]) == {"mean": None, "half": None, "n": 0}


def test_seeds_of_an_image_are_one_value() -> None:
    assert per_image({(0, 0): 1.0, (0, 1): 3.0, (1, 0): 10.0}) == [2.0, 10.0]


def test_differences_are_paired_by_image_and_seed() -> None:
    a = {(i, 0): v for i, v in enumerate([24.0, 30.0, 27.5, 22.0])} | {(9, 0): 99.0}
    b = {(i, 0): v for i, v in enumerate([23.0, 29.5, 26.0, 21.5])} | {(8, 0): 0.0}
    found = paired(a, b)
    expected = scipy.stats.ttest_rel(
        [24.0, 30.0, 27.5, 22.0], [23.0, 29.5, 26.0, 21.5]
    ).confidence_interval()
    assert found["n"] == 4  # what one of them lacks has no difference
    assert (found["mean"] - found["half"], found["mean"] + found["half"]) == pytest.approx(
        (expected.low, expected.high), rel=1e-9
    )


# Tables


def test_a_row_has_means_intervals_and_costs() -> None:
    given = row_of([24.0, 25.0, 26.0])
    given[1]["result"] |= {"nfe": 400.0, "peak_memory_mb": 900.0}
    (table,) = tables(given)
    (row,) = table["rows"]
    assert table["benchmark"] == problem() | {"hash": benchmark_hash(given[0]["cell"])}
    assert table["metrics"][0] == {
        "name": "psnr",
        "title": "PSNR",
        "better": "higher",
    }
    assert table["metrics"][2] == {
        "name": "consistency",
        "title": "consistency",
        "better": None,
    }
    assert row["complete"] and (row["images"], row["of"]) == (3, 3) and row["problems"] == []
    assert row["scores"]["psnr"] == {
        "mean": 25.0,
        "half": pytest.approx(4.302653 / 3**0.5, rel=1e-6),
        "n": 3,
        "rank": 1,
    }
    assert row["scores"]["consistency"]["rank"] is None
    assert row["cost"] == {"nfe": 200.0, "nbe": 100.0, "seconds": 2.0, "peak_memory_mb": 900.0}
    assert (
        row["environment"]["processor"] == "abacus"
        and row["mean"] == row["spread"] == row["paired"] == {}
    )
    assert [c["image"] for c in row["cells"]] == list(IMAGES) and row["cells"][0]["folder"] is None
    json.dumps(table, allow_nan=False)


def test_seeds_are_averaged_within_images() -> None:
    benchmark = problem(seeds=[0, 1])
    given = [
        *row_of([24.0, 25.0, 26.0], benchmark=benchmark),
        *row_of([26.0, 27.0, 28.0], seed=1, benchmark=benchmark),
    ]
    (table,) = tables(given)
    score = table["rows"][0]["scores"]["psnr"]
    assert (score["mean"], score["n"]) == (26.0, 3) and score["half"] == pytest.approx(
        4.302653 / 3**0.5, rel=1e-6
    )
    (table,) = tables(given[:-1])
    (row,) = table["rows"]
    assert (
        not row["complete"]
        and row["images"] == 2
        and row["problems"] == ["1 of 6 missing (kodim03)"]
    )
    assert (
        row["scores"]["psnr"]["n"] == 3 and row["scores"]["psnr"]["rank"] is None
    )  # every image has a value, but not of every seed
    given[-1]["result"]["metrics"]["psnr"] = None
    (row,) = tables(given)[0]["rows"]
    assert (
        row["complete"]
        and row["scores"]["psnr"]["n"] == 3
        and row["scores"]["psnr"]["rank"] is None
    )


def test_complete_rows_are_ranked_where_their_figures_print_differently() -> None:
    given = [
        *row_of([20.0] * 3, "a"),
        *row_of([24.001] * 3, "b"),
        *row_of([24.003] * 3, "c"),
        *row_of([22.0] * 3, "d"),
    ]
    given += row_of([30.0] * 2, "best, but unfinished")
    (table,) = tables(given)
    assert {name: row["scores"]["psnr"]["rank"] for name, row in rows(table).items()} == {
        "c": None,
        "b": None,  # both print 24.00: neither is the best
        "d": None,
        "a": None,
        "best, but unfinished": None,
    }
    assert [row["label"] for row in table["rows"]] == ["c", "b", "d", "a", "best, but unfinished"]
    given = [r for r in given if r["cell"]["label"] != "c"]
    ranks = {name: row["scores"] for name, row in rows(tables(given)[0]).items()}
    assert (ranks["b"]["psnr"]["rank"], ranks["d"]["psnr"]["rank"], ranks["a"]["psnr"]["rank"]) == (
        1,
        2,
        None,
    )
    assert (ranks["b"]["lpips"]["rank"], ranks["d"]["lpips"]["rank"]) == (
        1,
        2,
    )  # 1/psnr: lower is better


def test_nothing_is_best_where_intervals_overlap_or_images_are_few() -> None:
    def ranks(**of: list[float]) -> list[int | None]:
        count = len(next(iter(of.values())))
        images = {"source": "files", "count": count, "hash": "0" * 64}
        benchmark = problem(images=images)
        given = [r for k, v in of.items() for r in row_of(v, k, benchmark=benchmark)]
        found = rows(tables(given)[0])
        return [found[name]["scores"]["psnr"]["rank"] for name in of]

    assert ranks(a=[30.0, 30.1, 30.2], b=[29.0, 29.1, 29.2], c=[25.0, 25.1, 25.2]) == [1, 2, None]
    assert ranks(a=[30.0, 30.1, 30.2], b=[29.8, 29.9, 30.0], c=[25.0, 25.1, 25.2]) == [None] * 3
    assert ranks(a=[30.0, 30.1, 30.2], b=[26.0, 27.0, 28.0], c=[25.0, 26.1, 27.2]) == [
        1,
        None,
        None,
    ]
    assert ranks(a=[30.0, 30.0], b=[20.0, 20.0]) == [None, None]


def test_titles_are_as_people_write_them() -> None:
    (table,) = tables(row_of([24.0, 25.0, 26.0]))
    assert "| method | PSNR ↑ | lpips ↓ | consistency |" in markdown([table])


def test_an_undefined_figure_leaves_the_row_unranked_there_alone() -> None:
    given = [*row_of([24.0] * 3, "a"), *row_of([25.0] * 3, "b")]
    given[-1]["result"]["metrics"]["psnr"] = None
    both = rows(tables(given)[0])
    assert both["b"]["complete"] and both["b"]["problems"] == ["1 of 3 without psnr (kodim03)"]
    assert (
        both["b"]["scores"]["psnr"] == {"mean": 25.0, "half": 0.0, "n": 2, "rank": None}
        and both["b"]["scores"]["lpips"]["rank"] == 1
    )
    assert both["a"]["scores"]["psnr"]["rank"] == 1


def test_a_metric_without_any_value_is_no_column() -> None:
    given = row_of([24.0] * 3)
    for r in given:
        r["result"]["metrics"]["lpips"] = None
    (table,) = tables(given)
    assert [m["name"] for m in table["metrics"]] == ["psnr", "consistency"] and table["rows"][0][
        "problems"
    ] == []


def test_unfinished_rows_say_what_is_missing() -> None:
    given = [
        record(24.0, 0, "some"),
        record(label="some", image=1, instead=FAILED),
        record(label="some", image=2, instead=DIVERGED),
    ]
    given += [record(label="none", image=i, instead=REFUSED) for i in range(3)]
    (table,) = tables(given)
    assert rows(table)["some"]["problems"] == [
        # folders of a machine are nobody's business
        "1 of 3 failed (kodim02): OSError: cannot read .../x.png",
        "1 of 3 diverged (kodim03): non-finite at step 3",
    ]
    none = rows(table)["none"]
    assert none["problems"] == ["3 of 3 refused: ddrm needs an SVD"] and none["cells"] == []
    assert (
        none["scores"]["psnr"] == {"mean": None, "half": None, "n": 0, "rank": None}
        and none["cost"]["seconds"] is None
    )
    assert all(row["scores"]["psnr"]["rank"] is None for row in table["rows"])
    text = markdown([table])
    assert "3 of 3 refused: ddrm needs an SVD" in text and "| 1 of 3 |" in text


def test_nothing_but_failures_is_a_table_too() -> None:
    (table,) = tables([record(instead=FAILED)])
    assert [m["name"] for m in table["metrics"]] == [
        "psnr",
        "lpips",
        "consistency",
    ] and "failed" in markdown([table])


def test_labels_tell_rows_apart() -> None:
    small = PHOTO64 | {"dtype": "bfloat16"}
    given = [
        record(values={"zeta": 6, "steps": 100}),
        record(values={"zeta": 3, "steps": 100}),
        record(label="tv", model=None),
    ]
    assert set(rows(tables(given)[0])) == {"dps zeta=6", "dps zeta=3", "tv"}
    given.append(record(values={"zeta": 3, "steps": 100}, model=small))
    assert set(rows(tables(given)[0])) == {
        "dps zeta=6 (photo64, float32)",
        "dps zeta=3 (photo64, float32)",
        "dps zeta=3 (photo64, bfloat16)",
        "tv",
    }
    other, third = record(), record()
    other["cell"]["run"] = {"steps": 99}
    third["cell"]["run"] = {"steps": 100, "guidance": [{"name": "dps", "eta": 1}]}
    assert set(rows(tables([record(), other])[0])) == {"dps steps=100", "dps steps=99"}
    first, second = rows(tables([record(), third])[0])
    assert first.startswith("dps #") and second.startswith("dps #") and first != second


def test_rows_are_compared_with_a_baseline_image_by_image() -> None:
    given = [
        *row_of([24.0, 30.0, 27.0], "a"),
        *row_of([23.0, 28.9, 26.1], "b"),
        *row_of([20.0, 40.0], "c"),
    ]
    (table,) = tables(given, baseline="b")
    found = rows(table)
    test = scipy.stats.ttest_rel([24.0, 30.0, 27.0], [23.0, 28.9, 26.1])
    expected = test.confidence_interval(1 - 0.05 / 2)  # two rows are compared
    assert table["baseline"] == "b" and found["b"]["paired"] == {}
    pair = found["a"]["paired"]["psnr"]
    assert (pair["mean"], pair["half"], pair["n"]) == (
        pytest.approx(1.0),
        pytest.approx((expected.high - expected.low) / 2),
        3,
    )
    assert found["c"]["paired"]["psnr"]["n"] == 2 and set(found["c"]["paired"]) == {
        "psnr",
        "lpips",
    }  # consistency has no better
    text = markdown([table])
    assert (
        "+1.00 ± 0.36 (better)" in text and "-0.001 ± 0.001 (better)" in text
    )  # psnr, and lpips where lower is better
    assert "Δ: difference to b" in text and "+4.05 ± " in text  # it does not exclude 0


def test_a_baseline_may_be_named_as_in_the_suite() -> None:
    given = [record(values={"zeta": 6}), record(values={"zeta": 3}), record(label="tv")]
    with pytest.raises(ValueError, match="any of 2 rows; give one of 'dps zeta=3', 'dps zeta=6'"):
        tables(given, baseline="dps")
    assert (
        tables(
            [record(model=PHOTO64), record(label="x", model=PHOTO64 | {"name": "y"})],
            baseline="dps",
        )[0]["baseline"]
        == "dps (photo64)"
    )
    with pytest.raises(ValueError, match="no row is called 'ddrm'"):
        tables(given, baseline="ddrm")


def test_several_samples() -> None:
    spread = {"std": 0.05, "coverage": 0.61, "coverage_calibrated": 0.777, "diversity": 0.1}
    given = row_of([24.0, 25.0, 26.0], samples=8, mean={"psnr": 27.0}, spread=spread)
    given += row_of([23.0] * 3, "one")
    (table,) = tables(given)
    row = rows(table)["dps"]
    assert row["mean"] == {"psnr": {"mean": 27.0, "half": 0.0, "n": 3, "rank": 1}} and row[
        "spread"
    ]["coverage"]["mean"] == pytest.approx(0.61)
    assert not [flaw for r in given for flaw in flaws(r)]
    text = markdown([table])
    assert (
        "mean's PSNR ↑" in text
        and "0.610 ± 0.000 (calibrated 0.777)" in text
        and "coverage_calibrated" not in text
    )


def test_only_some_metrics_in_an_order() -> None:
    given = [*row_of([24.0] * 3, "a"), *row_of([25.0] * 3, "b")]
    (table,) = tables(given, metrics=["lpips", "psnr"])
    assert [m["name"] for m in table["metrics"]] == ["lpips", "psnr"] and list(
        table["rows"][0]["scores"]
    ) == ["lpips", "psnr"]
    with pytest.raises(ValueError, match="no figures of 'fid'.*psnr, lpips, consistency"):
        tables(given, metrics=["fid"])


def test_other_machines_and_code_are_told() -> None:
    given = [
        *row_of([24.0] * 3, "a"),
        *row_of([25.0] * 3, "b", environment={"processor": "slide rule", "code": "beef" * 4}),
    ]
    (table,) = tables(given)
    assert [c.partition(" (")[0] for c in cautions(table)] == [
        "measured on different processors",
        "measured by different versions of the code",
    ]
    assert "slide rule" in markdown([table])
    given[0] = record(24.0, 0, "a", environment={"threads": 2})  # within a row
    assert rows(tables(given)[0])["a"]["environment"]["threads"] == [2, 1]
    assert cautions(tables(row_of([24.0] * 3))[0]) == []


def test_text_of_records_is_escaped() -> None:
    given = [
        record(label="a|b\n<script>*x*", benchmark=problem(name="in`p|aint")),
        record(label="x\\|y", benchmark=problem(name="in`p|aint")),
    ]
    (table,) = tables(given)
    text = markdown([table])
    assert "a\\|b &lt;script>\\*x\\*" in text and "x\\\\\\|y" in text and "## in\\`p\\|aint" in text
    grid = [line for line in text.splitlines() if line.startswith("|")]
    assert len(grid) == 4 and len({line.replace("\\|", "").count("|") for line in grid}) == 1


# What may not be mixed


def test_two_benchmarks_of_one_name_are_refused() -> None:
    other = problem(sigma=0.05)
    given = [*row_of([24.0] * 3), *row_of([23.0] * 3, benchmark=other)]
    first, second = (harness.digest(b)[:12] for b in (problem(), other))
    with pytest.raises(
        ValueError,
        match=f"sigma 0.025 in {first}, 0.05 in {second}.*--benchmark {first} or --benchmark "
        f"{second}",
    ):
        tables(given)
    (table,) = tables(given, benchmark=second[:6])
    assert (
        table["benchmark"]["sigma"] == 0.05 and table["rows"][0]["scores"]["psnr"]["mean"] == 23.0
    )
    with pytest.raises(ValueError, match=rf"0 benchmarks.*'xyz'; there are {first} \(inpaint\)"):
        tables(given, benchmark="xyz")
    with pytest.raises(ValueError, match="2 benchmarks"):
        tables(given, benchmark="")
    assert (
        len(tables([*given[:3], *row_of([23.0] * 3, benchmark=problem(name="other", sigma=0.05))]))
        == 2
    )


def test_what_differs_is_found_in_depth() -> None:
    deep = problem()
    deep["metrics"] = copy.deepcopy(deep["metrics"])
    deep["metrics"]["psnr"]["crop"] = 4
    del deep["operator"]["fraction"]
    with pytest.raises(
        ValueError,
        match=r"operator.fraction 0.7 in \w+, absent in \w+; metrics.psnr.crop 0 in \w+, 4 in",
    ):
        tables([record(), record(benchmark=deep)])


def test_runs_with_fewer_images_and_seeds_count_for_the_larger_one() -> None:
    first = {"source": "files", "count": 2, "hash": "0" * 64}
    small = problem(images=first)
    more = problem(seeds=[0, 1])
    given = [
        *row_of([24.0, 25.0], benchmark=small),
        record(26.0, 2, benchmark=more),
        *row_of([24.0, 25.0, 26.0], seed=1, benchmark=more),
    ]
    for r in given[:2]:
        r["cell"]["batch"] = r["cell"]["batch"][:2]
    (table,) = tables(given)
    (row,) = table["rows"]
    assert row["complete"] and row["of"] == 3 and row["scores"]["psnr"]["mean"] == 25.0
    assert table["benchmark"]["hash"] == benchmark_hash(given[-1]["cell"])
    for r in given[:2]:
        r["cell"]["batch"] = [{**image, "hash": "ab" * 32} for image in r["cell"]["batch"]]
    with pytest.raises(ValueError, match="two benchmarks are called"):
        tables(given)  # other images


def test_rows_of_other_measurements_are_refused() -> None:
    given = [record(label="a"), record(label="b", measurement="0" * 64)]
    with pytest.raises(
        ValueError,
        match="not of the same measurement .*cannot be compared. Machines may differ in the last "
        "bit",
    ):
        tables(given)
    assert (
        len(
            tables([record(label="a"), record(label="b", image=1, measurement="0" * 64)])[0]["rows"]
        )
        == 2
    )  # another image's


def test_one_cell_found_twice() -> None:
    first = record(24.0)
    again = record(24.0, restoration="1" * 64, seconds=9.0)
    again["result"]["metrics"] = first["result"]["metrics"] | {"psnr": 24.004}
    assert merged([first, again]) == [first]  # they print alike
    again["result"]["metrics"]["psnr"] = 24.02
    with pytest.raises(
        ValueError, match="of one cell, but their results differ: metrics.psnr is 24.0 and 24.02"
    ):
        merged([first, again])
    again["result"]["metrics"]["psnr"] = None
    with pytest.raises(ValueError, match="psnr is 24.0 and None"):
        merged([first, again])
    with pytest.raises(ValueError, match="measured and diverged"):
        merged([first, record(instead=DIVERGED)])
    failed = record(instead=FAILED)
    assert merged([failed, first]) == merged([first, failed]) == [first]  # a failure is no finding
    assert merged([failed, failed]) == [failed]


# The schema


def test_threads_are_named_where_they_may_be_why_figures_differ(tmp_path: Path) -> None:
    a, b = record(24.0), record(24.1, environment={"threads": 2})
    with pytest.raises(ValueError, match=r"differ \(made with 1 and 2 threads\): metrics.psnr"):
        merged([a, b])


def test_the_schema_is_one_and_holds_for_what_is_written() -> None:
    schema = json.loads(files("invdiff.benchmarks").joinpath("record.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    for made in (
        record(),
        record(None),
        record(instead=FAILED),
        record(instead=REFUSED),
        record(instead=DIVERGED),
        record(model=None),
    ):
        assert flaws(made) == []
    assert flaws(record() | {"environment": harness.environment()}) == []


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("format",), 1, "$.format"),
        (("cell", "label"), "", "$.cell.label"),
        (("cell", "kind"), "peer", "$.cell.kind"),
        (("cell", "seed"), 7, "$.cell.seed: 7 is none of"),
        (("cell", "seed"), True, "$.cell.seed"),
        (("cell", "image", "index"), 3, "$.cell.image.index: 3, but the benchmark has 3"),
        (("cell", "image", "hash"), "XY", "$.cell.image.hash"),
        (("cell", "batch"), [identity(1)], "$.cell.batch: does not hold the image itself"),
        (("cell", "more"), 1, "$.cell"),
        (("cell", "benchmark", "sigma"), "0.025", "$.cell.benchmark.sigma"),
        (
            ("cell", "benchmark", "metrics", "psnr"),
            {"better": "higher"},
            "$.cell.benchmark.metrics.psnr",
        ),
        (("cell", "model", "weights"), "no hash", "$.cell.model"),
        (("environment", "processor"), None, "$.environment.processor"),
        (("result", "metrics", "psnr"), "25", "$.result.metrics.psnr"),
        (("result", "metrics"), {"lpips": 0.1}, "$.result.metrics: lacks consistency, psnr"),
        (("result", "samples"), 2, "$.result"),
        (("result", "mean"), {"psnr": 25.0}, "$.result.mean"),
        (("result", "refused"), "and yet there is a result", "$.result"),
        (("result", "files", "truth"), "pictures/../../secret.png", "$.result.files.truth"),
        (("failure",), {"error": "x", "traceback": ""}, "$.result"),
        (("result",), None, "$.result"),
    ],
)
def test_the_schema_is_strict(path: tuple[str, ...], value: Any, where: str) -> None:
    made = copy.deepcopy(record())
    at: Any = made
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    assert any(flaw.startswith(where) for flaw in flaws(made)), flaws(made)


def test_nothing_that_is_required_may_lack() -> None:
    for path in [
        (),
        ("cell",),
        ("cell", "benchmark"),
        ("cell", "image"),
        ("environment",),
        ("result",),
    ]:
        whole: Any = record()
        for step in path:
            whole = whole[step]
        for name in whole:
            made = copy.deepcopy(record())
            at: Any = made
            for step in path:
                at = at[step]
            del at[name]
            assert flaws(made), (*path, name)


# Folders


def test_records_are_read_from_folders_and_below(tmp_path: Path) -> None:
    stored(tmp_path / "a", record(24.0, 0), record(25.0, 1))
    stored(tmp_path / "a" / "below", record(26.0, 2))
    (tmp_path / "a" / "result.json").write_text('{"config": {}}')  # not a record
    (tmp_path / "a" / "exact.json").write_text(
        json.dumps({"format": harness.FORMAT, "suite": "s", "cell": {"problem": "mixture"}})
    )
    with pytest.warns(UserWarning, match="1 of the records .* tables of their own"):
        found = read_records(
            [tmp_path / "a", tmp_path / "a" / "below"]
        )  # the same file twice is one
    assert sorted(r["result"]["metrics"]["psnr"] for r in found) == [24.0, 25.0, 26.0]
    (table,) = tables(found)
    assert {c["folder"] for c in table["rows"][0]["cells"]} == {
        str(tmp_path / "a"),
        str(tmp_path / "a" / "below"),
    }


def test_damaged_records_are_all_named(tmp_path: Path) -> None:
    stored(tmp_path, record())
    (tmp_path / "half.json").write_text('{"format": 2, "cell')
    (tmp_path / "infinite.json").write_text('{"format": 2, "x": NaN}')
    (tmp_path / "overflown.json").write_text('{"format": 2, "x": 1e999}')
    (tmp_path / "old.json").write_text(json.dumps(record(image=1) | {"format": 1}))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "list.json").write_text("[]")  # no record, and none of our business
    said = (
        "5 damaged or of another format: .*bytes.json.*half.json: not JSON.*infinite.json: NaN.*"
        "old.json: \\$.format.*1e999"
    )
    with pytest.warns(UserWarning, match=said):
        assert len(read_records([tmp_path])) == 1
    with pytest.raises(ValueError, match=said):
        read_records([tmp_path], strict=True)
    with pytest.raises(ValueError, match="nowhere is no folder"):
        read_records([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="no records of a grid"):
        read_records([stored(tmp_path / "empty")])


def test_validation_finds_what_was_changed(tmp_path: Path) -> None:
    good, renamed, unpictured, unreadable, linked = (
        (record(image=i, label=name) for i, name in enumerate("abc")),
        *(record(label=name) for name in "defg"),
    )
    folder = stored(tmp_path / "run", *good, renamed, unpictured, unreadable, linked)
    assert problems([folder])[0] == [] and len(problems([folder])[1]) == 7
    (folder / f"{harness.key(renamed['cell'])}.json").rename(folder / "mine.json")
    (folder / unpictured["result"]["files"]["restoration"]).unlink()
    (folder / unreadable["result"]["files"]["restoration"]).write_bytes(
        b"\x89PNG\r\n\x1a\n but no more"
    )
    (tmp_path / "elsewhere.png").write_bytes(
        (folder / linked["result"]["files"]["restoration"]).read_bytes()
    )
    (folder / linked["result"]["files"]["restoration"]).unlink()
    (folder / linked["result"]["files"]["restoration"]).symlink_to(tmp_path / "elsewhere.png")
    wrong, sound = problems([folder])
    assert len(sound) == 3 and len(wrong) == 4
    assert any("mine.json: $.cell: is that of a file" in line for line in wrong)
    assert [
        sum(text in line for line in wrong)
        for text in ("there is no pictures/", "cannot be read", "leads out of the folder")
    ] == [
        1,
        1,
        1,
    ]


def test_validation_holds_records_against_each_other(tmp_path: Path) -> None:
    stored(tmp_path, record(label="a"), record(label="b", measurement="0" * 64))
    (line,) = problems([tmp_path])[0]
    assert "not of the same measurement" in line


def test_merging(tmp_path: Path) -> None:
    a = stored(tmp_path / "a", *row_of([24.0, 25.0, 26.0], "a"), record(label="b", instead=FAILED))
    b = stored(
        tmp_path / "b" / "deep", *row_of([23.0, 24.0, 25.0], "b"), record(24.0, 0, "a", seconds=7.0)
    )
    merge([a], tmp_path / "all")
    found = merge([b], tmp_path / "all")  # what is there already counts
    assert len(found) == 6 and len(list((tmp_path / "all").glob("*.json"))) == 6
    wrong, sound = problems([tmp_path / "all"])
    assert wrong == [] and len(sound) == 6
    assert (
        next(r for r in sound if r["cell"] == found[0]["cell"])["result"]["seconds"] == 2.0
    )  # the first is kept

    def plain(table: Table) -> dict[str, Any]:
        return {row["label"]: row["scores"] for row in table["rows"]}

    assert plain(tables(sound)[0]) == plain(tables(read_records([a, b]))[0])
    before = {p: p.read_bytes() for p in (tmp_path / "all").rglob("*.*")}
    merge([a, b], tmp_path / "all")
    assert {p: p.read_bytes() for p in (tmp_path / "all").rglob("*.*")} == before


def test_merging_refuses_before_it_writes(tmp_path: Path) -> None:
    a, b = stored(tmp_path / "a", record(24.0)), stored(tmp_path / "b", record(29.0))
    with pytest.raises(ValueError, match="/a/.* and .*/b/.*their results differ"):
        merge([a, b], tmp_path / "all")
    next((b / "pictures").glob("*.png")).unlink()
    with pytest.raises(ValueError, match="there is no pictures/"):
        merge([b], tmp_path / "all")
    assert not (tmp_path / "all").exists()


# The command


def test_formats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = stored(tmp_path / "a", *row_of([24.0, 25.0, 26.1], "a"))
    b = stored(tmp_path / "b", *row_of([23.0, 24.0], "b, the other", values={"zeta": 1}))
    assert invdiff(a, b, "--baseline", "a") == 0
    printed = capsys.readouterr()
    assert (
        printed.out == markdown(tables(read_records([a, b]), baseline="a")) + "\n"
        and printed.err == ""
    )
    assert "| a | 3 | **25.03 ± 2.61** |" in printed.out

    assert invdiff(a, b, "--format", "csv") == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["label"] for line in lines] == ["a", "b, the other"]
    assert (
        float(lines[0]["psnr"]) == (24.0 + 25.0 + 26.1) / 3
        and lines[0]["psnr_rank"] == "1"
        and lines[1]["psnr_half"] != ""
    )
    assert (
        lines[1]["complete"] == "False"
        and lines[1]["problems"] == "1 of 3 missing (kodim03)"
        and lines[1]["psnr_rank"] == ""
    )

    assert invdiff(a, b, "--format", "json", "--output", tmp_path / "site" / "board.json") == 0
    data = json.loads((tmp_path / "site" / "board.json").read_text())
    assert data["format"] == 1 and str(tmp_path) not in json.dumps(data)
    cell = data["tables"][0]["rows"][0]["cells"][0]
    assert (
        cell["folder"] == "../a"
        and (tmp_path / "site" / cell["folder"] / cell["files"]["truth"]).is_file()
    )
    assert set(data["tables"][0]["rows"][0]) == {
        *(
            "id",
            "label",
            "method",
            "kind",
            "values",
            "model",
            "complete",
            "images",
            "of",
            "problems",
            "warnings",
            "scores",
            "mean",
            "spread",
            "paired",
        ),
        *("cost", "environment", "cells"),
    }
    monkeypatch.chdir(tmp_path)
    assert invdiff("a", "--format", "json", "--output", "-") == 0
    assert json.loads(capsys.readouterr().out)["tables"][0]["rows"][0]["cells"][0]["folder"] == "a"


def test_the_page_gets_the_tables(tmp_path: Path) -> None:
    a = stored(tmp_path / "a", *row_of([24.0, 25.0, 26.0], "a label of its own"))
    assert invdiff(a, "--format", "html", "--output", tmp_path / "board.html") == 0
    assert "a label of its own" in (tmp_path / "board.html").read_text()


def test_the_name_of_the_file_says_the_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = stored(tmp_path / "a", *row_of([24.0, 25.0, 26.0], "own"))
    for name, begins in (
        ("board.html", "<!"),
        ("board.CSV", "benchmark,hash"),
        ("board.tex", "%"),
        ("board.json", "{"),
        ("board.md", "## "),
        ("board", "## "),
    ):
        assert invdiff(a, "--output", tmp_path / name) == 0
        assert (tmp_path / name).read_text().lower().startswith(begins)
    assert invdiff(a, "--output", tmp_path / "board.png") == 2
    assert "no format of tables has the suffix .png" in capsys.readouterr().err
    assert not (tmp_path / "board.png").exists()
    assert invdiff(a, "--format", "csv", "--output", tmp_path / "board.dat") == 0


def test_other_formats_warn_of_other_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path, record(label="a"), record(label="b", environment={"threads": 2}))
    with warnings.catch_warnings():
        assert invdiff(tmp_path, "--format", "csv") == 0
    assert "different numbers of threads (1, 2)" in capsys.readouterr().err.replace(
        "(2, 1)", "(1, 2)"
    )


def test_validate_and_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = stored(tmp_path / "a", *row_of([24.0, 25.0, 26.0], "a"), record(label="b", instead=REFUSED))
    b = stored(tmp_path / "b", record(label="c", instead=FAILED))
    assert invdiff("validate", a, b) == 0
    hashed = benchmark_hash(record()["cell"])
    said = capsys.readouterr().out
    assert said == (
        "5 records are valid (3 with results, 1 failed, 1 refused; 0 recomputed, 5 form only): "
        f"inpaint {hashed} (5)\n"
    )
    assert invdiff("merge", a, b, "--output", tmp_path / "all") == 0
    assert invdiff("validate", tmp_path / "all") == 0
    capsys.readouterr()
    file = next((tmp_path / "all").glob("*.json"))
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"format": 9}))
    (tmp_path / "all" / "half.json").write_text("{")
    assert invdiff("validate", tmp_path / "all") == 2
    shown = capsys.readouterr()
    assert (
        f"{file}: $.format: {harness.FORMAT} was expected" in shown.out
        and "half.json: $: not JSON" in shown.out
        and len(shown.out.splitlines()) == 2
    )
    assert "2 problems" in shown.err and "4 records have none" in shown.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["merge", "{}"], "--output FOLDER"),
        (["validate"], "needs a folder"),
        (["validate", "{}", "--format", "csv"], "has no --format"),
        (["merge", "{}", "--output", "x", "--baseline", "a"], "has no --baseline"),
        (["{}", "--format", "html"], "say which"),
        (["{}", "--output", ""], "--output is empty"),
        (["{}", "--baseline", "z"], "no row is called 'z'"),
        (["{}/absent"], "is no folder"),
    ],
)
def test_mistakes_are_told(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path, record(label="a"))
    assert invdiff(*(a.format(tmp_path) for a in args)) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.out == ""


def test_names_of_columns_are_no_formulas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = '=HYPERLINK("http://x")'
    metric = {"implementation": "m:f", "version": "1", "range": [0, 1], "crop": 0, "better": None}
    benchmark = problem(metrics=problem()["metrics"] | {hostile: metric})
    rows = row_of([24.0, 25.0, 26.0], "a")
    for each in rows:
        each["cell"]["benchmark"] = benchmark
        each["result"]["metrics"][hostile] = 1.0
    assert invdiff(stored(tmp_path / "a", *rows), "--format", "csv") == 0
    header = next(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert f"'{hostile}" in header and not any(name.startswith("=") for name in header)

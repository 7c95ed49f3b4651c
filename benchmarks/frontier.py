"""Quality against cost of every method: a figure and a table for each operator.

    python -m invdiff.benchmarks.frontier --input KODAK24 --output FOLDER [--workers 2] [key=value
    ...]

Runs the suite ``frontier`` (``configs/suite/frontier.yaml``): twelve fixed Kodak crops,
``photo64``, the presets' values, several numbers of steps. LPIPS of one sample and PSNR are drawn
against evaluations, forward and backward added up, and against seconds; what nothing beats in both
quality and cost is joined by a line. Records are kept: the same command goes on, or draws again.
``recommended.json`` is what :func:`invdiff.recommend` chooses from; the one that ships lies in
``configs/``.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from invdiff.benchmarks import harness
from invdiff.benchmarks.launchers import make_launcher
from invdiff.benchmarks.leaderboard import Row, Table, tables
from invdiff.benchmarks.schema import Record
from invdiff.benchmarks.suite import make_suite
from invdiff.benchmarks.tables import markdown
from invdiff.config import compose_suite, override_value
from invdiff.files import write_atomically
from invdiff.plugins.registry import load
from invdiff.solving.recommend import Measured

PRIOR = "photo64"
"""The network of the suite, which rows of baselines are listed with."""
COSTS: dict[str, Callable[[Row], float]] = {
    "evaluations, forward and backward": lambda row: _cost(row, "nfe") + _cost(row, "nbe"),
    "seconds per image": lambda row: _cost(row, "seconds"),
}
SCORES = {"lpips": 1, "psnr": -1}
"""Times which each score is better when it is lower."""


def pareto(rows: Sequence[Row], cost: Callable[[Row], float], score: str) -> list[Row]:
    """The rows that no other beats in cost and score both, cheapest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda r: (cost(r), _loss(r, score))):
        if not front or _loss(row, score) < _loss(front[-1], score):
            front.append(row)
    return front


def _cost(row: Row, name: str) -> float:
    return row["cost"][name] or 0.0


def _loss(row: Row, score: str) -> float:
    mean = row["scores"][score]["mean"]
    assert mean is not None  # as of all complete rows
    return SCORES[score] * mean


def draw(table: Table, path: Path) -> None:
    """LPIPS and PSNR against both costs, one colour for each method."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows, benchmark = complete(table), table["benchmark"]
    methods = sorted({row["method"] for row in rows})
    colours = dict(zip(methods, plt.get_cmap("tab20").colors * 2, strict=False))  # type: ignore[attr-defined]
    figure, axes = plt.subplots(
        len(SCORES), len(COSTS), figsize=(14, 10), sharey="row", layout="constrained"
    )
    for panels, score in zip(axes, SCORES, strict=True):
        for panel, (name, cost) in zip(panels, COSTS.items(), strict=True):
            for method in methods:
                own = sorted((row for row in rows if row["method"] == method), key=cost)
                x, y = [cost(row) for row in own], [row["scores"][score]["mean"] for row in own]
                panel.plot(x, y, "o-", color=colours[method], lw=0.6, ms=4)
                panel.annotate(
                    method,
                    (x[-1], y[-1]),
                    xytext=(4, 2),
                    textcoords="offset points",
                    fontsize=8,
                    color=colours[method],
                )
            front = pareto(rows, cost, score)
            panel.plot(
                [cost(r) for r in front],
                [r["scores"][score]["mean"] for r in front],
                color="black",
                lw=1.5,
                alpha=0.5,
                zorder=0,
            )
            panel.set(
                xscale="log",
                xlabel=name,
                ylabel=f"{score.upper()} ({'lower' if SCORES[score] > 0 else 'higher'} is better)",
            )
            panel.grid(alpha=0.2)
    size = benchmark["images"].get("size")
    crops = f"{benchmark['images']['count']} images{f' of {size}x{size}' if size else ''}"
    networks = ", ".join(dict.fromkeys(row["model"]["name"] for row in rows if row["model"]))
    figure.suptitle(f"{benchmark['name']}: {networks}, {crops}, sigma {benchmark['sigma']}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def complete(table: Table) -> list[Row]:
    """Rows that have the scores and a cost for every image."""
    return [
        row
        for row in table["rows"]
        if row["complete"] and all(row["scores"][name]["mean"] is not None for name in SCORES)
    ]


def lines(table: Table) -> str:
    """The rows as a table, best LPIPS first, those on the front marked; and why others are not
    there."""
    rows = sorted(complete(table), key=lambda row: _loss(row, "lpips"))
    front = {row["id"] for row in pareto(rows, next(iter(COSTS.values())), "lpips")}
    found = []
    for row in rows:
        figures = {
            name.upper(): f"{row['scores'][name]['mean']:.{digits}f}"
            for name, digits in (("lpips", 3), ("psnr", 2))
        }
        cost = {
            "NFE": f"{row['cost']['nfe']:g}",
            "NBE": f"{row['cost']['nbe']:g}",
            "s per image": f"{row['cost']['seconds']:.3g}",
        }
        values = ", ".join(f"{k} {v}" for k, v in row["values"].items())
        found.append(
            {"method": row["method"], "values": values}
            | figures
            | cost
            | {"front": "yes" if row["id"] in front else ""}
        )
    absent = [
        f"- {row['label']}: {'; '.join(row['problems'])}"
        for row in table["rows"]
        if not row["complete"]
    ]
    return "\n\n".join([f"{table['benchmark']['name']}:", markdown(found), *absent])


def recommended(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The complete rows as :class:`~invdiff.solving.recommend.Measured`, of methods that run alone
    and of the linear estimate."""
    runs = {
        (r["cell"]["benchmark"]["name"], r["cell"]["label"], str(r["cell"]["values"])): r["cell"]
        for r in records
    }
    found = []
    for table in tables(records):
        name, operator = table["benchmark"]["name"], table["benchmark"]["operator"]["name"]
        for row in complete(table):
            cell = runs[name, row["method"], str(row["values"])]
            run, linear = cell["run"], row["kind"] == "baseline" and cell["run"]["name"] == "pinv"
            if not linear and (row["kind"] == "baseline" or len(run["guidance"]) > 1):
                continue
            if not linear and (run["transition"] or run["itinerary"]):
                continue
            node = {} if linear else run["guidance"][0]
            found.append(
                asdict(
                    Measured(
                        operator,
                        PRIOR if cell["model"] is None else cell["model"]["name"],
                        table["benchmark"]["images"]["count"],
                        node.get("name"),
                        _special(node),
                        0 if linear else run["steps"],
                        1 if linear else run["num_samples"],
                        _cost(row, "nfe") + _cost(row, "nbe"),
                        round(_loss(row, "lpips"), 4),
                        round(-_loss(row, "psnr"), 3),
                    )
                )
            )
    return found


def _special(node: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a method that are not its general ones."""
    if "name" not in node:
        return {}
    general = inspect.signature(load("guidance", node["name"])).parameters
    return {
        k: v
        for k, v in node.items()
        if k != "name" and (k not in general or general[k].default != v)
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m invdiff.benchmarks.frontier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", required=True, help="folder with kodim01.png ... kodim24.png")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes, each with one thread; seconds then are those of a busy machine",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the suite")
    args = parser.parse_args(argv)
    config = compose_suite(
        "frontier", [f"images.source={override_value(args.input)}", *args.overrides]
    )
    launcher, suite = make_launcher("local", args.workers), make_suite("grid")
    records = harness.run(suite, suite.tasks(config), suite.context(config), args.output, launcher)
    found = tables(records)
    for table in filter(complete, found):
        draw(table, args.output / f"{table['benchmark']['name']}.png")
    text = "\n\n".join(map(lines, found))
    write_atomically(args.output / "results.md", text + "\n")
    rows = ",\n".join(json.dumps(row) for row in recommended(records))
    write_atomically(args.output / "recommended.json", f"[\n{rows}\n]\n")
    print(text)
    harness.check(records, args.output)


if __name__ == "__main__":
    main()

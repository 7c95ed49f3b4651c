"""Quality against cost of every method: a figure and a table for each operator.

    python -m invdiff.benchmarks.frontier --photos KODAK24 --output FOLDER [--workers 2] [key=value ...]

Runs the suite ``frontier`` (``configs/suite/frontier.yaml``): twelve fixed Kodak crops, ``photo64``, the presets' values, several numbers of
steps. LPIPS of one sample and PSNR are drawn against evaluations, forward and backward added up, and against seconds; what nothing
beats in both quality and cost is joined by a line. Records are kept: the same command goes on, or draws again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from invdiff.benchmarks import harness, photos
from invdiff.benchmarks.harness import Record
from invdiff.benchmarks.tables import markdown
from invdiff.config import compose_suite
from invdiff.files import write_atomically

COSTS: dict[str, Callable[[Record], float]] = {
    "evaluations, forward and backward": lambda r: r["result"]["nfe"] + r["result"]["nbe"],
    "seconds per image": lambda r: r["result"]["seconds"],
}
SCORES = {"lpips": 1, "psnr": -1}
"""Times which each score is better when it is lower."""


def pareto(records: Sequence[Record], cost: Callable[[Record], float], score: str) -> list[Record]:
    """The records that no other beats in cost and score both, cheapest first."""
    front: list[Record] = []
    for record in sorted(records, key=lambda r: (cost(r), SCORES[score] * r["result"]["sample"][score])):
        if not front or SCORES[score] * record["result"]["sample"][score] < SCORES[score] * front[-1]["result"]["sample"][score]:
            front.append(record)
    return front


def draw(records: Sequence[Record], title: str, path: Path) -> None:
    """LPIPS and PSNR against both costs, one colour for each method."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    methods = sorted({r["cell"]["method"] for r in records})
    colours = dict(zip(methods, plt.get_cmap("tab20").colors * 2, strict=False))  # type: ignore[attr-defined]
    figure, axes = plt.subplots(len(SCORES), len(COSTS), figsize=(14, 10), sharey="row", layout="constrained")
    for panels, score in zip(axes, SCORES, strict=True):
        for panel, (name, cost) in zip(panels, COSTS.items(), strict=True):
            for method in methods:
                own = sorted((r for r in records if r["cell"]["method"] == method), key=cost)
                x, y = [cost(r) for r in own], [r["result"]["sample"][score] for r in own]
                panel.plot(x, y, "o-", color=colours[method], lw=0.6, ms=4)
                panel.annotate(method, (x[-1], y[-1]), xytext=(4, 2), textcoords="offset points", fontsize=8, color=colours[method])
            front = pareto(records, cost, score)
            panel.plot([cost(r) for r in front], [r["result"]["sample"][score] for r in front], color="black", lw=1.5, alpha=0.5, zorder=0)
            panel.set(xscale="log", xlabel=name, ylabel=f"{score.upper()} ({'lower' if SCORES[score] > 0 else 'higher'} is better)")
            panel.grid(alpha=0.2)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m invdiff.benchmarks.frontier", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder with kodim01.png ... kodim24.png")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1, help="processes, each with one thread; seconds then are those of a busy machine")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the suite")
    args = parser.parse_args(argv)
    config = compose_suite("frontier", [f"photos={args.photos}", *args.overrides])
    records = harness.run(photos.__name__, photos.cells(config), photos.context(config), args.output, args.workers)
    done = [r for r in records if "sample" in r.get("result", {})]
    tables = []
    for operator in config["operators"]:
        own = [r for r in done if r["cell"]["operator"] == operator]
        draw(
            own,
            f"{operator}: {config['model']}, {len(config['numbers'])} crops of {config['size']}x{config['size']}",
            args.output / f"{operator}.png",
        )
        best = {id(r) for r in pareto(own, next(iter(COSTS.values())), "lpips")}
        rows = [
            photos.row(r) | {"front": "yes" if id(r) in best else ""} for r in sorted(own, key=lambda r: r["result"]["sample"]["lpips"])
        ]
        tables.append(f"{operator}:\n\n{markdown(rows)}" + "".join(f"\n\n{line}" for line in photos.without(records, operator)))
    write_atomically(args.output / "results.md", "\n\n".join(tables) + "\n")
    print("\n\n".join(tables))
    harness.check(records, args.output)


if __name__ == "__main__":
    main()

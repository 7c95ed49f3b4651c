"""``invdiff leaderboard``: result folders as tables; folders that are checked, and merged."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from invdiff.benchmarks.leaderboard import Table, add_set_scores, cautions, markdown, tables
from invdiff.benchmarks.leaderboard.export import to_csv, to_json
from invdiff.benchmarks.recompute import recompute
from invdiff.benchmarks.records import benchmark_hash, merge, problems, read_records
from invdiff.commands.common import check_paths
from invdiff.files import write_atomically

OPTIONS = {
    "show": {
        "format",
        "output",
        "baseline",
        "benchmark",
        "metric",
        "set_score",
        "weights",
        "pictures",
    },
    "validate": set(),
    "merge": {"output"},
}
"""That each action takes."""


def run(args: argparse.Namespace) -> None:
    """Shows, validates or merges; which one is the first argument, ``validate`` or ``merge``, where
    it is one of these.

    Raises:
        ValueError: options that the action has not; records that do not compare; of ``validate``,
            that something is wrong.
    """
    check_paths(args, ("output",))
    action, folders = (
        (args.folders[0], args.folders[1:])
        if args.folders[0] in OPTIONS
        else ("show", args.folders)
    )
    if not folders:
        raise ValueError(
            f"`invdiff leaderboard {action}` needs a folder of records (a folder that is "
            f"called {action} is ./{action})"
        )
    for name in OPTIONS["show"] - OPTIONS[action]:
        if getattr(args, name) is not None:
            raise ValueError(f"`invdiff leaderboard {action}` has no --{name.replace('_', '-')}")
    {"show": _show, "validate": _validate, "merge": _merge}[action](folders, args)


def _show(folders: Sequence[str], args: argparse.Namespace) -> None:
    output = None if args.output in (None, "-") else Path(args.output)
    form = args.format or "markdown"
    if form == "html" and output is None:
        raise ValueError("the page is a file; say which: --output leaderboard.html")
    found = tables(read_records(folders), args.baseline, args.benchmark, args.metric)
    for table in found if args.set_score else ():
        add_set_scores(table, args.set_score, args.weights and Path(args.weights))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    if form != "markdown":  # which has them in its text
        for caution in dict.fromkeys(c for table in found for c in cautions(table)):
            warnings.warn(caution, stacklevel=2)
    if form == "html":
        from invdiff.benchmarks.leaderboard import page

        assert output is not None
        page.write(
            {"format": 1, "tables": found},
            output,
            page.PICTURES if args.pictures is None else args.pictures,
        )
        return
    text = FORMATS[form](found, output.parent if output else Path())
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomically(output, text)


def _validate(folders: Sequence[str], args: argparse.Namespace) -> None:
    wrong, records = problems(folders)
    again = {record["file"]: recompute(record) for record in records}
    wrong += [f"{file}: {flaw}" for file, flaws in again.items() for flaw in flaws or ()]
    records = [record for record in records if not again[record["file"]]]
    for line in wrong:
        print(" ".join(line.split()))
    if wrong:
        raise ValueError(
            f"{len(wrong)} problems in {', '.join(folders)}; {len(records)} records have none"
        )
    kinds = Counter(
        next(
            k
            for k in ("failure", "refused", "diverged", "metrics")
            if k in record or k in record.get("result", {})
        )
        for record in records
    )
    words = {
        "metrics": "with results",
        "failure": "failed",
        "refused": "refused",
        "diverged": "diverged",
    }
    counts = Counter(
        (record["cell"]["benchmark"]["name"], benchmark_hash(record["cell"])) for record in records
    )
    said = ", ".join(f"{kinds[kind]} {word}" for kind, word in words.items() if kinds[kind])
    checked = sum(again[record["file"]] is not None for record in records)
    said += f"; {checked} recomputed, {len(records) - checked} form only"
    print(
        f"{len(records)} records are valid ({said}): "
        f"{', '.join(f'{name} {hashed} ({n})' for (name, hashed), n in counts.items())}"
    )


def _merge(folders: Sequence[str], args: argparse.Namespace) -> None:
    if args.output is None:
        raise ValueError("say where the merged records go: --output FOLDER")
    records = merge(folders, Path(args.output))
    print(f"{len(records)} records -> {args.output}", file=sys.stderr)


def _markdown(found: Sequence[Table], base: Path) -> str:
    return markdown(found) + "\n"


FORMATS: dict[str, Callable[[Sequence[Table], Path], str]] = {
    "markdown": _markdown,
    "csv": to_csv,
    "json": to_json,
}
"""Those that are text."""

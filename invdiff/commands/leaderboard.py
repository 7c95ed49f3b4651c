"""``invdiff leaderboard``: result folders as tables; folders that are checked, and merged."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from invdiff.benchmarks.leaderboard import Table, cautions, markdown, tables
from invdiff.benchmarks.leaderboard.export import to_csv, to_json
from invdiff.benchmarks.leaderboard.latex import latex
from invdiff.benchmarks.records import benchmark_hash, merge, problems, read_records
from invdiff.commands.folder import check_paths
from invdiff.files import write_atomically

OPTIONS: dict[str, set[str]] = {
    "show": {
        "format",
        "output",
        "baseline",
        "benchmark",
        "metric",
        "set_score",
        "weights",
        "pictures",
        "overwrite",
        "figure",
    },
    "validate": set(),
    "merge": {"output"},
    "publish": {"output", "baseline", "metric", "pictures", "overwrite"},
    "diff": {"benchmark", "metric"},
}
"""That each action takes."""


def run(args: argparse.Namespace) -> None:
    """Shows, validates, merges, publishes or compares; which one is the first argument, where it is
    one of these words.

    Raises:
        ValueError: options that the action has not; records that do not compare; of ``validate``,
            that something is wrong; of ``diff``, that a row is worse.
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
        if getattr(args, name) not in (None, False):
            raise ValueError(f"`invdiff leaderboard {action}` has no --{name.replace('_', '-')}")
    {
        "show": _show,
        "validate": _validate,
        "merge": _merge,
        "publish": _publish,
        "diff": _diff,
    }[action](folders, args)


def _show(folders: Sequence[str], args: argparse.Namespace) -> None:
    output = None if args.output in (None, "-") else Path(args.output)
    form = args.format or _form_of(output)
    if form == "html" and output is None:
        raise ValueError("the page is a file; say which: --output leaderboard.html")
    if output is not None:
        check_file(output, form, args.overwrite)
    if args.figure is not None:
        check_file(Path(args.figure), "figure", args.overwrite)
    found = tables(read_records(folders), args.baseline, args.benchmark, args.metric)
    for table in found if args.set_score else ():
        from invdiff.benchmarks.leaderboard.sets import add_set_scores  # imports torch

        add_set_scores(table, args.set_score, args.weights and Path(args.weights))
    if args.figure is not None:
        from invdiff.benchmarks.leaderboard import figure

        figure.write(found, Path(args.figure), args.pictures or figure.IMAGES)
        if args.format is None and output is None:
            return
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


SUFFIXES = {
    "": "markdown",
    ".md": "markdown",
    ".txt": "markdown",
    ".csv": "csv",
    ".json": "json",
    ".tex": "latex",
    ".html": "html",
    ".htm": "html",
}
"""The format of a file by its suffix, where none is asked for."""


def _form_of(output: Path | None) -> str:
    """The format that the name of a file asks for; Markdown where tables are printed.

    Raises:
        ValueError: the suffix is that of no format.
    """
    suffix = "" if output is None else output.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{output}: no format of tables has the suffix {suffix}; it is one of "
            f"{', '.join(filter(None, SUFFIXES))}, or --format says which (--figure draws)"
        )
    return SUFFIXES[suffix]


MARKS = {
    "markdown": "Means over images ± 95 % intervals",
    "csv": "benchmark,hash,id,label",
    "json": '"tables": [',
    "latex": "% invdiff leaderboard",
    "figure": "Matplotlib pdf backend",
    "html": "<title>Leaderboard",
}
"""Texts near the beginning or end of each format, by which a leaderboard recognises its own."""
HEAD = 1 << 16
"""Bytes at each end of a file in which the mark is looked for."""


def check_file(output: Path, form: str, overwrite: bool) -> None:
    """Refuses, before any work, to write where something else would be lost.

    Raises:
        ValueError: a link, a folder, a device or a pipe; a file that no leaderboard wrote, unless
            ``overwrite``.
    """
    if output.is_symlink():
        raise ValueError(f"{output} is a link; give --output the file itself")
    if not output.exists():
        return
    if not output.is_file():
        raise ValueError(f"{output} is no regular file; choose another --output")
    if not overwrite:
        content = output.read_bytes()  # of a PDF the mark is at the end
        known = MARKS[form].encode() in content[:HEAD] + content[-HEAD:]
        if not known:
            raise ValueError(
                f"{output} exists and is no leaderboard of the format {form}; choose another "
                "--output or add --overwrite"
            )


def _validate(folders: Sequence[str], args: argparse.Namespace) -> None:
    from invdiff.benchmarks.recompute import recompute  # imports torch

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


def _publish(folders: Sequence[str], args: argparse.Namespace) -> None:
    from invdiff.benchmarks.leaderboard import site

    if args.output is None:
        raise ValueError("say where the site goes: --output FOLDER")
    output = Path(args.output)
    check_site(output, args.overwrite)
    boards = {
        name: tables(read_records([folder]), args.baseline, None, args.metric)
        for name, folder in site.names(folders).items()
    }
    site.write(boards, output, args.pictures)
    count = f"{len(boards)} board{'' if len(boards) == 1 else 's'}"
    print(f"{count} -> {output / 'index.html'}", file=sys.stderr)


def check_site(output: Path, overwrite: bool) -> None:
    """Refuses a folder that has something else than a site in it, unless ``overwrite``."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise ValueError(f"{output} is no folder; choose another --output")
    if output.is_dir() and any(output.iterdir()):
        if not (output / "index.html").exists() and not overwrite:
            raise ValueError(
                f"{output} exists and is no site of leaderboards; choose another --output or add "
                "--overwrite"
            )
        check_file(output / "index.html", "html", overwrite)


def _diff(folders: Sequence[str], args: argparse.Namespace) -> None:
    from invdiff.benchmarks.leaderboard import diff

    if len(folders) != 2:
        raise ValueError(f"`invdiff leaderboard diff A B` compares two folders, got {len(folders)}")
    then, now = (tables(read_records([f]), None, args.benchmark, args.metric) for f in folders)
    found = diff.changes(then, now)
    print(diff.text(found))
    if lost := [change for change in found if change["verdict"] in ("worse", "gone")]:
        first = lost[0]
        raise ValueError(
            f"{len(lost)} figures are worse or gone, the first is {first['metric']} of "
            f"{first['row']} ({first['benchmark']})"
        )


def _markdown(found: Sequence[Table], base: Path) -> str:
    return markdown(found) + "\n"


FORMATS: dict[str, Callable[[Sequence[Table], Path], str]] = {
    "markdown": _markdown,
    "csv": to_csv,
    "json": to_json,
    "latex": lambda found, base: latex(found),
}
"""Those that are text."""

"""A static site: a page for each of several boards, and an index. It asks nothing of a network;
pictures are files beside the pages, and are loaded when they are looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from invdiff.benchmarks.leaderboard import page
from invdiff.benchmarks.leaderboard.export import to_json
from invdiff.benchmarks.leaderboard.types import Row, Table
from invdiff.benchmarks.statistics import decimals
from invdiff.files import write_atomically


def names(folders: Sequence[str | Path]) -> dict[str, Path]:
    """A name for the board of each folder, its own.

    Raises:
        ValueError: two folders of one name.
    """
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        name = folder.resolve().name or "board"
        if name in found:
            raise ValueError(
                f"{found[name]} and {folder} would both be the board {name!r}; rename one of them"
            )
        found[name] = folder
    return found


def write(boards: Mapping[str, Sequence[Table]], site: Path, pictures: int | None = None) -> None:
    """Writes ``index.html``, and for each board ``NAME/index.html``, ``NAME/board.json`` and
    ``NAME/pictures``; the index last, so that it leads to whole boards only.

    Args:
        boards: tables by the name of their board.
        site: the folder.
        pictures: images of a benchmark whose pictures are there, the first ones; None is all.
    """
    for name, tables in boards.items():
        folder = site / name
        (folder / "pictures").mkdir(parents=True, exist_ok=True)

        def place(content: bytes, folder: Path = folder) -> str:
            file = f"pictures/{hashlib.sha256(content).hexdigest()[:16]}.png"
            if not (folder / file).exists():
                write_atomically(folder / file, content)
            return file

        every = max(table["benchmark"]["images"]["count"] for table in tables)
        seeds = max(len(table["benchmark"]["seeds"]) for table in tables)
        count = every * seeds if pictures is None else pictures
        html = page.render({"format": 1, "tables": tables}, page.read_picture, count, place)
        write_atomically(folder / "index.html", html)
        write_atomically(folder / "board.json", to_json(tables, folder))
    write_atomically(site / "index.html", _index(boards))


def _index(boards: Mapping[str, Sequence[Table]]) -> str:
    lines = "\n".join(line for name, tables in boards.items() for line in _lines(name, tables))
    template = files("invdiff.benchmarks.leaderboard").joinpath("index.html")
    return template.read_text(encoding="utf-8").replace("{{boards}}", lines, 1)


def _lines(name: str, tables: Sequence[Table]) -> Iterator[str]:
    """A section for a board; names come from strangers, so they are escaped."""
    board = quote(name)
    yield f'<h2><a href="{board}/index.html">{escape(name)}</a></h2>\n<table>'
    yield "<tr><th>benchmark</th><th>rows</th><th>images</th><th>first row</th></tr>"
    for i, table in enumerate(tables, 1):
        first = next((row for row in table["rows"] if row["complete"]), None)
        cells = [
            f'<a href="{board}/index.html#benchmark-{i}">{escape(table["benchmark"]["name"])}</a>',
            str(len(table["rows"])),
            str(table["benchmark"]["images"]["count"]),
            escape(_summary(table, first)) if first else "none is complete",
        ]
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table>"


def _summary(table: Table, row: Row) -> str:
    """A row and the metric by which it is the first."""
    metric = next((m for m in table["metrics"] if m["better"] is not None), None)
    score = metric and row["scores"].get(metric["name"])
    if metric is None or not score or score["mean"] is None:
        return row["label"]
    digits = decimals([score["mean"]])
    half = "" if score["half"] is None else f" ± {score['half']:.{digits}f}"
    return f"{row['label']} ({metric['title']} {score['mean']:.{digits}f}{half})"

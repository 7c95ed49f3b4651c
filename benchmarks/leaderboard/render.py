"""Tables as Markdown, and what a reader has to be warned of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from invdiff.benchmarks.leaderboard.labels import text_of
from invdiff.benchmarks.leaderboard.types import COSTS, Row, Score, Section, Table
from invdiff.benchmarks.schema import Better
from invdiff.benchmarks.statistics import Interval, decimals
from invdiff.benchmarks.tables import markdown as table_of

ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}
CALIBRATED = "_calibrated"
"""Ends the name of a figure that says what the figure without it is for exact samples."""
FORMATS = {"nfe": "g", "nbe": "g", "seconds": ".3g", "peak_memory_mb": ".0f"}
MARK = "†"
"""Behind the label of a row that was warned of."""
Line = dict[str, str]
"""A line of the Markdown table, by column."""


def markdown(tables: Sequence[Table]) -> str:
    """Tables as Markdown, with what is missing below each; text of records is escaped."""
    return "\n\n".join(_markdown(table) for table in tables)


def cautions(table: Table) -> list[str]:
    """Cautions for comparing rows: where they were not measured alike."""
    found = []
    for field, how, figures in (
        ("processor", "on different processors", False),
        ("threads", "with different numbers of threads", False),
        ("code", "by different versions of the code", True),
        ("torch", "with different versions of torch", True),
    ):
        given = [row["environment"].get(field) for row in table["rows"]]
        seen = [v for of in given for v in (of if isinstance(of, list) else [of]) if v is not None]
        values = list(dict.fromkeys(map(str, seen)))
        if len(values) > 1:
            lost = "seconds do not compare" + (", and figures may not either" if figures else "")
            found.append(f"measured {how} ({', '.join(values)}): {lost}")
    return found


def _markdown(table: Table) -> str:
    notes = [f"{row['label']}: {problem}" for row in table["rows"] for problem in row["problems"]]
    notes += [f"{row['label']}{MARK}: {said}" for row in table["rows"] for said in row["warnings"]]
    notes += cautions(table)
    lines = [{_escaped(k): v for k, v in line.items()} for line in _lines(table)]
    parts = [_heading(table), table_of(lines), _legend(table)]
    if notes:
        parts.append("\n".join(f"- {_escaped(note)}" for note in notes))
    return "\n\n".join(parts)


def _heading(table: Table) -> str:
    benchmark = table["benchmark"]
    given = [
        f"{k} {text_of(v)}"
        for k, v in benchmark["operator"].items()
        if k != "name" and v is not None
    ]
    gain = f", gain {benchmark['gain']:g}" if benchmark["gain"] else ""
    seeds, count = len(benchmark["seeds"]), benchmark["images"]["count"]
    problem = [
        benchmark["operator"]["name"] + (f" ({', '.join(given)})" if given else ""),
        f"sigma {benchmark['sigma']:g}{gain}",
        f"{count} image{'s' * (count > 1)}, {seeds} seed{'s' * (seeds > 1)}",
    ]
    title = f"## {_escaped(benchmark['name'])} (`{benchmark['hash']}`)"
    return f"{title}\n\n{_escaped('; '.join(problem))}."


def _legend(table: Table) -> str:
    legend = (
        "Means over images ± 95 % intervals (Student t); **best** and *second best* of the "
        "complete rows, where at least three images and no overlap of intervals say so."
    )
    if table["baseline"] is None:
        return legend
    return (
        f"{legend} Δ: difference to {_escaped(table['baseline'])} on the same images and noise; "
        "better or worse where its interval excludes 0; the intervals of all rows hold at once "
        "with 95 % (Bonferroni)."
    )


def _lines(table: Table) -> list[Line]:
    """The cells of the Markdown table; columns that no row has something in are left out."""
    rows, better = table["rows"], {m["name"]: m["better"] for m in table["metrics"]}
    titles = {m["name"]: m["title"] for m in table["metrics"]}
    lines: list[Line] = [
        {"method": _escaped(row["label"]) + MARK * bool(row["warnings"])} for row in rows
    ]
    columns = [
        *_progress(rows),
        *_figures(rows, "scores", titles, better),
        *_differences(rows, titles, better),
        *_figures(rows, "mean", {k: f"mean's {title}" for k, title in titles.items()}, better),
        *_figures(rows, "spread", {}, {}),
        *_costs(rows),
    ]
    for title, texts in columns:
        for line, text in zip(lines, texts, strict=True):
            line[title] = text
    return lines


Column = tuple[str, list[str]]
"""A title, and a text for each row."""


def _progress(rows: Sequence[Row]) -> list[Column]:
    if all(row["images"] == row["of"] for row in rows):
        return []
    texts = [
        str(row["of"]) if row["complete"] else f"{row['images']} of {row['of']}" for row in rows
    ]
    return [("images", texts)]


def _figures(
    rows: Sequence[Row],
    section: Section,
    titles: Mapping[str, str],
    better: Mapping[str, Better],
) -> list[Column]:
    """The columns of a section; what a figure is for exact samples stands beside it."""
    names = dict.fromkeys(name for row in rows for name in row[section])
    columns = []
    for name in names:
        column = [row[section].get(name) for row in rows]
        beside = name.endswith(CALIBRATED) and name.removesuffix(CALIBRATED) in names
        if beside or all(score is None or score["mean"] is None for score in column):
            continue
        digits = decimals(score["mean"] for score in column if score is not None)
        targets = [row[section].get(f"{name}{CALIBRATED}") for row in rows]
        texts = [
            _ranked(score, digits) + _calibrated(target, digits)
            for score, target in zip(column, targets, strict=True)
        ]
        columns.append((titles.get(name, name) + ARROWS[better.get(name)], texts))
    return columns


def _differences(
    rows: Sequence[Row], titles: Mapping[str, str], better: Mapping[str, Better]
) -> list[Column]:
    """The columns of differences to the row that is compared with, with the digits of what
    differs."""
    names = dict.fromkeys(name for row in rows for name in row["paired"])
    columns = []
    for name in names:
        digits = decimals(row["scores"][name]["mean"] for row in rows if name in row["scores"])
        texts = []
        for row in rows:
            pair = row["paired"].get(name)
            # Images that are missing may be the hard ones.
            verdict = _verdict(pair, better[name]) if pair and row["complete"] else ""
            texts.append(_interval(pair, digits, "+") + verdict)
        if any(texts):
            columns.append((f"Δ {titles[name]}", texts))
    return columns


def _costs(rows: Sequence[Row]) -> list[Column]:
    columns = []
    for name, title in COSTS.items():
        values = [row["cost"][name] for row in rows]
        texts = ["" if v is None else f"{v:{FORMATS[name]}}" for v in values]
        columns.append((title, texts))
    return columns


def _interval(score: Interval | None, digits: int, sign: str = "") -> str:
    if score is None or score["mean"] is None:
        return ""
    half = f" ± {score['half']:.{digits}f}" if score["half"] is not None else ""
    return f"{score['mean']:{sign}.{digits}f}{half}"


def _ranked(score: Score | None, digits: int) -> str:
    mark = {1: "**", 2: "*"}.get((score and score["rank"]) or 0, "")
    text = _interval(score, digits)
    return f"{mark}{text}{mark}" if text else ""


def _calibrated(target: Score | None, digits: int) -> str:
    if target is None or target["mean"] is None:
        return ""
    return f" (calibrated {target['mean']:.{digits}f})"


def _verdict(pair: Interval, better: Better) -> str:
    if pair["mean"] is None or pair["half"] is None or abs(pair["mean"]) <= pair["half"]:
        return ""
    return " (better)" if (pair["mean"] > 0) == (better == "higher") else " (worse)"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, within a cell of a table too."""
    return re.sub(
        r"[\\`*|\[\]]",
        r"\\\g<0>",
        " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;"),
    )

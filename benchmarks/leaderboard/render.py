"""Tables as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from invdiff.benchmarks.leaderboard.labels import text_of
from invdiff.benchmarks.leaderboard.types import COSTS, Table
from invdiff.benchmarks.statistics import decimals
from invdiff.benchmarks.tables import markdown as table_of


def cautions(table: Table) -> list[str]:
    """What a reader has to know before comparing rows: where they were not measured alike."""
    what = {
        "processor": "on different processors",
        "threads": "with different numbers of threads",
        "code": "by different versions of the code",
        "torch": "with different versions of torch",
    }
    found = []
    for field, how in what.items():
        lost = "seconds do not compare" + (
            ", and figures may not either" if field in ("code", "torch") else ""
        )
        seen = [
            v if isinstance(v := row["environment"].get(field), list) else [v]
            for row in table["rows"]
        ]
        if (
            len(values := list(dict.fromkeys(str(v) for of in seen for v in of if v is not None)))
            > 1
        ):
            found.append(f"measured {how} ({', '.join(values)}): {lost}")
    return found


def markdown(tables: Sequence[Table]) -> str:
    """Tables as Markdown, with what is missing below each; text of records is escaped."""
    return "\n\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    benchmark, rows = table["benchmark"], table["rows"]
    operator = ", ".join(
        f"{k} {text_of(v)}"
        for k, v in benchmark["operator"].items()
        if k != "name" and v is not None
    )
    noise = f"sigma {benchmark['sigma']:g}" + (
        f", gain {benchmark['gain']:g}" if benchmark["gain"] else ""
    )
    seeds, count = len(benchmark["seeds"]), benchmark["images"]["count"]
    said = [
        f"{benchmark['operator']['name']}{f' ({operator})' if operator else ''}",
        noise,
        f"{count} image{'s' * (count > 1)}, {seeds} seed{'s' * (seeds > 1)}",
    ]
    shown = table_of([{_escaped(k): v for k, v in line.items()} for line in _lines(table)])
    legend = (
        "Means over images ± 95 % intervals (Student t); **best** and *second best* of the "
        "complete rows."
    )
    if table["baseline"] is not None:
        legend += (
            f" Δ: difference to {_escaped(table['baseline'])} on the same images and noise; "
            "better or worse where its interval excludes 0."
        )
    notes = [
        f"{row['label']}: {problem}" for row in rows for problem in row["problems"]
    ] + cautions(table)
    parts = [
        f"## {_escaped(benchmark['name'])} (`{benchmark['hash']}`)",
        f"{_escaped('; '.join(said))}.",
        shown,
        legend,
    ]
    return "\n\n".join(
        [*parts, *(["\n".join(f"- {_escaped(note)}" for note in notes)] if notes else [])]
    )


def _lines(table: Table) -> list[dict[str, str]]:
    """The cells of the Markdown table; columns that no row has something in are left out."""
    rows, better = table["rows"], {m["name"]: m["better"] for m in table["metrics"]}
    arrow = {"higher": " ↑", "lower": " ↓"}
    lines: list[dict[str, str]] = [{"method": _escaped(row["label"])} for row in rows]
    if any(row["images"] < row["of"] for row in rows):
        for line, row in zip(lines, rows, strict=True):
            line["images"] = (
                str(row["of"]) if row["complete"] else f"{row['images']} of {row['of']}"
            )
    for section, title in {
        "scores": "{}",
        "paired": "Δ {}",
        "mean": "mean's {}",
        "spread": "{}",
    }.items():
        names = dict.fromkeys(name for row in rows for name in row[section])
        for name in names:
            column = [row[section].get(name) for row in rows]
            of = (
                section if section != "paired" else "scores"
            )  # a difference has the digits of what differs
            digits = decimals(row[of][name]["mean"] for row in rows if name in row[of])
            if (
                name.removesuffix("_calibrated") in names
                and name.endswith("_calibrated")
                or all(not s or s["mean"] is None for s in column)
            ):
                continue
            for line, row, score in zip(lines, rows, column, strict=True):
                text = _score(score, digits, "+" if section == "paired" else "")
                if (
                    section == "paired" and score and row["complete"]
                ):  # images that are missing may be the hard ones
                    text += _verdict(score, better[name])
                if target := row[section].get(f"{name}_calibrated"):
                    text += f" (calibrated {_score(target | {'half': None}, digits)})"
                line[
                    title.format(name)
                    + arrow.get(better.get(name) or "", "") * (section in ("scores", "mean"))
                ] = text
    for name, title in COSTS.items():
        for line, row in zip(lines, rows, strict=True):
            value = row["cost"][name]
            line[title] = (
                ""
                if value is None
                else f"{value:.0f}"
                if name == "peak_memory_mb"
                else f"{value:.3g}"
                if name == "seconds"
                else f"{value:g}"
            )
    return lines


def _score(score: Mapping[str, Any] | None, digits: int, sign: str = "") -> str:
    if score is None or score["mean"] is None:
        return ""
    text = f"{score['mean']:{sign}.{digits}f}" + (
        f" ± {score['half']:.{digits}f}" if score["half"] is not None else ""
    )
    mark = {1: "**", 2: "*"}.get(score.get("rank") or 0, "")
    return f"{mark}{text}{mark}"


def _verdict(pair: Mapping[str, Any], better: str | None) -> str:
    if pair["half"] is None or abs(pair["mean"]) <= pair["half"]:
        return ""
    return " (better)" if (pair["mean"] > 0) == (better == "higher") else " (worse)"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, within a cell of a table too."""
    return re.sub(
        r"[\\`*|\[\]]",
        r"\\\g<0>",
        " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;"),
    )

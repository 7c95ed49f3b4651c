"""Tables as LaTeX, as papers print them: booktabs, the best in bold, the second best underlined."""

from __future__ import annotations

import re
from collections.abc import Sequence

from invdiff.benchmarks.leaderboard.types import Row, Score, Table
from invdiff.benchmarks.statistics import decimals

HEAD = "% invdiff leaderboard; needs \\usepackage{booktabs}\n"
ARROWS = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", None: ""}
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def latex(tables: Sequence[Table]) -> str:
    """A ``tabular`` for each table, complete rows only: a paper has no unfinished ones. What is
    left out is said in comments."""
    return HEAD + "\n".join(_tabular(table) for table in tables)


def _tabular(table: Table) -> str:
    rows = [row for row in table["rows"] if row["complete"]]
    metrics = [m for m in table["metrics"] if any(m["name"] in row["scores"] for row in rows)]
    titles = [_escaped(m["title"]) + ARROWS[m["better"]] for m in metrics]
    digits = {
        m["name"]: decimals(row["scores"][m["name"]]["mean"] for row in rows) for m in metrics
    }
    lines = [
        " & ".join(
            [
                _escaped(row["label"]) + r"$^\dagger$" * bool(row["warnings"]),
                *(_cell(row, name, n) for name, n in digits.items()),
                _evaluations(row),
            ]
        )
        for row in rows
    ]
    benchmark = table["benchmark"]
    left = [_escaped(row["label"]) for row in table["rows"] if not row["complete"]]
    comments = [
        f"% {_escaped(benchmark['name'])} ({benchmark['hash']}), means over images and "
        "95 % intervals"
    ]
    comments += [f"% left out, incomplete: {', '.join(left)}"] if left else []
    comments += [f"% dagger, {_escaped(r['label'])}: {w}" for r in rows for w in r["warnings"]]
    return "\n".join(
        [
            *comments,
            f"\\begin{{tabular}}{{l{'r' * (len(metrics) + 1)}}}",
            "\\toprule",
            " & ".join(["Method", *titles, "NFE"]) + r" \\",
            "\\midrule",
            *(line + r" \\" for line in lines),
            "\\bottomrule",
            "\\end{tabular}\n",
        ]
    )


def _cell(row: Row, name: str, digits: int) -> str:
    score: Score = row["scores"][name]
    if score["mean"] is None:
        return "--"
    figure = f"{score['mean']:.{digits}f}".replace("-", "$-$")
    marked = {1: r"\textbf{%s}", 2: r"\underline{%s}"}.get(score["rank"] or 0, "%s") % figure
    half = score["half"]
    return marked if half is None else f"{marked} {{\\scriptsize$\\pm${half:.{digits}f}}}"


def _evaluations(row: Row) -> str:
    forward, backward = row["cost"]["nfe"], row["cost"]["nbe"]
    if forward is None:
        return "--"
    return f"{forward:g}" + (f" + {backward:g}" if backward else "")


def _escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return re.sub(r"[\\~^<>&%$#_{}]", lambda found: SPECIAL[found[0]], " ".join(text.split()))

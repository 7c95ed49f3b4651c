"""The table of methods: what each needs and costs, how well it restores, how right its samples are.

    python docs/overview.py           # writes it into docs/methods.md, between its marks

Nothing is written by hand: what a method needs is asked of its pieces, a step's cost is counted
while a small network runs, LPIPS is that of ``configs/recommended.json``, and distances are those
of the tables of docs/exactness.md.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

from asked import asked  # noqa: E402
from others import ours  # noqa: E402

import invdiff  # noqa: E402
from invdiff.plugins.registry import load  # noqa: E402
from invdiff.problem import LinearOperator, Operator, SpectralOperator  # noqa: E402
from invdiff.sampling import make_method  # noqa: E402

BEGIN, END = "<!-- methods: python docs/overview.py -->", "<!-- end -->"
NAMES: dict[str, Any] = yaml.safe_load((DOCS / "names.yaml").read_text())
PROBLEMS = ("inpaint", "sr", "blur")
BUDGET = 250
"""Evaluations, forward and backward together, within which the best LPIPS is shown."""
POSTERIOR = (0.35, 0.75)
"""A relative error of the covariance up to which a spread is called that of the posterior, and
roughly that."""
STEPS = 10


def table() -> str:
    """The rows, in their groups."""
    known = ours("guidance")
    grouped = {n: group for group, names in NAMES["groups"].items() for n in names}
    order = [n for names in NAMES["groups"].values() for n in names if n in known]
    order += [n for n in known if n not in grouped and n != "none"]
    heads = ["method", "group", "paper", "operators", "a step costs", "LPIPS inpaint"]
    heads += ["LPIPS sr", "LPIPS blur", "distance", "spread", "its spread is the posterior's"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += ["| " + " | ".join(row(n, grouped.get(n, "Others"))) + " |" for n in order]
    return "\n".join(lines)


def row(name: str, group: str) -> list[str]:
    """The cells of a method."""
    module = inspect.getmodule(load("guidance", name))
    assert module is not None
    file = module.__name__.rsplit(".", 1)[-1]
    link = f"[{NAMES['titles']['methods'].get(name, name)}](../guidance/{file}.py)"
    spread = figure("Relative error of the covariance", name, "inpaint")
    return [
        f"{link} `{name}`",
        group,
        paper(module.__doc__ or ""),
        needs(name),
        cost(name),
        *(quality(name, problem) for problem in PROBLEMS),
        figure("Sliced Wasserstein", name, "(8, 4)"),
        spread,
        verdict(spread),
    ]


def paper(text: str) -> str:
    """Who published it, and when."""
    text = " ".join(text.split())
    found = re.search(r"([A-Z][\w-]+ (?:et al\.|& \w+))[^()]*?((?:19|20)\d\d)", text)
    return f"{found[1]} {found[2]}" if found else ""


def needs(name: str) -> str:
    """Which operators its pieces take."""
    method = make_method(name)
    pieces = [p for p in (*method.chain, method.transition, method.itinerary) if p is not None]
    required = [p.requires for p in pieces if getattr(p, "requires", None) is not None]
    if not required:
        return ""
    strictest = max(required, key=lambda r: len(r.__mro__))
    words = {Operator: "any", LinearOperator: "linear", SpectralOperator: "with an SVD"}
    return words.get(strictest, strictest.wanted())


def cost(name: str) -> str:
    """Evaluations forward and backward in a step, counted; empty where the method needs a network
    of another kind."""

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.1 * x

    denoiser = invdiff.Denoiser(
        network, predicts="eps", schedule=invdiff.schedules.linear(1000), data_range=(-1.0, 1.0)
    )
    measurement = invdiff.make_operator("sr", factor=2).measure(
        torch.full((1, 3, 8, 8), 0.5), sigma=0.05, seed=0
    )
    try:
        result = invdiff.solve(measurement, denoiser, name, steps=STEPS, seed=0)
    except (ValueError, TypeError):
        return ""
    forward, backward = (round(float(n) / STEPS, 1) for n in (result.nfe, result.nbe))
    return f"{forward:g}" + (f" + {backward:g}" if backward else "")


def quality(name: str, problem: str) -> str:
    """The best LPIPS within the budget, and for how many evaluations."""
    rows = json.loads((DOCS.parent / "configs" / "recommended.json").read_text())
    fits = [
        (r["lpips"], r["evaluations"])
        for r in rows
        if r["method"] == name and r["operator"] == problem and r["evaluations"] <= BUDGET
    ]
    return "{:.3f} ({:g})".format(*min(fits)) if fits else ""


def figure(caption: str, name: str, column: str) -> str:
    """A figure of a table of docs/exactness.md, which stands under a line that starts so."""
    text = (DOCS / "exactness.md").read_text()
    lines = text[text.index(caption) :].split("\n\n")[1].splitlines()
    heads = [cell.strip() for cell in re.findall(r"\| ([^|]*)", lines[0])]
    for line in lines[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == name and cells[heads.index(column)]:
            return cells[heads.index(column)]
    return ""


def verdict(spread: str) -> str:
    """Whether samples spread as the posterior does, by the error of their covariance."""
    if not re.fullmatch(r"[\d.]+", spread):
        return ""
    return next(
        (
            word
            for word, most in zip(("yes", "roughly"), POSTERIOR, strict=True)
            if float(spread) <= most
        ),
        "no",
    )


def write() -> None:
    """Puts the table between its marks."""
    page = DOCS / "methods.md"
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")


if __name__ == "__main__":
    asked(__doc__)
    write()

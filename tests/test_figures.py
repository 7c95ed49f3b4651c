"""Figures that stand on two pages are those of the one that names their command."""

import re
from pathlib import Path

import pytest

from invdiff.plugins.registry import list_plugins

ROOT = Path(__file__).parent.parent


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a page: rows of cells."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    return [
        [[cell.strip(" *`") for cell in line[1:-1].split("|")] for line in table.splitlines()]
        for table in found
    ]


def rows_of(text: str, heading: str) -> dict[str, list[str]]:
    """The first table below a heading, by the cell that a row starts with."""
    (table, *_) = tables(text.partition(f"\n{heading}")[2])
    return {row[0]: row[1:] for row in table}


MIXTURE = rows_of(page("docs/exactness.md"), "## A mixture of 25 Gaussians")
LABELS = {
    "exact draws (the floor)": "floor",
    "the prior": "none",
    "dps`, zeta 1": "dps",
    "tds`, `covariance=tweedie": "tds tweedie",
}


def test_the_readme_s_distances_are_those_of_exactness() -> None:
    shown = rows_of(page("README.md"), "## How right are they?")
    head = shown[""]
    assert head[:4] == ["(8, 1)", "(8, 4)", "(80, 1)", "(80, 4)"]
    columns = [MIXTURE["(d, d_y)"].index(name) for name in head[:4]]
    rows = {name: cells for name, cells in shown.items() if name and "---" not in name}
    assert len(rows) == 8
    for name, cells in rows.items():
        measured = MIXTURE[LABELS.get(name, name)]
        assert cells[:4] == [measured[k] for k in columns], name


def test_the_overview_s_ends_of_the_scale_are_those_of_exactness() -> None:
    column = MIXTURE["(d, d_y)"].index("(8, 4)")
    text = " ".join(page("docs/methods.md").split())
    floor, prior = MIXTURE["floor"][column], MIXTURE["none"][column]
    assert f"exact draws have {floor} and the prior {prior}" in text


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("`tds` with `covariance=tweedie`", "tds tweedie"),
        ("`mcgdiff`", "mcgdiff"),
        ("`mmps`", "mmps"),
        ("`flowchef`", "flowchef 1"),
        ("`reddiff`", "reddiff"),
        ("`daps`", "daps"),
        ("`diffpir`", "diffpir"),
        ("`ddrm` and `ddnm`", "ddrm"),
    ],
)
def test_exactness_on_one_screen(name: str, row: str) -> None:
    shown = " ".join(page("docs/exactness.md").split()).partition("**On one screen.**")[2]
    distance = MIXTURE[row][MIXTURE["(d, d_y)"].index("(80, 4)")].split(" ")[0]
    assert f"{name} {distance}" in shown.partition("The spread")[0]


@pytest.mark.parametrize(
    ("problem", "start", "column"),
    [("inpaint", "inpaint", 0), ("sr", "sr", 2), ("blur", "blur", 4)],
)
def test_measurements_on_one_screen(problem: str, start: str, column: int) -> None:
    text = page("docs/measurements.md")
    screen = rows_of(text, "**On one screen.**")
    (cells,) = (c for name, c in screen.items() if name.startswith(start))
    peers = rows_of(text, "Classical baselines and deepinv's samplers")
    (ours, *_) = tables(text.partition("## Quality against cost")[2].partition(f"\n{problem}:")[2])
    for shown in cells[:2]:
        value, name = parts(shown)
        (row,) = (c for label, c in peers.items() if re.search(rf"\b{name}\b", label))
        assert row[column].startswith(value)
    value, name = parts(cells[2])
    assert value in [row[2] for row in ours if row[0].split(" ")[0] == name.lower()]


def parts(shown: str) -> tuple[str, str]:
    """A figure and whose it is, ``0.064 (DiffPIR)``."""
    found = re.fullmatch(r"(\S+?)\** \((\w+)\)", shown)
    assert found is not None
    return found[1], found[2]


def test_the_readme_counts_what_is_registered() -> None:
    said = re.search(r"(\d+) published methods,\s+(\d+) operators", page("README.md"))
    assert said is not None
    methods, operators = (len(list_plugins(kind)) for kind in ("guidance", "operators"))
    assert [int(number) for number in said.groups()] == [methods - 1, operators]  # without `none`

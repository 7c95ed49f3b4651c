"""What a leaderboard gives to others: LaTeX, a static site, differences; and where it writes."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import problem, row_of, stored

from invdiff.benchmarks.leaderboard import tables
from invdiff.benchmarks.leaderboard.diff import changes
from invdiff.benchmarks.leaderboard.figure import inset
from invdiff.benchmarks.leaderboard.latex import latex
from invdiff.commands.main import main


def invdiff(*arguments: Any) -> int:
    return main(["leaderboard", *map(str, arguments)])


# LaTeX --------------------------------------------------------------------------------------------

GIVEN = [
    *row_of([30.0, 30.1, 30.2], "best_100%"),
    *row_of([27.0, 27.1, 27.2], "second"),
    *row_of([20.0, 21.1, 22.2], "third & last"),
    *row_of([20.0], "unfinished"),
]


def test_latex_is_a_table_of_booktabs() -> None:
    text = latex(tables(GIVEN))
    assert r"Method & PSNR $\uparrow$ & lpips $\downarrow$ & consistency & NFE \\" in text
    assert r"best\_100\% & \textbf{30.10} {\scriptsize$\pm$0.25}" in text
    assert r"second & \underline{27.10} {\scriptsize$\pm$0.25}" in text
    assert r"third \& last & 21.10 {\scriptsize$\pm$2.73}" in text
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert "% left out, incomplete: unfinished" in text and "100 + 100" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_can_be_set(tmp_path: Path) -> None:
    given = row_of([24.0, 25.0, 26.0], r"\evil{} $x^2$ ~ # _ <b>")
    body = latex(tables(given))
    page = (
        rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    )
    (tmp_path / "t.tex").write_text(page)
    subprocess.run(["pdflatex", "-halt-on-error", "t"], cwd=tmp_path, check=True)


# Differences --------------------------------------------------------------------------------------


def test_differences_are_paired_and_told_with_their_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    then = [*row_of([24.0, 30.0, 27.0], "a"), *row_of([24.0, 30.0, 27.0], "b")]
    now = [*row_of([24.5, 30.52, 27.51], "a"), *row_of([23.4, 29.41, 26.39], "b")]
    now += row_of([20.0, 20.0, 20.0], "c")
    found = {(c["row"], c["metric"]): c for c in changes(tables(then), tables(now))}
    verdicts = {row: found[row, "psnr"]["verdict"] for row in ("a", "b", "c")}
    assert verdicts == {"a": "better", "b": "worse", "c": "new"}
    assert found["a", "psnr"]["difference"]["mean"] == pytest.approx(0.51)
    same = changes(tables(then), tables(then))
    assert {c["verdict"] for c in same} == {""}
    a, b = stored(tmp_path / "then", *then), stored(tmp_path / "now", *now)
    assert invdiff("diff", a, a) == 0
    capsys.readouterr()
    assert invdiff("diff", a, b) == 2
    said = capsys.readouterr()
    assert "| inpaint | b | psnr | 27.00 | 26.40 | -0.60 ± " in said.out
    assert "worse or gone, the first is psnr of b (inpaint)" in said.err


def test_a_row_that_is_gone_or_unfinished_is_a_change_for_the_worse() -> None:
    then = [*row_of([24.0, 30.0, 27.0], "a"), *row_of([24.0, 30.0, 27.0], "b")]
    found = changes(tables(then), tables([*row_of([24.0, 30.0], "a"), *then[3:]]))
    assert {(c["row"], c["verdict"]) for c in found} == {("a", "gone"), ("b", "")}
    found = changes(tables(then), tables(then[:3]))
    assert {(c["row"], c["verdict"]) for c in found} == {("a", ""), ("b", "gone")}


def test_other_problems_are_not_compared() -> None:
    other = tables(row_of([24.0] * 3, benchmark=problem(sigma=0.1)))
    with pytest.raises(ValueError, match="inpaint is not the same problem in both: sigma differs"):
        changes(tables(row_of([24.0] * 3)), other)
    with pytest.raises(ValueError, match="no row in common"):
        changes(tables(row_of([24.0] * 3)), tables(row_of([24.0] * 3, "other")))


# A site -------------------------------------------------------------------------------------------


def test_a_site_has_an_index_and_pictures_beside_the_pages(tmp_path: Path) -> None:
    evil = "<img src=x>"
    a = stored(tmp_path / "a board", *row_of([24.0, 25.0, 26.0], evil))
    b = stored(tmp_path / "b", *row_of([24.0, 25.0, 26.0]))
    site = tmp_path / "site"
    assert invdiff("publish", a, b, "--output", site) == 0
    index = (site / "index.html").read_text()
    assert 'href="a%20board/index.html"' in index and ">a board</a>" in index
    assert evil not in index and "(PSNR 25.00 ± 2.48)" in index
    for name in ("a board", "b"):
        html = (site / name / "index.html").read_text()
        named = sorted(p.name for p in (site / name / "pictures").iterdir())
        assert named and all(f"pictures/{picture}" in html for picture in named)
        assert "data:image" not in html
        assert json.loads((site / name / "board.json").read_text())["format"] == 1
    assert invdiff("publish", a, b, "--output", site) == 0  # its own site is made anew


@pytest.mark.parametrize("arguments", [["publish"], ["publish", "--output", "own"]])
def test_a_site_replaces_nothing_of_others(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored(tmp_path / "a", *row_of([24.0, 25.0, 26.0]))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "index.html").write_text("my page")
    monkeypatch.chdir(tmp_path)
    assert invdiff(arguments[0], "a", *arguments[1:]) == 2
    assert "--output" in capsys.readouterr().err
    assert (tmp_path / "own" / "index.html").read_text() == "my page"


def test_boards_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [stored(tmp_path / x / "a", *row_of([24.0, 25.0, 26.0])) for x in "xy"]
    assert invdiff("publish", *folders, "--output", tmp_path / "site") == 2
    assert "would both be the board 'a'" in capsys.readouterr().err


# Where it writes ----------------------------------------------------------------------------------


@pytest.fixture
def board(tmp_path: Path) -> Path:
    return stored(tmp_path / "a", *row_of([24.0, 25.0, 26.0]))


@pytest.mark.parametrize("form", ["markdown", "csv", "json", "latex", "html"])
def test_a_board_replaces_its_own_file_and_keeps_its_permissions(
    form: str, board: Path, tmp_path: Path
) -> None:
    output = tmp_path / "board"
    old = os.umask(0o027)
    try:
        assert invdiff(board, "--format", form, "--output", output) == 0
    finally:
        os.umask(old)
    assert stat.S_IMODE(output.stat().st_mode) == 0o640
    output.chmod(0o600)
    assert invdiff(board, "--format", form, "--output", output) == 0
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


@pytest.mark.parametrize("form", ["markdown", "csv", "json", "latex", "html"])
def test_a_file_of_others_is_replaced_on_demand_only(
    form: str, board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "README.md"
    output.write_text("# My work\n")
    assert invdiff(board, "--format", form, "--output", output) == 2
    assert "--overwrite" in capsys.readouterr().err and output.read_text() == "# My work\n"
    assert invdiff(board, "--format", form, "--output", output, "--overwrite") == 0
    assert output.read_text() != "# My work\n"


def test_links_pipes_and_devices_are_refused(
    board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target.md"
    (tmp_path / "link.md").symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    for output, why in {
        tmp_path / "link.md": "is a link",
        tmp_path / "pipe": "no regular file",
        Path("/dev/null"): "no regular file",
        board: "no regular file",
    }.items():
        assert invdiff(board, "--output", output, "--overwrite") == 2
        assert why in capsys.readouterr().err
    assert not target.exists() and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_options_are_of_actions(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invdiff("diff", board, board, "--output", "x") == 2
    assert "`invdiff leaderboard diff` has no --output" in capsys.readouterr().err
    assert invdiff("diff", board) == 2
    assert "compares two folders, got 1" in capsys.readouterr().err


# Figures ------------------------------------------------------------------------------------------


def test_an_inset_is_where_errors_differ_most() -> None:
    truth = torch.zeros(3, 32, 48)
    first, second = truth + 0.5, truth + 0.5  # wrong everywhere, and alike
    second[:, 20:28, 30:42] = 0
    assert inset(truth, [first, second]) == (20, 30, 8, 12)
    assert inset(truth, [first]) is None and inset(None, [first, second]) is None


def test_a_figure_is_a_pdf_of_pictures_and_costs(
    board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    stored(board, *row_of([23.0, 24.0, 25.0], "an $odd^ label_"))
    output = tmp_path / "figure.pdf"
    assert invdiff(board, "--figure", output) == 0
    content = output.read_bytes()
    assert content.startswith(b"%PDF") and content.count(b"/Type /Page ") == 2
    assert capsys.readouterr().out == ""
    assert invdiff(board, "--figure", output) == 0  # its own
    output.write_bytes(b"%PDF of others")
    assert invdiff(board, "--figure", output) == 2
    assert output.read_bytes() == b"%PDF of others"
    assert invdiff(board, "--figure", tmp_path / "figure.png") == 2
    assert "call it figure.pdf" in capsys.readouterr().err

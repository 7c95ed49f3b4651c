"""``invdiff cite``: every method has an entry, which is that of its paper."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
from recorded import record

from invdiff.commands.cite import entries_of
from invdiff.commands.main import main
from invdiff.plugins.registry import list_plugins, value_of

METHODS = [
    name
    for name, where in list_plugins("guidance").items()
    if where.startswith("invdiff (") and name != "none"
]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_entry_of_its_paper(name: str) -> None:
    entries = list(entries_of(f"guidance.{name}"))
    assert entries and all("plugins" not in entry for entry in entries)
    assert all(e.count("{") == e.count("}") and "\n  title = {" in e for e in entries)
    module = importlib.import_module(value_of("guidance", name).partition(":")[0])
    cited = re.search(r"arXiv:([\d.]+\d)", (module.__doc__ or "").split("\n\n")[0])
    assert cited is None or any(cited[1] in entry for entry in entries)


def test_what_a_result_was_made_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "guidance": [{"name": "cfg"}, {"name": "dps"}],
        "transition": {"name": "ddim"},
        "itinerary": None,
        "operator": {"name": "hdr"},
    }
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"config": config, "metrics": {"psnr": 1, "lpips": 1, "ssim": 1}}))
    assert main(["cite", str(result)]) == 0
    said = capsys.readouterr()
    found = re.findall(r"^@\w+\{(\w+),$", said.out, re.MULTILINE)
    assert found == [
        *("invdiff", "ho2022cfg", "chung2023dps", "song2021ddim", "zhang2025daps"),
        *("zhang2018lpips", "wang2004ssim"),
    ]
    assert said.err == "without an entry: metrics.psnr\n"


def test_a_record_of_bench_is_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = record()
    made["cell"]["run"] = {"guidance": [{"name": "ddrm"}]}
    (tmp_path / "r.json").write_text(json.dumps(made))
    assert main(["cite", str(tmp_path / "r.json")]) == 0
    assert "kawar2022ddrm" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"cell": 1}', '{"config": []}'])
def test_other_files_are_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text(content)
    assert main(["cite", str(tmp_path / "x.json")]) == 2
    assert "x.json" in capsys.readouterr().err

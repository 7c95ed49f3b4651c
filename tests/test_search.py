"""A search of the site for a plug-in's name finds first what is said of it."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from invdiff.plugins.registry import KINDS

DOCS = Path(__file__).parent.parent / "docs"


def imported(name: str) -> ModuleType:
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate, others = imported("generate"), imported("others")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return generate.pages()


def named_pages(kind: str, name: str) -> set[str]:
    """Where a plug-in may be found: on its own page, or with others of its kind."""
    if kind in others.KINDS:
        more = others.KINDS[kind][1].rpartition(".")[0]
        return {"plugins", more, f"api/{kind}"}
    folder = {"guidance": "methods"}.get(kind, kind)
    return {f"{folder}/{name}"}


PLUGINS = [(kind, name) for kind in KINDS if kind != "configs" for name in others.ours(kind)]


def test_every_kind_has_a_place() -> None:
    assert {*KINDS} - {"configs", "guidance"} == {*others.KINDS} | {*others.PAGES} - {"methods"}
    assert len(PLUGINS) > 100


@pytest.mark.parametrize(("kind", "name"), PLUGINS, ids=lambda p: p)
def test_every_name_is_in_the_index(kind: str, name: str, pages: dict[str, str]) -> None:
    entry = re.compile(rf"^```{{index}} ! {re.escape(name)}$", flags=re.MULTILINE)
    assert [path for path, text in pages.items() if entry.search(text)] or kind in (
        others.OF_THE_REFERENCE
    )
    if kind in others.KINDS:
        assert f"| `{name}` |" in pages["plugins.md"]


def test_a_name_stands_for_one_page(pages: dict[str, str]) -> None:
    found = [n for text in pages.values() for n in re.findall(r"^```\{index\} ! (.+)$", text, re.M)]
    assert len(found) == len(set(found)) > 100
    assert pages["cli.md"].index("## invdiff tune\n\n```{index} ! tune\n```\n")
    assert pages["leaderboard.md"].startswith(
        "# Running a leaderboard\n\n```{index} ! leaderboard\n"
    )


@pytest.mark.slow
def test_a_search_finds_it_first(tmp_path: Path) -> None:
    """By Sphinx's own search on the built site, without the gallery."""
    pytest.importorskip("sphinx")
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    generate.write(tmp_path / "source", {})
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-c",
        DOCS,
        tmp_path / "source",
        tmp_path / "s",
    ]
    subprocess.run(command, check=True, capture_output=True)
    other = {"solve": "api/solve", "Denoiser": "api/denoiser", "leaderboard": "leaderboard"}
    other |= {"tune": "cli", "generate": "api/solve", "bench": "cli", "gpu": "gpu"}
    asked = [*dict.fromkeys([name for _, name in PLUGINS] + [*other])]
    told = subprocess.run(
        [node, DOCS / "find.js", tmp_path / "s", *asked], check=True, capture_output=True, text=True
    )
    first = dict(re.findall(r"^(.+?): ([\w/.-]+)", told.stdout, flags=re.MULTILINE))
    assert set(first) == set(asked)
    allowed: dict[str, set[str]] = {name: {page} for name, page in other.items()}
    for kind, name in PLUGINS:  # of one name, any of its kinds
        allowed[name] = allowed.get(name, set()) | named_pages(kind, name)
    allowed["conditional"].add("conditional")
    assert {n: page for n, page in first.items() if page not in allowed[n]} == {}

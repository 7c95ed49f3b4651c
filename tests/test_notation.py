"""The symbols of formulas lead to the notation page, which has all that no docstring explains."""

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from invdiff.plugins.registry import list_plugins, load
from invdiff.sampling import make_method

DOCS = Path(__file__).parent.parent / "docs"


def imported(name: str) -> ModuleType:
    """A script of docs/, which is no package; one of them may import another."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maths, prose, symbols = imported("maths"), imported("prose"), imported("symbols")

PIECES = [
    (kind, name)
    for kind in ("guidance", "operators", "transitions", "itineraries")
    for name in list_plugins(kind)
    if load(kind, name).__module__.startswith("invdiff.")
]


def docstring(kind: str, factory: Any) -> str:
    """What a plug-in's page shows."""
    described = inspect.getmodule(factory) if kind in ("guidance", "operators") else factory
    return inspect.cleandoc(described.__doc__ or "")


def formulas(text: str) -> list[ElementTree.Element]:
    return [
        ElementTree.fromstring(found.replace("&#124;", "|"))
        for found in symbols.MATH.findall(prose.markdown(text))
    ]


def fields(kind: str, name: str, factory: Any) -> set[str]:
    """The parameters of a plug-in, whose meaning its page lists."""
    made: list[Any] = [factory]
    if kind == "guidance":
        method = make_method(name)
        made += [type(p) for p in (*method.chain, method.transition, method.itinerary) if p]
    names = {n for f in made for n in inspect.signature(f).parameters}
    return {symbols.key_of(n) for n in names if re.fullmatch(symbols.SYMBOL, n)}


def known(key: str, text: str) -> bool:
    """Whether the notation page or a docstring tells of a symbol, or of it without a subscript."""
    base, said = symbols.base(key), symbols.mentioned(text)
    said |= {symbols.base(s) for s in said}
    tried = (key, base, f"{base}_t")
    return key in said or base in said or any(symbols.row_of(k) for k in tried)


def is_word(key: str) -> bool:
    """exp, log, argmin, DDIM and the like need no explanation; nor does the d of a derivative."""
    return bool(re.fullmatch(r"[A-Za-z]{2,}(_.*)?", key)) and key != "std"


@pytest.mark.parametrize(("kind", "name"), PIECES, ids=lambda p: p)
def test_symbols_are_explained(kind: str, name: str) -> None:
    factory = load(kind, name)
    text = docstring(kind, factory)
    found = {key for f in formulas(text) for key, _ in symbols.symbols(f)}
    unknown = {
        key
        for key in found - fields(kind, name, factory)
        if not is_word(key) and not known(key, text) and not (key == "d" and "d x_t" in text)
    }
    assert not unknown, (
        f"{name} has {sorted(unknown)}: say what they are in its docstring, after 'Symbols:', or "
        "in docs/notation.md"
    )


def test_a_symbol_that_nobody_explains_is_found() -> None:
    text = "A method.\n\n    x_s = alpha_s x0 + q_u h_m z\n\nSymbols: q_u, the weight."
    found = {key for f in formulas(text) for key, _ in symbols.symbols(f)}
    assert {"q_u", "h_m", "x_s", "z"} <= found
    assert {key for key in found if not known(key, text)} == {"h_m"}


def test_symbols_lead_to_their_rows() -> None:
    shown = prose.markdown("A.\n\n    x_s = sqrt(1 − sigma_y²) A†(y − A x0) + zeta z + h")
    for anchor in ("x_t", "sigma", "A", "y", "x0", "zeta", "n"):
        assert f'href="notation.html#symbol-{anchor}"' in shown, anchor
    assert ">h</mi>" in shown and shown.count("<math ") == shown.count("</math>") == 1
    inner = re.findall(r"<msubsup><mi>(.*?)</msubsup>", shown)
    assert all("#symbol-sigma" in part for part in inner)


def test_a_letter_of_a_docstring_s_own_leads_nowhere() -> None:
    for said in ("Symbols: c, the condition; w, the weights.", "With w the weights of particles."):
        shown = prose.markdown(f"A.\n\n    w = y / sigma_y\n\n{said}")
        assert "#symbol-w" not in shown and "#symbol-y" in shown
    assert "#symbol-w" in prose.markdown("A.\n\n    w = y / sigma_y")


def test_every_link_has_a_row() -> None:
    page = imported("generate").pages()["notation.md"]
    anchors = re.findall(r'<span id="([\w-]+)">', page)
    assert len(anchors) == len(set(anchors)) == len(symbols.rows()) > 30
    assert set(re.findall(r"^\| `", (DOCS / "notation.md").read_text(), flags=re.MULTILINE))
    lines = [line for line in page.splitlines() if line.startswith("| <span")]
    assert all("<math " in line for line in lines)
    for kind, name in PIECES:
        shown = prose.markdown(docstring(kind, load(kind, name)))
        assert set(re.findall(r'notation\.html#([\w-]+)"', shown)) <= set(anchors)


def test_docstrings_for_sphinx_are_linked_too() -> None:
    shown = "\n".join(prose.rest(["A.", "", "    x_s = alpha_s x0", "", "and sigma_t too."]))
    assert shown.count("#symbol-x_t") >= 1 and shown.count("#symbol-alpha_t") >= 2

"""Versions: digests of what a class or function is made of, and of the parameters of operators."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import deepinv
import numpy as np
import pytest
import torch

from invdiff.benchmarks import metrics
from invdiff.benchmarks.digest import of_code, operator_version, used_by
from invdiff.plugins.registry import list_plugins, load
from invdiff.problem import Operator, make_operator

# Code ---------------------------------------------------------------------------------------------

HELPER = """
import math

WIDTH = 3
TABLE = {}
TABLE["half"] = WIDTH / 2


class Base:
    gain = 2


def shift(x):
    return x + TABLE["half"]


def other(x):
    return x
"""
SOURCE = '''
"""A metric."""
from __future__ import annotations

from typing import TYPE_CHECKING

import kit_helper
from kit_helper import Base, shift

if TYPE_CHECKING:
    from kit_annotations import Image

SCALE: int = 2  # of all


def decorated(function):
    return function


class Shifted(Base):
    """A class."""

    offset = SCALE
    """A text below an attribute."""

    def nested(self):
        from kit_inner import deep

        return deep(self)


class Unused:
    value = 1


@decorated
def shifted(x: Image, reference, by=SCALE):
    """Doc # not a comment."""
    other = [shift for shift in x]  # not the function of that name
    return kit_helper.shift(x) - Shifted().nested() + "#".count("#")
'''
INNER = "def deep(x): return x\n\ndef shallow(x): return x\n"
CHANGES = {
    "a comment": ("# of all", "# of everything"),
    "the docstring of a module": ('"""A metric."""', "'''Another text\n\nof three lines.'''"),
    "the docstring of a function": ('"""Doc # not a comment."""\n    ', ""),
    "the docstring of a class": ('"""A class."""', '"""Ä class."""'),
    "the text of an attribute": ("A text below", "Another text below"),
    "empty lines": ("\n\n\n", "\n"),
    "the layout": (
        "x: Image, reference, by=SCALE",
        "\n    x: Image,\n    reference,\n    by=SCALE,\n",
    ),
    "an unused class": ("    value = 1", "    value = 2"),
    "an unused function": ("class Unused:", "def unused(x): return 1\n\nclass Unused:"),
    "an unused import": ("import kit_helper\n", "import kit_helper\nimport scipy\n"),
}
EDITS = {
    "code": ("- Shifted()", "+ Shifted()"),
    "a string with #": ('"#"', '"##"'),
    "a constant": ("SCALE: int = 2", "SCALE: int = 3"),
    "a default": ("by=SCALE", "by=1"),
    "a decorator": ("    return function", "    return lambda *a: function(*a)"),
    "an attribute of a class that is used": ("offset = SCALE", "offset = 2"),
    "a change from below": ("class Unused", "SCALE += 1\n\nclass Unused"),
}
HELPERS = {
    "a function by its module": ("return x + TABLE", "return x - TABLE"),
    "what that function uses": ("WIDTH = 3", "WIDTH = 4"),
    "an entry that is added later": ("WIDTH / 2", "WIDTH / 3"),
    "a base class": ("gain = 2", "gain = 3"),
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes modules of a text, each time anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(name: str, source: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        importlib.import_module("linecache").clearcache()
        return importlib.import_module(name)

    yield make
    for name in ("kit_metric", "kit_helper", "kit_inner"):
        sys.modules.pop(name, None)


@pytest.fixture
def version_with(module: Any) -> Callable[..., str]:
    """The version of ``shifted`` with one of the texts changed."""

    def version(source: str = SOURCE, helper: str = HELPER, inner: str = INNER) -> str:
        module("kit_inner", inner)
        sys.modules.pop("kit_inner")  # as it is before the function that imports it has run
        module("kit_helper", helper)
        return of_code(module("kit_metric", source).shifted)

    return version


@pytest.mark.parametrize("what", CHANGES)
def test_digests_do_not_change_with_what_is_not_used(what: str, version_with: Any) -> None:
    old, new = CHANGES[what]
    before = version_with()
    assert len(before) == 12
    assert old in SOURCE and version_with(SOURCE.replace(old, new)) == before


@pytest.mark.parametrize("what", EDITS)
def test_digests_change_with_code_that_is_used(what: str, version_with: Any) -> None:
    old, new = EDITS[what]
    assert old in SOURCE and version_with(SOURCE.replace(old, new)) != version_with()


@pytest.mark.parametrize("what", HELPERS)
def test_digests_change_with_what_is_used_of_the_same_package(what: str, version_with: Any) -> None:
    old, new = HELPERS[what]
    assert old in HELPER and version_with(helper=HELPER.replace(old, new)) != version_with()
    assert version_with(helper=HELPER.replace("    return x\n", "    return 2 * x\n")) == (
        version_with()
    )


def test_digests_change_with_what_a_function_imports_when_it_runs(version_with: Any) -> None:
    assert version_with(
        inner=INNER.replace("def deep(x): return x", "def deep(x): return 2 * x")
    ) != (version_with())
    assert version_with(inner=INNER.replace("def shallow(x): return x", "shallow = 1")) == (
        version_with()
    )


def test_where_a_definition_stands_does_not_matter(version_with: Any) -> None:
    base = HELPER[HELPER.index("class Base") : HELPER.index("def shift")]
    moved = SOURCE.replace("import Base, shift", "import shift")
    moved = moved.replace("class Shifted", f"{base}class Shifted")
    assert version_with(moved) == version_with()


def test_code_without_a_file_has_no_version() -> None:
    made: dict[str, Any] = {"__name__": "nowhere_to_read"}
    exec("class Made: pass", made)
    sys.modules["nowhere_to_read"] = ModuleType("nowhere_to_read")
    try:
        with pytest.raises(ValueError, match="nowhere_to_read cannot be read.*put it into a file"):
            of_code(made["Made"])
    finally:
        del sys.modules["nowhere_to_read"]


def test_a_class_that_a_call_made_has_no_version() -> None:
    made = type("Made", (), {"__module__": __name__})
    with pytest.raises(ValueError, match="does not define Made at its top.*class or def statement"):
        of_code(made)


# Built-ins ----------------------------------------------------------------------------------------


def edit(monkeypatch: pytest.MonkeyPatch, module: str, old: str, new: str) -> None:
    """Lets the source of an imported module read otherwise."""
    plain = inspect.getsource

    def getsource(what: Any) -> str:
        source = plain(what)
        if getattr(what, "__name__", None) != module:
            return source
        assert old in source
        return source.replace(old, new)

    monkeypatch.setattr(inspect, "getsource", getsource)


UNUSED = "\n\nclass Unused:\n    pass\n\n\ndef unused(x):\n    return Unused\n"
SHARED = [
    ("transitions", "ddim", "invdiff.transitions.ddim"),
    ("transitions", "ddim", "invdiff.transitions.kernel"),
    ("transitions", "ddpm", "invdiff.transitions.kernel"),
    ("guidance", "diffpir", "invdiff.guidance.diffpir"),
    ("guidance", "diffpir", "invdiff.transitions.kernel"),
    ("operators", "inpaint", "invdiff.noise"),
    ("operators", "inpaint", "invdiff.problem.operator"),
    ("operators", "jpeg", "invdiff.operators.quantize"),
    ("metrics", "psnr", "invdiff.benchmarks.metrics"),
]


@pytest.mark.parametrize("kind, name, shared", SHARED)
def test_an_unused_definition_beside_a_built_in_changes_no_version(
    kind: str, name: str, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load(kind, name)
    before, source = of_code(made), inspect.getsource(sys.modules[shared])
    edit(monkeypatch, shared, source, source + UNUSED)
    assert of_code(made) == before


def test_a_used_helper_changes_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {name: load("transitions", name) for name in ("ddim", "ddpm", "renoise")}
    before = {name: of_code(each) for name, each in made.items()}
    edit(monkeypatch, "invdiff.sampling.ancestral", "def mean(", "def mean(unused, ")
    changed = [
        name for name, version in before.items() if of_code(load("transitions", name)) != version
    ]
    assert changed == ["ddim", "ddpm"]


def test_another_stream_of_noise_is_another_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    inpaint = load("operators", "inpaint")
    before, text = of_code(inpaint), inspect.getsource(importlib.import_module("invdiff.noise"))
    name = next(n for n in used_by(inpaint) if n.startswith("invdiff.noise:")).partition(":")[2]
    edit(monkeypatch, "invdiff.noise", f"def {name}(", f"def {name}(unused, ")
    assert f"def {name}(" in text and of_code(inpaint) != before


def test_what_a_digest_covers() -> None:
    def modules(made: Any) -> set[str]:
        return {name.partition(":")[0] for name in used_by(made)}

    assert modules(load("operators", "jpeg")) == {
        "invdiff.operators.jpeg",
        "invdiff.operators.quantize",
        "invdiff.problem.separable",
        "PIL",  # which reads the tables of a file
    }
    blur = modules(load("operators", "nonlinear_blur"))
    assert {"invdiff.operators.nonlinear_blur", "invdiff.operators.blur", "PIL"} <= blur
    physics = used_by(type(make_operator(deepinv.physics.Inpainting((3, 8, 8)))))
    assert physics["deepinv"] == deepinv.__version__
    assert set(used_by(metrics.psnr)) == {
        f"invdiff.benchmarks.metrics:{name}" for name in ("psnr", "rated", "_checked", "_TOLERANCE")
    }
    assert "skimage" in used_by(metrics.ssim)
    # The version of the package whose weights it has stands in the record beside it.
    assert "invdiff.benchmarks.lpips:LPIPS" in used_by(metrics.lpips)


@pytest.mark.parametrize("kind", ["operators", "guidance", "transitions", "itineraries", "metrics"])
def test_every_plugin_has_a_version_of_its_own(kind: str) -> None:
    versions = [of_code(load(kind, name)) for name in list_plugins(kind)]
    assert len(set(versions)) == len(versions)


# Operators ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_operator_has_a_version_of_its_own() -> None:
    versions = {}
    for name in list_plugins("operators"):
        operator = make_operator(name)
        versions[name] = operator_version(operator)
        assert (
            operator_version(operator.bind(operator.fit((3, 32, 32))))
            == versions[name]
            == operator_version(make_operator(name))
        )
    assert len(set(versions.values())) == len(versions)


VARIANTS: dict[str, tuple[Operator, Operator]] = {
    "number": (make_operator("inpaint"), make_operator("inpaint", fraction=0.5)),
    "tensor": (
        make_operator("inpaint", mask=torch.ones(4, 4)),
        make_operator("inpaint", mask=torch.eye(4)),
    ),
    "part": (
        make_operator("compose"),
        make_operator("compose", parts=[{"name": "blur", "sigma": 2.5}, "sr"]),
    ),
    "part of a part": (
        make_operator("stack", parts=[{"name": "compose", "parts": ["blur", "sr"]}]),
        make_operator(
            "stack", parts=[{"name": "compose", "parts": ["blur", {"name": "sr", "factor": 2}]}]
        ),
    ),
}


@pytest.mark.parametrize("what", VARIANTS)
def test_parameters_are_part_of_an_operators_version(what: str) -> None:
    a, b = VARIANTS[what]
    assert operator_version(a) != operator_version(b)


def test_of_a_mask_file_the_content_is_part_of_the_version_and_not_its_place(
    tmp_path: Path,
) -> None:
    versions = []
    for name, mask in (("a", np.eye(8)), ("b", np.eye(8)), ("c", np.ones((8, 8)))):
        np.save(tmp_path / f"{name}.npy", mask)
        versions.append(
            operator_version(make_operator("inpaint", mask=str(tmp_path / f"{name}.npy")))
        )
    assert versions[0] == versions[1] != versions[2]

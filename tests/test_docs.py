"""What the documentation shows works: commands parse, Python compiles, pages are complete, nothing
is loaded from the network."""

import doctest
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import invdiff
from invdiff.commands.arguments import make_parser
from invdiff.plugins.registry import list_plugins, load

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
EXAMPLES = sorted((DOCS / "gallery").glob("*.py"))


def imported(name: str) -> ModuleType:
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return imported("generate")


@pytest.fixture(scope="module")
def pages(generate: ModuleType) -> dict[str, str]:
    return generate.pages()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Calls of invdiff in shell blocks and in indented ones."""
    text = text.replace("\\\n", " ")
    shown = "\n".join(
        [*blocks(text, "sh"), *re.findall(r"^ {4}(invdiff .*)$", text, flags=re.MULTILINE)]
    )
    parts = [part.strip() for line in shown.splitlines() for part in line.split("&&")]
    return [part for part in parts if part.startswith("invdiff ")]


def parses(command: str) -> None:
    arguments = shlex.split(command, comments=True)[1:]
    args, rest = make_parser().parse_known_args(arguments)
    assert args.command is not None
    assert not rest or (hasattr(args, "overrides") and not any(r.startswith("-") for r in rest)), (
        rest
    )


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.name)
def test_commands_parse(page: Path) -> None:
    for command in commands(page.read_text()):
        parses(command)


def test_the_first_pages_have_commands() -> None:
    assert "invdiff solve --operator inpaint --method dps" in commands(
        (ROOT / "README.md").read_text()
    )
    assert len(commands((DOCS / "quickstart.md").read_text())) > 10
    with pytest.raises(AssertionError):
        parses("invdiff solve --no-such-flag")


def test_the_readme_says_how_to_test() -> None:
    assert "pip install '.[test]' && pytest -n auto" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.name)
def test_python_compiles(page: Path) -> None:
    for block in blocks(page.read_text(), "python"):
        compile(block, str(page), "exec")


def test_the_quick_start_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks((DOCS / "quickstart.md").read_text(), "python")
    names: dict[str, Any] = {}
    exec(block.replace("steps=20", "steps=2"), names)
    assert names["result"].samples.shape == (2, 1, 3, 64, 64)
    assert (tmp_path / "restored.png").exists()


def run_blocks(page: Path, **replaced: str) -> dict[str, Any]:
    """Runs the Python blocks of a page, one after the other."""
    names: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page.read_text(), "python"):
        for old, new in replaced.items():
            block = block.replace(old.replace("__", "="), new)
        exec(compile(block, str(page), "exec"), names)
    return names


def test_the_readme_runs() -> None:
    names = run_blocks(ROOT / "README.md", num_samples__4="num_samples=2, steps=2")
    assert names["result"].samples.shape == (2, 1, 3, 128, 128)


@pytest.mark.parametrize("name", ["coming-from", "gpu", "records", "saved-measurements"])
def test_the_code_of_guides_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_blocks(DOCS / f"{name}.md")
    if name == "coming-from":  # the same task in four ways: images of one size, all finite
        assert names["x_deepinv"].shape == names["x_azula"].shape == names["x_t"].shape
        assert names["result"].samples.shape == (3, 1, 3, 64, 64)


@pytest.mark.parametrize("name", invdiff._HOME)
def test_public_names_have_examples_that_run(name: str) -> None:
    thing = getattr(invdiff, name)
    module = sys.modules[inspect.unwrap(thing).__module__ if callable(thing) else thing.__module__]
    found = doctest.DocTestParser().get_doctest(
        inspect.getdoc(thing) or "", dict(vars(module)), name, None, 0
    )
    assert found.examples
    output: list[str] = []
    assert doctest.DocTestRunner().run(found, out=output.append).failed == 0, "".join(output)


def test_code_is_narrow() -> None:
    """Blocks of at most 80 columns, which a page shows without a scroll bar; output may be wide."""
    wide = [
        f"{page.name}: {line}"
        for page in WRITTEN
        for language in ("python", "sh", "toml")
        for block in blocks(page.read_text(), language)
        for line in block.splitlines()
        if len(line) > 80
    ]
    wide += [
        f"{e.name}: {line}"
        for e in EXAMPLES
        for line in e.read_text().splitlines()
        if len(line) > 80
    ]
    assert not wide, "\n".join(wide)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, example], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"


def test_examples_are_cells_with_a_title() -> None:
    assert len(EXAMPLES) >= 14
    for example in EXAMPLES:
        text = example.read_text()
        assert re.match(r"# %% \[markdown\]\n# # \S.*\n#\n# \S", text), example.name
        assert "# %%\n" in text


def test_the_overview_of_methods_is_that_of_the_code() -> None:
    overview = imported("overview")
    page = (DOCS / "methods.md").read_text()
    assert (
        page.partition(overview.BEGIN)[2].partition(overview.END)[0].strip() == overview.table()
    ), "python docs/overview.py"


def test_names_are_those_of_plugins(generate: ModuleType) -> None:
    ours = {(kind, name) for kind, name, _ in OURS}
    for kind, titles in generate.NAMES["titles"].items():
        assert {(kind, name) for name in titles} <= ours
    grouped = [name for names in generate.NAMES["groups"].values() for name in names]
    assert len(grouped) == len(set(grouped))
    methods = {name for kind, name in ours if kind == "methods"}
    assert set(grouped) | {"none"} >= methods, "docs/names.yaml has the groups of methods"
    assert set(generate.NAMES["code"]) <= methods


PIECES = [
    ("methods" if kind == "guidance" else kind, name, load(kind, name))
    for kind in ("guidance", "operators", "transitions", "itineraries")
    for name in list_plugins(kind)
]
OURS = [
    p for p in PIECES if p[2].__module__.startswith("invdiff.")
]  # other packages document theirs


@pytest.mark.parametrize(
    ("kind", "name", "factory"), OURS, ids=[f"{kind}-{name}" for kind, name, _ in OURS]
)
def test_every_piece_has_a_page(
    kind: str, name: str, factory: Any, pages: dict[str, str], generate: ModuleType
) -> None:
    text = pages[f"{kind}/{name}.md"]
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", text, flags=re.MULTILINE))
    takes = [p for p in inspect.signature(factory).parameters if p not in ("shape", "state")]
    assert list(rows) == takes
    assert all(rows.values()), (
        f"nothing is said of {[n for n, meaning in rows.items() if not meaning.strip()]}"
    )
    example = generate.EXAMPLES[kind][name]
    assert name in example
    for command in commands(f"```sh\n{example}\n```"):
        parses(command)
    assert ("FOLDER" in example) != (DOCS / "pictures" / f"{kind}-{name}.png").exists()
    home = pages[f"{kind}.md" if f"{kind}.md" in pages else f"{kind}/index.md"]
    assert re.search(rf"^({kind}/)?{name}$", home, flags=re.MULTILINE), "it stands in the side bar"
    assert text.startswith(f"# {generate.title(kind, name)}\n")


def test_pictures_stay_small_and_in_use() -> None:
    examples = imported("generate").EXAMPLES
    known = {f"{kind}-{name}" for kind, names in examples.items() for name in names} | {"concept"}
    known |= set(re.findall(r"pictures/(problem-\w+)\.png", (DOCS / "your-problem.md").read_text()))
    known |= set(re.findall(r"pictures/(science-\w+)\.png", (DOCS / "science.md").read_text()))
    files = list((DOCS / "pictures").glob("*.png"))
    assert {f.stem for f in files} <= known
    assert sum(f.stat().st_size for f in files) < 2e6


def test_presets_and_protocols_are_told(pages: dict[str, str]) -> None:
    assert "zeta: 0.3" in pages["methods/dps.md"] and "## As published" in pages["methods/dps.md"]
    assert "### daps_phase_retrieval" in pages["reproducing.md"]
    assert "the same noise weighs half as much" in pages["reproducing.md"]


def test_the_command_line_is_told(pages: dict[str, str]) -> None:
    (subparsers,) = (a for a in make_parser()._actions if a.dest == "command")
    assert subparsers.choices is not None
    for name, parser in dict(subparsers.choices).items():  # type: ignore[call-overload]
        assert f"## invdiff {name}" in pages["cli.md"]
        for action in parser._actions:
            assert all(
                flag in pages["cli.md"]
                for flag in action.option_strings
                if flag not in ("-h", "--help")
            )


def test_links_become_those_of_the_site(generate: ModuleType) -> None:
    text = (
        "[a](docs/methods.md#x) [b](CONTRIBUTING.md) ![c](docs/inpaint.png) [d](https://e.org) "
        "[f](#g) [h](pyproject.toml)"
    )
    assert generate.relinked(text, "README.md", "index.md") == (
        "[a](methods.md#x) [b](contributing.md) ![c](inpaint.png) [d](https://e.org) [f](#g) h"
    )
    assert (
        generate.relinked("[`dps`](../guidance/dps.py)", "docs/methods.md", "methods.md")
        == "[`dps`](methods/dps.md)"
    )
    with pytest.raises(ValueError, match=r"links to nowhere\.py"):
        generate.relinked("[a](nowhere.py)", "README.md", "index.md")


def test_docstrings_become_markdown() -> None:
    prose = imported("prose")
    text = (
        "Moves by A* y, see :class:`~invdiff.sampling.Step` (arXiv:2209.14687):\n\n    first A* "
        "y, with ``a``\n"
    )
    assert prose.markdown(text) == (
        "Moves by A\\* y, see `Step` "
        "([arXiv:2209.14687](https://arxiv.org/abs/2209.14687)):\n\n    first A* y, with a\n"
    )
    assert prose.sections(
        "About.\n\nArgs:\n    a, b: of both,\n        on two lines.\n    c: "
        "one.\n\nRaises:\n    ValueError: no."
    ) == (
        "About.",
        {"a": "of both, on two lines.", "b": "of both, on two lines.", "c": "one."},
    )
    assert prose.yaml_comments(
        "# @package _global_\n# One.\na: 1  # first\n       # line\nb:\n  c: 2  # second\n"
    ) == (
        "One.",
        {"a": "first line", "c": "second"},
    )


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("x_s = alpha_s x0 + sigma_s z", r"x_{s} = \alpha_{s} x_{0} + \sigma_{s} z"),
        ("sqrt(1 − eta²) sigma_s", r"\sqrt {1 - \eta ^{2}} \sigma_{s}"),
        ("grad_{x_t} ‖y − A(x0(x_t))‖", r"\nabla_{x_{t}} \|y - A (x_{0} (x_{t} ))\|"),
        ("(A*A + rho)^-1 A†y", r"(A ^{*}A + \rho )^{-1} A ^{\dagger}y"),
        ("sigma~_t <- eps_hat", r"\tilde{\sigma}_{t} \leftarrow \hat{\epsilon}"),
        ("x_s' = a step from x_t", r"x_{s} ^{\prime} = \text{a step from}\ x_{t}"),
        ("eps re-derived", r"\epsilon\ \text{re-derived}"),
        ("grad log p(y)", r"\nabla \mathrm{log}\, p (y )"),
        ("sqrt(alpha_bar_s)", r"\sqrt {\bar{\alpha}_s }"),
    ],
)
def test_text_becomes_tex(text: str, tex: str) -> None:
    maths = imported("maths")
    assert maths.tex(text).split() == tex.split()
    shown = maths.formula(text)
    assert shown.startswith("<math ") and shown.count("<math") == shown.count("</math>") == 1
    assert "http" not in shown.replace("http://www.w3.org/1998/Math/MathML", "")


def test_formulas_are_told_from_code_and_lists() -> None:
    maths = imported("maths")
    assert maths.is_block(
        "    x_s = x_s' − zeta grad_{x_t} ‖r‖    by default, or\n    x0 <- x0 + dx"
    )
    assert not maths.is_block("    invdiff solve --operator stack 'operator.parts=[]'")
    assert not maths.is_block(
        "    interval  guidance for sigma_t in (low, high] only, plain elsewhere"
    )
    assert not maths.is_block("    both = stack([a, b]).bind((3, 64, 64))")
    assert maths.block("    x = y        then z").count("<span>") == 2


def test_every_formula_of_a_docstring_is_rendered(pages: dict[str, str]) -> None:
    assert '<div class="formulas">' in pages["methods/dps.md"]
    for name, page in pages.items():
        assert "grad_{x_t}" not in re.sub(r'title="[^"]*"', "", page).split("## Param")[0] or not (
            name.startswith("methods/")
        ), name


def test_docstrings_become_rest() -> None:
    rest = imported("prose").rest
    text = "\n".join(
        rest(["Moves ``a`` by A* y:", "", "    x_s = alpha_s x0", "", "Args:", "    w: x."])
    )
    assert "A\\* y" in text and ".. raw:: html" in text and "``a``" in text
    assert text.endswith("Args:\n    w: x.")


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/a.js"></script>',
        "<script async src='//cdn.example/a.js'>",
        '<link rel="stylesheet" href="https://fonts.example/css">',
        '<link href="https://fonts.example" rel=preconnect>',
        '<img alt="" src="http://example.org/a.png">',
        "@import url(https://example.org/a.css);",
        "src: url('https://example.org/a.woff2')",
    ],
)
def test_the_build_refuses_what_is_loaded_from_elsewhere(text: str) -> None:
    assert len(imported("remote").remote(text)) == 1


def test_the_build_takes_what_is_local() -> None:
    text = (
        '<a href="https://arxiv.org/abs/2209.14687">paper</a><script '
        'src="assets/a.js"></script><link rel="stylesheet" href="style.css">'
    )
    assert imported("remote").remote(text + "url(data:image/png;base64,xyz)") == []


@pytest.mark.slow
def test_the_tutorial_runs() -> None:
    run = subprocess.run([sys.executable, DOCS / "tutorial.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    scores = {
        label: float(lpips)
        for label, lpips in re.findall(
            r"^(\w+) +PSNR .* LPIPS (\S+),", run.stdout, flags=re.MULTILINE
        )
    }
    assert scores["renoise"] < scores["pull"] < 0.25, (
        "what the tutorial says of its method no longer holds"
    )

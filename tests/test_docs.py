"""What the documentation shows works: commands parse, Python compiles, pages are complete, nothing
is loaded from the network."""

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

from invdiff.commands.arguments import make_parser
from invdiff.plugins.registry import list_plugins, load

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


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


def test_the_readme_runs() -> None:
    (block,) = blocks((DOCS.parent / "README.md").read_text(), "python")[:1]
    names: dict[str, Any] = {}
    exec(block.replace("num_samples=4", "num_samples=2, steps=2"), names)
    assert names["result"].samples.shape == (2, 1, 3, 128, 128)


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
    assert f"* [{name}]({name}.md)" in pages[f"{kind}/SUMMARY.md"]


def test_pictures_stay_small_and_in_use() -> None:
    examples = imported("generate").EXAMPLES
    known = {f"{kind}-{name}" for kind, names in examples.items() for name in names} | {"concept"}
    known |= set(re.findall(r"pictures/(problem-\w+)\.png", (DOCS / "your-problem.md").read_text()))
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
        "Moves by A* y, see :class:`~invdiff.sampling.Step` (arXiv:2209.14687):\n\n    x = A* "
        "y   with ``a``\n"
    )
    assert prose.markdown(text) == (
        "Moves by A\\* y, see `Step` "
        "([arXiv:2209.14687](https://arxiv.org/abs/2209.14687)):\n\n    x = A* y   with a\n"
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
    assert len(imported("hooks").remote(text)) == 1


def test_the_build_takes_what_is_local() -> None:
    text = (
        '<a href="https://arxiv.org/abs/2209.14687">paper</a><script '
        'src="assets/a.js"></script><link rel="stylesheet" href="style.css">'
    )
    assert imported("hooks").remote(text + "url(data:image/png;base64,xyz)") == []


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

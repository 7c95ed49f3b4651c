"""Writes the pages of the site that follow from the code: one per plug-in, the protocols, the
command line, the public names.

Run by mkdocs-gen-files at every build. Hand-written pages link to files of the repository, which
works on GitHub; here such a link becomes one to the page that was made from the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import posixpath
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))

from prose import cell, markdown, sections, yaml_comments  # noqa: E402

from invdiff import _HOME  # noqa: E402
from invdiff.commands.arguments import make_parser  # noqa: E402
from invdiff.config import protocols  # noqa: E402
from invdiff.plugins.registry import list_plugins, load  # noqa: E402
from invdiff.problem import (  # noqa: E402
    LinearOperator,
    Operator,
    SpectralOperator,
    make_operator,
)
from invdiff.sampling import StatefulGuidance, make_method  # noqa: E402

EXAMPLES: dict[str, dict[str, str]] = yaml.safe_load((DOCS / "examples.yaml").read_text())
GROUPS = {
    "methods": "guidance",
    "operators": "operator",
    "transitions": "transition",
    "itineraries": "itinerary",
}
SOURCES = {  # what a link to a file of the repository means on the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "configs/operator": "reproducing.md",
    "invdiff/transitions.py": "transitions/index.md",
    "invdiff/itineraries.py": "itineraries/index.md",
}
SOURCE_PATTERNS = (
    (r"docs/tutorial\.py", "tutorial.md"),
    (r"docs/(.*)", r"\1"),
    (r"guidance/(\w+)\.py", r"methods/\1.md"),
    (r"operators/(\w+)\.py", r"operators/\1.md"),
    (r"invdiff/zoo/(\w+)/README\.md", r"models/\1.md"),
)
WIDE = "---\nhide: [toc]\n---\n\n"  # room for equations and tables
API = {
    "solve": [
        "solve",
        "generate",
        "invert",
        "interpolate",
        "log_likelihood",
        "upscale",
        "Restoration",
    ],
    "pieces": [
        "Denoiser",
        "Prediction",
        "load_model",
        "recommend",
        "self_check",
        "Measurement",
        "make_operator",
        "Method",
        "make_method",
        "list_plugins",
    ],
    "contracts": [
        "Operator",
        "LinearOperator",
        "SpectralOperator",
        "Guidance",
        "Transition",
        "Itinerary",
        "Step",
    ],
}
MODULES = ("schedules", "transitions", "itineraries", "benchmarks.metrics", "images", "testing")


# Pages of plug-ins --------------------------------------------------------------------------------


def method_page(name: str) -> str:
    """Paper, update, example, parameters, requirements and presets of a method."""
    factory = load("guidance", name)
    pieces = _pieces(name)
    facts = [
        ("Is a", " × ".join(_kind(p) for p in pieces) or "plain sampler"),
        ("Operators", _required(pieces)),
    ]
    if any(getattr(p, "particles", False) for p in pieces):
        facts.append(("Samples", "are one particle system: ask for many, `--num-samples 64`"))
    if any(isinstance(p, StatefulGuidance) for p in pieces):
        facts.append(("State", "kept between steps: a transition that predicts once a step"))
    if given := [c for p in pieces for c in getattr(p, "sets", ())]:
        facts.append(
            ("Conditions", f"gives the network its {', '.join(given)}: stands first in a chain")
        )
    facts += [("File", f"`guidance/{inspect.getmodule(factory).__name__.rsplit('.', 1)[-1]}.py`")]
    return _page(name, "methods", factory, facts) + _presets(name)


def operator_page(name: str) -> str:
    """Equation, example, parameters and kind of an operator, and the methods it serves."""
    factory = load("operators", name)
    operator = make_operator(name)
    if isinstance(operator, SpectralOperator):
        kind = (
            "linear with an exact singular value decomposition: adjoint, pseudo-inverse and "
            "prox in closed form"
        )
    else:
        kind = (
            "linear: adjoint, pseudo-inverse and prox"
            if isinstance(operator, LinearOperator)
            else "nonlinear, differentiable"
        )
    takes = [
        f"[`{m}`](../methods/{m}.md)"
        for m in list_plugins("guidance")
        if all(isinstance(operator, r) for r in _requirements(m))
    ]
    facts = [
        ("Kind", kind),
        ("Methods", ", ".join(takes)),
        ("File", f"`operators/{factory.__module__.rsplit('.', 1)[-1]}.py`"),
    ]
    return _page(name, "operators", factory, facts)


def piece_page(name: str, kind: str, factory: Any) -> str:
    """A transition or an itinerary; the class's docstring says it all."""
    facts = []
    if kind == "transitions":
        made = factory()
        facts = [
            ("Evaluations", f"{made.predictions} a step"),
            ("Noise", "none by default" if made.deterministic else "drawn in each step"),
        ]
    return _page(name, kind, factory, facts, own=inspect.cleandoc(factory.__doc__))


def _page(
    name: str, kind: str, factory: Any, facts: list[tuple[str, str]], own: str | None = None
) -> str:
    text = sections(own)[0] if own else inspect.cleandoc(inspect.getmodule(factory).__doc__ or "")
    rows = "".join(f"| **{what}** | {value} |\n" for what, value in facts)
    table = f"| | |\n| --- | --- |\n{rows}\n" if rows else ""
    return (
        f"{WIDE}# {name}\n\n{markdown(text)}\n\n{_example(kind, name)}{table}\n## "
        f"Parameters\n\n{_parameters(kind, name, factory)}\n"
    )


def _example(kind: str, name: str) -> str:
    command = "\n".join(part.strip() for part in EXAMPLES[kind][name].split("&&"))
    shown = f"```sh\n{command}\n```\n\n"
    if "FOLDER" in command:
        return f"{shown}No picture: this needs a latent network, and none ships in the package.\n\n"
    small = "invdiff solve" in command and "--input" not in command
    caption = (
        "\n/// caption\nThe same, with a photograph of 64×64 pixels as `--input`.\n///"
        if small
        else ""
    )
    return f"{shown}![{command.splitlines()[-1]}](../pictures/{kind}-{name}.png){caption}\n\n"


def _parameters(kind: str, name: str, factory: Any) -> str:
    takes = {
        n: p
        for n, p in inspect.signature(factory).parameters.items()
        if n not in ("shape", "state")
    }
    if not takes:
        return "None."
    meanings, set_to = documented(kind, name, factory)
    rows = []
    for parameter, p in takes.items():
        default = _default(factory, parameter, p)
        there = set_to.get(parameter, p.default)
        differs = parameter in set_to and there is not None and not _same(there, p.default)
        note = f" (command line: `{there}`)" if differs else ""
        rows.append(
            f"| `{parameter}` | `{_type(p.annotation)}` | `{default}`{note} | "
            f"{cell(meanings.get(parameter, ''))} |"
        )
    made = {
        "methods": f'make_method("{name}", KEY=VALUE)',
        "operators": f'make_operator("{name}", KEY=VALUE)',
    }
    use = (
        f"`{GROUPS[kind]}.KEY=VALUE` on the command line, "
        f"`invdiff.{made.get(kind, f'{kind}.{factory.__name__}(KEY=VALUE)')}` in Python."
    )
    head = "| name | type | default | |\n| --- | --- | --- | --- |\n"
    return f"{use}\n\n{head}" + "\n".join(rows) + "\n"


def documented(kind: str, name: str, factory: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """What is said of each parameter, by the factory, the classes it is made of or the
    configuration; and the configuration's values."""
    file = ROOT / "configs" / GROUPS[kind] / f"{name}.yaml"
    text = file.read_text() if file.exists() else ""
    module = inspect.getmodule(factory)
    # The nearest last, which then counts: configuration, pieces, other classes of the module, the
    # factory itself.
    sources: list[Any] = [type(p) for p in _pieces(name)] if kind == "methods" else []
    sources += [
        c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__
    ]
    if inspect.isclass(factory):
        sources += [c for c in reversed(factory.__mro__) if c.__module__.startswith("invdiff")]
    meanings = yaml_comments(text)[1]
    for source in [*sources, factory]:
        found = sections(source.__doc__)[1]
        meanings |= {
            n: meaning
            for n, meaning in found.items()
            if n not in meanings or not re.match(r"(see|of) :", meaning)
        }
    return meanings, yaml.safe_load(text) or {}


def _same(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, list) and tuple(a) == b)


def _default(factory: Any, name: str, parameter: inspect.Parameter) -> str:
    if dataclasses.is_dataclass(factory):
        field = next(f for f in dataclasses.fields(factory) if f.name == name)
        if field.default_factory is not dataclasses.MISSING:
            return repr(field.default_factory())
    return "required" if parameter.default is parameter.empty else repr(parameter.default)


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


def _pieces(name: str) -> list[Any]:
    method = make_method(name)
    return [p for p in (*method.chain, method.transition, method.itinerary) if p is not None]


def _requirements(method: str) -> list[type[Operator]]:
    return [p.requires for p in _pieces(method) if getattr(p, "requires", None) is not None]


def _kind(piece: Any) -> str:
    for kind in ("Guidance", "Transition", "Itinerary"):
        if any(base.__name__ == kind for base in type(piece).__mro__):
            return f"{kind.lower()} `{type(piece).__name__}`"
    raise TypeError(piece)


def _required(pieces: list[Any]) -> str:
    required = [p.requires for p in pieces if getattr(p, "requires", None) is not None]
    if not required:
        return "none is looked at by the method's own pieces"
    strictest = max(required, key=lambda r: len(r.__mro__))
    said = "any" if strictest is Operator else strictest.wanted()
    fits = [
        name
        for name in list_plugins("operators")
        if all(isinstance(make_operator(name), r) for r in required)
    ]
    links = ", ".join(f"[`{name}`](../operators/{name}.md)" for name in fits)
    return f"{said}: {links}" if links else f"{said}, that of a latent network"


def _presets(method: str) -> str:
    """What the literature publishes and what was tuned for a model that ships."""
    files = sorted((ROOT / "configs" / "preset").glob(f"*_{method}_*.yaml"))
    found: dict[str, list[str]] = {}
    for file in files:
        source, operator = file.stem.split(f"_{method}_", 1)
        comment, _ = yaml_comments(file.read_text())
        values = "\n".join(
            line for line in file.read_text().splitlines() if not line.startswith("#")
        )
        found.setdefault(source, []).append(
            f'??? note "{operator}"\n\n'
            + _indented(f"{markdown(comment)}\n\n```yaml\n{values}\n```\n")
        )
    return "".join(
        f"\n## As published{source.removeprefix('paper').replace('_', ': ', 1)}\n\n"
        f"`--preset {source}` takes these.\n\n" + "\n".join(blocks)
        if source.startswith("paper")
        else f"\n## Tuned for [{source}](../models/{source}.md)\n\n" + "\n".join(blocks)
        for source, blocks in found.items()
    )


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" if line else "\n" for line in text.splitlines())


def index(title: str, kind: str, names: Mapping[str, str]) -> str:
    """A page that lists others."""
    rows = "".join(f"| [`{name}`]({name}.md) | {cell(about)} |\n" for name, about in names.items())
    return f"# {title}\n\n| name | |\n| --- | --- |\n{rows}\n"


def _first_sentence(docstring: str | None) -> str:
    return re.split(r"(?<=[a-z)])[.:;](?:\s|$)|\n\n", inspect.cleandoc(docstring or ""))[0].replace(
        "\n", " "
    )


# Protocols, command line, API ---------------------------------------------------------------------


def protocol_list() -> str:
    """The literature's problems: what is fixed, and what repositories do differently."""
    parts = []
    for name in protocols():
        text = (ROOT / "configs" / "operator" / f"{name}.yaml").read_text()
        comment, _ = yaml_comments(text)
        what, _, differ = comment.partition("Where repositories differ")
        differ = markdown(differ.lstrip(".: ").strip())
        values = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        block = (
            f"### {name}\n\n{markdown(what.strip())}\n\n```sh\ninvdiff solve --operator {name} "
            "--method dps\n```\n\n"
        )
        block += '??? note "Its values"\n\n' + _indented(f"```yaml\n{values}\n```\n")
        parts.append(
            block
            + (
                f'\n!!! warning "Where repositories differ"\n\n{_indented(differ)}'
                if differ
                else ""
            )
        )
    return "\n\n".join(parts) + "\n"


def cli_page() -> str:
    """Every command with its flags."""
    os.environ["COLUMNS"] = "100"
    parser = make_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    text = "# Command line\n\n" + (parser.description or "") + "\n\n| command | |\n| --- | --- |\n"
    text += "".join(
        f"| [`invdiff {c.dest}`](#invdiff-{c.dest}) | {c.help} |\n"
        for c in commands._choices_actions
    )
    for name, command in commands.choices.items():
        usage = command.format_usage().removeprefix("usage: ")
        text += f"\n## invdiff {name}\n\n{command.description}\n\n```text\n{usage}```\n"
        for group in command._action_groups:
            actions = [a for a in group._group_actions if not isinstance(a, argparse._HelpAction)]
            if actions:
                text += f"\n**{group.title}**\n\n| | |\n| --- | --- |\n" + "".join(
                    map(_action, actions)
                )
        if command.epilog:
            text += f"\n```text\n{command.epilog.strip()}\n```\n"
    return text


def _action(action: argparse.Action) -> str:
    flag = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if action.option_strings and action.nargs != 0:
        choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
        flag += f" {action.metavar or choices or action.dest.upper()}"
    return f"| `{flag}` | {cell(action.help or '')} |\n"


def api_pages() -> dict[str, str]:
    """Public names and modules, for mkdocstrings."""
    listed = {n for names in API.values() for n in names}
    assert listed == {n for n, home in _HOME.items() if home not in MODULES}, (
        "API must list the public names of invdiff"
    )
    titles = {
        "solve": "Solving and generating",
        "pieces": "Networks, measurements, methods",
        "contracts": "Contracts",
    }
    pages = {
        f"api/{page}.md": f"# {titles[page]}\n\n"
        + "\n\n".join(
            f"::: invdiff.{_HOME[n]}.{n}\n    options:\n      heading_level: 2\n      "
            "show_root_full_path: false"
            for n in names
        )
        for page, names in API.items()
    }
    for module in MODULES:
        pages[f"api/{module}.md"] = (
            f"# invdiff.{module}\n\n::: invdiff.{module}\n    options:\n      "
            "show_root_heading: false\n"
        )
    return pages


# The site -----------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """Path below the site -> Markdown, of every generated page and every hand-written one whose
    links change."""
    made = {f"methods/{name}.md": method_page(name) for name in list_plugins("guidance")}
    made |= {f"operators/{name}.md": operator_page(name) for name in list_plugins("operators")}
    groups: dict[str, Mapping[str, Callable[..., Any]]] = {
        kind: {name: load(kind, name) for name in list_plugins(kind)}
        for kind in ("transitions", "itineraries")
    }
    for kind, known in groups.items():
        made |= {
            f"{kind}/{name}.md": piece_page(name, kind, factory) for name, factory in known.items()
        }
        about = {name: _first_sentence(factory.__doc__) for name, factory in known.items()}
        made[f"{kind}/index.md"] = index(kind.capitalize(), kind, about) + _INTRODUCTIONS[kind]
    cards = {
        name: (ROOT / "invdiff" / "zoo" / name / "README.md") for name in list_plugins("models")
    }
    made |= {
        f"models/{name}.md": _card(name, card.read_text())
        for name, card in cards.items()
        if card.exists()
    }
    made["models/index.md"] = index(
        "Models", "models", {name: _first_sentence(load("models", name).__doc__) for name in cards}
    )
    made["cli.md"] = cli_page()
    made |= api_pages()
    for source, page in (
        ("README.md", "index.md"),
        ("CONTRIBUTING.md", "contributing.md"),
        ("CHANGELOG.md", "changelog.md"),
    ):
        made[page] = relinked((ROOT / source).read_text(), source, page)
    for file in sorted(DOCS.glob("*.md")):
        made[file.name] = relinked(file.read_text(), f"docs/{file.name}", file.name)
    made |= {
        page: WIDE + made[page]
        for page in ("methods.md", "operators.md", "measurements.md", "exactness.md")
    }
    made["index.md"] = "---\nhide: [navigation, toc]\n---\n\n" + made["index.md"]
    made["reproducing.md"] += "\n" + protocol_list()
    for kind in ("methods", "operators", "transitions", "itineraries", "models"):
        names = sorted(
            p.removeprefix(f"{kind}/")
            for p in made
            if p.startswith(f"{kind}/") and not p.endswith("index.md")
        )
        overview = f"../{kind}.md" if f"{kind}.md" in made else "index.md"
        made[f"{kind}/SUMMARY.md"] = f"* [Overview]({overview})\n" + "".join(
            f"* [{n.removesuffix('.md')}]({n})\n" for n in names
        )
    made["api/SUMMARY.md"] = "".join(
        f"* [{_title(text)}]({p.removeprefix('api/')})\n"
        for p, text in made.items()
        if p.startswith("api/")
    )
    return made


_INTRODUCTIONS = {
    "transitions": "\nGiven a prediction at level t, how to draw the state at level s. The one "
    "rule: x_s = alpha_s x0 + (eps and noise), so that a shift of x0 by a guidance arrives "
    "in full, "
    "whatever the transition.\n",
    "itineraries": "\nWhich noise levels a run visits, in which order. Where a level is noisier "
    "than the one before, fresh noise is added.\n",
}


def _title(text: str) -> str:
    return text.splitlines()[0].removeprefix("# ")


def _card(name: str, text: str) -> str:
    """A model card: its front matter is for the hub."""
    return relinked(
        re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL),
        f"invdiff/zoo/{name}/README.md",
        f"models/{name}.md",
    )


def relinked(text: str, source: str, page: str) -> str:
    """The text of a file of the repository as a page: links to other files become links to their
    pages."""

    def change(found: re.Match[str]) -> str:
        label, link = found.groups()
        target, hash_, anchor = link.partition("#")
        if not target or "://" in target:
            return found[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = SOURCES.get(wanted)
        for pattern, replacement in SOURCE_PATTERNS if there is None else ():
            if re.fullmatch(pattern, wanted):
                there = re.sub(pattern, replacement, wanted)
                break
        if there is None:  # a file without a page is named, not linked
            if not (ROOT / wanted).exists():
                raise ValueError(f"{source} links to {target}, which does not exist")
            return label
        return (
            f"[{label}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{hash_}{anchor})"
        )

    return re.sub(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)", change, text)


def tutorial() -> tuple[str, dict[str, bytes]]:
    """docs/tutorial.py, run: its text, code and output as Markdown, and its pictures."""
    import jupytext
    from nbclient import NotebookClient
    from nbconvert import MarkdownExporter
    from traitlets.config import Config

    notebook = jupytext.read(DOCS / "tutorial.py")
    NotebookClient(
        notebook, timeout=900, config=Config(KernelManager={"transport": "ipc"})
    ).execute()
    for ran in notebook.cells:
        if ran.cell_type == "code":  # without progress bars and their like
            ran.outputs = [o for o in ran.outputs if o.get("name") != "stderr"]
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, {"unique_key": "tutorial", "output_files_dir": "tutorial"}
    )
    return WIDE + relinked(text, "docs/tutorial.py", "tutorial.md"), resources["outputs"]


def write() -> None:
    """Hands everything to mkdocs."""
    import mkdocs_gen_files

    made = pages()
    made["tutorial.md"], pictures = tutorial()
    for path, text in made.items():
        with mkdocs_gen_files.open(path, "w") as file:
            file.write(text)
    for path, data in pictures.items():
        with mkdocs_gen_files.open(path, "wb") as file:
            file.write(data)


if __name__ == "<run_path>":
    write()

"""Writes the pages of the site that follow from the code: one per plug-in, the protocols, the
command line, the public names.

A plain step that docs/build.py takes before Sphinx. Hand-written pages link to files of the
repository, which works on GitHub; here such a link becomes one to the page that was made from the
file.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import posixpath
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))

import others  # noqa: E402
from notebooks import Page, name_of  # noqa: E402
from others import ours  # noqa: E402
from prose import cell, markdown, sections, yaml_comments  # noqa: E402
from symbols import table  # noqa: E402

import invdiff  # noqa: E402
from invdiff import _HOME  # noqa: E402
from invdiff.commands.arguments import make_parser  # noqa: E402
from invdiff.commands.cite import entries_of  # noqa: E402
from invdiff.config import protocols  # noqa: E402
from invdiff.plugins.registry import load  # noqa: E402
from invdiff.problem import (  # noqa: E402
    LinearOperator,
    Operator,
    SpectralOperator,
    make_operator,
)
from invdiff.sampling import StatefulGuidance, make_method  # noqa: E402

EXAMPLES: dict[str, dict[str, str]] = yaml.safe_load((DOCS / "examples.yaml").read_text())
NAMES: dict[str, Any] = yaml.safe_load((DOCS / "names.yaml").read_text())
"""What a plug-in is called, and where the authors' code is."""
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
    (r"docs/gallery", "gallery/index.md"),
    (r"docs/(.*)", r"\1"),
    (r"guidance/(\w+)\.py", r"methods/\1.md"),
    (r"operators/(\w+)\.py", r"operators/\1.md"),
    (r"invdiff/zoo/(\w+)/README\.md", r"models/\1.md"),
)
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
    "denoiser": ["Denoiser", "Prediction", "load_model", "self_check"],
    "measurement": ["Measurement", "make_operator"],
    "method": ["Method", "make_method", "recommend", "list_plugins"],
    "operator": ["Operator", "LinearOperator", "SpectralOperator"],
    "guidance": ["Guidance", "Transition", "Itinerary", "Step"],
}
API_TITLES = {
    "solve": "Solving and generating",
    "denoiser": "Networks",
    "measurement": "Measurements",
    "method": "Choosing methods",
    "operator": "Operators (classes)",
    "guidance": "Guidance, transitions, itineraries (classes)",
}
MODULES = ("schedules", "transitions", "itineraries", "benchmarks.metrics", "images", "testing")
SECTIONS: dict[str, tuple[str, list[str]]] = {
    "start": (
        "Start",
        [
            "installation",
            "quickstart",
            "your-problem",
            "choosing",
            "concepts",
            "notation",
            "masks",
            "science",
            "tutorial",
        ],
    ),
    "guides": (
        "Guides",
        [
            "loading-your-checkpoint",
            "weights",
            "gpu",
            "troubleshooting",
            "coming-from",
            "conditional",
            "saved-measurements",
            "configuration",
            "leaderboard",
            "records",
            "scaling-out",
            "reproducing",
            "writing-a-plugin",
            "citing",
        ],
    ),
    "pieces": (
        "Other pieces",
        ["transitions/index", "itineraries/index", "models/index", "plugins"],
    ),
    "measured": ("Measured", ["measurements", "exactness"]),
    "reference": (
        "Reference",
        [
            "cli",
            *(f"api/{page}" for page in API),
            *(f"api/{module}" for module in MODULES),
            "versions",
            "changelog",
            "contributing",
            "design",
        ],
    ),
}
"""The site's parts: a page that lists what is in it, and what stands in its side bar."""


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
    module = inspect.getmodule(factory)
    facts += [("File", f"`guidance/{module.__name__.rsplit('.', 1)[-1]}.py`")]
    if code := NAMES["code"].get(name):
        facts.append(("Authors' code", f"<{code}>"))
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
        for m in ours("guidance")
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
    said = markdown(text).replace("Symbols:", "[Symbols](../notation.md):", 1)
    return (
        f"# {title(kind, name)}\n\n`{FLAGS[kind]}{name}`\n\n{said}\n\n"
        f"{_example(kind, name)}{table}\n## Parameters\n\n{_parameters(kind, name, factory)}\n"
    )


FLAGS = {
    "methods": "--method ",
    "operators": "--operator ",
    "transitions": "transition.name=",
    "itineraries": "itinerary.name=",
}


def title(kind: str, name: str) -> str:
    """What a plug-in is called; its registered name where nothing else is said."""
    return str(NAMES["titles"].get(kind, {}).get(name, name))


def _example(kind: str, name: str) -> str:
    lines = [part.strip() for part in EXAMPLES[kind][name].split("&&")]
    command = "\n".join(wrapped(line) for line in lines)
    shown = f"```sh\n{command}\n```\n\n"
    if "FOLDER" in command:
        return f"{shown}No picture: this needs a latent network, and none ships in the package.\n\n"
    small = "invdiff solve" in command and "--input" not in command
    caption = "\n\n*The same, with a photograph of 64×64 pixels as `--input`.*" if small else ""
    return f"{shown}![{lines[-1]}](../pictures/{kind}-{name}.png){caption}\n\n"


def wrapped(command: str, width: int = 80) -> str:
    """A command in lines of at most so many columns, as a shell reads them."""
    parts, lines = shlex.split(command, posix=False), [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) + 3 > width:
            lines.append("   ")
        lines[-1] += (" " if lines[-1] else "") + part
    return " \\\n".join(lines)


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
        for name in ours("operators")
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
            f"::::{{dropdown}} {operator}\n{markdown(comment)}\n\n```yaml\n{values}\n```\n::::\n"
        )
    return "".join(
        f"\n## As published{source.removeprefix('paper').replace('_', ': ', 1)}\n\n"
        f"`--preset {source}` takes these.\n\n" + "\n".join(blocks)
        if source.startswith("paper")
        else f"\n## Tuned for [{source}](../models/{source}.md)\n\n" + "\n".join(blocks)
        for source, blocks in found.items()
    )


def index(heading: str, kind: str, names: Mapping[str, str]) -> str:
    """A page that lists others."""
    rows = "".join(
        f"| [{title(kind, name)}]({name}.md) | `{name}` | {cell(about)} |\n"
        for name, about in names.items()
    )
    return f"# {heading}\n\n| | name | |\n| --- | --- | --- |\n{rows}\n" + toctree(names)


def toctree(pages: Iterable[str]) -> str:
    """What stands below a page in the side bar."""
    return "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


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
        block += f"::::{{dropdown}} Its values\n```yaml\n{values}\n```\n::::\n"
        parts.append(
            block
            + (
                f"\n:::{{admonition}} Where repositories differ\n:class: warning\n\n{differ}\n:::\n"
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
    """Public names and modules, for autodoc."""
    listed = {n for names in API.values() for n in names}
    assert listed == {n for n, home in _HOME.items() if home not in MODULES}, (
        "API must list the public names of invdiff"
    )
    made = {}
    for page, names in API.items():
        parts = []
        for name in names:
            made_of = getattr(invdiff, name)
            kind = "class" if inspect.isclass(made_of) else "function"
            parts.append(f".. auto{kind}:: invdiff.{_HOME[name]}.{name}\n")
        made[f"api/{page}.rst"] = _headed(API_TITLES[page]) + "\n".join(parts)
    for module in MODULES:
        made[f"api/{module}.rst"] = _headed(f"invdiff.{module}") + (
            f".. automodule:: invdiff.{module}\n   :imported-members:\n"
            if module in ("transitions", "itineraries")
            else f".. automodule:: invdiff.{module}\n"
        )
    return made


def _headed(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n\n"


# The site -----------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """Path below the site -> Markdown, of every generated page and every hand-written one whose
    links change."""
    made = {f"methods/{name}.md": method_page(name) for name in ours("guidance")}
    made |= {f"operators/{name}.md": operator_page(name) for name in ours("operators")}
    groups: dict[str, Mapping[str, Callable[..., Any]]] = {
        kind: {name: load(kind, name) for name in ours(kind)}
        for kind in ("transitions", "itineraries")
    }
    for kind, known in groups.items():
        made |= {
            f"{kind}/{name}.md": piece_page(name, kind, factory) for name, factory in known.items()
        }
        about = {name: _first_sentence(factory.__doc__) for name, factory in known.items()}
        made[f"{kind}/index.md"] = index(kind.capitalize(), kind, about) + _INTRODUCTIONS[kind]
    cards = {name: (ROOT / "invdiff" / "zoo" / name / "README.md") for name in ours("models")}
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
    made["methods.md"] = overview(made["methods.md"])
    made["notation.md"] = table(made["notation.md"])
    made["reproducing.md"] += "\n" + protocol_list()
    made["citing.md"] += "\n" + references()
    for kind, home in (("methods", "methods.md"), ("operators", "operators.md")):
        made[home] += toctree(
            p.removesuffix(".md") for p in sorted(made, key=str.lower) if p.startswith(f"{kind}/")
        )
    made["plugins.md"] = others.page()
    made = others.indexed(made)
    made["index.md"] += toctree(
        ["start", "guides", "gallery/index", "methods", "operators", "pieces", "measured"]
        + ["reference"]
    )
    return made


def overview(text: str) -> str:
    """The overview of methods as it is shown: with a picture of each, its columns to be sorted."""
    before, begin, rest = text.partition("<!-- methods:")
    table, end, after = rest.partition("<!-- end -->")
    _, _, table = table.partition("-->")
    rows = []
    for line in table.strip().splitlines():
        named = re.search(r"`(\w+)` \|", line)
        picture = f"![](pictures/methods-{named[1]}.png)" if named else ""
        shown = picture if named and (DOCS / picture[4:-1]).exists() else ""
        if line.startswith("| ---"):
            shown = "---"
        rows.append(f"{line} {shown} |")
    assert begin and end
    return f"{before}::::{{div}} sortable methods\n\n" + "\n".join(rows) + f"\n\n::::{after}"


def contents(made: Mapping[str, str]) -> dict[str, str]:
    """The pages of the site's parts, which list what is in them."""
    found = {}
    for name, (heading, below) in SECTIONS.items():
        rows = []
        for page in below:
            text = made.get(f"{page}.md") or made.get(f"{page}.rst") or f"# {page}\n"
            first = re.sub(r"^# ", "", text.lstrip().splitlines()[0])
            suffix = "md" if f"{page}.md" in made else "rst"
            rows.append(f"- [{first}]({page}.{suffix})")
        found[f"{name}.md"] = f"# {heading}\n\n" + "\n".join(rows) + "\n" + toctree(below)
    return found


def references() -> str:
    """The BibTeX entry of every plug-in that has one."""
    parts = []
    for kind, known in (("guidance", "methods"), ("operators", "operators")):
        for name in ours(kind):
            entries = list(dict.fromkeys(entries_of(f"{kind}.{name}")))
            if entries:
                shown = "\n\n".join(broken(entry) for entry in entries)
                parts.append(
                    f"::::{{dropdown}} {title(known, name)} (`{name}`)\n```bibtex\n{shown}\n```\n"
                    "::::"
                )
    return "\n\n".join(parts) + "\n"


def broken(entry: str) -> str:
    """A BibTeX entry with one field a line."""
    lines = re.sub(r", (?=[a-z]+ = \{)", ",\n  ", entry)
    return "\n".join(
        part
        for line in lines.splitlines()
        for part in textwrap.wrap(line, 80, subsequent_indent="    ", break_long_words=False)
    )


_INTRODUCTIONS = {
    "transitions": "\nGiven a prediction at level t, how to draw the state at level s. The one "
    "rule: x_s = alpha_s x0 + (eps and noise), so that a shift of x0 by a guidance arrives "
    "in full, "
    "whatever the transition.\n",
    "itineraries": "\nWhich noise levels a run visits, in which order. Where a level is noisier "
    "than the one before, fresh noise is added.\n",
}


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


def gallery(ran: Mapping[Path, Page]) -> tuple[dict[str, str], dict[str, bytes]]:
    """The pages of the tutorial and the examples, with what they drew, and the gallery's index."""
    made, files, cards = dict[str, str](), dict[str, bytes](), []
    for script, page in ran.items():
        name, own = name_of(script), script.name == "tutorial.py"
        folder = "" if own else "gallery/"
        first, _, rest = page.text.strip().partition("\n")
        text = f"{first}\n\n{{download}}`Download as a notebook <{name}.ipynb>`\n{rest}\n"
        source = str(script.relative_to(ROOT))
        made[f"{folder}{name}.md"] = relinked(text, source, f"{folder}{name}.md")
        files |= {f"{folder}{path}": data for path, data in page.files.items()}
        if not own:
            top = f":img-top: {page.thumbnail}\n" if page.thumbnail else ""
            # The card is a link as a whole.
            said = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown(page.summary))
            cards.append(
                f":::{{grid-item-card}} {page.title}\n:link: {name}\n:link-type: doc\n{top}"
                f"\n{said}\n:::\n"
            )
    names = [name_of(s) for s in ran if s.name != "tutorial.py"]
    made["gallery/index.md"] = (
        "# Gallery\n\nEach was run as it stands, on a processor, and can be downloaded as a "
        "notebook. The network that ships is small; one of your own takes its place in one "
        "line.\n\n::::{grid} 1 2 3 3\n:gutter: 3\n\n" + "\n".join(cards) + "::::\n" + toctree(names)
    )
    return made, files


def write(target: Path, ran: Mapping[Path, Page]) -> None:
    """The whole source of the site as files below a folder; those that did not change are left
    alone, so that Sphinx reads what changed."""
    made = pages()
    examples, files = gallery(ran)
    made |= examples
    made |= contents(made)
    content = {path: text.encode() for path, text in made.items()} | files
    for picture in [*DOCS.glob("*.png"), *DOCS.glob("*.svg"), *DOCS.glob("pictures/*.png")]:
        content[str(picture.relative_to(DOCS))] = picture.read_bytes()
    for file in DOCS.glob("_static/*"):
        content[f"_static/{file.name}"] = file.read_bytes()
    for path, data in content.items():
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_bytes() != data:
            file.write_bytes(data)
    for file in target.rglob("*"):
        if file.is_file() and str(file.relative_to(target)) not in content:
            file.unlink()

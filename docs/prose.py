"""Docstrings and configuration comments as Markdown, and docstrings for Sphinx's autodoc."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from textwrap import dedent

sys.path.insert(0, str(Path(__file__).parent))
import maths
import symbols

ROLE = re.compile(r":(?:class|func|mod|meth|data|attr|exc):`~?([^`]+)`")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Examples):$", flags=re.MULTILINE)
CODE = re.compile(r"(``.+?``|`[^`]+`)", flags=re.DOTALL)


def markdown(text: str) -> str:
    """A docstring's prose and indented blocks, with Sphinx roles as code, papers as links and the
    stars of mathematics kept."""
    blocks = re.split(r"(\n{2,})", text)
    shown = "".join(
        _shown(block) if block.startswith(("    ", "\n")) else _paragraph(block) for block in blocks
    )
    return symbols.linked(shown, text)


def cell(text: str) -> str:
    """One line of prose as a cell of a table."""
    return "".join(
        part if i % 2 else part.replace("|", "&#124;")
        for i, part in enumerate(CODE.split(markdown(text)))
    )


def rest(lines: list[str]) -> list[str]:
    """A docstring in Google's style as reStructuredText: formulas rendered, papers as links, and
    what is mathematics or code not read as markup."""
    text = "\n".join(lines)
    found = "".join(_rest_block(block) for block in re.split(r"(\n{2,})", text))
    return symbols.linked(found, text).split("\n")


def _rest_block(block: str) -> str:
    if block.startswith("    ") and ">>>" not in block and not SECTION.search(block):
        if maths.is_block(block):
            return ".. raw:: html\n\n    " + maths.block(block)
        return ".. code-block:: text\n\n" + _shown(block)
    if ">>>" in block:
        return block
    parts = re.split(r"(``.+?``|:\w+:`[^`]+`)", block, flags=re.DOTALL)
    return "".join(part if i % 2 else _rest_prose(part) for i, part in enumerate(parts))


def _rest_prose(text: str) -> str:
    parts = re.split(f"({maths.INLINE.pattern})", text)
    done = []
    for i, part in enumerate(parts):
        if i % 2:
            done.append(f"\\ :m:`{maths.formula(part)}`\\ ")
        else:
            escaped = re.sub(r"([*|`])", r"\\\1", part)
            escaped = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", escaped)
            done.append(ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", escaped))
    return "".join(done)


def _shown(block: str) -> str:
    """What stands indented is shown as it is, but for the marks of code within; formulas are
    rendered."""
    if block.startswith("    ") and maths.is_block(block):
        return maths.block(block)
    return ROLE.sub(_name, block).replace("``", "")


def _name(role: re.Match[str]) -> str:
    return role[1].rsplit(".", 1)[-1] if "~" in role[0] else role[1].removeprefix("invdiff.")


def _paragraph(text: str) -> str:
    # An indented line that follows prose at once is shown as it stands.
    lines = ROLE.sub(lambda role: f"`{_name(role)}`", text).splitlines()
    for i in range(1, len(lines)):
        if lines[i].startswith("    ") and not lines[i - 1].startswith("    "):
            return _inline("\n".join(lines[:i])) + "\n\n" + _shown("\n".join(lines[i:]))
    return _inline("\n".join(lines))


def _inline(text: str) -> str:
    parts = CODE.split(text)
    return "".join(part if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    found = re.split(f"({maths.INLINE.pattern})", text)
    return "".join(maths.formula(p) if i % 2 else _marked(p) for i, p in enumerate(found))


def _marked(text: str) -> str:
    text = re.sub(r"([*<])", r"\\\1", text)
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def sections(docstring: str | None) -> tuple[str, dict[str, str]]:
    """A docstring's text before its first section, and what ``Args:`` says of each parameter, ``a,
    b: text`` of both."""
    text = inspect.cleandoc(docstring or "")
    parts = SECTION.split(text)
    parameters = dict[str, str]()
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        if title in ("Args", "Attributes"):
            for entry in re.findall(
                r"^(\S.*(?:\n[ \t]+.*)*)", dedent(body).strip("\n"), flags=re.MULTILINE
            ):
                names, colon, meaning = entry.partition(":")
                for name in names.split(",") if colon else ():
                    parameters[name.strip().lstrip("*")] = " ".join(meaning.split())
    return parts[0].strip(), parameters


def yaml_comments(text: str) -> tuple[str, dict[str, str]]:
    """The comment a file starts with, and those behind its keys, which may go on in lines of their
    own."""
    head = [
        line[2:]
        for line in re.findall(r"\A(?:#[^\n]*\n)+", text)
        for line in line.splitlines()
        if not line.startswith("# @")
    ]
    comments, last = dict[str, str](), ""
    for line in text.splitlines():
        if found := re.match(r"\s*(\w+):[^#]*(?:#\s*(.*))?$", line):
            last = found[1]
            if found[2]:
                comments[last] = found[2]
        elif last and (more := re.match(r"\s+#\s*(.*)$", line)):
            comments[last] = f"{comments.get(last, '')} {more[1]}".strip()
    return " ".join(head), comments

"""Where the symbols of a formula lead: each to its row of docs/notation.md, which is read here.

A docstring may give a letter a meaning of its own; there it leads nowhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parent))
import maths

NOTATION = Path(__file__).parent / "notation.md"
PAGE = "notation.html"
"""As links name it; conf.py puts the way to it from each page in front."""
NAMESPACE = ' xmlns="http://www.w3.org/1998/Math/MathML"'
MARKS = {"~": "-tilde", "^": "-hat", "'": "-prime"}
LEVELS = ("t", "s")
"""Subscripts that only say at which level of the run."""
POWERS = ("T", "†", "*", "′")
MATH = re.compile(r"<math .*?</math>", flags=re.DOTALL)
LETTER = rf"(?:[A-Za-z]|{'|'.join(maths.GREEK)}|std)\d?"
SYMBOL = rf"(?:{LETTER}[~^]?(?:_\{{[^{{}}]*\}}|_[A-Za-z0-9]+(?:,[a-z])?)?'?|∅)(?![A-Za-z0-9_-])"
NAMES = rf"{SYMBOL}(?:, {SYMBOL})*(?:,? and {SYMBOL})?"
GIVEN = (
    re.compile(
        rf"(?:\b[Ww](?:ith|here)|[(,]) ?({NAMES})(?: at \w+)?"
        r" (?:the|a|an|of|its|what|their|into|is the|is a|are the|being|=)\b"
    ),
    re.compile(rf"\b[Ww](?:ith|here) ({NAMES}) = "),
    re.compile(rf"(?:^|[.:]) ({NAMES}) (?:is|are) the\b"),
)
NAMED = re.compile(rf"({NAMES})(?:$| = | \(| [a-z])")
IN_PASSING = (
    re.compile(rf"(?<![\w{{]){SYMBOL}(?=(?:\(\w+\)|²)? +(?:is|are|the|for|=|<-|~) )"),
    re.compile(rf"(?:with|where|and|of|,|:) {SYMBOL}(?=, | the | their )"),
)


@dataclass(frozen=True)
class Row:
    """A row of the notation page: its anchor there, what it says, the symbols it is of."""

    anchor: str
    meaning: str
    symbols: tuple[str, ...]


@cache
def rows() -> tuple[Row, ...]:
    """The rows of the notation page."""
    found = []
    for line in NOTATION.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith("| `") and len(cells) == 2:
            symbols = tuple(re.findall(r"`([^`]+)`", cells[0]))
            found.append(Row(_anchor(symbols[0]), cells[1].replace("`", ""), symbols))
    return tuple(found)


def _anchor(symbol: str) -> str:
    name = re.sub("[~^']", lambda mark: MARKS[mark[0]], symbol)
    return "symbol-" + re.sub(r"\W+", "-", name).strip("-")


@cache
def _known() -> dict[str, Row]:
    """The symbols of the notation page, as formulas have them, and their rows."""
    found = dict[str, Row]()
    for row in rows():
        for symbol in row.symbols:
            found.setdefault(key_of(symbol), row)
    return found


def key_of(symbol: str) -> str:
    """How a symbol of a docstring is found in a formula; of ``f(x)`` it is that of f."""
    (content,) = _parsed(maths.formula(symbol))
    return _key(content[0])


def _parsed(formula: str) -> ElementTree.Element:
    return ElementTree.fromstring(formula.replace(NAMESPACE, ""))


def _key(e: ElementTree.Element) -> str:
    """A name for what an element shows; a power does not count."""
    if e.tag == "msubsup" and e[2].findtext(".//mi") != "′":
        return f"{_key(e[0])}_{_key(e[1])}"
    joined = {"msub": "_", "msubsup": "_"}.get(e.tag, "")
    if len(e) == 0:
        return e.text or ""
    if e.tag == "msup":
        return _key(e[0])
    return joined.join(map(_key, e))


def _is_symbol(e: ElementTree.Element) -> bool:
    """Whether an element is one symbol, subscript and mark included."""
    word = e.tag == "mrow" and all(c.get("mathvariant") == "normal" for c in e) and len(e) > 0
    return word or e.tag in ("mi", "msub", "msubsup", "mover")


def symbols(e: ElementTree.Element) -> Iterator[tuple[str, ElementTree.Element]]:
    """The symbols of a formula, each with the element that shows it."""
    if _is_symbol(e):
        if re.match(r"\w|∇|∅", _key(e)):
            yield _key(e), e
    elif e.tag == "msup" and "".join(e[1].itertext()) in POWERS:
        yield from symbols(e[0])
    else:
        for child in e:
            yield from symbols(child)


def base(key: str) -> str:
    """A symbol without its subscript and marks."""
    return key.partition("_")[0].rstrip("′~^¯")


def row_of(key: str) -> Row | None:
    """The row of the notation page that tells of a symbol."""
    name, _, below = key.partition("_")
    tried = [key]
    if below.removesuffix("′") in LEVELS:
        tried += [f"{name}_t"] + [name] * (name[-1:] in "~^¯")
    return next((_known()[k] for k in tried if k in _known()), None)


def linked(text: str, docstring: str) -> str:
    """A page's text with the symbols of its formulas as links to the notation page, but for those
    that the docstring gives a meaning of its own."""
    own = defined(docstring)
    return MATH.sub(lambda found: _linked(found[0], own), text)


def _linked(formula: str, own: set[str]) -> str:
    parsed = _parsed(formula)
    for key, e in list(symbols(parsed)):
        row = row_of(key)
        if row is None or key in own or (key not in _known() and base(key) in own):
            continue
        for leaf in [x for x in e.iter() if x.tag in ("mi", "mn", "mo") and x.text]:
            # A link is HTML within MathML's leaves, which all browsers follow.
            a = ElementTree.SubElement(leaf, "a", href=f"{PAGE}#{row.anchor}", title=row.meaning)
            a.text, leaf.text = leaf.text, None
    return ElementTree.tostring(parsed, encoding="unicode").replace("|", "&#124;")


def defined(docstring: str) -> set[str]:
    """The symbols to which a docstring gives a meaning: after ``Symbols:``, or as in "with c the
    condition"."""
    text = " ".join(docstring.split())
    found = set[str]()
    for pattern in GIVEN:
        for match in pattern.finditer(text):
            found |= _names(match[1])
    for paragraph in re.findall(r"Symbols: (.*?)(?:\n\s*\n|\Z)", docstring, flags=re.DOTALL):
        for clause in re.split(r"[;.:,] ", " ".join(paragraph.split())):
            if match := NAMED.match(clause):
                found |= _names(match[1])
    return found


def mentioned(docstring: str) -> set[str]:
    """The symbols of which a docstring says anything: what they are, or what they equal."""
    text = " ".join(docstring.split())
    return defined(docstring) | {
        key_of(re.sub(r"^\W*(?:with|where|and|of)? ", "", match[0]))
        for pattern in IN_PASSING
        for match in pattern.finditer(text)
    }


def _names(text: str) -> set[str]:
    return {key_of(name) for name in re.split(r",? and |, ", text) if name}


def table(markdown: str) -> str:
    """The notation page as the site shows it: what each symbol looks like, and where to jump."""
    lines = []
    for line in markdown.splitlines():
        row = next((r for r in rows() if line.startswith(f"| `{r.symbols[0]}`")), None)
        if row is not None:
            shown = ", ".join(maths.formula(symbol) for symbol in row.symbols)
            line = f'| <span id="{row.anchor}"></span>{shown} {line}'
        elif line.startswith("| in code"):
            line = f"| shown {line}"
        elif line.startswith("| ---"):
            line = f"| --- {line}"
        lines.append(line)
    return "\n".join(lines) + "\n"

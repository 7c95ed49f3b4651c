"""The formulas of docstrings as MathML.

A docstring writes mathematics so that it reads as text: ``x_s = alpha_s x0 + sqrt(1 − eta²) z``.
Indented lines are formulas; columns three spaces apart are formulas or words of their own. This is
turned into TeX here, and that into MathML by latex2mathml, while the site is built: a page needs
neither a script nor a font to show it.
"""

from __future__ import annotations

import html
import re
from functools import cache

from latex2mathml.converter import convert

GREEK = {
    name: f"\\{name}"
    for name in (
        *("alpha", "beta", "gamma", "delta", "zeta", "eta", "kappa", "mu", "rho", "sigma"),
        *("tau", "phi", "omega", "xi", "theta", "Phi", "Psi", "Sigma", "Lambda", "Gamma"),
    )
} | {"eps": r"\epsilon", "lambda": r"\lambda", "lmbda": r"\lambda"}
NAMED = (
    *("exp", "log", "argmin", "min", "max", "clip", "diag", "round", "Cov", "Adam", "sg", "std"),
    *("loss", "DDIM", "score"),
)
OPERATORS = {"grad": r"\nabla", "sum": r"\sum", "prod": r"\prod"}
SIGNS = {
    "<-": r"\leftarrow ", "->": r"\to ", "<=": r"\le ", ">=": r"\ge ", " ~ ": r" \sim ",
    "−": "-", "‖": r"\|", "∏": r"\prod ", "∇": r"\nabla ", "∞": r"\infty ", "∅": r"\emptyset ",
    "†": r"^{\dagger}", "ᵀ": r"^{T}", "²": "^{2}", "⁻¹": "^{-1}", "⊙": r"\odot ", "·": r"\cdot ",
    "…": r"\dots ", "Σ_": r"\sum_", "ẑ": r"\hat{z}", "×": r"\times ", "%": r"\%", "⊗": r"\otimes ",
    "°": r"^{\circ}", "#": r"\#", "ζ": r"\zeta ", "≈": r"\approx ", "½": r"\tfrac{1}{2}",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "½‖": r"\tfrac{1}{2}\|",
}  # fmt: skip
BASE = re.compile(
    r"(?P<word>[A-Za-z]+?)(?P<digit>\d+)?(?P<mark>~|\^(?![-\w{(])|_hat\b)?"
    r"(?P<sub>_(?:\{[^{}]*\}|[A-Za-z0-9]+(?:,[a-z])?))?(?![A-Za-z])"
)
MATHEMATICAL = re.compile(r"[=‖√∇²†]|<-| ~ |sqrt\(|grad_|argmin|_[a-z{]|^[-−+]?[\d.]+$")
WORDS = re.compile(r"(?<![A-Za-z_])[A-Za-z]{3,}(?![A-Za-z_])")
CODE = re.compile(r"[\w)]\.\w+\(|^ *(?:from|import|invdiff|@|def) ", flags=re.MULTILINE)
LETTERS = "|".join(sorted({name[1:] for name in GREEK.values()}))
SPACE_BEFORE = re.compile(rf"([}})]|\\(?:{LETTERS})|(?<![\\A-Za-z])[A-Za-z]) +(?=\\text\{{)")
SPACE_AFTER = re.compile(
    rf"(\\text\{{[^{{}}]*\}}) +(?=[A-Za-z]|\\(?:{LETTERS}|tilde|hat|bar|sqrt|nabla|mathrm))"
)
MOST_WORDS = 7  # that a formula may have beside its symbols
INLINE = re.compile(
    r"‖(?:[^‖`\n]|\n(?!\n)){1,60}‖(?:_\w)?²?"
    r"|(?<![\w`./])(?:grad_\{?x?_?\w+\}? )?(?:x|z|y|r|n|v|w|m|c|C|K|S|x0|z0|mu|eps|rho|std|tau|"
    r"score|alpha_bar|sigma|alpha|gamma|lambda|beta|zeta|phi)[~^]?_(?:\{[\w,]+\}|\w{1,2}(?:,i)?)'?²?"
    r"(?:/(?:alpha|sigma)_\w)?(?![\w.`(=:])"
    r"|(?<![\w`./])x0\(x_t\)|(?<![\w`./=])(?:alpha|sigma|sqrt\([^()]*\))²(?!\w)"
)


def formula(text: str, block: bool = False) -> str:
    """A formula of a docstring as a MathML element, whose source is kept beside it for search and
    for those who read text."""
    found = _mathml(" ".join(text.split()), block)
    return found.replace("<math ", f'<math title="{html.escape(" ".join(text.split()))}" ', 1)


@cache
def _mathml(text: str, block: bool) -> str:
    return convert(tex(text), display="block" if block else "inline").replace("\n", "")


def tex(text: str) -> str:
    """The notation of docstrings as TeX."""
    text = _roots(text.replace("``", "")).replace("alpha_bar", r"\bar{\alpha}")
    for sign, name in SIGNS.items():
        text = text.replace(sign, name)
    text = re.sub(
        r"\b[a-z]+(?:_[a-z]{2,}){2,}",
        lambda f: rf"\text{{{f[0].replace('_', chr(92) + '_')}}}",
        text,
    )
    text = re.sub(r"\b[a-z]{2,}(?:-[a-z]{2,})+\b", lambda f: rf"\text{{{f[0]}}}", text)
    text = re.sub(r"\ba (?=[a-z]{3,})", r"\\text{a }", text)
    text = re.sub(r"\^(-?\d+|T\b|unknown\b)", lambda f: f"^{{{_power(f[1])}}}", text)
    text = re.sub(r"(?<=[A-Z])\*(?=[ )_A-Za-z(]|$)", "^{*}", text)
    text = re.sub(r"(?<=[a-z}\d)])'", "^{\\\\prime}", text)
    parts = re.split(r"(\\[A-Za-z]+(?:\{[^{}]*\})?)", text)
    text = "".join(part if i % 2 else BASE.sub(_name, part) for i, part in enumerate(parts))
    # Words in a row stand in one piece, so that they keep their spaces.
    text = re.sub(
        r"(?:\\text\{[^{}]*\}[ ,:]*)+(?=\W|$)",
        lambda f: r"\text{" + re.sub(r"\\text\{([^{}]*)\}", r"\1", f[0]) + "}",
        text,
    )
    text = SPACE_AFTER.sub(r"\1\ ", SPACE_BEFORE.sub(r"\1\ ", text))
    return re.sub(r"(\^\{[^{}]*\})(_\{[^{}]*\})", r"\2\1", text)


def _power(text: str) -> str:
    return r"\text{unknown}" if text == "unknown" else text


def _roots(text: str) -> str:
    """``sqrt(...)`` with its own closing parenthesis."""
    while (start := text.find("sqrt(")) >= 0:
        depth, end = 0, start + 4
        for end in range(start + 4, len(text)):
            depth += (text[end] == "(") - (text[end] == ")")
            if depth == 0:
                break
        text = f"{text[:start]}\\sqrt {{{text[start + 5 : end]}}}{text[end + 1 :]}"
    return text


def _name(found: re.Match[str]) -> str:
    word, digit, mark, sub = found["word"], found["digit"], found["mark"], found["sub"] or ""
    if word in OPERATORS:
        base = OPERATORS[word]
    elif word in GREEK:
        base = GREEK[word]
    elif word in NAMED:
        apart = re.match(r" [A-Za-z]", found.string[found.end() :])
        base = rf"\mathrm{{{word}}}" + (r"\," if apart and not sub else "")
    elif len(word) == 1 or (len(word) == 2 and word[0] == "d" and word[1] in "xt"):
        base = word
    else:
        whole = found[0]
        return (
            rf"\text{{{whole}}}"
            if not sub or sub[1:2].islower() and len(sub) > 3
            else (rf"\mathrm{{{word}}}_{{{sub[1:].strip('{}')}}}")
        )
    if mark:
        base = rf"\tilde{{{base}}}" if mark == "~" else rf"\hat{{{base}}}"
    below = ",".join(filter(None, (digit, _below(sub))))
    return f"{base}_{{{below}}} " if below else f"{base} "


def _below(sub: str) -> str:
    inner = sub[1:].strip("{}")
    if inner == "bar":
        return r"\text{bar}"
    return BASE.sub(_name, inner).strip() if inner else ""


def is_formula(cell: str) -> bool:
    """Whether a column of an indented line is mathematics rather than words."""
    words = [w for w in WORDS.findall(cell) if w not in GREEK and w not in NAMED]
    return bool(MATHEMATICAL.search(cell)) and "``" not in cell and len(words) <= MOST_WORDS


def is_block(text: str) -> bool:
    """Whether indented lines are formulas, perhaps with a remark each, rather than a list."""
    if CODE.search(text):
        return False
    rows = [_columns(line) for line in _joined(text)]
    return all(any(map(is_formula, cells)) for cells in rows) and is_formula(rows[0][-1]) | (
        is_formula(rows[0][0])
    )


def block(text: str) -> str:
    """Indented formulas as one element of HTML: a row for each line, a column for each part."""
    rows = [
        "".join(f"<span>{_cell(cell)}</span>" for cell in _columns(line)) for line in _joined(text)
    ]
    return f'<div class="formulas">{"".join(f"<div>{row}</div>" for row in rows)}</div>'


def _columns(line: str) -> list[str]:
    return re.split(r" {3,}", re.sub(r"(?<=\S) {2,}(?=[=~] |<-)", " ", line.strip()))


def _cell(cell: str) -> str:
    if is_formula(cell):
        return formula(cell)
    return html.escape(cell.replace("``", ""), quote=False)


def _joined(text: str) -> list[str]:
    """The lines of a block; one whose parentheses are open goes on in the next."""
    lines: list[str] = []
    for line in filter(str.strip, text.splitlines()):
        if lines and (lines[-1].count("(") > lines[-1].count(")")):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    return lines

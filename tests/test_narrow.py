"""The build refuses pages that are cut on a phone; the site's style keeps wide things in place."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"
SPEC = importlib.util.spec_from_file_location("narrow", DOCS / "narrow.py")
assert SPEC is not None and SPEC.loader is not None
narrow = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(narrow)


@pytest.fixture(scope="module")
def phone() -> Iterator[Any]:
    found = narrow.browser()
    if found is None:
        pytest.skip("needs selenium, Debian's chromium and chromium-driver")
    yield found
    found.quit()


def page(folder: Path, body: str, style: str = "") -> Path:
    """A page as the theme lays it out, with a style of its own."""
    file = folder / "page.html"
    file.write_text(
        '<!doctype html><meta name="viewport" content="width=device-width"><style>'
        f"body {{ margin: 0 }} .bd-article-container {{ overflow-x: auto }} {style}</style>"
        '<main class="bd-main"><div class="bd-content"><div class="bd-article-container">'
        f'<article class="bd-article">{body}</article></div></div></main>'
    )
    return file


WIDE = {
    "table": '<table class="table"><tr>' + "<td>value</td>" * 30 + "</tr></table>",
    "code": f'<div class="highlight"><pre>{"long " * 40}</pre></div>',
    "literal": f'<p><code class="literal"><span class="pre">{"a_b" * 40}</span></code></p>',
    "picture": '<img width="900" height="20" alt="" '
    "src=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'/>\">",
    "formula": '<div class="formulas"><div><span><math>'
    + "<mi>x</mi><mo>+</mo>" * 60
    + "</math></span></div></div>",
}


@pytest.mark.parametrize("kind", WIDE)
def test_wide_things_are_found_and_the_style_keeps_them(
    kind: str, phone: Any, tmp_path: Path
) -> None:
    bare = "code, pre, math { white-space: nowrap }"
    assert narrow.sticking_out(phone, page(tmp_path, WIDE[kind], bare))
    style = (DOCS / "_static" / "style.css").read_text()
    assert narrow.sticking_out(phone, page(tmp_path, WIDE[kind], style)) == []

"""Sphinx's configuration. The pages are written by docs/generate.py beforehand; docs/build.py runs
both."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from docutils import nodes

sys.path.insert(0, str(Path(__file__).parent))
import symbols
from prose import rest

project = "invdiff"
author = "The invdiff authors"
version = release = version_of("invdiff")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 4
myst_url_schemes = ["http", "https", "mailto"]
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
highlight_language = "none"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = False
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 72
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = "invdiff"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_js_files = ["sort.js"]
html_search_scorer = str(Path(__file__).parent / "scorer.js")
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "search_bar_text": "Search",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "header_links_before_dropdown": 7,
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}
html_context = {"default_mode": "auto"}


def maths_role(
    name: str, rawtext: str, text: str, lineno: int, inliner: Any, *args: Any, **kwargs: Any
) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """An element of MathML within a docstring."""
    return [nodes.raw(rawtext, nodes.unescape(text), format="html")], []


def to_notation(app: Any, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Puts the way from a page to the notation page into the links of its symbols."""
    way = context["pathto"]("notation")
    if "body" in context and way != "#":
        context["body"] = context["body"].replace(f'href="{symbols.PAGE}#', f'href="{way}#')


def setup(app: Any) -> dict[str, bool]:
    def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        lines[:] = rest(lines)

    app.add_role("m", maths_role)
    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("html-page-context", to_notation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

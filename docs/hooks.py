"""What a build must not do: load anything from the network when a page is looked at."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

REMOTE = re.compile(
    r"""<(?:script|img|iframe|source|video)\b[^>]*\ssrc=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b(?=[^>]*rel=["']?(?:stylesheet|preload|preconnect|icon))[^>]*\shref=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|@import\s+(?:url\()?["']?((?:https?:)?//[^"')\s]+)"""
    r"""|url\(["']?((?:https?:)?//[^"')\s]+)""",
    re.IGNORECASE,
)


def remote(text: str) -> list[str]:
    """The addresses that a page or a style sheet loads scripts, pictures, fonts or styles from."""
    return [next(filter(None, found.groups())) for found in REMOTE.finditer(text)]


def on_post_build(config: Any, **kwargs: Any) -> None:
    """Refuses a site that is not complete in itself."""
    from mkdocs.exceptions import PluginError

    site = Path(config["site_dir"])
    for file in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        if found := remote(file.read_text()):
            raise PluginError(
                f"{file.relative_to(site)} loads {found[0]}; the site must work without a network"
            )

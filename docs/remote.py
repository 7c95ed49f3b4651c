"""What a site must not do: load anything from the network when a page is looked at."""

from __future__ import annotations

import re
import sys
from pathlib import Path

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


def check(site: Path) -> list[str]:
    """A line for every file of a built site that is not complete in itself."""
    files = sorted([*site.rglob("*.html"), *site.rglob("*.css")])
    return [
        f"{file.relative_to(site)} loads {address}"
        for file in files
        for address in remote(file.read_text(encoding="utf-8"))
    ]


if __name__ == "__main__":
    found = check(Path(sys.argv[1]))
    sys.exit("\n".join(found) + "\nthe site must work without a network" if found else 0)

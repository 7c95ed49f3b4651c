"""The leaderboard as an HTML page: tables, plots and pictures, which are in the page or files
beside it; opened from disk, it asks nothing of a network.

The page is ``page.html`` beside this file, with the data filled in. Names and messages of records
are data to it: they are never read as markup, and its content security policy allows no script but
its own and no picture from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from invdiff.benchmarks.leaderboard.render import cautions
from invdiff.files import write_atomically

Picture = Callable[[Mapping[str, Any], str], bytes | None]
"""From a cell and a kind (``truth``, ``measurement``, ``restoration``, ``mean``, ``std``) to a PNG
file's content, if there is one."""

PICTURES = 12
"""Images of a benchmark that are shown where nobody says how many."""
_PNG = b"\x89PNG\r\n\x1a\n"


def write(data: Mapping[str, Any], path: str | Path, pictures: int = PICTURES) -> None:
    """Writes the page of a leaderboard, with the pictures that its cells' files name.

    Args:
        data: tables, as ``invdiff leaderboard --format json`` gives them, with a folder and files
            for each cell.
        path: of the page.
        pictures: images of a benchmark whose pictures are embedded, the first ones; of the others
            the page has the figures.

    Raises:
        ValueError: a record that names a file outside its folder, or one that is no PNG file.
    """
    write_atomically(Path(path), render(data, read_picture, pictures))


def embedded(content: bytes) -> str:
    """A picture as part of the page."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def render(
    data: Mapping[str, Any],
    picture: Picture,
    pictures: int = PICTURES,
    place: Callable[[bytes], str] = embedded,
) -> str:
    """The page of a leaderboard; its pictures come from ``picture``, each once, however many rows
    share it, and ``place`` gives the address of each, by default the picture itself.

    Raises:
        ValueError: fewer than 0 pictures; figures that are not finite, which have no place in JSON.
    """
    if pictures < 0:
        raise ValueError(f"pictures must be at least 0, got {pictures}")
    addresses: dict[str, int] = {}

    def number(content: bytes) -> int:
        return addresses.setdefault(place(content), len(addresses))

    tables = []
    for table in data["tables"]:
        seen = dict.fromkeys((c["image"], c["seed"]) for row in table["rows"] for c in row["cells"])
        order = {place: i for i, place in enumerate(seen)}  # one order for all rows
        rows = []
        for row in table["rows"]:
            cells = []
            for cell in sorted(row["cells"], key=lambda c: order[c["image"], c["seed"]]):
                kinds = (
                    cell.get("files", {}) if order[cell["image"], cell["seed"]] < pictures else {}
                )
                found = {
                    kind: content for kind in kinds if (content := picture(cell, kind)) is not None
                }
                kept = {
                    name: value for name, value in cell.items() if name not in ("folder", "files")
                }
                cells.append(
                    kept | {"pictures": {kind: number(content) for kind, content in found.items()}}
                )
            rows.append({**row, "cells": cells})
        tables.append({**table, "rows": rows, "cautions": cautions(table)})
    template = (
        files("invdiff.benchmarks.leaderboard").joinpath("page.html").read_text(encoding="utf-8")
    )
    return template.replace("{{policy}}", _policy(template), 1).replace(
        "{{data}}", _json({"tables": tables, "pictures": list(addresses)}), 1
    )


def read_picture(cell: Mapping[str, Any], kind: str) -> bytes | None:
    """The PNG file that a cell names for this kind of picture; None if it names none, or it is
    gone.

    Raises:
        ValueError: the file lies outside the cell's folder, or is no PNG file: records come from
            others, too.
    """
    name = cell["files"].get(kind)
    if name is None or cell["folder"] is None:
        return None
    folder = Path(cell["folder"]).resolve()
    if not (path := (folder / name).resolve()).is_relative_to(folder):
        raise ValueError(
            f"a record in {folder} names the {kind} picture {name!r}, which lies outside "
            "this folder; correct or remove it"
        )
    if not path.is_file():
        return None
    content = path.read_bytes()
    if not content.startswith(_PNG):
        raise ValueError(
            f"a record in {folder} names the {kind} picture {name!r}, which is no PNG file; "
            "correct or remove it"
        )
    return content


def _policy(template: str) -> str:
    """Nothing from anywhere, but pictures in the page or beside it and the template's own style and
    script, which are known by their hashes."""

    def known(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"
            for block in blocks
        )

    own = f"style-src {known('style')}; script-src {known('script')}"
    return f"default-src 'none'; img-src data: 'self'; {own}; base-uri 'none'; form-action 'none'"


def _json(data: Any) -> str:
    """JSON (ASCII, so U+2028 and U+2029 are escaped) that cannot end the element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")

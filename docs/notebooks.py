"""Runs docs/tutorial.py and the examples of docs/gallery: each becomes a page with its output, a
picture for the gallery, and a notebook to download.

What a script made is kept by the hash of its text and of the package's sources that it may import,
so that a script is run again only where one of them changed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
GALLERY = DOCS / "gallery"
SOURCES = ("invdiff", "guidance", "operators", "benchmarks", "configs")


@dataclass(frozen=True)
class Page:
    """A script that was run.

    Attributes:
        text: of the page, Markdown with pictures below ``NAME/``.
        files: path relative to the page -> content; ``NAME.ipynb`` is the notebook.
        title, summary: its heading and first sentence.
        thumbnail: the path of its last picture; empty where it has none.
    """

    text: str
    files: dict[str, bytes]
    title: str
    summary: str
    thumbnail: str


def scripts() -> list[Path]:
    """The tutorial and the examples, in the order of the gallery."""
    return [DOCS / "tutorial.py", *sorted(GALLERY.glob("*.py"))]


def name_of(script: Path) -> str:
    """A script's page, without the number that orders the gallery."""
    return re.sub(r"^\d+_", "", script.stem).replace("_", "-")


def sources() -> str:
    """The hash of the package's Python files."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def run(script: Path, cache: Path, package: str) -> Page:
    """A script's page; from the cache where neither the script nor the package changed."""
    key = hashlib.sha256(script.read_bytes() + package.encode()).hexdigest()[:24]
    kept = cache / f"{script.stem}-{key}.ipynb"
    if kept.exists():
        return page(name_of(script), json.loads(kept.read_text()))
    import jupytext
    from nbclient import NotebookClient
    from traitlets.config import Config

    notebook = jupytext.read(script)
    with tempfile.TemporaryDirectory() as folder:  # of its own, for its files and its sockets
        manager = {"transport": "ipc", "ip": f"{folder}/kernel"}
        NotebookClient(
            notebook,
            timeout=900,
            resources={"metadata": {"path": folder}},
            config=Config(KernelManager=manager),
        ).execute()
    for ran in notebook.cells:
        if ran.cell_type == "code":  # without progress bars and their like
            ran.outputs = [o for o in ran.outputs if o.get("name") != "stderr"]
    for old in cache.glob(f"{script.stem}-*.ipynb"):
        old.unlink()
    kept.write_text(jupytext.writes(notebook, fmt="ipynb"))
    return page(name_of(script), json.loads(kept.read_text()))


def run_all(cache: Path, workers: int = 2) -> dict[Path, Page]:
    """All scripts, some at a time, each in a process of its own."""
    cache.mkdir(parents=True, exist_ok=True)
    package = sources()
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda script: run(script, cache, package), scripts())
        return dict(zip(scripts(), found, strict=True))


def page(name: str, notebook: dict[str, Any]) -> Page:
    """A notebook with its output as a page."""
    parts, files = list[str](), dict[str, bytes]()
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", "")))
            if "image/png" in data:
                picture = f"{name}/{len(files)}.png"
                files[picture] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![what the cell shows]({picture})")
            elif text.strip():
                parts.append(f"```text\n{text.rstrip()}\n```")
    text = "\n\n".join(parts) + "\n"
    title = text.splitlines()[0].removeprefix("# ")
    after = text.split("\n\n")[1]
    summary = re.split(r"(?<=[.!?])\s", " ".join(after.split()))[0]
    thumbnail = list(files)[-1] if files else ""
    files[f"{name}.ipynb"] = (json.dumps(notebook, indent=1) + "\n").encode()
    return Page(text, files, title, summary, thumbnail)

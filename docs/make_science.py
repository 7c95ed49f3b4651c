"""Makes docs/pictures/science-NAME.png by running the commands of docs/science.md, each after the
page's own code has made what it measures.

    python docs/make_science.py            # all of them
    python docs/make_science.py sky
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from contextlib import chdir
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

from asked import asked  # noqa: E402
from make_pictures import save  # noqa: E402

from invdiff.commands.main import main  # noqa: E402
from invdiff.images import grid, read_image  # noqa: E402

SIDE = 192  # of a panel: thrice the images
TITLE = "## Four instruments"


def data() -> str:
    """The code that writes the files."""
    found = re.search(r"^```python\n(.*?)^```$", _section(), re.M | re.S)
    assert found, "the page makes its data"
    return found[1]


def examples() -> dict[str, list[str]]:
    """Name of a picture -> the arguments of the command before it."""
    pairs = re.findall(
        r"^```sh\n(invdiff (?:(?!```).)*?)```\n+!\[[^]]*\]\(pictures/science-(\w+)\.png\)",
        _section(),
        re.M | re.S,
    )
    return {name: shlex.split(command.replace("\\\n", ""))[1:] for command, name in pairs}


def _section() -> str:
    return (DOCS / "science.md").read_text(encoding="utf-8").split(TITLE)[1].split("\n## ")[0]


def _panel(file: Path) -> Tensor:
    x = read_image(file, channels=3)
    return F.interpolate(x, scale_factor=SIDE / max(x.shape[-2:]), mode="nearest-exact")[0]


def _made(arguments: list[str]) -> Tensor:
    """What a command restored, of its first image, beside what it measured."""
    if main([*arguments, "--quiet"]):
        raise SystemExit(f"{shlex.join(arguments)} failed")
    out = Path(arguments[arguments.index("--output") + 1])
    folder = next(f.parent for f in sorted(out.rglob("restored.png")))
    files = [folder / f"{name}.png" for name in ("truth", "measurement", "restored")]
    panels = {f.stem: _panel(f) for f in files if f.exists()}
    return grid(list(panels.values()), labels=list(panels), height=SIDE)


def make(names: list[str]) -> None:
    for name, arguments in examples().items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            exec(data(), {})
            save(_made(arguments), f"science-{name}")


if __name__ == "__main__":
    make(asked(__doc__, list(examples())))

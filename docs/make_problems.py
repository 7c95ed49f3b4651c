"""Makes docs/pictures/problem-NAME.png by running the commands of docs/your-problem.md on
photographs that are degraded here.

    python docs/make_problems.py            # all of them
    python docs/make_problems.py scratches

The photographs are scikit-image's; each picture shows the degraded photograph and what came out.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from contextlib import chdir
from pathlib import Path

import torch
import torch.nn.functional as F
from asked import asked
from PIL import Image
from skimage import data
from torch import Tensor

from invdiff import make_operator
from invdiff.commands.main import main
from invdiff.images import grid, read_image, write_image

DOCS = Path(__file__).parent
SIDE = 256  # of a panel
BLOCK = re.compile(r"^## (?P<title>.+?)\n.*?```sh\n(?P<commands>.*?)```", re.M | re.S)
NAMED = re.compile(r"problem-(\w+)\.png")


def photo(name: str, top: int, left: int, size: int = 128) -> Tensor:
    """A square of one of scikit-image's photographs, halved, (3, size, size) in [0, 1]."""
    x = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1).float() / 255
    return F.avg_pool2d(x[:, top : top + 2 * size, left : left + 2 * size], 2)


def degrade() -> None:
    """Writes the photographs that the page's commands name into the working directory."""
    cat, astronaut = photo("chelsea", 20, 90), photo("astronaut", 0, 100)
    noise = torch.randn(cat.shape, generator=torch.Generator().manual_seed(0))
    write_image(Path("photo.png"), astronaut)

    mask = torch.ones(1, 128, 128)
    for k in range(110):
        mask[0, 10 + k // 2 : 12 + k // 2, k + 6] = 0
        mask[0, k + 8, 90 - k // 3 : 92 - k // 3] = 0
    write_image(Path("mask.png"), mask)
    write_image(Path("scratched.png"), torch.where(mask > 0, cat, 0.95))

    large = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None].float() / 255
    blurred = make_operator("blur", sigma=1.5, border="valid")(F.avg_pool2d(large, 2))[0]
    write_image(Path("blurred.png"), blurred[:, :128, 30:158] + 0.005 * noise)
    write_image(Path("small.png"), F.avg_pool2d(cat, 4))
    write_image(Path("noisy.png"), cat + 0.1 * noise)
    Image.fromarray((astronaut * 255).round().byte().permute(1, 2, 0).numpy()).save(
        "photo.jpg", quality=10
    )
    write_image(Path("grey.png"), cat.mean(0, keepdim=True))
    write_image(Path("large.png"), F.avg_pool2d(large[0], 1)[:, :256, 60:436])


def panel(path: Path) -> Tensor:
    x = read_image(path, channels=3)
    return F.interpolate(x, scale_factor=SIDE / max(x.shape[-2:]), mode="nearest-exact")[0]


def examples() -> dict[str, re.Match[str]]:
    """The commands of the page by the names of their pictures."""
    text = (DOCS / "your-problem.md").read_text()
    sections = {found: text[found.start() :].split("\n## ")[0] for found in BLOCK.finditer(text)}
    return {
        pictures[0]: found
        for found, section in sections.items()
        if (pictures := NAMED.findall(section))
    }


def make(names: list[str]) -> None:
    for name, found in examples().items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            degrade()
            command = found["commands"].replace("\\\n", "").strip().splitlines()[-1]
            arguments = shlex.split(command, comments=True)[1:]
            print(f"{found['title']}: {command}")
            if main([*arguments, "--output", "out", "--quiet"]):
                raise SystemExit(f"{command} failed")
            before = next(Path(a) for a in arguments if a.endswith((".png", ".jpg")))
            panels = [panel(before), panel(Path("out/restored.png"))]
            picture = grid(panels, labels=["as it is", "restored"])
            write_image(DOCS / "pictures" / f"problem-{name}.png", picture)


if __name__ == "__main__":
    make(asked(__doc__, list(examples())))

"""Makes docs/pictures/KIND-NAME.png by running the commands of docs/examples.yaml, each on a
photograph of 64x64 pixels.

    python docs/make_pictures.py                 # those that are not there yet
    python docs/make_pictures.py methods-dps     # these again

A command that names a FOLDER, a network that does not ship in the package, has no picture.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from asked import asked
from PIL import Image
from torch import Tensor

import invdiff
from invdiff import Measurement, Prediction, Step, images
from invdiff.commands import main as cli
from invdiff.guidance.dps import DPS
from invdiff.sampling import Denoise, Progress

DOCS = Path(__file__).parent
SIDE = 192  # of a panel: a whole multiple of the images


def examples() -> dict[str, str]:
    """The commands by the names of their pictures."""
    kinds = yaml.safe_load((DOCS / "examples.yaml").read_text())
    return {
        f"{kind}-{name}": command
        for kind, commands in kinds.items()
        for name, command in commands.items()
    }


def main(names: list[str]) -> None:
    known = examples()
    for name in names or [
        name for name in (*known, "concept") if not (DOCS / "pictures" / f"{name}.png").exists()
    ]:
        if name == "concept":
            save(concept(), name)
        elif "FOLDER" not in known[name]:
            save(_run(known[name]), name)


def _run(command: str) -> Tensor:
    """Runs a command, or one after another, in a folder of its own; returns the picture of the
    last."""
    back = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            images.write_image(Path("photo.png"), images.sample_photo(64)[0])
            for line in command.split("&&"):
                arguments = shlex.split(line)[1:]
                if "solve" in arguments and "--input" not in arguments:
                    arguments += ["--input", "photo.png"]
                if "--output" not in arguments:
                    arguments += ["--output", "out"]
                if cli.main([*arguments, "--quiet"]):
                    raise SystemExit(f"failed: {line}")
            return _panels(Path("out"))
        finally:
            os.chdir(back)


def _panels(folder: Path) -> Tensor:
    if (folder / "grid.png").exists():
        return images.read_image(folder / "grid.png")[0]
    panels = {
        name: images.read_image(folder / f"{name}.png", channels=3)[0]
        for name in ("truth", "measurement", "restored", "mean", "std")
        if (folder / f"{name}.png").exists()
    }
    panels["error"] = images.error_map(panels["restored"], panels["truth"])
    return images.grid(list(panels.values()), labels=list(panels), height=SIDE)


def save(picture: Tensor, name: str) -> None:
    """In 256 colours, which 64x64 pixels show as well as all."""
    file = DOCS / "pictures" / f"{name}.png"
    file.parent.mkdir(exist_ok=True)
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file.stat().st_size / 1000:6.1f} kB  {file}")


@dataclass(frozen=True)
class Watched(DPS):
    """DPS that writes down what it saw and what it made of it."""

    seen: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list, compare=False)

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Prediction:
        moved = super().__call__(denoise, x_t, step, measurement)
        plain = (x_t - step.t.sigma * moved.eps) / step.t.alpha  # DPS moves x0 and keeps eps
        self.seen.append((x_t.detach(), plain, moved.x0))
        return moved


def concept(steps: int = 100) -> Tensor:
    """Five moments of a run: the state, the network's estimate, what guidance adds to it, and the
    state at the next level."""
    denoiser = invdiff.load_model("photo64")
    measurement = invdiff.make_operator("inpaint").measure(images.sample_photo(64)[0], sigma=0.025)
    method, states = Watched(zeta=6.0), list[Tensor]()

    def keep(progress: Progress) -> None:
        states.append(progress.x)

    invdiff.solve(measurement, denoiser, method, steps=steps, callback=keep)
    moments = [int(share * (steps - 1)) for share in (0.5, 0.65, 0.75, 0.85, 1.0)]
    rows = [
        [method.seen[i][0] for i in moments],
        [method.seen[i][1] for i in moments],
        [4 * (method.seen[i][2] - method.seen[i][1]) for i in moments],
        [method.seen[i][2] for i in moments],
    ]
    labels = [f"step {i + 1}" for i in moments]
    return images.grid(
        [(panel[0].clamp(-1, 1) + 1) / 2 for row in rows for panel in row],
        labels=[*labels, *[""] * 15],
        columns=5,
        rows=["x_t", "x0(x_t)", "guidance x 4", "x0 moved"],
        height=128,
    )


if __name__ == "__main__":
    main(asked(__doc__, [*examples(), "concept"]))

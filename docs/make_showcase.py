"""Makes docs/showcase.png, the picture of the README: three problems, restored by a classical
baseline, by a sampler of deepinv and by the method that is recommended here.

    python docs/make_showcase.py

Both samplers have the same network, the same measurement and about 100 evaluations; values are
those of the suite ``photo`` (deepinv's, chosen for each operator) and of
``configs/recommended.json``.
The photograph is the one that `solve` takes where it is given none; above each picture stands its
LPIPS, of one sample, seed 0.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from asked import asked
from torch import Tensor

import invdiff
from invdiff.benchmarks import metrics, peers
from invdiff.benchmarks.baselines import Baseline
from invdiff.images import grid, sample_photo, write_image
from invdiff.plugins.registry import load

DOCS = Path(__file__).parent
SIDE = 128
PROBLEMS: list[tuple[str, dict[str, object], float, str, Baseline]] = [
    ("inpaint", {"fraction": 0.7}, 0.025, "biharmonic", peers.DiffPIR(zeta=1.0, lambda_=0.7)),
    ("sr", {"factor": 4}, 0.025, "bicubic", peers.DDRM(eta=0.5)),
    ("blur", {"sigma": 1.5}, 0.025, "wiener", peers.DDRM(eta=0.5)),
]


def main() -> None:
    x, _ = sample_photo(SIDE)
    denoiser = invdiff.load_model("photo64")
    panels, labels, rows = list[Tensor](), list[str](), list[str]()
    for name, values, sigma, classical, peer in PROBLEMS:
        operator = invdiff.make_operator(name, **values)
        measurement = operator.measure(x, sigma=sigma, seed=0)
        choice = invdiff.recommend(measurement, denoiser)
        ours = invdiff.solve(measurement, denoiser, choice.method, steps=choice.steps, seed=0).x
        images = {
            "measured": F.interpolate(measurement.y, x.shape[-2:], mode="nearest"),
            classical: load("baselines", classical)()(measurement, denoiser),
            f"deepinv {type(peer).__name__}": peer(measurement, denoiser, seed=0),
            f"invdiff {choice.name}": ours,
        }
        for label, image in images.items():
            panels.append(image[0].clamp(0, 1))
            score = metrics.lpips(image.clamp(0, 1), x).item()
            labels.append(f"{label} {score:.3f}")
        panels.append(x[0])
        labels.append("truth")
        rows.append(name)
        print(name, labels[-5:], choice.evaluations)
    write_image(
        DOCS / "showcase.png", grid(panels, labels=labels, columns=5, rows=rows, height=150)
    )


if __name__ == "__main__":
    asked(__doc__)
    main()

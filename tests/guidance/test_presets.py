"""Every published preset restores a small image with the values that it states."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.config import (
    build_method,
    build_operator,
    compose,
    config_files,
    preset_values,
)
from invdiff.network import Autoencoder, Denoiser

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:no jump"),
]

LATENT = ("psld", "resample", "latino", "flowdps", "flair")
FLOW = ("pnpflow", "flowchef", "flowdps", "flair")
UNCLIPPED = ("daps", "ddnm", "ddrm", "pigdm", "reddiff")
LEADING = ("ddnm", "ddrm", "pigdm", "reddiff")
# What 256x256 images and a network's budget make dear; everything else is as published.
CHEAP: dict[str, list[str]] = {
    "daps": ["guidance.langevin_steps=2", "guidance.ode_steps=2"],
    "flair": ["guidance.iterations=2"],
    "resample": ["guidance.image_iterations=2", "guidance.latent_iterations=2"],
    "repaint": ["guidance.jump_length=2", "guidance.resamplings=2"],
}
SMALLER = {"kernel_size": 5, "size": 8, "factor": 4}


def published() -> list[str]:
    return [name for name in config_files("preset") if name.startswith("paper")]


def parts(preset: str) -> tuple[str, str, str]:
    """Source, method and operator: the names of operators hold underscores too."""
    methods, operators = invdiff.list_plugins("guidance"), invdiff.list_plugins("operators")
    (found,) = {
        (preset.removesuffix(f"_{method}_{operator}"), method, operator)
        for method in methods
        for operator in operators
        if preset.endswith(f"_{method}_{operator}")
    }
    return found


def network(method: str, seen: list[int], latent: bool, **options: Any) -> Denoiser:
    """The exact denoiser of smooth 16x16 images, of latents or of a flow where the method needs
    it, which notes the times that it sees."""
    schedule = schedules.flow() if method in FLOW else schedules.linear(1000)

    def net(x: Tensor, t: Tensor, **_: Any) -> Tensor:
        seen.append(round(float(t[0])))
        alpha, sigma = (v.to(x).view(-1, 1, 1, 1) for v in schedule.coefficients(t))
        x0 = alpha * x * 0.25 / (0.25 * alpha**2 + sigma**2)
        eps = (x - alpha * x0) / sigma
        return eps - x0 if method in FLOW else eps

    if latent:
        options["autoencoder"] = Autoencoder(
            encode=lambda x: torch.nn.functional.avg_pool2d(x, 2),
            decode=lambda z: torch.nn.functional.interpolate(z, scale_factor=2),
            channels=3,
            factor=2,
        )
    else:
        options["data_range"] = (-1.0, 1.0)
    predicts = "velocity" if method in FLOW else "eps"
    return Denoiser(net, predicts=predicts, schedule=schedule, **options)


@pytest.mark.parametrize("preset", published())
def test_a_published_preset_runs_and_says_its_source(preset: str) -> None:
    source, method, operator = parts(preset)
    text = config_files("preset")[preset][1].read_text()
    assert re.search(r"(et al\.|& \w+) 20", text.splitlines()[1]), "the paper, in the first line"

    stated = preset_values(preset)
    small = [
        f"operator.{key}={value}"
        for key, value in SMALLER.items()
        if isinstance(stated.get("operator", {}).get(key), int)
    ]
    steps, seen = 4, list[int]()
    config = compose(
        operator,
        [method],
        "photo64",
        source,
        [*small, *CHEAP.get(method, ()), f"steps={steps}"],
    )
    assert config["preset"] == preset
    size = (2, 3, 16, 16)
    image = torch.rand(size, generator=torch.Generator().manual_seed(1))
    measurement = build_operator(config).measure(image, sigma=config["sigma"], seed=0)
    options = {key: value for key, value in config["model"].items() if key != "name"}
    result = invdiff.solve(
        measurement,
        network(method, seen, latent=method in LATENT or "latent" in source, **options),
        method=build_method(config),
        steps=steps,
        seed=0,
        num_samples=min(2, config["num_samples"]),
    )
    assert options == ({"clip": False} if method in UNCLIPPED and source != "paper_latent" else {})
    if method in LEADING:
        assert seen == list(range(0, 1000, 1000 // steps))[::-1]
    assert result.x.shape == size and bool(result.samples.isfinite().all())


@pytest.mark.parametrize("preset", [p for p in published() if p.startswith("paper_latent_daps")])
def test_latent_daps_visits_the_first_of_the_published_levels(preset: str) -> None:
    """50 of the 51 points of Karras' grid from 10 to 0.1."""
    stated = preset_values(preset)
    low, high = 0.1 ** (1 / 7), 10 ** (1 / 7)
    assert stated["guidance"]["sigma_max"] == 10 and stated["steps"] == 50
    assert stated["guidance"]["sigma_min"] == pytest.approx((high + 49 / 50 * (low - high)) ** 7)

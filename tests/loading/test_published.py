"""Networks that others publish with their weights as Python packages: where one is installed, it
is read and equal to its own code. Slow checks; for them to run `pip install 21cmpsdenoiser` and
`pip install --no-deps adaptive-terrain-diffusion` (it asks for ONNX Runtime's build for GPUs)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import invdiff
from invdiff.sampling import Method
from invdiff.transitions import Renoise

pytestmark = pytest.mark.slow

SHAPE = (2, 1, 128, 128)


def test_21cm_power_spectra() -> None:
    """21cmPSDenoiser (Breitman et al. 2025): a VP score network conditioned on an image, whose
    channels are [x, cond] and whose time is 999 t."""
    theirs = pytest.importorskip("psdenoiser")
    model = theirs.Denoiser(device=torch.device("cpu"), nsamples=2).model
    denoiser = invdiff.Denoiser(
        model,
        predicts="eps",
        schedule=invdiff.schedules.vp(0.1, 20.0),
        time=lambda t: 999 * t,
        cond_channels=1,
        cond_last=True,
        channels=1,
    )
    size = (len(theirs.denoiser_csts.kperp), len(theirs.denoiser_csts.kpar))
    generator = torch.Generator().manual_seed(0)
    x, cond = (torch.randn(2, 1, *size, generator=generator) for _ in range(2))
    sde = theirs.VPSDE(beta_min=0.1, beta_max=20.0)
    score = theirs.get_score_fn(sde, model, continuous=True)
    for t in (0.01, 0.3, 1.0):
        level = denoiser.schedule(t)
        with torch.no_grad():
            ours = -denoiser(x, level, cond=cond).eps / level.sigma
            expected = score(x, torch.full((2,), t), x_cdn=cond)
        torch.testing.assert_close(ours.to(expected), expected, atol=1e-4, rtol=1e-3)


def test_terrain_of_a_difficulty() -> None:
    """adaptive-terrain-diffusion 0.4.2 (Yu et al.): a consistency U-Net in an ONNX file, which
    makes a height field of a difficulty in one step from noise of sigma = 80."""
    theirs = pytest.importorskip("terrain_diffusion", exc_type=ImportError)
    pytest.importorskip("onnxruntime")
    generator = theirs.TerrainGenerator(device="cpu")
    denoiser = invdiff.load_model(
        generator.model_path,
        predicts="x0",
        schedule={"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0},
        data_range=(-1.0, 1.0),
    )
    assert (denoiser.channels, denoiser.image_size, denoiser.required) == (1, 128, ("difficulty",))
    made = invdiff.generate(
        denoiser,
        SHAPE,
        Method(transition=Renoise()),
        steps=1,
        x_T=80 * torch.from_numpy(np.random.default_rng(7).standard_normal(SHAPE, np.float32)),
        difficulty=torch.tensor([0.0, 99.0]) / 99,
    ).x
    heights = generator.asinh_scale * torch.sinh(
        made[:, 0] * math.asinh(generator.height_range / generator.asinh_scale)
    )
    expected = torch.from_numpy(generator.generate(2, shape=128, difficulty=[1, 100], seed=7))
    torch.testing.assert_close(heights - heights.amin((1, 2), True), expected, atol=1e-3, rtol=1e-3)
    assert expected[1].std() > expected[0].std() > 0

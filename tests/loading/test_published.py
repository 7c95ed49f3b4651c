"""Networks that others publish with their weights as Python packages: where one is installed, it
is read and equal to its own code. Slow checks; `pip install 21cmpsdenoiser` for them to run."""

from __future__ import annotations

import pytest
import torch

import invdiff

pytestmark = pytest.mark.slow


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

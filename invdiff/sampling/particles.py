"""Particle systems: the samples of one image, weighed against each other and resampled."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from invdiff.sampling.step import Step


def check_many(step: Step) -> None:
    """Warns, in the first step, of a system of one particle."""
    if step.particles == 1 and step.index == 0:
        # One call site, so Python's default filter shows it once.
        warnings.warn(
            "a particle method was given one particle, which nothing is weighed against: "
            "ask for more (num_samples)",
            stacklevel=4,
        )


def resample(log_w: Tensor, step: Step, threshold: float = 1.0) -> tuple[Tensor, Tensor]:
    """Systematic resampling of each image's particles (Kitagawa 1996) where their effective sample
    size, 1 / sum w² of the normalised weights, is below ``threshold`` times their number; elsewhere
    they stay and keep their weights.

    One uniform number per image is drawn in either case, so nothing branches on data. It comes from
    the image's first particle.

    Args:
        log_w: (B,), log weights up to a constant per image.
        step: whose ``particles`` consecutive rows belong to one image; the rows go into its
            ``moved``.
        threshold: in [0, 1].

    Returns:
        The row that each row goes on from, never one of another image, and log weights to go on
        with, whose mean weight is one; (B,) both.
    """
    check_many(step)
    n = step.particles
    uniform = torch.special.ndtr(step.randn_like(log_w[:, None])).view(-1, n)[:, :1]
    log_w = log_w.view(-1, n).log_softmax(1)
    own = torch.arange(n, device=log_w.device).expand_as(log_w)
    cdf = log_w.exp().cumsum(1)
    drawn = torch.searchsorted(cdf, (own + uniform) / n * cdf[:, -1:], right=True).clamp(max=n - 1)
    poor = (2 * log_w).exp().sum(1, keepdim=True) * threshold * n > 1
    ancestors = (
        torch.where(poor, drawn, own) + n * torch.arange(len(log_w), device=log_w.device)[:, None]
    )
    step.moved.append(ancestors.flatten())
    return step.moved[-1], torch.where(poor, 0.0, log_w + math.log(n)).flatten()

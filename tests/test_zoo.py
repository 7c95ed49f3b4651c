"""Training data of the networks that ship."""

from __future__ import annotations

import numpy as np
import torch

import invdiff
from invdiff.zoo.data import Batch, compressed


def photos(n: int) -> Batch:
    photo = invdiff.images.sample_photo(64)[0]
    return Batch((2 * photo - 1).expand(n, -1, -1, -1))


def test_what_a_network_that_restores_jpeg_is_conditioned_on() -> None:
    """The image as our operator has it, but for libjpeg's rounding to whole numbers."""
    draw = torch.Generator().manual_seed(0)
    batch = compressed(photos, (10, 10), draw)(2)
    assert batch.cond is not None and batch.cond.shape == (2, 3, 64, 64)
    operator = invdiff.make_operator("jpeg", quality=10)
    expected = 2 * operator.measure((batch.x0 + 1) / 2).y - 1
    assert float((batch.cond - expected).square().mean().sqrt()) < 0.03
    assert float((batch.cond - batch.x0).square().mean().sqrt()) > 0.05


def test_qualities_are_drawn_between_the_two() -> None:
    draw = torch.Generator().manual_seed(1)
    batch = compressed(photos, (5, 30), draw)(24)
    assert batch.cond is not None
    errors = (batch.cond - batch.x0).square().mean((1, 2, 3)).sqrt().numpy()
    worst, best = (compressed(photos, (q, q), draw)(1).cond for q in (5, 30))
    assert worst is not None and best is not None
    ends = [float((c - batch.x0[:1]).square().mean().sqrt()) for c in (worst, best)]
    assert len(np.unique(errors)) > 5
    assert ends[0] >= errors.max() > errors.min() >= ends[1]

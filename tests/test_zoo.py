"""Training data of the networks that ship."""

from __future__ import annotations

import numpy as np
import torch

import invdiff
from invdiff.zoo.data import Batch, Kernels, compressed


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


def test_kernels_lie_in_the_middle_and_their_largest_value_is_one() -> None:
    drawn, again, others = (Kernels(16, 400, seed) for seed in (0, 0, 1))
    w = (drawn(50).x0 + 1) / 2
    assert w.shape == (50, 1, 16, 16) and float(w.min()) >= 0
    assert torch.allclose(w.amax((1, 2, 3)), torch.ones(50))
    assert torch.equal(drawn.x, again.x) and not torch.equal(drawn.x[:50], others.x[:50])
    # Of a square of 15 pixels around pixel 8 the first row and column are outside; Gaussians, the
    # last quarter, are symmetric about it.
    paths, gaussians = drawn.x[:250], drawn.x[-50:, 0, 1:, 1:]
    assert float(paths[..., 0, :].max()) == 0 == float(paths[..., 0].max())
    assert torch.allclose(gaussians, gaussians.flip(-2, -1), atol=1e-6)


def test_the_network_of_kernels_denoises_them() -> None:
    """Kernels that it has not seen, better than their mean does."""
    w = Kernels(16, 400, 5)(64).x0
    network = invdiff.load_model("kernels16")
    for time in (50, 100):
        level = network.schedule(torch.tensor(time))
        eps = torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
        x0 = network(level.alpha.float() * w + level.sigma.float() * eps, level).x0
        assert float((x0 - w).square().mean()) < 0.3 * float((w - w.mean(0)).square().mean())

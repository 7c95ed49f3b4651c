"""The most probable blur kernel given images and their blurred pictures: the M-step of blind
deconvolution (Laroche, Almansa and Coupeté, "Fast diffusion EM", WACV 2024, arXiv:2309.00287).

    w = argmin  ‖D (y − w * x)‖² / m + smooth Σ (w_i − w_j)² + ridge ‖w‖²,    w >= 0, sum w = 1

D takes differences along rows and columns of the mean over the channels, as Cho and Lee ("Fast
motion deblurring", SIGGRAPH Asia 2009) do: brightness, which every kernel keeps, then does not
outweigh the edges, which tell kernels apart. The quadratic has k⁴ entries, made once; the
constraint is kept by accelerated projected gradients (FISTA; the projection onto the simplex of
Duchi et al., ICML 2008), from the kernel before. i and j are neighbouring pixels; ridge and smooth
are in units of the mean diagonal of the quadratic.

x is an estimate with an error e, and the expectation of EM is that of the loss over x + e: for
white e of variance v it adds v Σ (w_i − w_j)², so that smooth falls along with the noise that x was
estimated from. Without it the smoothness of x makes the kernel too sharp.

The priors, after the constraint:

    smooth    the penalty alone
    sparse    and pixels below a share of the largest are dropped
    gaussian  of all Gaussians, round or not, along any axes, the one of least loss: three numbers
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PRIORS = {"unknown": "smooth", "unknown_sparse": "sparse", "unknown_gaussian": "gaussian"}
"""By the name that a kernel has in the parameters of a blur."""
RIDGE, SMOOTH, SPREAD = 1e-3, 0.003, 0.5
"""smooth is SMOOTH or, where it is more, SPREAD r, r = sigma_t / alpha_t. On held-out photographs
the mean squared error of photo64 in [-1, 1] is 0.016 r at r = 0.1 and 0.019 r at 1 (its model
card), a third of r of the mean diagonal of the quadratic; 0.3 and 1 do about as well as 0.5."""
DROPPED = 0.05
"""Pixels of a sparse kernel below this share of the largest."""
WIDEST = 63
"""Pixels a side of a kernel: its equations have the fourth power of them."""
ITERATIONS = 150
MOST = 2**14
"""Pixels of an image whose equations are used; of larger ones a grid of them."""


def estimated(
    x: Tensor, y: Tensor, kernel: Tensor, border: str, prior: str, ratio: float = 0.0
) -> Tensor:
    """The kernel of every image.

    Args:
        x: (B, C, H, W), estimates of the sharp images.
        y: (B, C, h, w), the blurred ones.
        kernel: (B, 1, k, l), where the search starts.
        border: as of a blur.
        prior: ``"smooth"``, ``"sparse"`` or ``"gaussian"``.
        ratio: r, how much noise the estimates were made from, see :meth:`Operator.learned`.

    Returns:
        (B, 1, k, l), each non-negative with the sum 1.
    """
    G, b = equations(x, y, kernel.shape[-2:], border)
    scale = G.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    spread = SPREAD * ratio
    if prior == "gaussian":
        G = G + scale * spread * roughness(kernel)
        return gaussian(G, b, kernel.shape[-2:]).view_as(kernel)
    penalty = max(SMOOTH, spread) * roughness(kernel) + RIDGE * torch.eye(len(b[0])).to(b)
    w = minimised(G + scale * penalty, b, kernel.flatten(1))
    if prior == "sparse":
        w = torch.where(w < DROPPED * w.amax(-1, keepdim=True), 0.0, w)
        w = w / w.sum(-1, keepdim=True)
    return w.view_as(kernel)


def shown(state: Tensor, size: Sequence[int]) -> Tensor:
    """The kernel (B, 1, k, l) in the middle of a picture of it (B, 1, h, w): of a side of n pixels
    the middle is n // 2, as in a kernel."""
    (height, width), sides = size, state.shape[-2:]
    top, left = (n // 2 - k // 2 for n, k in zip(sides, size, strict=True))
    w = state[..., top : top + height, left : left + width].clamp(min=0)
    return w / w.sum((-2, -1), keepdim=True).clamp(min=1e-6)


def equations(x: Tensor, y: Tensor, size: tuple[int, ...], border: str) -> tuple[Tensor, Tensor]:
    """G (B, k l, k l) and b (B, k l) of the loss wᵀ G w − 2 bᵀ w, up to a constant."""
    (height, width), (rows, columns) = size, y.shape[-2:]
    x, y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    if border != "valid":
        before, after = [k - 1 - k // 2 for k in size], [k // 2 for k in size]
        x = F.pad(x, (before[1], after[1], before[0], after[0]), mode=border)
    stride = max(1, round((rows * columns / MOST) ** 0.5))
    G: Tensor | float = 0.0
    b: Tensor | float = 0.0
    for dim in (-2, -1):
        dx, dy = x.diff(dim=dim), y.diff(dim=dim)
        # Column j holds x[i + c − j] for every i: the patch in reverse.
        U = F.unfold(dx, (height, width), stride=stride).flip(1)
        r = dy[..., ::stride, ::stride].flatten(1)
        G, b = G + U @ U.mT / r.shape[1], b + (U @ r[..., None])[..., 0] / r.shape[1]
    assert isinstance(G, Tensor) and isinstance(b, Tensor)
    return G, b


def roughness(kernel: Tensor) -> Tensor:
    """The matrix of Σ (w_i − w_j)² over neighbours, zero beyond the kernel, (k l, k l)."""
    height, width = kernel.shape[-2:]
    units = torch.eye(height * width).to(kernel).view(-1, height, width)
    across = F.pad(units, (1, 1)).diff(dim=-1).flatten(1)
    down = F.pad(units, (0, 0, 1, 1)).diff(dim=-2).flatten(1)
    return across @ across.mT + down @ down.mT


def minimised(G: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """argmin wᵀ G w − 2 bᵀ w over the simplex, by FISTA."""
    # The largest eigenvalue is below (Gershgorin); zero where an image has no edges, which says
    # nothing: its kernel stays.
    step = 1 / G.abs().sum(-1).amax(-1, keepdim=True).clamp(min=1e-30)
    w, z, t = start, start, 1.0
    for _ in range(1 if G.is_meta else ITERATIONS):
        moved = onto_simplex(z - step * ((G @ z[..., None])[..., 0] - b))
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        z = moved + (t - 1) / following * (moved - w)
        w, t = moved, following
    return w


def onto_simplex(v: Tensor) -> Tensor:
    """The nearest w >= 0 with sum 1 of every row (B, n)."""
    ordered = v.sort(-1, descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, v.shape[-1] + 1).to(v)
    last = (ordered > excess).sum(-1, keepdim=True) - 1
    return (v - excess.gather(-1, last)).clamp(min=0)


def gaussian(G: Tensor, b: Tensor, size: tuple[int, ...]) -> Tensor:
    """The centred Gaussian of least loss, (B, k l): the best of a grid of round ones, then steps
    along the gradient, each of the best of a few lengths."""
    widths = torch.linspace(0.3, max(size) / 3, 40).to(b)
    round_ = torch.stack([widths.log(), widths.log(), torch.zeros_like(widths)], -1)
    losses = quadratic(G, b, shape_of(round_, size)[None])
    theta = round_[losses.argmin(-1)]
    for _ in range(1 if G.is_meta else 30):
        with torch.enable_grad():
            given = theta.detach().requires_grad_()
            loss = quadratic(G, b, shape_of(given, size)[:, None])[:, 0]
            (grad,) = torch.autograd.grad(loss.sum(), given)
        # Of a few step lengths along the gradient the best, and none where none is better.
        scale = grad.abs().amax(-1, keepdim=True).clamp(min=1e-30)
        lengths = torch.tensor([0.0, 0.003, 0.01, 0.03, 0.1, 0.3]).to(b)[:, None]
        tried = theta[:, None] - lengths * (grad / scale)[:, None]
        shapes = torch.stack([shape_of(t, size) for t in tried.unbind(1)], 1)
        best = quadratic(G, b, shapes).argmin(-1)
        theta = tried[torch.arange(len(theta), device=best.device), best]
    return shape_of(theta, size)


def shape_of(theta: Tensor, size: tuple[int, ...]) -> Tensor:
    """Gaussians (n, k l) of theta (n, 3): the logarithms of the widths along rows and columns, in
    pixels, and the shear between them."""
    rows, columns = (torch.arange(k).to(theta) - k // 2 for k in size)
    i, j = (g.flatten() for g in torch.meshgrid(rows, columns, indexing="ij"))
    across, down, shear = (t[:, None] for t in theta.unbind(-1))
    squares = (i * torch.exp(-down)).square() + ((j - shear * i) * torch.exp(-across)).square()
    w = torch.exp(-0.5 * squares)
    return w / w.sum(-1, keepdim=True)


def quadratic(G: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """wᵀ G w − 2 bᵀ w, (B, n), of w (B or 1, n, k l)."""
    return (w * (w @ G - 2 * b[:, None])).sum(-1)

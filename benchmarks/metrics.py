"""Image quality: (B, C, H, W) images in [0, 1] in, one value per image out, a (B,) float tensor on
the CPU.

A metric is a function with up to six attributes, all optional, that tables and records read:

    title      the name as people write it
    better     "higher" or "lower"
    backend    the package that computes it; its version is recorded
    network    what that package compares with, where there is a choice
    weights    SHA-256 of that network's weights
    crop       pixels at each border that it leaves away, 0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from invdiff.benchmarks.lpips import network

_TOLERANCE = 1e-3
_Metric = TypeVar("_Metric", bound=Callable[[Tensor, Tensor], Tensor])


def rated(**attributes: str | int) -> Callable[[_Metric], _Metric]:
    """Sets the attributes of a metric."""

    def rate(metric: _Metric) -> _Metric:
        vars(metric).update(attributes)
        return metric

    return rate


@rated(title="PSNR", better="higher")
def psnr(x: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``-10 log10(mean (x - reference)^2)``; identical images
    give inf.

    Args:
        x, reference: (B, C, H, W) in [0, 1].

    Returns:
        (B,), higher is better.
    """
    x, reference = _checked(x, reference)
    return (-10 * (x.double() - reference.double()).square().mean((1, 2, 3)).log10()).float().cpu()


@rated(title="NMSE", better="lower")
def nmse(x: Tensor, reference: Tensor) -> Tensor:
    """Normalised mean squared error ``sum |x - reference|^2 / sum |reference|^2``, of numbers whose
    zero is the lower end of the data's range; PSNR and SSIM take the width of that range as 1.

    Args:
        x, reference: (B, C, H, W), not clipped.

    Returns:
        (B,), lower is better, 0 for identical images.
    """
    if x.shape != reference.shape or x.ndim != 4:
        raise ValueError(
            f"x and reference must both be (B, C, H, W), got {tuple(x.shape)} and "
            f"{tuple(reference.shape)}"
        )
    x, reference = x.detach().double().cpu(), reference.detach().double().cpu()
    error, size = ((v.square()).sum((1, 2, 3)) for v in (x - reference, reference))
    return (error / size).float()


@rated(title="SSIM", better="higher", backend="scikit-image")
def ssim(x: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), computed by scikit-image in float64.

    Gaussian window of sigma 1.5 (11 x 11), population covariance, averaged over channels; pixels
    less than 5 from the border are left out.

    Args:
        x, reference: (B, C, H, W) in [0, 1], at least 11 x 11.

    Returns:
        (B,), at most 1, higher is better.
    """
    from skimage.metrics import structural_similarity

    x, reference = _checked(x, reference, smallest=11)
    pairs = zip(x.double().cpu().numpy(), reference.double().cpu().numpy(), strict=True)
    options = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 1,
        "channel_axis": 0,
    }
    return torch.tensor(
        [float(structural_similarity(a, b, **options)) for a, b in pairs], dtype=torch.float32
    )


@rated(title="LPIPS", better="lower", backend="lpips", network="alex")
def lpips(x: Tensor, reference: Tensor) -> Tensor:
    """Learned perceptual distance (Zhang et al. 2018) by the ``lpips`` package: AlexNet, version
    0.1. Needs no network.

    AlexNet's weights are torchvision's own file where torch.hub has cached it, else the
    half-precision copy shipped in ``invdiff/zoo/alexnet``; values differ by some 1e-5.

    Args:
        x, reference: (B, C, H, W) in [0, 1], C 1 (repeated) or 3, at least 31 x 31.

    Returns:
        (B,), lower is better, 0 for identical images.
    """
    x, reference = _checked(x, reference, smallest=31)
    if x.shape[1] not in (1, 3):
        raise ValueError(f"LPIPS compares images of 1 or 3 channels, got {x.shape[1]}")
    x, reference = (2 * v.float().expand(-1, 3, -1, -1) - 1 for v in (x, reference))
    with torch.no_grad():
        return network(x.device)(x, reference).view(-1).cpu()


def _checked(x: Tensor, reference: Tensor, smallest: int = 1) -> tuple[Tensor, Tensor]:
    """Both without gradients, the reference on x's device, clamped to [0, 1]."""
    if x.shape != reference.shape or x.ndim != 4:
        raise ValueError(
            f"x and reference must both be (B, C, H, W), got {tuple(x.shape)} and "
            f"{tuple(reference.shape)}"
        )
    if min(x.shape[2:]) < smallest:
        size = f"{x.shape[2]} x {x.shape[3]}"
        raise ValueError(
            f"this metric needs images of at least {smallest} x {smallest} pixels, got "
            f"{size}; enlarge both alike"
        )
    for name, v in (("x", x), ("reference", reference)):
        if not v.is_floating_point():
            raise TypeError(
                f"{name} must be floating point in [0, 1], got {v.dtype}; divide 8-bit "
                "images by 255"
            )
        if (
            v.numel() and not ((v >= -_TOLERANCE) & (v <= 1 + _TOLERANCE)).all()
        ):  # nan compares false
            raise ValueError(
                f"{name} must lie in [0, 1], got values from {v.min():.4g} to "
                f"{v.max():.4g}; clamp or rescale it first"
            )
    return x.detach().clamp(0, 1), reference.detach().to(x.device).clamp(0, 1)

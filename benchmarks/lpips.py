"""LPIPS (Zhang et al. 2018), AlexNet, version 0.1, with the linear layers of the ``lpips`` package.

The package itself is not imported: it brings every network of torchvision and torch's compiler, two
seconds of each command. The distance, with features f_l of unit length in each pixel and weights
w_l >= 0,

    d(x, y) = sum_l mean_pixels sum_c w_lc (f_lc(x) - f_lc(y))^2

equals that of the package bit by bit.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import invdiff.zoo

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""What AlexNet's inputs, in [-1, 1], are shifted and divided by."""


class LPIPS(nn.Module):
    """The distance of images (B, 3, H, W) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        found = alexnet_features()
        for k, layer in enumerate((0, 3, 6, 8, 10)):
            for kind in ("weight", "bias"):
                self.register_buffer(f"{kind}{k}", found[f"features.{layer}.{kind}"].float())
        for k, weight in enumerate(_linear_layers()):
            self.register_buffer(f"linear{k}", weight)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """(B, 1, 1, 1)."""
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        pair = [(v - shift) / scale for v in (x, reference)]
        layers: list[Tensor] = []
        for k in range(5):
            pair = [self._convolved(v, k) for v in pair]
            difference = (_unit(pair[0]) - _unit(pair[1])) ** 2
            weighted = functional.conv2d(difference, self.get_buffer(f"linear{k}"))
            layers.append(weighted.mean((2, 3), keepdim=True))
        return sum(layers[1:], layers[0])  # in the package's order, to the bit

    def _convolved(self, x: Tensor, k: int) -> Tensor:
        """Layer k of AlexNet, from the one before."""
        if k in (1, 2):
            x = functional.max_pool2d(x, 3, 2)
        stride, padding = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))[k]
        weight, bias = self.get_buffer(f"weight{k}"), self.get_buffer(f"bias{k}")
        return functional.conv2d(x, weight, bias, stride, padding).relu()


def _unit(features: Tensor) -> Tensor:
    return features / ((features**2).sum(1, keepdim=True).sqrt() + 1e-10)


def alexnet_features() -> dict[str, Tensor]:
    """The convolutions of AlexNet: torchvision's own file where torch.hub has cached it, else the
    half-precision copy that ships."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    if cached.is_file():
        found = torch.load(cached, map_location="cpu", weights_only=True)
        return {name: v for name, v in found.items() if name.startswith("features.")}
    from safetensors.torch import load_file

    return load_file(invdiff.zoo.FOLDER / "alexnet" / "features.safetensors")


def _linear_layers() -> list[Tensor]:
    """The weights of the five linear layers, from the file in the package."""
    spec = find_spec("lpips")
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / "weights" / "v0.1" / "alex.pth"
    found = torch.load(file, map_location="cpu", weights_only=True)
    return [found[f"lin{k}.model.1.weight"] for k in range(5)]


@cache
def network(device: torch.device) -> LPIPS:
    """The network, once for each device."""
    return LPIPS().to(device)

"""Files of score_sde (``all_modules.1.weight``): yang-song/score_sde_pytorch's DDPM++ and NCSN++
(Song et al. 2021, arXiv:2011.13456), run by the network of :mod:`~invdiff.loading.edm` under EDM's
names.

Its modules are numbered in the order in which they run, so a state dict is read like a tape. Its
image size is not in the file: it is taken to attend at 16x16, as all published configurations do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from invdiff import schedules
from invdiff.loading.checkpoint import denoiser, holds, network, understood
from invdiff.loading.edm import Raw, build
from invdiff.loading.source import Source
from invdiff.network import Denoiser

ANCHOR = "all_modules.1.weight"
KIND = "score_sde"
PARTS = {
    "GroupNorm_0": "norm0",
    "Conv_0": "conv0",
    "Dense_0": "affine",
    "GroupNorm_1": "norm1",
    "Conv_1": "conv1",
    "Conv_2": "skip",
}
"""The parts of a residual block, and their names in EDM."""

Renamed = Iterator[tuple[str, Tensor]]
Module = dict[str, Tensor]


def recognises(source: Source) -> bool:
    """Whether it is a file with such a network."""
    return holds(source, ANCHOR)


def load(
    source: Source,
    *,
    weights: str | None = None,
    preconditioning: str | None = None,
    **options: Any,
) -> Denoiser:
    """A Denoiser of images in [-1, 1].

    Args:
        source: the file.
        weights: which network of a file with several, as its error message lists them; by default
            the averaged one.
        preconditioning: ``"vp"`` or ``"ve"`` (Song et al. 2021, continuous times), or ``"edm"``;
            default: as its time embedding says.
        options: of :class:`~invdiff.network.Denoiser`, on top of what is recognised.

    Raises:
        ValueError: several networks; an architecture that is not known here; missing, unexpected
            or misshapen parameters, which are listed.
    """
    found = network(source, ANCHOR, weights)
    net, read = understood(source, lambda: _build(found.tensors, preconditioning))
    return denoiser(source, KIND, found, net, read, options)


def _build(
    tensors: Mapping[str, Tensor], preconditioning: str | None
) -> tuple[Raw, dict[str, Any]]:
    """The network of a state dict, and what was recognised of it; raises as
    :func:`~invdiff.loading.edm.build`."""
    renamed = dict(_Tape(tensors).network())
    if preconditioning is None:
        preconditioning = "ve" if "map_noise.freqs" in renamed else "vp"
    net, found = build(renamed, preconditioning, with_filters=False)
    sigmas = tensors.get("sigmas")
    if preconditioning == "ve" and sigmas is not None:  # they are for images in [0, 1]
        found["schedule"] = schedules.ve(2 * float(sigmas.min()), 2 * float(sigmas.max()))
    return net, found


class _Tape:
    """A state dict as the list of its modules, taken from the front one by one and renamed."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        modules: dict[int, Module] = {}
        for key, tensor in tensors.items():
            if key == "sigmas":
                continue
            if not (match := re.fullmatch(r"all_modules\.(\d+)\.(.+)", key)):
                raise ValueError(f"unexpected parameter {key}")
            modules.setdefault(int(match[1]), {})[match[2]] = tensor
        self.rest = [(f"all_modules.{i}", modules.get(i, {})) for i in range(max(modules) + 1)]
        if empty := [name for name, parts in self.rest if not parts]:
            raise ValueError(f"all parameters of {', '.join(empty)} are missing")
        down = next((i for i, (_, parts) in enumerate(self.rest) if _resizes(parts)), None)
        others = ("Conv_0.weight" in parts and not _is_block(parts) for _, parts in self.rest)
        if down is None or any(others):
            raise ValueError(
                "only score_sde's DDPM++ and NCSN++ with BigGAN blocks, skip connections "
                "rescaled, and two or more resolutions are known here"
            )
        self.blocks = sum(_is_block(parts) for _, parts in self.rest[:down])
        attends = next((i for i, at in enumerate(_attends(self.rest, self.blocks)) if at), None)
        self.size = 32 if attends is None else 16 << attends

    @property
    def next(self) -> Module:
        """The module in front; empty at the end."""
        return self.rest[0][1] if self.rest else {}

    def take(self, *wanted: str) -> Module:
        """The module in front, which has these parameters."""
        name, parts = self.rest.pop(0) if self.rest else ("the end", {})
        if missing := [w for w in wanted if w not in parts]:
            raise KeyError(f"{name}.{missing[0]}")
        return parts

    def network(self) -> Renamed:
        """Everything, in the order in which it runs."""
        if "W" in self.next:
            yield "map_noise.freqs", self.take("W")["W"]
        yield from self.plain("map_layer0")
        yield from self.plain("map_layer1")
        if self.next.get("weight", torch.empty(0)).shape[0] < 128:
            raise ValueError(
                "its width is below 128, where score_sde's group normalisation has fewer "
                "groups than deepinv's NCSNpp"
            )
        yield from self.plain(f"enc.{self.size}x{self.size}_conv")
        sizes = [self.size]
        while True:
            yield from self.resolution(sizes[-1])
            if not _resizes(self.next):
                break
            sizes.append(sizes[-1] // 2)
            yield from self.block(f"enc.{sizes[-1]}x{sizes[-1]}_down")
            yield from self.residual(f"enc.{sizes[-1]}x{sizes[-1]}_aux_residual")
        yield from self.decoder(sizes)
        if self.rest:
            raise ValueError(
                f"unexpected parameters of {', '.join(name for name, _ in self.rest)}: a decoder "
                "other than the standard one"
            )

    def resolution(self, size: int) -> Renamed:
        """The encoder's blocks of one resolution."""
        for i in range(self.blocks):
            yield from self.block(f"enc.{size}x{size}_block{i}")
            yield from self.attention(f"enc.{size}x{size}_block{i}")

    def decoder(self, sizes: list[int]) -> Renamed:
        """The middle and the way back up through the resolutions."""
        low = f"dec.{sizes[-1]}x{sizes[-1]}"
        yield from self.block(f"{low}_in0")
        yield from self.attention(f"{low}_in0")
        yield from self.block(f"{low}_in1")
        for level, size in reversed(list(enumerate(sizes))):
            for i in range(self.blocks + 1):
                yield from self.block(f"dec.{size}x{size}_block{i}")
            yield from self.attention(f"dec.{size}x{size}_block{self.blocks}")
            if level:
                yield from self.block(f"dec.{sizes[level - 1]}x{sizes[level - 1]}_up")
        yield from self.plain(f"dec.{self.size}x{self.size}_aux_norm")
        yield from self.plain(f"dec.{self.size}x{self.size}_aux_conv")

    def plain(self, name: str) -> Renamed:
        """A module with a weight and a bias."""
        yield from ((f"{name}.{k}", v) for k, v in self.take("weight", "bias").items())

    def block(self, name: str) -> Renamed:
        """A residual block."""
        for key, tensor in self.take("Conv_0.weight", "Dense_0.weight", "Conv_1.weight").items():
            part, _, kind = key.rpartition(".")
            if part not in PARTS:
                raise ValueError(f"unexpected part {key} of a residual block")
            yield f"{name}.{PARTS[part]}.{kind}", tensor

    def residual(self, name: str) -> Renamed:
        """The smaller image that NCSN++ adds, where it does."""
        if "Conv2d_0.weight" in self.next:
            for key, tensor in self.take("Conv2d_0.bias").items():
                yield f"{name}.{key.removeprefix('Conv2d_0.')}", tensor

    def attention(self, name: str) -> Renamed:
        """An attention, where there is one. A NIN is x W; queries, keys and values are interleaved
        channel by channel, (C, 3)."""
        if "NIN_3.W" not in self.next:
            return
        nin = [f"NIN_{i}.{k}" for i in range(4) for k in "Wb"]
        parts = self.take(*nin, "GroupNorm_0.weight", "GroupNorm_0.bias")
        yield from ((f"{name}.norm2.{k}", parts[f"GroupNorm_0.{k}"]) for k in ("weight", "bias"))
        weight, bias = (
            torch.stack([f(i) for i in range(3)], dim=1).flatten(0, 1)
            for f in (lambda i: parts[f"NIN_{i}.W"].T, lambda i: parts[f"NIN_{i}.b"])
        )
        yield f"{name}.qkv.weight", weight[:, :, None, None]
        yield f"{name}.qkv.bias", bias
        yield f"{name}.proj.weight", parts["NIN_3.W"].T[:, :, None, None]
        yield f"{name}.proj.bias", parts["NIN_3.b"]


def _is_block(parts: Module) -> bool:
    return "Conv_1.weight" in parts


def _resizes(parts: Module) -> bool:
    """Whether a residual block changes the resolution: its shortcut is a convolution although the
    channels stay."""
    return (
        "Conv_2.weight" in parts
        and parts["Conv_2.weight"].shape[0] == parts["Conv_2.weight"].shape[1]
    )


def _attends(modules: list[tuple[str, Module]], blocks: int) -> Iterator[bool]:
    """Whether each resolution on the way down attends, finest first."""
    seen, attends = 0, False
    for _, parts in modules:
        if _resizes(parts):
            yield attends
            seen, attends = 0, False
        elif _is_block(parts):
            seen += 1
            if seen > blocks:  # the middle
                yield attends
                return
        elif "NIN_3.W" in parts:
            attends = True

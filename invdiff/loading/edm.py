"""Files of EDM (``map_layer0.weight``): NVlabs/edm's networks (DDPM++, NCSN++, ADM), and deepinv's
``NCSNpp`` and ``ADMUNet``, which carry the same parameter names and run them.

    Karras et al. 2022 (arXiv:2206.00364, table 1)  D(x; sigma) = c_skip x + c_out F(c_in x;
                                                    c_noise)
    Song et al. 2021 (arXiv:2011.13456)             NCSN++ (VE) and DDPM++ (VP), whose
                                                    preconditioning is in the same table

deepinv's own ``forward`` takes images and sigma in [0, 1] units, turns them to [-1, 1] if it is
built so, and preconditions; its default ``pixel_std`` of 0.75 is not EDM's. Here the raw F is
wrapped, and the :class:`~invdiff.network.Denoiser` preconditions, all in [-1, 1]:

    "edm"   predicts="edm", sigma_data = 0.5
    "vp"    F is the noise:        predicts="eps" on vp(), time input 999 t
    "ve"    F is minus the noise:  predicts="eps" on ve(0.02, 100), time input log(sigma / 2)

Augmentation labels are zero when sampling, which stands for "not augmented" (appendix F.2). Labels
are one-hot; all zeros stand for no class, which means something only for a network trained with
``label_dropout``: ``null_label=`` says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from invdiff import schedules
from invdiff.loading.checkpoint import denoiser, holds, network, understood
from invdiff.loading.source import Source
from invdiff.loading.state_dict import check_names
from invdiff.network import Denoiser, OfLevel

ANCHOR = "map_layer0.weight"
KIND = "edm"

PRECONDITIONING: dict[str, dict[str, Any]] = {
    "edm": {"predicts": "edm", "schedule": schedules.edm(), "sigma_data": 0.5},
    "vp": {"predicts": "eps", "schedule": schedules.vp(), "time": lambda t: 999 * t},
    "ve": {
        "predicts": "eps",
        "schedule": schedules.ve(0.02, 100.0),
        "time": OfLevel(lambda level: (level.ratio / 2).log()),
    },
}
"""The options of a Denoiser for each."""


def recognises(source: Source) -> bool:
    """Whether it is a file with such a network."""
    return holds(source, ANCHOR)


def load(
    source: Source, *, weights: str | None = None, preconditioning: str = "edm", **options: Any
) -> Denoiser:
    """A Denoiser of images in [-1, 1].

    Args:
        source: the file.
        weights: which network of a file with several, as its error message lists them; by default
            the averaged one.
        preconditioning: ``"edm"`` (Karras et al. 2022), ``"vp"`` or ``"ve"`` (Song et al. 2021,
            continuous times).
        options: of :class:`~invdiff.network.Denoiser`, on top of what is recognised.

    Raises:
        ValueError: several networks; an architecture that deepinv cannot express; missing,
            unexpected or misshapen parameters, which are listed.
    """
    found = network(source, ANCHOR, weights)
    net, read = understood(source, lambda: build(found.tensors, preconditioning))
    return denoiser(source, KIND, found, net, read, options)


class Raw(nn.Module):
    """``net(x, t, label=None, augment_labels=None)``: deepinv's network without its
    preconditioning, ``sign`` times its output."""

    def __init__(self, net: nn.Module, classes: int, sign: float) -> None:
        super().__init__()
        self.net, self.classes, self.sign = net, classes, sign

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        one_hot = None
        if self.classes:
            assert label is not None
            one_hot = (label[:, None] == torch.arange(self.classes, device=x.device)).to(x.dtype)
        out = self.net.forward_unet(x, t, class_labels=one_hot, augment_labels=augment_labels)  # type: ignore[operator]
        return out if self.sign == 1 else self.sign * out


def build(
    tensors: Mapping[str, Tensor], preconditioning: str, with_filters: bool = True
) -> tuple[Raw, dict[str, Any]]:
    """The network of an EDM state dict, and what was recognised of it.

    Args:
        tensors: the parameters.
        preconditioning: a name in :data:`PRECONDITIONING`.
        with_filters: they include the filters of resampling, which follow from the architecture.

    Raises:
        KeyError: a missing parameter without which nothing can be said.
        ValueError: an architecture that deepinv cannot express; missing, unexpected or misshapen
            parameters, listed.
    """
    from invdiff.problem.physics import edm_network

    if preconditioning not in PRECONDITIONING:
        raise ValueError(
            f"unknown preconditioning {preconditioning!r}; known: {', '.join(PRECONDITIONING)}"
        )
    kind, config = _config(tensors)
    net = edm_network(kind, config).float()
    own = net.state_dict()
    if not with_filters:
        tensors = {k: v for k, v in own.items() if k.endswith("resample_filter")} | dict(tensors)
    check_names(own, tensors)
    net.load_state_dict({k: v.float() for k, v in tensors.items()})
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(
            f"it takes {config['in_channels']} channels and returns "
            f"{config['out_channels']}, which no EDM preconditioning does"
        )
    classes = config["label_dim"]
    found = PRECONDITIONING[preconditioning] | {
        "data_range": (-1.0, 1.0),
        "num_classes": classes or None,
        "null_label": False,
        "multiple": 2 ** (len(config["channel_mult"]) - 1),
        "channels": config["in_channels"],
        "image_size": config["img_resolution"],
    }
    return Raw(net, classes, -1.0 if preconditioning == "ve" else 1.0), found


def _config(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """(``"ncsn"``, ``"ddpm"`` or ``"adm"``, the arguments of deepinv's class) from EDM's names and
    shapes."""
    blocks = {m[0] for k in tensors if (m := re.match(r"enc\.(\d+)x\1_\w+", k))}
    sizes = _sizes(blocks)
    size, stem = sizes[0], f"enc.{sizes[0]}x{sizes[0]}_conv.weight"
    kind = _kind(tensors, blocks)
    embedded, embeds = tensors["map_layer0.weight"].shape
    width = embeds if kind == "adm" else tensors[stem].shape[0]
    channels = [tensors[f"enc.{r}x{r}_block0.conv0.weight"].shape[0] for r in sizes]
    if any(c % width for c in channels) or embedded % width:
        raise ValueError(f"its channels {channels} are no multiples of its width {width}")
    head = "out_conv.weight" if kind == "adm" else f"dec.{size}x{size}_aux_conv.weight"

    def inputs(name: str) -> int:
        return tensors[name].shape[1] if name in tensors else 0

    return kind, {
        "img_resolution": size,
        "in_channels": tensors[stem].shape[1],
        "out_channels": tensors[head].shape[0],
        "label_dim": inputs("map_label.weight"),
        "augment_dim": inputs("map_augment.weight"),
        "model_channels": width,
        "channel_mult": [c // width for c in channels],
        "channel_mult_emb": embedded // width,
        "num_blocks": sum(b.startswith(f"enc.{size}x{size}_block") for b in blocks),
        "attn_resolutions": [r for r in sizes if f"enc.{r}x{r}_block0.qkv.weight" in tensors],
    }


def _sizes(blocks: set[str]) -> list[int]:
    """The resolutions of the encoder, finest first."""
    sizes = sorted({int(re.findall(r"\d+", b)[0]) for b in blocks}, reverse=True)
    if not sizes:
        raise KeyError("enc.*_conv.weight")
    if sizes != [sizes[0] >> level for level in range(len(sizes))]:
        raise ValueError(f"its resolutions {sizes} do not halve, so encoder blocks are missing")
    return sizes


def _kind(tensors: Mapping[str, Tensor], blocks: set[str]) -> str:
    """``"ncsn"``, ``"ddpm"`` or ``"adm"``."""
    fourier = "map_noise.freqs" in tensors
    residual, skip = (any(b.endswith(end) for b in blocks) for end in ("aux_residual", "aux_skip"))
    heads = sum(k.startswith("dec.") and k.endswith("aux_conv.weight") for k in tensors)
    if skip or fourier != residual or heads > 1:
        raise ValueError(
            "deepinv's NCSNpp has Fourier features with a residual encoder (NCSN++) or "
            "positional embeddings with a standard one (DDPM++), and a "
            "standard decoder; this network combines them otherwise. Wrap it as a callable "
            "with its own code: invdiff.Denoiser(net, ...)"
        )
    if "out_conv.weight" in tensors:
        return "adm"
    return "ncsn" if fourier else "ddpm"

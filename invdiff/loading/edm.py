"""EDM's and score_sde's networks through deepinv's ``NCSNpp`` and ``ADMUNet``, which have the
parameter names of NVlabs/edm.

    Karras et al. 2022 (arXiv:2206.00364, table 1)  D(x; sigma) = c_skip x + c_out F(c_in x;
                                                    c_noise)
    Song et al. 2021 (arXiv:2011.13456)             NCSN++ (VE) and DDPM++ (VP), whose
                                                    preconditioning is in the same table

deepinv's own ``forward`` takes images and sigma in [0, 1] units, turns them to [-1, 1] where it was
told that the network was trained there, and preconditions; its default ``pixel_std`` of 0.75 is not
EDM's. Here the raw F is wrapped, and the :class:`~invdiff.network.Denoiser` preconditions, all in
[-1, 1]:

    "edm"   predicts="edm", sigma_data = 0.5
    "vp"    F is the noise:        predicts="eps" on vp(), shown 999 t
    "ve"    F is minus the noise:  predicts="eps" on ve(0.02, 100), shown log(sigma / 2)

Augmentation labels are zero when sampling, which stands for "not augmented" (appendix F.2). Labels
are one-hot; all zeros stand for no class, which means something only for a network trained with
``label_dropout``: ``null_label=`` says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from invdiff import schedules
from invdiff.loading.state_dict import check_names
from invdiff.network import OfLevel

PRECONDITIONING: dict[str, dict[str, Any]] = {
    "edm": {"predicts": "edm", "schedule": schedules.edm(), "sigma_data": 0.5},
    "vp": {"predicts": "eps", "schedule": schedules.vp(), "time": lambda t: 999 * t},
    "ve": {
        "predicts": "eps",
        "schedule": schedules.ve(0.02, 100.0),
        "time": OfLevel(lambda level: (level.ratio / 2).log()),
    },
}
"""What each says to a Denoiser."""


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


def from_edm(
    tensors: Mapping[str, Tensor], preconditioning: str | None
) -> tuple[Raw, dict[str, Any]]:
    """The network of an EDM state dict, and what was recognised of it.

    Raises:
        KeyError: a missing parameter without which nothing can be said.
        ValueError: an architecture that deepinv cannot express; missing, unexpected or misshapen
            parameters, listed.
    """
    kind, config = _config(tensors)
    return _made(kind, config, tensors, preconditioning or "edm")


def from_score_sde(
    tensors: Mapping[str, Tensor], preconditioning: str | None
) -> tuple[Raw, dict[str, Any]]:
    """The network of a score_sde state dict, renamed, and what was recognised of it. Its image size
    is not in the file: it is taken to attend at 16x16, as all published configurations do.

    Raises: as :func:`from_edm`.
    """
    renamed = dict(_renamed(tensors))
    kind, config = _config(renamed)
    if preconditioning is None:
        preconditioning = "ve" if "map_noise.freqs" in renamed else "vp"
    net, found = _made(kind, config, renamed, preconditioning, renamed=True)
    sigmas = tensors.get("sigmas")
    if preconditioning == "ve" and sigmas is not None:
        found["schedule"] = schedules.ve(
            2 * float(sigmas.min()), 2 * float(sigmas.max())
        )  # they are for [0, 1]
    return net, found


def _made(
    kind: str,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    preconditioning: str,
    renamed: bool = False,
) -> tuple[Raw, dict[str, Any]]:
    from invdiff.problem.physics import edm_network

    if preconditioning not in PRECONDITIONING:
        raise ValueError(
            f"unknown preconditioning {preconditioning!r}; known: {', '.join(PRECONDITIONING)}"
        )
    net = edm_network(kind, config)
    own = net.state_dict()
    if renamed:  # score_sde keeps no filters: they follow from the architecture
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
    sizes = sorted({int(re.findall(r"\d+", b)[0]) for b in blocks}, reverse=True)
    if not sizes:
        raise KeyError("enc.*_conv.weight")
    size, stem = sizes[0], f"enc.{sizes[0]}x{sizes[0]}_conv.weight"
    if sizes != [size >> level for level in range(len(sizes))]:
        raise ValueError(f"its resolutions {sizes} do not halve, so encoder blocks are missing")
    embedded, embeds = tensors["map_layer0.weight"].shape
    fourier, adm = "map_noise.freqs" in tensors, "out_conv.weight" in tensors
    residual, skip = (any(b.endswith(end) for b in blocks) for end in ("aux_residual", "aux_skip"))
    if (
        skip
        or fourier != residual
        or sum(k.startswith("dec.") and k.endswith("aux_conv.weight") for k in tensors) > 1
    ):
        raise ValueError(
            "deepinv's NCSNpp has Fourier features with a residual encoder (NCSN++) or "
            "positional embeddings with a standard one (DDPM++), and a "
            "standard decoder; this network combines them otherwise. Wrap it as a callable "
            "with its own code: invdiff.Denoiser(net, ...)"
        )
    width = embeds if adm else tensors[stem].shape[0]
    channels = [tensors[f"enc.{r}x{r}_block0.conv0.weight"].shape[0] for r in sizes]
    if any(c % width for c in channels) or embedded % width:
        raise ValueError(f"its channels {channels} are no multiples of its width {width}")
    kind = "adm" if adm else "ncsn" if fourier else "ddpm"
    head = "out_conv.weight" if adm else f"dec.{size}x{size}_aux_conv.weight"
    return kind, {
        "img_resolution": size,
        "in_channels": tensors[stem].shape[1],
        "out_channels": tensors[head].shape[0],
        "label_dim": tensors["map_label.weight"].shape[1] if "map_label.weight" in tensors else 0,
        "augment_dim": tensors["map_augment.weight"].shape[1]
        if "map_augment.weight" in tensors
        else 0,
        "model_channels": width,
        "channel_mult": [c // width for c in channels],
        "channel_mult_emb": embedded // width,
        "num_blocks": sum(b.startswith(f"enc.{size}x{size}_block") for b in blocks),
        "attn_resolutions": [r for r in sizes if f"enc.{r}x{r}_block0.qkv.weight" in tensors],
    }


# score_sde's modules are numbered; these are the parts of a residual block and their names in EDM.
_PARTS = {
    "GroupNorm_0": "norm0",
    "Conv_0": "conv0",
    "Dense_0": "affine",
    "GroupNorm_1": "norm1",
    "Conv_1": "conv1",
    "Conv_2": "skip",
}


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """A score_sde state dict under EDM's names, module by module in the order in which they run."""
    modules: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key == "sigmas":
            continue
        if not (match := re.fullmatch(r"all_modules\.(\d+)\.(.+)", key)):
            raise ValueError(f"unexpected parameter {key}")
        modules.setdefault(int(match[1]), {})[match[2]] = tensor
    queue = [(f"all_modules.{i}", modules.get(i, {})) for i in range(max(modules) + 1)]
    if empty := [name for name, parts in queue if not parts]:
        raise ValueError(f"all parameters of {', '.join(empty)} are missing")
    down = next((i for i, (_, p) in enumerate(queue) if _resizes(p)), None)
    if down is None or any("Conv_0.weight" in p and not _is_block(p) for _, p in queue):
        raise ValueError(
            "only score_sde's DDPM++ and NCSN++ with BigGAN blocks, skip connections "
            "rescaled, and two or more resolutions are known here"
        )
    blocks = sum(_is_block(p) for _, p in queue[:down])
    attends = next((i for i, (_, p) in enumerate(_levels(queue, blocks)) if p), None)
    size = 16 << attends if attends is not None else 32

    def take(*wanted: str) -> dict[str, Tensor]:
        name, parts = queue.pop(0) if queue else ("the end", {})
        if missing := [w for w in wanted if w not in parts]:
            raise KeyError(f"{name}.{missing[0]}")
        return parts

    def plain(name: str) -> Iterator[tuple[str, Tensor]]:
        parts = take("weight", "bias")
        yield from ((f"{name}.{k}", v) for k, v in parts.items())

    def block(name: str) -> Iterator[tuple[str, Tensor]]:
        for key, tensor in take("Conv_0.weight", "Dense_0.weight", "Conv_1.weight").items():
            part, _, kind = key.rpartition(".")
            if part not in _PARTS:
                raise ValueError(f"unexpected part {key} of a residual block")
            yield f"{name}.{_PARTS[part]}.{kind}", tensor

    def attention(name: str) -> Iterator[tuple[str, Tensor]]:
        if not (queue and "NIN_3.W" in queue[0][1]):
            return
        parts = take(
            *(f"NIN_{i}.{k}" for i in range(4) for k in "Wb"),
            "GroupNorm_0.weight",
            "GroupNorm_0.bias",
        )
        yield from ((f"{name}.norm2.{k}", parts[f"GroupNorm_0.{k}"]) for k in ("weight", "bias"))
        # A NIN is x W; the three are interleaved channel by channel, (C, 3).
        yield (
            f"{name}.qkv.weight",
            torch.stack([parts[f"NIN_{i}.W"].T for i in range(3)], dim=1).flatten(0, 1)[
                :, :, None, None
            ],
        )
        yield (
            f"{name}.qkv.bias",
            torch.stack([parts[f"NIN_{i}.b"] for i in range(3)], dim=1).flatten(),
        )
        yield f"{name}.proj.weight", parts["NIN_3.W"].T[:, :, None, None]
        yield f"{name}.proj.bias", parts["NIN_3.b"]

    if "W" in queue[0][1]:
        yield "map_noise.freqs", take("W")["W"]
    yield from plain("map_layer0")
    yield from plain("map_layer1")
    if queue[0][1].get("weight", torch.empty(0)).shape[0] < 128:
        raise ValueError(
            "its width is below 128, where score_sde's group normalisation has fewer "
            "groups than deepinv's NCSNpp"
        )
    yield from plain(f"enc.{size}x{size}_conv")
    level = 0
    while True:
        here = f"{size >> level}x{size >> level}"
        for i in range(blocks):
            yield from block(f"enc.{here}_block{i}")
            yield from attention(f"enc.{here}_block{i}")
        if not (queue and _resizes(queue[0][1])):
            break
        level += 1
        here = f"{size >> level}x{size >> level}"
        yield from block(f"enc.{here}_down")
        if queue and "Conv2d_0.weight" in queue[0][1]:
            yield from (
                (f"enc.{here}_aux_residual.{k.removeprefix('Conv2d_0.')}", v)
                for k, v in take("Conv2d_0.bias").items()
            )
    yield from block(f"dec.{here}_in0")
    yield from attention(f"dec.{here}_in0")
    yield from block(f"dec.{here}_in1")
    for back in range(level, -1, -1):
        here = f"{size >> back}x{size >> back}"
        for i in range(blocks + 1):
            yield from block(f"dec.{here}_block{i}")
        yield from attention(f"dec.{here}_block{blocks}")
        if back:
            yield from block(f"dec.{size >> (back - 1)}x{size >> (back - 1)}_up")
    yield from plain(f"dec.{size}x{size}_aux_norm")
    yield from plain(f"dec.{size}x{size}_aux_conv")
    if queue:
        raise ValueError(
            f"unexpected parameters of {', '.join(name for name, _ in queue)}: a decoder "
            "other than the standard one"
        )


def _is_block(parts: Mapping[str, Tensor]) -> bool:
    return "Conv_1.weight" in parts


def _resizes(parts: Mapping[str, Tensor]) -> bool:
    """Whether a residual block changes the resolution: its shortcut is a convolution although the
    channels stay."""
    return (
        "Conv_2.weight" in parts
        and parts["Conv_2.weight"].shape[0] == parts["Conv_2.weight"].shape[1]
    )


def _levels(queue: list[tuple[str, dict[str, Tensor]]], blocks: int) -> Iterator[tuple[int, bool]]:
    """(level, whether it attends) on the way down."""
    level, seen, attends = 0, 0, False
    for _, parts in queue:
        if _resizes(parts):
            yield level, attends
            level, seen, attends = level + 1, 0, False
        elif _is_block(parts):
            seen += 1
            if seen > blocks:  # the middle
                yield level, attends
                return
        elif "NIN_3.W" in parts:
            attends = True

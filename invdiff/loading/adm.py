"""Files of guided-diffusion (``input_blocks.0.0.weight``): openai/guided-diffusion and
improved-diffusion, DPS' FFHQ, ILVR, P2, deepinv's DiffUNet; denoisers, and classifiers for
classifier guidance.

The architecture is read from the names and shapes of the parameters; how the attention is divided
and the noise schedule are known of the published networks only.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from invdiff import schedules
from invdiff.loading.adm_architecture import Architecture, architecture, divided
from invdiff.loading.adm_network import ADM, ADMClassifier
from invdiff.loading.adm_published import Published, published
from invdiff.loading.checkpoint import Found, denoiser, holds, network, understood
from invdiff.loading.source import Source
from invdiff.loading.state_dict import filled
from invdiff.network import Denoiser, NoisyClassifier
from invdiff.schedules import Schedule

__all__ = ["ADM", "ADMClassifier", "Architecture", "architecture", "load", "recognises"]

ANCHOR = "input_blocks.0.0.weight"
KIND = "guided-diffusion"


def recognises(source: Source) -> bool:
    """Whether it is a file with such a network."""
    return holds(source, ANCHOR)


def load(
    source: Source,
    *,
    weights: str | None = None,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    new_attention_order: bool | None = None,
    **options: Any,
) -> Denoiser:
    """A Denoiser of images in [-1, 1].

    Args:
        source: the file.
        weights: which network of a file with several, as its error message lists them; by default
            the averaged one.
        num_heads, num_head_channels: how its attention is divided. Default: as published for the
            published networks; otherwise 64 channels a head, or, without ``resblock_updown``, 4
            heads.
        new_attention_order: as it was trained; default: as published, else False.
        options: of :class:`~invdiff.network.Denoiser`, on top of what is recognised: ``schedule``
            where it is not the one assumed, ``null_label`` where the last embedding stands for no
            class, ``cond_channels``, ``dtype``...

    Raises:
        ValueError: several networks; missing, unexpected or misshapen parameters, which are listed;
            a classifier.
    """
    found = network(source, ANCHOR, weights)
    if not _is_denoiser(found):
        raise ValueError(
            f"{source} holds a classifier, not a denoiser; invdiff.loading.load_classifier reads it"
        )
    a, known = _divided(
        source,
        found,
        (num_heads, num_head_channels, new_attention_order),
        ask_schedule="schedule" not in options,
    )
    net, read = _read(source, found, a, known, options)
    return denoiser(source, KIND, found, net, read, options)


def load_classifier(
    source: Source,
    *,
    weights: str | None = None,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    new_attention_order: bool | None = None,
    num_res_blocks: int | None = None,
    schedule: Schedule | None = None,
) -> NoisyClassifier:
    """The noisy classifier of such a file. Arguments as for :func:`load`, and:

    Args:
        num_res_blocks: residual blocks per resolution (``classifier_depth``), needed where the file
            fits several.
        schedule: the one it was trained on; default: ``cosine()`` for the published 64x64
            classifier, else ``linear()``.
    """
    if not recognises(source):
        raise ValueError(f"no file of parameters at {source}")
    found = network(source, ANCHOR, weights)
    if _is_denoiser(found):
        raise ValueError(f"{source} holds a denoiser, not a classifier; load_model reads it")
    a, known = _divided(
        source,
        found,
        (num_heads, num_head_channels, new_attention_order),
        ask_schedule=schedule is None,
        blocks=num_res_blocks,
    )
    net = understood(source, lambda: filled(lambda: ADMClassifier(a), found.tensors))
    if schedule is None and found.betas is not None:
        schedule = schedules.from_betas(found.betas)
    assert source.file is not None
    return NoisyClassifier(
        net,
        schedule=schedule or known.schedule(),
        channels=a.in_channels,
        name=source.file.stem,
    )


def _is_denoiser(found: Found) -> bool:
    return any(name.startswith("output_blocks.") for name in found.tensors)


def _divided(
    source: Source,
    found: Found,
    given: tuple[int | None, int | None, bool | None],
    ask_schedule: bool,
    blocks: int | None = None,
) -> tuple[Architecture, Published]:
    """The architecture with its attention divided, and what else had to be assumed; warns of what
    is not known.

    Args:
        given: number of heads, channels of a head and attention order, as the user says.
        ask_schedule: the user does not say the schedule.
    """
    shapes = {name: tuple(t.shape) for name, t in found.tensors.items()}
    a = understood(source, lambda: architecture(shapes, blocks))
    known = published(a)
    assumed = known or Published(heads=None if a.resample == "block" else 4)
    heads, head_channels, new_order = given
    unsaid = []
    if heads is None and head_channels is None:
        if known is None:
            what = "64 channels a head" if assumed.heads is None else f"{assumed.heads} heads"
            unsaid.append(
                f"how its attention is divided: {what} are assumed (num_head_channels=, num_heads=)"
            )
        a = divided(a, assumed.heads, None, None)
    if known is None and ask_schedule and found.betas is None:
        unsaid.append("its noise schedule: linear(1000) is assumed (schedule=)")
    if unsaid:
        warnings.warn(
            f"{source} does not say {'; nor '.join(unsaid)}. Say so if it was trained otherwise",
            stacklevel=3,
        )
    order = assumed.new_order if new_order is None else new_order
    return divided(a, heads, head_channels, order), assumed


def _read(
    source: Source, found: Found, a: Architecture, known: Published, options: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The network and what was recognised of it."""
    taken, made = a.in_channels, a.out_channels
    channels = _channels(a, options.get("cond_channels"))
    if made not in (channels, 2 * channels) or not 0 < channels <= taken:
        raise ValueError(
            f"{source} takes {taken} channels and returns {made}: it is no denoiser; give "
            "cond_channels= if it is conditioned on an image"
        )
    beside = taken - channels
    net = understood(source, lambda: filled(lambda: ADM(a, image_last=beside), found.tensors))
    null = options.get("null_label")
    has_null = a.rows is not None and null is not False and null == a.rows - 1
    read = {
        "predicts": "eps",
        "schedule": known.schedule(),
        "data_range": (-1.0, 1.0),
        "learned_variance": made == 2 * channels,
        "num_classes": a.rows - 1 if has_null and a.rows is not None else a.rows,
        "null_label": False,
        "multiple": a.multiple,
        "channels": channels,
        "image_size": known.size,
    }
    if beside:
        read |= {"cond_channels": beside, "factor": known.factor}
    return net, read


def _channels(a: Architecture, cond: int | None) -> int:
    """The channels of the state, of those that the network takes."""
    taken, made = a.in_channels, a.out_channels
    if cond is not None:
        return taken - cond
    if made == taken:  # six channels in and out: the upsampler with its variance
        return 3 if taken == 6 else made
    return made if made < taken else made // 2

"""Perturbed-attention guidance (Ahn et al., ECCV 2024, arXiv:2403.17377).

    x0 = x0(x_t) + s (x0(x_t) − x0~(x_t))

x0~ is the same network whose self-attention maps, in some layers, are the identity: A = V in the
place of softmax(Q K'/sqrt d) V. Each place then attends to itself alone, which breaks an image's
structure and leaves its appearance; away from that is where structure is. Neither a condition nor
training is needed. With w it is added to classifier-free guidance, as the paper combines them:

    x0 = x0(x_t, ∅) + w (x0(x_t, c) − x0(x_t, ∅)) + s (x0(x_t, c) − x0~(x_t, c))

eps moves with x0; the network's clipping acts on the result. Where text and image attend jointly
(SD3, Flux) the map is the identity for both, as in diffusers' guider; the authors' code for SD3
lets image tokens see the text.

Symbols: s, the scale, 3 in the authors' pipelines; w, that of classifier-free guidance; c, the
condition; ∅, none. Published layers: the middle block of U-Nets (``mid``), ``blocks.1`` of PixArt,
SD3 and Hunyuan-DiT.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.guidance.degraded import Attend, Degraded, attending


@dataclass(frozen=True)
class PAG(Degraded):
    """See the module's docstring; the arguments are those of
    :class:`~invdiff.guidance.degraded.Degraded`."""

    def degraded(
        self, layers: Mapping[str, torch.nn.Module], net: torch.nn.Module
    ) -> AbstractContextManager[None]:
        return attending(layers, _identity)


def _identity(q: Tensor, k: Tensor, v: Tensor, usual: Attend) -> Tensor:
    heads = q.shape[-3] // v.shape[-3]  # queries may have more heads, which share values
    return v if heads == 1 else v.repeat_interleave(heads, -3)

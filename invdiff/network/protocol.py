"""The facts that a wrapped network may state about itself.

A network that states nothing works: a plain function ``net(x, t, **cond)``. One that has more to
say has an attribute ``facts``, e.g. ``facts = Facts(fixed_size=(64, 64))``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class Facts:
    """The facts that a network states about itself.

    Attributes:
        conditions: names of the conditions it takes; None: any, as far as is known.
        required: conditions that it cannot run without, besides ``label`` and ``cond``.
        image_conditions: conditions that are images, and how many times larger than the state.
        fixed_size: (H, W) if it takes no other.
        upsampling: how the image that it is conditioned on was enlarged to the state's size when
            it was trained, ``"bicubic"`` or ``"bilinear"``.
        cond_last: it was trained with that image after the state's channels, not before them; it
            is called with the image first nevertheless.
        guided: it was distilled with classifier-free guidance and takes its scale, so that it needs
            no other branch.
        file: the file that identifies it, where its weights cannot be told from its parameters.
    """

    conditions: Collection[str] | None = None
    required: tuple[str, ...] = ()
    image_conditions: Mapping[str, int] = field(default_factory=dict)
    fixed_size: tuple[int, int] | None = None
    upsampling: str = "bicubic"
    cond_last: bool = False
    guided: bool = False
    file: Path | None = None

    def takes(self, condition: str) -> bool:
        """Whether it takes a condition; assumed where nothing is known."""
        return self.conditions is None or condition in self.conditions


@runtime_checkable
class Checkpointing(Protocol):
    """A network that can recompute its activations on the way back instead of keeping them."""

    def enable_gradient_checkpointing(self) -> None: ...


@runtime_checkable
class Movable(Protocol):
    """Something that is moved to a device in place."""

    def to(self, device: torch.device | str) -> Any: ...


def facts_of(net: Callable[..., Any]) -> Facts:
    """The facts that a network states, or those that its signature shows."""
    stated = getattr(net, "facts", None)
    if isinstance(stated, Facts):
        return stated
    call = net.forward if isinstance(net, torch.nn.Module) else net
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):  # a built-in callable has no signature
        return Facts()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return Facts()
    others = parameters[2:]
    return Facts(
        conditions=frozenset(p.name for p in others),
        required=tuple(
            p.name
            for p in others
            if p.default is p.empty
            and p.kind is not p.VAR_POSITIONAL
            and p.name not in ("label", "cond")
        ),
    )

"""What a wrapped network may tell of itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class NetworkFacts:
    """Facts that a network declares as its attribute ``facts``; without it these defaults hold.

    Attributes:
        conditions: the names of the conditions that it takes; None: what its signature says.
        required: those that it cannot run without, besides ``label`` and ``cond``.
        image_conditions: those that are images, and how many times larger than the state they are.
        fixed_size: (H, W) if it takes states of no other size.
        upsampling: how a small image that it is conditioned on is brought to the state's size.
        condition_last: whether that image stands after the state among its input channels.
        file_hash: SHA-256 of its file, where its weights lie in a program.
    """

    conditions: Collection[str] | None = None
    required: tuple[str, ...] = ()
    image_conditions: Mapping[str, int] = field(default_factory=dict)
    fixed_size: tuple[int, int] | None = None
    upsampling: str = "bicubic"
    condition_last: bool = False
    file_hash: str | None = None


@runtime_checkable
class Informed(Protocol):
    """A network with facts."""

    @property
    def facts(self) -> NetworkFacts: ...


def facts_of(net: Any) -> NetworkFacts:
    """The facts that a network declares, or the defaults."""
    return net.facts if isinstance(net, Informed) else NetworkFacts()


def takes(net: Callable[..., Any], facts: NetworkFacts, condition: str) -> bool:
    """Whether a network has a keyword of that name; assumed where neither its facts nor its
    signature say."""
    if facts.conditions is not None:
        return condition in facts.conditions
    function = net.forward if isinstance(net, torch.nn.Module) else net
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a compiled or built-in callable has none
        return True
    return condition in known or any(p.kind is p.VAR_KEYWORD for p in known.values())

"""Evaluations of a network: counted while they happen, on states padded to the sizes that it
takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass
class Evaluations:
    """Network evaluations counted while they happen, in images: a batch of 8 counts 8."""

    forward: int = 0
    backward: int = 0


_counters: ContextVar[tuple[Evaluations, ...]] = ContextVar("invdiff_evaluations", default=())


@contextlib.contextmanager
def count_evaluations() -> Iterator[Evaluations]:
    """Counts every evaluation of any :class:`Denoiser` made inside the ``with`` block."""
    counter = Evaluations()
    token = _counters.set((*_counters.get(), counter))
    try:
        yield counter
    finally:
        _counters.reset(token)


def count(output: Tensor, images: int) -> None:
    """Counts one call on some images, and the backward pass through it if there is one."""
    counters = _counters.get()
    for counter in counters:
        counter.forward += images
    if counters and output.requires_grad:

        def on_backward(_: Tensor) -> None:
            for counter in counters:
                counter.backward += images

        output.register_hook(on_backward)


def padded(x: Tensor, multiple: int, least: tuple[int, int]) -> Tensor:
    """x with its sides padded, below and to the right, to a multiple, and to no less than a network
    of a fixed size takes."""
    bottom, right = (
        max(-(-n // multiple) * multiple, low) - n
        for n, low in zip(x.shape[-2:], least, strict=True)
    )
    if not (bottom or right):
        return x
    mode = "reflect" if bottom < x.shape[-2] and right < x.shape[-1] else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode)

"""Evaluations of a network: counted while they happen, on states padded to the sizes that it takes,
in the precision asked for; outputs and gradients that are not there are named."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = re.compile(r"to have (\d+) channels, but got (\d+) channels")
"""What torch's convolutions say."""


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


def evaluate(net: Callable[..., Any], name: str, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
    """The output of ``net(x, t, **cond)``.

    Raises:
        TypeError: it is not a tensor.
        ValueError: a gradient is asked for and the output has none; a state of a number of channels
            that the network does not take.
    """
    asked = torch.is_grad_enabled() and x.requires_grad
    if asked and torch.is_inference_mode_enabled():
        raise ValueError(
            "torch.inference_mode() is on, in which no gradient is recorded, and this method "
            "differentiates through the network; use torch.no_grad() instead of it"
        )
    try:
        out = net(x, t, **cond)
    except RuntimeError as error:
        if found := CHANNELS.search(str(error)):
            raise ValueError(
                f"{name} was given a state of shape {tuple(x.shape)}, and one of its layers takes "
                f"{found[1]} channels, not {found[2]}; say channels=N of the network "
                "(model.channels=N), to which images are then brought"
            ) from error
        if not (asked and "numpy() on Tensor that requires grad" in str(error)):
            raise
        out = x.detach()
    if not isinstance(out, Tensor):
        raise TypeError(
            f"{name} returned a {type(out).__name__} instead of a tensor; wrap it, "
            "e.g. invdiff.Denoiser(lambda x, t: net(x, t).sample, ...), "
            "or load_model(folder) for a network of diffusers"
        )
    if asked and not out.requires_grad:
        raise ValueError(
            f"{name} gives no gradient of its output with respect to its input "
            "(NumPy, JAX, ONNX, or a detached tensor inside), which "
            "this method differentiates; use a method that needs none, such as replace "
            "or repaint, or a differentiable network"
        )
    return out


def split(out: Tensor, x: Tensor, learned_variance: bool) -> tuple[Tensor, Tensor | None]:
    """The output that has the state's shape, and the variance fraction in [0, 1] where it is
    learned.

    Raises:
        ValueError: the output has another shape.
    """
    fraction = None
    if learned_variance:
        if out.shape[1] != 2 * x.shape[1]:
            raise ValueError(
                f"learned_variance=True expects {2 * x.shape[1]} output channels for "
                f"{x.shape[1]} input channels, got {out.shape[1]}"
            )
        out, v = out.chunk(2, dim=1)
        fraction = (v + 1) / 2
    if out.shape != x.shape:
        hint = (
            "; a network with twice the channels needs learned_variance=True"
            if out.ndim > 1 and out.shape[1] == 2 * x.shape[1]
            else ""
        )
        raise ValueError(
            f"the network returned shape {tuple(out.shape)} for a state of shape "
            f"{tuple(x.shape)}{hint}"
        )
    return out, fraction


def autocast(dtype: torch.dtype, device: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast where ``dtype`` is a half precision; nothing otherwise, nor on the meta device."""
    if dtype in (torch.bfloat16, torch.float16) and device != "meta":
        return torch.autocast(device, dtype)
    return contextlib.nullcontext()


class Fitted:
    """A state as the network takes it, and its output as the state was: sides that it can divide,
    the dtype of its weights, its memory layout.

    Args:
        x: the state.
        multiple: what sides must divide by.
        fixed_size: (H, W) if the network takes no other.
        channels_last: the memory layout.
    """

    def __init__(
        self, x: Tensor, multiple: int, fixed_size: tuple[int, int] | None, channels_last: bool
    ) -> None:
        self.dtype, self.size, self.channels_last = x.dtype, x.shape[2:], channels_last
        self.multiple, self.least = multiple, fixed_size or (1, 1)
        self.grown = False

    def given(self, x: Tensor, t: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """State and time for the network, one of whose weights is given if it has any."""
        if self.multiple > 1 or self.least != (1, 1):
            x = padded(x, self.multiple, self.least)
        self.grown = x.shape[2:] != self.size
        if weight is not None:  # autocast takes it from there, but leaves double alone
            x, t = x.to(weight.dtype), t.to(weight.dtype) if t.is_floating_point() else t
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, t

    def returned(self, out: Tensor) -> Tensor:
        """The output in the state's dtype and size."""
        out = out.to(self.dtype)
        return out[..., : self.size[0], : self.size[1]] if self.grown else out


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

"""A classifier of noisy images as one function ``(x_t, level) -> log p(label | x_t)``."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invdiff.network.clock import Clock, Time
from invdiff.schedules import Level, Schedule


class NoisyClassifier:
    """Wraps ``classifier(x_t, t) -> logits``, trained on the noisy states of a schedule (Dhariwal &
    Nichol 2021, section 4).

    As with a :class:`~invdiff.network.Denoiser`, states of any schedule are accepted: x_t is
    rescaled to the classifier's own schedule and its time input has the same log-SNR. A module is
    switched to ``eval()``, its parameters need no gradients.

    Args:
        net: ``net(x_t, t) -> logits``, x_t (B, C, H, W) in the range of the network it guides, t
            (B,), logits (B, classes).
        schedule: the schedule it was trained on.
        time: maps the schedule's time, or the level, to its time input, as for a Denoiser.
        quantize: whole times only (nearest level), for classifiers that look their time up in a
            table.
        channels: of its images, for messages.
        name: how it is called in messages.
    """

    def __init__(
        self,
        net: Callable[[Tensor, Tensor], Tensor],
        *,
        schedule: Schedule,
        time: Time | None = None,
        quantize: bool = False,
        channels: int | None = None,
        name: str = "classifier",
    ) -> None:
        if not callable(net):
            raise TypeError(
                f"a classifier is a callable net(x_t, t) -> logits, got {type(net).__name__}"
            )
        self.net, self.schedule, self.time, self.quantize, self.channels, self.name = (
            net,
            schedule,
            time,
            quantize,
            channels,
            name,
        )
        self._clock = Clock(schedule, time, quantize)
        if isinstance(net, torch.nn.Module):
            net.eval().requires_grad_(False)

    def __repr__(self) -> str:
        return f"NoisyClassifier({self.name})"

    def to(self, device: torch.device | str) -> NoisyClassifier:
        """Moves the classifier in place, as ``torch.nn.Module.to``; returns itself."""
        if isinstance(self.net, torch.nn.Module):
            self.net.to(device)
        return self

    def __call__(self, x_t: Tensor, level: Level) -> Tensor:
        """log p(label | x_t) of every label, (B, classes), with gradients with respect to x_t."""
        place = self._clock(level)
        parameters = self.net.parameters() if isinstance(self.net, torch.nn.Module) else iter(())
        dtype = next((p.dtype for p in parameters), x_t.dtype)  # its own, whatever the state's
        x = (x_t * place.scale).to(dtype)
        return self.net(x, self._clock.times(place.time, x)).to(x_t.dtype).log_softmax(dim=1)

    def classes(self, shape: tuple[int, ...], **like: Any) -> int:
        """How many labels it tells apart, found by trying it on one empty image of ``shape`` (C, H,
        W).

        Raises:
            ValueError: it takes no time, takes other channels, or returns something else than (B,
                classes).
        """
        if self.channels is not None and self.channels != shape[0]:
            raise ValueError(
                f"{self.name} classifies images with {self.channels} channels, but the "
                f"network makes {shape[0]}"
            )
        x, level = torch.zeros(1, *shape, **like), self.schedule(self.schedule.t_max)
        call = self.net.forward if isinstance(self.net, torch.nn.Module) else self.net
        try:
            with contextlib.suppress(ValueError):  # a built-in callable has no signature
                inspect.signature(call).bind(x, x)
        except TypeError as error:
            raise ValueError(
                f"{self.name} cannot be called as classifier(x_t, t): {error}. Classifier "
                "guidance needs a classifier that was trained on "
                "noisy images and takes the time as well; one of clean images works on "
                "the estimate: ClassifierGuidance(log_prob=..., of='x0')"
            ) from error
        try:
            with torch.no_grad():
                log_p = self(x, level)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(
                f"{self.name} cannot be applied to a state of shape {tuple(x.shape)}: {error}"
            ) from error
        if log_p.ndim != 2 or len(log_p) != 1:
            raise ValueError(
                f"{self.name} must return logits (B, classes), got shape "
                f"{tuple(log_p.shape)} for one image"
            )
        return log_p.shape[1]

"""The options of a run."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from invdiff.sampling import Callback, Itinerary, Transition
from invdiff.schedules import Schedule

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True, eq=False)
class RunOptions:
    """Keyword arguments that :func:`invdiff.solve` and :func:`invdiff.generate` share.

    Args:
        steps: how many levels a straight run visits.
        seed: of the sampling noise. Image k of sample j draws a stream of its own, alone or in any
            batch.
        transition, itinerary: take the place of the method's own: an object, a registered name
            (``"heun"``), or a mapping of a name and its parameters.
        schedule: noise schedule to sample on, by default the network's: an object, a name, or a
            mapping. Any network runs on any schedule.
        start: (B, C, H, W) images that an itinerary with a late start begins from.
        batch_size: at most this many chains at once; None: all that fit into memory, estimated from
            two steps of one chain where that is not sure, and halved (with a warning) when memory
            runs out.
        image_ids: the k of each image, which its noise is derived from; by default 0..B-1.
        callback: called after each step with a :class:`~invdiff.sampling.Progress`.
        trajectory: keep the estimate of each step.
        progress: show a bar with ETA on stderr.
        dtype: of the state.
    """

    steps: int = 100
    seed: int = 0
    transition: Transition | str | Mapping[str, Any] | None = None
    itinerary: Itinerary | str | Mapping[str, Any] | None = None
    schedule: Schedule | str | Mapping[str, Any] | None = None
    start: Tensor | None = None
    batch_size: int | None = None
    image_ids: Sequence[int] | None = None
    callback: Callback | None = None
    trajectory: bool = False
    progress: bool = False
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if not isinstance(self.steps, numbers.Integral) or isinstance(self.steps, bool):
            raise TypeError(f"steps must be a whole number, got {self.steps!r}")
        object.__setattr__(self, "steps", int(self.steps))  # of NumPy as well
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    @classmethod
    def split(cls, given: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """The options among keyword arguments, and the others: conditions of the network."""
        known = {field.name for field in fields(cls)}
        options = {k: v for k, v in given.items() if k in known}
        return cls(**options), {k: v for k, v in given.items() if k not in known}


def takes_options(function: F) -> F:
    """Lists the options of a run in the signature of a function that ends in ``**options``, for
    ``help`` and completion."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [
        p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(RunOptions).parameters.values()
    ]
    cond = inspect.Parameter("cond", inspect.Parameter.VAR_KEYWORD, annotation=Any)
    function.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own, *options, cond]
    )
    return function

"""Skip-layer guidance (Hyung et al., CVPR 2025, arXiv:2411.18664; made known by Stable
Diffusion 3.5).

    x0 = x0(x_t) + s (x0(x_t) − x0~(x_t))

x0~ is the same network that leaves out some of its blocks: each hands on what it was given. With w
it is added to classifier-free guidance, as in ``pag``.

eps moves with x0; the network's clipping acts on the result. A block is run, and what it returns is
replaced by what it was given of the same shape: that works for every residual block, whatever it is
called, and a left-out block costs what it would have.

Symbols: s, the scale; w, that of classifier-free guidance. Published for Stable Diffusion 3.5
medium: ``layers=transformer_blocks.[789]``, s 2.8 with w 4, in the first fifth of the run
(``start``, ``stop``), which the network's structure is made in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from invdiff.guidance.degraded import Degraded
from invdiff.sampling import Between


@dataclass(frozen=True)
class SLG(Degraded):
    """See the module's docstring; the arguments are those of
    :class:`~invdiff.guidance.degraded.Degraded`."""

    s: Annotated[float, Between(0, 10)] = 2.8
    start: float = 0.01
    stop: float = 0.2

    @contextmanager
    def degraded(
        self, layers: Mapping[str, torch.nn.Module], net: torch.nn.Module
    ) -> Iterator[None]:
        handles = [
            layer.register_forward_hook(
                lambda _, args, kwargs, out, name=name: left_out(
                    name, (*args, *kwargs.values()), out
                ),
                with_kwargs=True,
            )
            for name, layer in layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def left_out(name: str, given: Sequence[Any], out: Any) -> Any:
    """What a block would return if it did nothing: of what it was given, in the form and the order
    of what it returns.

    Raises:
        ValueError: it changes shapes, or which is which cannot be told by them.
    """
    wanted = [out] if isinstance(out, Tensor) else list(out)
    tensors = [value for value in given if isinstance(value, Tensor)]
    found = [[v for v in tensors if o is not None and v.shape == o.shape] for o in wanted]
    several = sum(o is not None for o in wanted) > 1
    for o, fits in zip(wanted, found, strict=True):
        if o is not None and (not fits or (several and len(fits) > 1)):
            shapes = ", ".join(str(tuple(v.shape)) for v in tensors)
            raise ValueError(
                f"{name} cannot be left out: it is given {shapes} and returns "
                f"{tuple(o.shape)}, which is none or several of them; layers= names others"
            )
    own = [fits[0] if o is not None else None for o, fits in zip(wanted, found, strict=True)]
    return own[0] if isinstance(out, Tensor) else tuple(own)

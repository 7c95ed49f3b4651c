"""Guidance away from the same network made worse inside: the shape that PAG, SEG and skip-layer
guidance share.

    x0 = x0(x_t, c) + (w − 1) (x0(x_t, c) − x0(x_t, ∅)) + s (x0(x_t, c) − x0~(x_t, c))

x0~ is the network with some of its layers changed for that evaluation. The second term is
classifier-free guidance from the same predictions: three evaluations in a step, two with w = 1.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from invdiff.guidance.branches import Label, both, bound, compared
from invdiff.network import Denoiser, Prediction
from invdiff.problem import Measurement, Operator
from invdiff.sampling import Between, Denoise, Guidance, Setting, Step
from invdiff.sampling.step import tiled_all

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``attend(q, k, v)`` of (B, heads, N, channels) each, as torch's scaled dot-product attention."""


@dataclass(frozen=True)
class Degraded(Guidance):
    """See the module's docstring.

    Args:
        s: the scale of the guidance away from the degraded network; 0 is without.
        layers: which layers are degraded: a regular expression, or several, looked for in the names
            of the network's modules. A number in it is not the beginning of a longer one.
        w: the scale of classifier-free guidance; 1 is without.
        label: the class c for all images, or one for each; by default what the run itself gives the
            network.
        negative: the class in the place of the null class, or conditions, as in ``cfg``.
        start, stop: the shares of the run between which s acts, from start on and before stop.
        batched: both branches of classifier-free guidance in one call of the network.
        denoiser: the network whose layers are degraded, by default that of the run.
    """

    s: Annotated[float, Between(0, 10)] = 3.0
    layers: str | Sequence[str] = "mid"
    w: Annotated[float, Between(1, 10)] = 1.0
    label: Label | Mapping[str, Tensor] | None = None
    negative: Label | Mapping[str, Tensor] | None = None
    start: float = 0.0
    stop: float = 1.0
    batched: bool = True
    denoiser: Denoiser | None = None

    requires: ClassVar[type[Operator] | None] = None
    per_image: ClassVar[tuple[str, ...]] = ("label", "negative")
    scale: ClassVar[tuple[str, ...]] = ("s",)

    def __post_init__(self) -> None:
        if not isinstance(self.denoiser, Denoiser | None):
            raise ValueError(
                f"denoiser must be an invdiff.Denoiser, got {type(self.denoiser).__name__}; by "
                "default it is the network of the run"
            )
        if not 0 <= self.start <= self.stop <= 1:
            raise ValueError(
                "start and stop are shares of the run with 0 <= start <= stop <= 1, got "
                f"{self.start} and {self.stop}"
            )

    @property
    def sets(self) -> tuple[str, ...]:
        if self.w == 1:
            return () if self.label is None else ("label",)
        return tuple(self.negative) if isinstance(self.negative, Mapping) else ("label",)

    def bind(self, setting: Setting) -> Self:
        denoiser = self.denoiser or setting.denoiser
        if self.s != 0:
            self._modules(denoiser)
        given: tuple[Any, Any] = ({}, {})
        if self.sets:
            negative = None if self.w == 1 else self.negative
            given = compared(setting, self.label, negative, compares=self.w != 1)
        return replace(self, label=given[0], negative=given[1], denoiser=denoiser)

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Prediction:
        c, null = (bound(v, type(self).__name__) for v in (self.label, self.negative))
        if self.w == 1:
            good = p = denoise(x_t, step.t, clip_x0=False, **tiled_all(c, x_t))
        else:
            good, other = both(denoise, x_t, step, c, null, self.batched)
            p = good.move((self.w - 1) * (good.x0 - other.x0))
        if self.s != 0 and self.start <= step.index / step.count < self.stop:
            assert self.denoiser is not None
            with self.degraded(self._modules(self.denoiser), _module(self.denoiser)):
                worse = denoise(x_t, step.t, clip_x0=False, **tiled_all(c, x_t))
            p = p.move(self.s * (good.x0 - worse.x0))
        return p.clip()

    @abstractmethod
    def degraded(
        self, layers: Mapping[str, torch.nn.Module], net: torch.nn.Module
    ) -> AbstractContextManager[None]:
        """While it is entered, the layers of the network, by their names, are degraded."""

    def _modules(self, denoiser: Denoiser) -> dict[str, torch.nn.Module]:
        """The outermost modules that ``layers`` names.

        Raises:
            ValueError: none, or a network whose modules cannot be changed.
        """
        net, name = _module(denoiser), type(self).__name__
        if any(getattr(module, "gradient_checkpointing", False) for module in net.modules()):
            raise ValueError(
                f"{name} changes layers for one evaluation, which gradient checkpointing makes "
                "again later, without the change; load the network without "
                "gradient_checkpointing"
            )
        patterns = [self.layers] if isinstance(self.layers, str) else self.layers
        found: dict[str, torch.nn.Module] = {}
        for path, module in net.named_modules():
            skip = isinstance(module, torch.nn.ModuleList)  # is never run itself
            skip = skip or any(path.startswith(f"{outer}.") for outer in found)
            if not skip and any(re.search(rf"(?:{p})(?!\d)", path) for p in patterns):
                found[path] = module
        if not found:
            blocks = [n for n, m in net.named_modules() if isinstance(m, torch.nn.ModuleList)]
            raise ValueError(
                f"{denoiser.name} has no layers named {' or '.join(patterns)}, which {name} "
                f"degrades; layers= names them, e.g. one of {', '.join(blocks[:8]) or 'none'}"
            )
        return found


def _module(denoiser: Denoiser) -> torch.nn.Module:
    net = denoiser.net
    if not isinstance(net, torch.nn.Module) or hasattr(net, "_orig_mod"):
        raise ValueError(
            f"{denoiser.name} is not a module of PyTorch whose layers can be changed (a function, "
            "or compiled); load it as one, without compile"
        )
    return net


@contextmanager
def attending(
    layers: Mapping[str, torch.nn.Module], attend: Callable[[Tensor, Tensor, Tensor, Attend], Any]
) -> Iterator[None]:
    """While it is entered, the self-attention of some modules is ``attend(q, k, v, usual)``: every
    scaled dot-product attention inside them but for that of modules that say they are
    ``is_cross_attention``, or with other keys than queries.

    Raises:
        ValueError: they have none.
    """
    mode, handles = _Attention(attend), []
    for layer in layers.values():
        handles += mode.within(layer, "inside")
        for module in layer.modules():
            if getattr(module, "is_cross_attention", False):
                handles += mode.within(module, "across")
    try:
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()
    if not mode.changed:
        raise ValueError(
            f"no self-attention of {', '.join(layers)} ran as torch's "
            "scaled_dot_product_attention, so nothing was changed; layers= names others"
        )


class _Attention(TorchFunctionMode):
    """Attention inside modules, and not inside others, is another function."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor, Attend], Any]) -> None:
        super().__init__()
        self.attend = attend
        self.depth = {"inside": 0, "across": 0}
        self.changed = 0

    def within(self, module: torch.nn.Module, what: str) -> list[Any]:
        """Counts when the module is being run."""

        def add(by: int) -> None:
            self.depth[what] += by

        return [
            module.register_forward_pre_hook(lambda *_: add(1)),
            module.register_forward_hook(lambda *_: add(-1)),
        ]

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and self.depth["inside"]:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | given
            q, k, v = (named.pop(name) for name in ("query", "key", "value"))
            if not self.depth["across"] and q.shape[-2] == k.shape[-2]:
                self.changed += 1
                rest = {name: named[name] for name in given if name in named}
                more = args[3:]
                return self.attend(q, k, v, lambda q, k, v: func(q, k, v, *more, **rest))
        return func(*args, **given)

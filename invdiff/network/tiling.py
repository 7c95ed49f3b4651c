"""Tiled denoising: large images through a network in overlapping windows, in the memory of a few of
them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Tiled:
    """A network applied window by window; where windows overlap their outputs are blended linearly.

    Gradients are taken window by window too, each but the last evaluated once more for it, so
    memory stays flat there as well; a gradient of the gradient is refused. A window sees nothing
    beyond its border, so ``overlap`` should cover what the network looks at, and normalisation is
    over the window instead of the image.

    Args:
        net: ``net(x, t, **cond)``, x (B, C, H, W), output (B, C', H, W). Conditions that are images
            of x's size are cut as x is.
        size: side of a window, in entries of x; what is no larger than this is not cut.
        most: what a side may grow to where fewer windows then cover the image: 2 x 2 of 144 instead
            of 3 x 3 of 128 for 256 x 256, which takes little more than half of the time.
        unit: what grown sides divide by.
        overlap: entries that neighbours share, at least.
        batch: windows at once.
        larger: conditions that are images k times as large as x, and are cut with it, ``{name:
            k}``.
    """

    net: Callable[..., Tensor]
    size: int
    overlap: int
    batch: int = 1
    larger: Mapping[str, int] = field(default_factory=dict)
    most: int = 0
    unit: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.size or self.batch < 1:
            raise ValueError(
                "tiles need 0 <= overlap < size and at least one at once, got size "
                f"{self.size}, overlap {self.overlap}, {self.batch} at once"
            )

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if all(self._cut(n)[0] == 1 for n in x.shape[-2:]):
            return self.net(x, t, **cond)
        if torch.is_grad_enabled() and (
            others := [k for k, v in cond.items() if isinstance(v, Tensor) and v.requires_grad]
        ):
            raise ValueError(
                "in tiles, gradients are taken with respect to the state alone, not to "
                f"{', '.join(others)}: detach it, or no tile="
            )
        return _Blend.apply(self, x, t, cond)

    def windows(self, x: Tensor) -> Iterator[list[tuple[Window, Tensor]]]:
        """The windows of an image, ``batch`` at a time, each with the weights of its pixels; a
        pixel's weights add up to one."""
        rows, columns = self._spans(x, -2), self._spans(x, -1)
        part: list[tuple[Window, Tensor]] = []
        for row, row_weight in rows:
            for column, column_weight in columns:
                part.append(((row, column), row_weight[:, None] * column_weight))
                if len(part) == self.batch:
                    yield part
                    part = []
        if part:
            yield part

    def _spans(self, x: Tensor, dim: int) -> list[tuple[slice, Tensor]]:
        """Evenly spread spans of one length along a dimension, the first and the last at the
        border, with linear ramps."""
        n = x.shape[dim]
        count, size = self._cut(n)
        starts = [round(k * (n - size) / max(count - 1, 1)) for k in range(count)]
        inside = torch.arange(1, size + 1, dtype=x.dtype, device=x.device)
        ramp = torch.minimum(inside, inside.flip(0)).clamp(max=self.overlap + 1)
        total = torch.zeros(n, dtype=x.dtype, device=x.device)
        for start in starts:
            total[start : start + size] += ramp
        return [
            (slice(start, start + size), ramp / total[start : start + size]) for start in starts
        ]

    def _cut(self, n: int) -> tuple[int, int]:
        """How many windows cover n entries, and their side: as few as sides up to ``most`` allow,
        and then no larger than it takes."""
        most = max(self.size, self.most)
        count = 1 + max(0, -(-(n - most) // (most - self.overlap)))
        side = -(-(n + (count - 1) * self.overlap) // count)
        grown = -(-side // self.unit) * self.unit
        return count, min(n, max(self.size, grown))

    def evaluate(
        self,
        x: Tensor,
        windows: Tensor,
        t: Tensor,
        cond: dict[str, Any],
        part: list[tuple[Window, Tensor]],
    ) -> Tensor:
        """The network on some windows of x, stacked along the batch; t and cond are those of the
        whole images."""

        def cut(value: Any, times: int | None = None) -> Any:
            if not isinstance(value, Tensor) or value.ndim == 0:
                return value
            if value.ndim == 4 and times is not None:
                return _stack(
                    _filled(value, times * x.shape[-2], times * x.shape[-1]),
                    [(_scaled(w, times), v) for w, v in part],
                )
            if value.ndim == 4 and value.shape[-2:] == x.shape[-2:]:
                return _stack(value, part)
            return value.repeat(len(part), *(1,) * (value.ndim - 1))

        return self.net(windows, cut(t), **{k: cut(v, self.larger.get(k)) for k, v in cond.items()})


def tiled(
    net: Callable[..., Tensor],
    tile: int | None,
    overlap: int | None,
    batch: int | None,
    *,
    multiple: int = 1,
    factor: int = 1,
    larger: Mapping[str, int],
    fixed: bool = False,
) -> Callable[..., Tensor]:
    """A network in windows of ``tile`` pixels, of which an entry of the state stands for
    ``factor``; the network itself where tile is None.

    Args:
        tile: side of a window, in pixels of the images; a multiple of ``factor * multiple``.
        overlap: pixels that neighbours share; None: a quarter of ``tile``.
        batch: windows at once; None: 1.
        multiple: what the sides of a state must divide by.
        larger: as in :class:`Tiled`.
        fixed: the network takes one size only; else windows may be up to a quarter larger.
    """
    for name, value in {"tile": tile, "tile_overlap": overlap, "tile_batch": batch}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} is a whole number, got {value!r}")
    if tile is None:
        if (overlap, batch) != (None, None):
            raise ValueError(
                "tile_overlap and tile_batch say how images are cut; give tile= as well"
            )
        return net
    unit = multiple * factor
    if tile % unit or tile < 1:
        raise ValueError(
            f"tile must be a multiple of {unit}, which the network needs the sides of "
            f"images to be, got {tile}"
        )
    shared = tile // 4 if overlap is None else overlap
    once = 1 if batch is None else batch
    size = tile // factor
    most = size if fixed else 5 * size // 4 // multiple * multiple
    return Tiled(net, size, shared // factor, once, larger, most, multiple)


class _Blend(torch.autograd.Function):
    """The weighted sum of the windows' outputs, and its gradient, holding the graph of one batch of
    windows at a time: from the start that of the last, which so is not evaluated again."""

    @staticmethod
    def forward(ctx: Any, tiled: Tiled, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tiled, ctx.t, ctx.cond, ctx.kept = tiled, t, cond, None
        ctx.autocast = (
            torch.is_autocast_enabled(x.device.type),
            torch.get_autocast_dtype(x.device.type),
        )
        out: Tensor | None = None
        parts = list(tiled.windows(x))
        for part in parts:
            stacked = _stack(x, part)
            keep = ctx.needs_input_grad[1] and part is parts[-1]
            with torch.set_grad_enabled(keep):
                pieces = tiled.evaluate(x, stacked.requires_grad_(keep), t, cond, part)
            if keep:
                ctx.kept = stacked, pieces
            pieces = pieces.detach()
            for ((row, column), weight), piece in zip(part, pieces.chunk(len(part)), strict=True):
                if out is None:
                    out = x.new_zeros(len(x), piece.shape[1], *x.shape[-2:])
                out[..., row, column] += weight * piece
        assert out is not None
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
        (x,) = ctx.saved_tensors
        total = torch.zeros_like(x)
        enabled, dtype = ctx.autocast
        kept, ctx.kept = ctx.kept, None
        for part in reversed(list(ctx.tiled.windows(x))):
            if kept is None:
                with torch.enable_grad(), torch.autocast(x.device.type, dtype, enabled=enabled):
                    stacked = _stack(x, part).requires_grad_()
                    pieces = ctx.tiled.evaluate(x, stacked, ctx.t, ctx.cond, part)
            else:
                (stacked, pieces), kept = kept, None
            outer = torch.cat([weight * grad[..., row, column] for (row, column), weight in part])
            (inner,) = torch.autograd.grad(pieces, stacked, outer.to(pieces.dtype))
            del stacked, pieces
            for ((row, column), _), piece in zip(part, inner.chunk(len(part)), strict=True):
                total[..., row, column] += piece
        return None, total, None, None


def _stack(x: Tensor, part: list[tuple[Window, Tensor]]) -> Tensor:
    return torch.cat([x[..., row, column] for (row, column), _ in part])


def _scaled(window: Window, times: int) -> Window:
    rows, columns = (slice(s.start * times, s.stop * times) for s in window)
    return rows, columns


def _filled(image: Tensor, height: int, width: int) -> Tensor:
    """An image of a state that was padded, below and to the right, to the network's multiple."""
    missing = height - image.shape[-2], width - image.shape[-1]
    if missing == (0, 0):
        return image
    if min(missing) < 0:
        raise ValueError(
            f"an image condition of {tuple(image.shape[-2:])} is larger than the "
            f"{(height, width)} that fit the state"
        )
    return F.pad(image, (0, missing[1], 0, missing[0]), mode="replicate")

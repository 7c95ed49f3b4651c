"""The architecture of an ADM network, read from the names and shapes of its parameters.

A state dict does not determine:

    heads            how the channels of an attention are divided; 64 channels a head as published,
                     or a number of heads
    attention order  whether queries, keys and values of one head lie together (the older layout) or
                     those of all heads
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

POOLS = ("adaptive", "attention", "spatial", "spatial_v2")


@dataclass(frozen=True)
class Architecture:
    """The architecture of an ADM network.

    Attributes:
        in_channels, out_channels: of the network as a whole; of a classifier ``out_channels`` is
            its number of classes.
        model_channels: width of the time embedding, 4 times that inside.
        channels: of each resolution, finest first.
        blocks: residual blocks per resolution.
        attention: the resolutions with self-attention, 0 the finest; the middle always has it.
        rows: of the table of class embeddings; None without.
        scale_shift: the time embedding scales and shifts the second normalisation, instead of being
            added before it.
        resample: how resolutions are left: ``"block"`` (a residual block), ``"conv"`` (a
            convolution) or ``"plain"`` (no parameters).
        head_channels, heads: one of them is None.
        new_order: attention layout, see the module's docstring.
        pool: the head of a classifier, one of POOLS; None: a denoiser.
        pool_size: side of the image at the attention pooling.
    """

    in_channels: int
    out_channels: int
    model_channels: int
    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    rows: int | None = None
    scale_shift: bool = True
    resample: str = "block"
    head_channels: int | None = 64
    heads: int | None = None
    new_order: bool = False
    pool: str | None = None
    pool_size: int | None = None

    @property
    def multiple(self) -> int:
        """The number that image sides must divide by."""
        return 2 ** (len(self.channels) - 1)

    def heads_of(self, channels: int) -> int:
        """Number of heads of an attention.

        Raises:
            ValueError: the channels cannot be divided so.
        """
        by, what = (
            (self.heads, "num_heads")
            if self.heads is not None
            else (self.head_channels, "num_head_channels")
        )
        assert by is not None
        if channels % by:
            raise ValueError(
                f"an attention over {channels} channels cannot be divided by {what}={by}; "
                "the state dict does not determine how it is divided: give num_heads= or "
                "num_head_channels="
            )
        return by if self.heads is not None else channels // by


class _Names:
    """Questions about the parameters' names."""

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = shapes

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.shapes)

    def indices(self, prefix: str) -> list[int]:
        """The numbers that follow a prefix."""
        return sorted(
            {int(n[len(prefix) :].split(".")[0]) for n in self.shapes if n.startswith(prefix)}
        )


def architecture(shapes: Mapping[str, Sequence[int]], blocks: int | None = None) -> Architecture:
    """The architecture that a state dict of these names and shapes belongs to; heads and attention
    order are left at their defaults.

    Args:
        blocks: residual blocks per resolution, where a classifier's state dict fits several
            numbers.

    Raises:
        KeyError: the name of a parameter that is missing and without which nothing can be said.
        ValueError: the names contradict each other.
    """
    names = _Names(shapes)
    count = max(names.indices("input_blocks.")) + 1
    wide = {
        i: shapes[f"input_blocks.{i}.0.out_layers.0.weight"][0]
        for i in range(1, count)
        if names.has(f"input_blocks.{i}.0.in_layers")
    }
    attends = {i for i in range(count) if names.has(f"input_blocks.{i}.1.")}
    resample, downs = _downs(names, count, wide, attends, blocks)
    starts = [0, *downs]
    pool, size = None, None
    if names.has("output_blocks."):
        out = shapes["out.2.weight"][0]
    else:
        pool, size, out = _head(shapes)
    hidden = shapes["middle_block.0.out_layers.0.weight"][0]
    return Architecture(
        in_channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=out,
        model_channels=shapes["time_embed.0.weight"][1],
        channels=tuple(wide[start + 1] for start in starts),
        blocks=count // len(starts) - 1,
        attention=tuple(level for level, start in enumerate(starts) if start + 1 in attends),
        rows=shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
        scale_shift=shapes["middle_block.0.emb_layers.1.weight"][0] == 2 * hidden,
        resample=resample,
        pool=pool,
        pool_size=size,
    )


def _downs(
    names: _Names, count: int, wide: Mapping[int, int], attends: set[int], blocks: int | None
) -> tuple[str, list[int]]:
    """(how resolutions are left, the input blocks that leave one)."""
    if downs := [i for i in range(1, count) if i not in wide]:
        resample = "conv" if names.has(f"input_blocks.{downs[0]}.0.op") else "plain"
        options = [downs]
    else:  # residual blocks, which look like any other
        resample, first = "block", names.shapes["input_blocks.0.0.weight"][0]
        options = [
            downs
            for n in range(1, count)
            if count % (n + 1) == 0
            and blocks in (None, n)
            and _consistent(downs := list(range(n + 1, count, n + 1)), count, wide, attends, first)
        ]
        if names.has("output_blocks."):
            ups = sum(
                any(names.has(f"output_blocks.{i}.{j}.in_layers") for j in (1, 2))
                for i in names.indices("output_blocks.")
            )
            options = [o for o in options if len(o) == ups]
    if len(options) != 1 or count % (len(options[0]) + 1):
        fits = "no" if not options else "more than one"
        raise ValueError(
            f"{fits} number of residual blocks per resolution fits its {count} input "
            "blocks; give num_res_blocks= if a classifier fits several"
        )
    return resample, options[0]


def _consistent(
    downs: Sequence[int], count: int, wide: Mapping[int, int], attends: set[int], first: int
) -> bool:
    """Whether blocks that leave a resolution keep its width and attend to nothing, and all others
    of a resolution are alike."""
    ends = [0, *downs, count]
    for start, stop in pairwise(ends):
        level = range(start + 1, stop)
        if len({wide[i] for i in level}) != 1 or len({i in attends for i in level}) != 1:
            return False
    return all(wide[d] == wide[d - 1] and d not in attends for d in downs)


def _head(shapes: Mapping[str, Sequence[int]]) -> tuple[str, int | None, int]:
    """(pool, its size, classes) of a classifier."""
    if "out.2.positional_embedding" in shapes:
        return (
            "attention",
            math.isqrt(shapes["out.2.positional_embedding"][1] - 1),
            shapes["out.2.c_proj.weight"][0],
        )
    if len(shapes["out.0.weight"]) == 1:
        return "adaptive", None, shapes["out.3.weight"][0]
    if "out.2.weight" in shapes:
        return "spatial", None, shapes["out.2.weight"][0]
    return "spatial_v2", None, shapes["out.3.weight"][0]


def divided(
    a: Architecture, num_heads: int | None, num_head_channels: int | None, new_order: bool | None
) -> Architecture:
    """The architecture with its attention divided as said."""
    if num_heads is not None and num_head_channels is not None:
        raise ValueError("give num_heads or num_head_channels, not both")
    if num_heads is not None:
        a = replace(a, heads=num_heads, head_channels=None)
    elif num_head_channels is not None:
        a = replace(a, heads=None, head_channels=num_head_channels)
    return a if new_order is None else replace(a, new_order=new_order)

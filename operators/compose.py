r"""Composition, one operator after the other: ``y = A_n(… A_1(x))``; in Python also ``A2 @ A1``.

    invdiff solve --operator compose \
      'operator.parts=[{name: blur, sigma: 2}, {name: sr, factor: 4}]'

Parts stand in the order in which they act. Where all of them are linear the composition is: A* =
A_1* … A_n* exactly, pseudo-inverse and prox by conjugate gradients (relative tolerance 1e-6, at
most 100 iterations). A measurement is recorded and saved with all its parts.

Symbols: x image of the first part, y measurement of the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from invdiff.problem import Operator
from invdiff.problem.composite import Part, composed
from invdiff.problem.operator import Shape


def compose(
    parts: Sequence[Part] = ("blur", "sr"),
    *,
    shape: Shape | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Operator:
    """The composition of some operators.

    Args:
        parts: in the order in which they act: operators, registered names, or mappings of a
            ``name`` and its parameters; on the command line ``'operator.parts=[{name: blur, sigma:
            2}, {name: sr, factor: 4}]'``.
        shape: of the images, where ``state`` holds the tensors already.
    """
    return composed(parts, shape, state)

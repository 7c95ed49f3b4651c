"""Operators by registered name, and deepinv's physics as operators."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.plugins.registry import call, load
from invdiff.problem.operator import Operator, Shape

PHYSICS = ("check", "complex_images")
"""Parameters that go with a Physics object as well."""


def make_operator(operator: str | Any, **parameters: Any) -> Operator:
    """An operator by registered name with its parameters, or from a ``deepinv.physics.Physics``
    object. NumPy arrays among the parameters become tensors.

    Args:
        operator: a registered name, a member of a registered family such as ``"deepinv:MRI"``, or a
            Physics, which takes ``check`` (False: a linear one is not tested when it is bound) and
            ``complex_images`` (True: A* gives complex images).

    Examples:
        >>> import torch, invdiff
        >>> operator = invdiff.make_operator("sr", factor=4)
        >>> operator(torch.rand(1, 3, 16, 16)).shape
        torch.Size([1, 3, 4, 4])
    """
    if isinstance(operator, str):
        parameters = {
            k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v
            for k, v in parameters.items()
        }
        return call(load("operators", operator), f"operator {operator!r}", parameters)
    if parameters and (isinstance(operator, Operator) or not set(parameters) <= set(PHYSICS)):
        raise TypeError(
            f"parameters go with an operator's name; {type(operator).__name__} is an object already"
        )
    return as_operator(operator, **parameters)


def remade(
    name: str, parameters: Mapping[str, Any], shape: Shape, state: Mapping[str, Tensor]
) -> Operator:
    """The registered operator as it was bound: with its tensors, which are not made again."""
    factory = load("operators", name)
    if "state" in inspect.signature(factory).parameters:
        return factory(**parameters, shape=shape, state=state)
    return factory(**parameters)._changed(shape=shape, state=dict(state))


def as_operator(operator: Any, **options: bool) -> Operator:
    """Passes an Operator through and adapts a ``deepinv.physics.Physics``, with the options of
    :func:`~invdiff.problem.physics.from_physics`."""
    if isinstance(operator, Operator):
        return operator
    if any(base.__module__.startswith("deepinv.physics") for base in type(operator).__mro__):
        from invdiff.problem.physics import from_physics

        return from_physics(operator, **options)
    raise TypeError(
        "an operator is a registered name, an invdiff Operator or a deepinv Physics, got "
        f"{type(operator).__name__}"
    )

"""The problem: a measurement ``y = A(x) + sigma n`` and its forward operator A."""

from invdiff.problem.linear import LinearOperator
from invdiff.problem.make import make_operator
from invdiff.problem.measurement import Measurement
from invdiff.problem.operator import Operator
from invdiff.problem.separable import SeparableOperator
from invdiff.problem.spectral import DiagonalOperator, SpectralOperator

__all__ = [
    "DiagonalOperator",
    "LinearOperator",
    "Measurement",
    "Operator",
    "SeparableOperator",
    "SpectralOperator",
    "make_operator",
]

"""Runs: a method made complete and checked, then sampled."""

from invdiff.solving.inversion import interpolate, invert
from invdiff.solving.likelihood import Likelihood, log_likelihood
from invdiff.solving.options import RunOptions
from invdiff.solving.restoration import Restoration
from invdiff.solving.solve import generate, solve

__all__ = [
    "Likelihood",
    "Restoration",
    "RunOptions",
    "generate",
    "interpolate",
    "invert",
    "log_likelihood",
    "solve",
]

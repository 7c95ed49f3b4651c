"""Runs: a method made complete and checked, then sampled."""

from invdiff.solving.inversion import interpolate, invert
from invdiff.solving.options import RunOptions
from invdiff.solving.restoration import Restoration
from invdiff.solving.solve import generate, solve

__all__ = ["Restoration", "RunOptions", "generate", "interpolate", "invert", "solve"]

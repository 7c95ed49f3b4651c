"""Itineraries: which noise levels a run visits, in which order."""

from invdiff.itineraries.jumps import Jumps
from invdiff.itineraries.late_start import LateStart
from invdiff.itineraries.straight import Straight

__all__ = ["Jumps", "LateStart", "Straight"]

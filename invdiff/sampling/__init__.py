"""The one sampling loop and the pieces that it runs.

    for i, (t, s) in enumerate(pairwise(levels)):
        x = transition(predict, x, Step(i, t, s, ...), measurement)

Nothing in it knows a method's name.
"""

from invdiff.sampling.between import Between, searched
from invdiff.sampling.gradients import data_gradient, gradient, traced
from invdiff.sampling.loop import Callback, NonFiniteError, Progress, sample
from invdiff.sampling.method import Method, make_method, make_piece
from invdiff.sampling.pieces import (
    Guidance,
    Itinerary,
    Piece,
    Setting,
    StatefulGuidance,
    StatefulTransition,
    Transition,
    Wrapping,
    renoise,
)
from invdiff.sampling.step import Denoise, Step

__all__ = [
    "Between",
    "Callback",
    "Denoise",
    "Guidance",
    "Itinerary",
    "Method",
    "NonFiniteError",
    "Piece",
    "Progress",
    "Setting",
    "StatefulGuidance",
    "StatefulTransition",
    "Step",
    "Transition",
    "Wrapping",
    "data_gradient",
    "gradient",
    "make_method",
    "make_piece",
    "renoise",
    "sample",
    "searched",
    "traced",
]

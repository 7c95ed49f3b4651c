"""A method made complete: every piece filled in, checked against each other and made ready for a
run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from invdiff.itineraries import Straight
from invdiff.sampling import (
    Guidance,
    Itinerary,
    Method,
    Setting,
    StatefulGuidance,
    Transition,
    make_method,
    make_piece,
)
from invdiff.transitions import DDPM


@dataclass(frozen=True)
class Plan:
    """A method with nothing left open.

    Attributes:
        chain: the guidances, first nearest to the network.
        transition: how the next state is drawn.
        itinerary: which levels are visited.
    """

    chain: tuple[Guidance, ...]
    transition: Transition
    itinerary: Itinerary

    @property
    def method(self) -> Method:
        """The plan as a method, which :func:`invdiff.solve` takes."""
        return Method(self.chain, self.transition, self.itinerary)

    @property
    def particles(self) -> bool:
        """Whether the samples of an image are one particle system to any piece."""
        return any(piece.particles for piece in (*self.chain, self.transition))

    @property
    def posterior(self) -> bool:
        """Whether the samples of an image are meant as draws from its posterior."""
        return all(piece.posterior for piece in (*self.chain, self.transition))

    @property
    def one_sigma(self) -> str | None:
        """The name of a piece that needs one sigma per image; None where there is none."""
        pieces = (*self.chain, self.transition)
        return next((type(piece).__name__ for piece in pieces if piece.one_sigma), None)

    def bind(self, setting: Setting) -> Plan:
        """The plan made ready for a run.

        Raises:
            ValueError: what cannot work, before any sampling; names the pieces.
        """
        _check_order(self.chain)
        for guidance in self.chain:
            if isinstance(guidance, StatefulGuidance) and self.transition.predictions > 1:
                raise ValueError(
                    f"{type(guidance).__name__} keeps a state between steps, but "
                    f"{type(self.transition).__name__} predicts more than once a step; "
                    "use a transition that predicts once, e.g. DDIM"
                )
        return dataclasses.replace(
            self,
            chain=tuple(g.bind(setting) for g in self.chain),
            transition=self.transition.bind(setting),
        )

    def select(self, images: Sequence[int]) -> Plan:
        """A bound plan for some of the images."""
        return dataclasses.replace(
            self,
            chain=tuple(g.select(images) for g in self.chain),
            transition=self.transition.select(images),
        )


def complete(method: Any, transition: Any = None, itinerary: Any = None) -> Plan:
    """A plan of a method: what is given here, else the method's own, else the default.

    Args:
        method: as :func:`~invdiff.sampling.make_method` takes it.
        transition, itinerary: take the place of the method's own; objects, names or mappings, as
            :func:`~invdiff.sampling.make_piece` takes them.
    """
    method = make_method(method)
    if transition is None:
        chosen = method.transition or DDPM()
    else:
        chosen = method.around(make_piece(transition, Transition))
    way = method.itinerary if itinerary is None else make_piece(itinerary, Itinerary)
    return Plan(method.chain, chosen, way or Straight())


def _check_order(chain: Sequence[Guidance]) -> None:
    """Guidances that condition the network stand nearest to it, and each condition is given
    once."""
    for position, guidance in enumerate(chain):
        for nearer in chain[:position] if guidance.sets else ():
            name, other = type(guidance).__name__, type(nearer).__name__
            twice = [condition for condition in guidance.sets if condition in nearer.sets]
            if twice:
                raise ValueError(
                    f"{other} and {name} both give the network its {twice[0]}, and only the "
                    "nearest would be heard; leave one out"
                )
            if not nearer.sets:
                raise ValueError(
                    f"{name} conditions the network, so it stands nearer to it than "
                    f"{other}, which works on the prediction; put it first"
                )

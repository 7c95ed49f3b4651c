"""A restoration method = guidance x transition x itinerary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from invdiff.itineraries import Straight
from invdiff.measurement import Measurement
from invdiff.registry import call, load
from invdiff.sampling import Guidance, Itinerary, Transition
from invdiff.transitions import DDPM


@dataclass(frozen=True)
class Method:
    """Bundles the three; what is None is left to the default: ancestral sampling, straight down.

    Args:
        guidance: none, one, or a chain of which the first stands nearest to the network.
        transition: how the next state is drawn.
        itinerary: which levels are visited.
    """

    guidance: Guidance | Sequence[Guidance] | None = None
    transition: Transition | None = None
    itinerary: Itinerary | None = None

    @property
    def chain(self) -> tuple[Guidance, ...]:
        """The guidances as a tuple, first nearest to the network."""
        if self.guidance is None:
            return ()
        return (self.guidance,) if isinstance(self.guidance, Guidance) else tuple(self.guidance)

    def completed(self, transition: Transition | None, itinerary: Itinerary | None) -> Method:
        """The method with every piece filled in: what is given here, else its own, else the default."""
        for piece, kind in ((transition, Transition), (itinerary, Itinerary)):
            if piece is not None and not isinstance(piece, kind):
                raise TypeError(f"a {kind.__name__.lower()} is an object such as invdiff.transitions.DDIM(eta=0.5), got {piece!r}")
        return Method(self.chain, transition or self.transition or DDPM(), itinerary or self.itinerary or Straight())

    def check(self, measurement: Measurement | None) -> None:
        """Refuses what cannot work, before any sampling. Call it on a completed method.

        Raises:
            ValueError: names the piece, what it requires and what it was given.
        """
        assert self.transition is not None
        pieces: tuple[Guidance | Transition, ...] = (*self.chain, self.transition)
        for piece in pieces:
            if piece.requires is None:
                continue
            name = type(piece).__name__
            if measurement is None:
                raise ValueError(f"{name} restores a measurement, but there is none: use it with solve, or generate with another method")
            if not isinstance(measurement.operator, piece.requires):
                raise ValueError(
                    f"{name} requires a {piece.requires.__name__}, but {type(measurement.operator).__name__} is not one; choose another method or operator"
                )
        for guidance in self.chain:
            if guidance.stateful and self.transition.predictions > 1:
                raise ValueError(
                    f"{type(guidance).__name__} keeps memory between steps, but {type(self.transition).__name__} predicts more than once a step; "
                    "use a transition that predicts once, e.g. DDIM"
                )


def make_method(method: Any, **parameters: Any) -> Method:
    """A Method from a registered name with its parameters, from a Method, Guidance, Transition or Itinerary object, or
    from a list of these (the first stands nearest to the network).

    Raises:
        ValueError: an unknown name or parameter; two different transitions or itineraries in a list.
    """
    if isinstance(method, str):
        made = call(load("guidance", method), f"method {method!r}", parameters)
        return make_method(made)
    if parameters:
        raise TypeError(f"parameters go with a method's name; got a {type(method).__name__} and {', '.join(parameters)}")
    match method:
        case Method():
            return method
        case Guidance():
            return Method(guidance=method)
        case Transition():
            return Method(transition=method)
        case Itinerary():
            return Method(itinerary=method)
        case list() | tuple():
            return _chain([make_method(m) for m in method])
    raise TypeError(
        f"a method is a registered name, a Method, Guidance, Transition or Itinerary, or a list of these; got {type(method).__name__}"
    )


def _chain(methods: Sequence[Method]) -> Method:
    pieces: dict[str, Any] = {}
    for kind in ("transition", "itinerary"):
        given = [getattr(m, kind) for m in methods if getattr(m, kind) is not None]
        if any(piece != given[0] for piece in given):
            raise ValueError(f"a chain has room for one {kind}, got {' and '.join(map(repr, given))}; give {kind}= to solve to choose")
        pieces[kind] = given[0] if given else None
    return Method(tuple(g for m in methods for g in m.chain), **pieces)


def describe(piece: Any) -> Any:
    """A piece of a method as plain data, for records: ``{"name": "DPS", "zeta": 1.0}``."""
    if isinstance(piece, tuple | list):
        return [describe(p) for p in piece]
    if dataclasses.is_dataclass(piece) and not isinstance(piece, type):
        return {"name": type(piece).__name__} | {f.name: describe(getattr(piece, f.name)) for f in dataclasses.fields(piece)}
    return piece if isinstance(piece, str | int | float | bool | None) else repr(piece)

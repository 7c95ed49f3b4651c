"""A restoration method = guidance x transition x itinerary."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, get_type_hints

import torch
from torch import Tensor

from invdiff.plugins.registry import call, list_plugins, load
from invdiff.sampling.pieces import Guidance, Itinerary, Transition, Wrapping

P = TypeVar("P", Transition, Itinerary)


@dataclass(frozen=True)
class Method:
    """Bundles the three; what is None is left to the default: ancestral sampling, straight down.

    Args:
        guidance: none, one, or a chain of which the first stands nearest to the network.
        transition: how the next state is drawn.
        itinerary: which levels are visited.

    Examples:
        >>> import invdiff
        >>> from invdiff.guidance.dps import DPS
        >>> from invdiff.transitions import Heun
        >>> method = invdiff.Method(DPS(zeta=2.0), Heun())
        >>> method.transition
        Heun(s_churn=0.0, s_min=0.0, s_max=inf, s_noise=1.0)
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

    def around(self, chosen: Transition) -> Transition:
        """The transition of a run for which ``chosen`` is asked: the method's own one around it,
        or that one in its place.

        Raises:
            ValueError: the method's own one is all that reads the measurement, and would be gone.
        """
        own = self.transition
        if own is None:
            return chosen
        if own.requires is not None and not self.chain and not isinstance(own, Wrapping):
            name = type(own).__name__
            raise ValueError(
                f"{name} is itself the transition that uses the measurement, and {chosen} would "
                "take its place; leave that out"
            )
        return own.around(chosen)


def make_method(method: Any, **parameters: Any) -> Method:
    """A Method from a registered name with its parameters, from a Method, Guidance, Transition or
    Itinerary object, or from a list of these (the first stands nearest to the network).

    Raises:
        ValueError: an unknown name or parameter; two different transitions or itineraries in a
            list.

    Examples:
        >>> import invdiff
        >>> invdiff.make_method("diffpir", lmbda=0.5).chain[0].lmbda
        0.5
    """
    if isinstance(method, str):
        made = call(load("guidance", method), f"method {method!r}", parameters)
        return make_method(made)
    if parameters:
        raise TypeError(
            f"parameters go with a method's name; got a {type(method).__name__} and "
            f"{', '.join(parameters)}"
        )
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
    given = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
    raise TypeError(
        "a method is a registered name, a Method, Guidance, Transition or Itinerary, or a "
        f"list of these; got {given}"
    )


def make_piece(given: Any, kind: type[P]) -> P:
    """A transition or an itinerary from an object, which is passed through, a registered name, or a
    mapping of a name and its parameters, such as ``{"name": "ddim", "eta": 0.5}``.

    Args:
        kind: :class:`Transition` or :class:`Itinerary`.

    Raises:
        ValueError: an unknown name or parameter.
        TypeError: anything else.
    """
    if isinstance(given, kind):
        return given
    what, group, example = _KINDS[kind]
    parameters = {"name": given} if isinstance(given, str) else given
    if not isinstance(parameters, Mapping):
        raise TypeError(f"{what} is a name or an object such as {example}, got {given!r}")
    name = parameters.get("name")
    if not isinstance(name, str):
        raise ValueError(
            f"{what} is given by its name, one of {', '.join(list_plugins(group))}, with its "
            f"parameters; got {dict(parameters)}"
        )
    factory = load(group, name)
    hints = get_type_hints(factory)
    values = {key: value for key, value in parameters.items() if key != "name"}
    for key, value in values.items():  # pieces within pieces, such as a corrector's predictor
        if hints.get(key) in _KINDS and isinstance(value, str | Mapping):
            values[key] = make_piece(value, hints[key])
    return call(factory, f"{what.split()[-1]} {name!r}", values)


_KINDS: dict[Any, tuple[str, str, str]] = {
    Transition: ("a transition", "transitions", "invdiff.transitions.DDIM(eta=0.5)"),
    Itinerary: ("an itinerary", "itineraries", "invdiff.itineraries.Jumps(length=10)"),
}


def _chain(methods: Sequence[Method]) -> Method:
    transition: Transition | None = None
    for given in (m.transition for m in methods if m.transition is not None):
        if transition is None or _same(given, transition):
            transition = given
        elif isinstance(given, Wrapping) and type(given) is not type(transition):
            transition = given.around(transition)
        elif isinstance(transition, Wrapping) and type(given) is not type(transition):
            transition = transition.around(given)
        else:
            _refuse("transition", transition, given)
    itinerary: Itinerary | None = None
    for way in (m.itinerary for m in methods if m.itinerary is not None):
        itinerary = (
            way
            if itinerary is None or _same(way, itinerary)
            else _refuse("itinerary", itinerary, way)
        )
    return Method(tuple(g for m in methods for g in m.chain), transition, itinerary)


def _same(a: Any, b: Any) -> bool:
    """Equality of pieces whose fields may be tensors, which == does not compare as a whole."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and a.device == b.device and torch.equal(a, b))
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        return all(_same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return type(a) is type(b) and bool(a == b)


def _refuse(kind: str, *given: Any) -> NoReturn:
    raise ValueError(
        f"a chain has room for one {kind}, got {' and '.join(map(repr, given))}; give "
        f"{kind}= to solve to choose"
    )


def describe(piece: Any) -> Any:
    """A piece of a method as plain data, for records: ``{"name": "DPS", "zeta": 1.0}``."""
    if isinstance(piece, Mapping):
        return {name: describe(value) for name, value in piece.items()}
    if isinstance(piece, tuple | list):
        return [describe(p) for p in piece]
    if dataclasses.is_dataclass(piece) and not isinstance(piece, type):
        return {"name": type(piece).__name__} | {
            f.name: describe(getattr(piece, f.name)) for f in dataclasses.fields(piece)
        }
    if isinstance(piece, Tensor):
        return (
            piece.tolist()
            if piece.numel() <= 1000 and not piece.is_meta
            else f"tensor of shape {tuple(piece.shape)}"
        )
    if callable(piece) and hasattr(piece, "__qualname__"):
        return f"{piece.__module__}.{piece.__qualname__}"
    return piece if isinstance(piece, str | int | float | bool | None) else repr(piece)

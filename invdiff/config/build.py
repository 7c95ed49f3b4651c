"""Objects from configurations, through the registries."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from invdiff.plugins.registry import list_plugins

if TYPE_CHECKING:
    from invdiff.problem import Operator
    from invdiff.sampling import Method, Transition


def build_operator(config: dict[str, Any]) -> Operator:
    """The operator that a configuration describes."""
    from invdiff.problem import make_operator

    return make_operator(config["operator"]["name"], **_parameters(config["operator"]))


def build_method(config: dict[str, Any], default: Transition | None = None) -> Method:
    """The method that a configuration describes, with every piece filled in; ``default`` where
    nobody chooses the transition."""
    from invdiff.sampling import make_method
    from invdiff.solving.plan import complete

    chain = [make_method(g["name"], **_parameters(g)) for g in config["guidance"]]
    transition, itinerary = (make_piece(config[kind], kind) for kind in ("transition", "itinerary"))
    if len(chain) > 1 and (
        transition or itinerary
    ):  # what is chosen here settles what the chain disagrees about
        chain = [
            replace(
                m,
                transition=m.around(transition) if transition else m.transition,
                itinerary=None if itinerary else m.itinerary,
            )
            for m in chain
        ]
    made = make_method(chain) if len(chain) > 1 else chain[0]
    if made.transition is None and transition is None:
        transition = default
    return complete(made, transition, itinerary).method


def _parameters(node: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in node.items() if k != "name"}


def make_piece(node: dict[str, Any] | str | None, kind: str) -> Any:
    """A ``"transition"`` or ``"itinerary"`` from its name, or from a mapping of its name and
    parameters; None stays None."""
    from invdiff.sampling import Itinerary, Transition
    from invdiff.sampling import make_piece as made

    if node is None:
        return None
    name = node.get("name") if isinstance(node, dict) else node
    if not isinstance(name, str):
        group = {"transition": "transitions", "itinerary": "itineraries"}[kind]
        raise ValueError(
            f"say which {kind} is meant: {kind}=NAME with one of {', '.join(list_plugins(group))}"
        )
    return made(node, Transition) if kind == "transition" else made(node, Itinerary)

"""SDEdit (Meng et al., ICLR 2022, arXiv:2108.01073, algorithms 1 and 2).

    x_t0 = alpha_t0 y + sigma_t0 z,   then ancestral steps from t0 to the clean image

K times, y being the image of the time before. The guide y keeps what the noise of level t0 leaves
of it, and the prior fills in the rest. It is made from the measurement once, which is not looked at
again: a large t0 is realistic, a small one faithful.

Symbols: t0 (``strength``), the share of the itinerary that is run, 0.3 to 0.6 in the paper; K
(``repeats``). The official code also keeps a region of the image that a mask names; that is what
``replace`` and ``repaint`` do.
"""

from __future__ import annotations

from typing import Annotated

from invdiff.itineraries import LateStart
from invdiff.sampling import Between, Method
from invdiff.transitions import DDPM


def sdedit(
    strength: Annotated[float, Between(0.05, 1)] = LateStart.strength,
    repeats: int = LateStart.repeats,
    variance: str = DDPM.variance,
) -> Method:
    """SDEdit by name.

    Args:
        strength: t0, the share of the itinerary that is run, in (0, 1].
        repeats: K, how often it is run, each time from what the last one made.
        variance: of the ancestral step: ``"small"``, ``"large"``, ``"learned"`` or ``"auto"``, see
            :class:`invdiff.transitions.DDPM`.
    """
    return Method(transition=DDPM(variance), itinerary=LateStart(strength, repeats=repeats))

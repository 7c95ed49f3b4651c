"""RePaint (Lugmayr et al., CVPR 2022, arXiv:2201.09865, algorithm 1).

Each step down replaces the known region by the noised measurement, with m the mask (1 is known):

    x_s = m (sqrt(alpha_bar_s) y + sqrt(1 − alpha_bar_s) z) + (1 − m) x_s^unknown

with x_s^unknown from ancestral sampling,
and the itinerary jumps back up ``jump_length`` levels by the forward process, ``resamplings`` times
in all, so that known and unknown regions come to agree. Published: 250 steps, jump length 10, 10
resamplings, learned variance: 2410 evaluations.
"""

from __future__ import annotations

from invdiff.itineraries import Jumps
from invdiff.sampling import Method
from invdiff.transitions import DDPM, Replace


def repaint(
    jump_length: int = Jumps.length,
    resamplings: int = Jumps.resamplings,
    variance: str = DDPM.variance,
) -> Method:
    """RePaint with its jump itinerary.

    Args:
        jump_length: j, how many levels a jump climbs.
        resamplings: r, how often each stretch is walked.
        variance: of the ancestral step: ``"small"``, ``"large"``, ``"learned"`` or ``"auto"``, see
            :class:`invdiff.transitions.DDPM`.
    """
    return Method(transition=Replace(DDPM(variance)), itinerary=Jumps(jump_length, resamplings))

"""Replacement (Song et al., ICLR 2021, arXiv:2011.13456, appendix I.2; Sohl-Dickstein et al. 2015).

After each step the measured part of the state is replaced by the measurement noised to the same
level:

    x_s <- (I − A†A) x_s + A†(alpha_s y + sigma_s A z)

which for a mask m is ``m (alpha_s y + sigma_s z) + (1 − m) x_s``. Known pixels stay exactly as they
were measured. The measurement is taken as free of noise: with an operator whose pseudo-inverse
amplifies noise (blur) use another method.
"""

from __future__ import annotations

from invdiff.sampling import Method
from invdiff.transitions import DDPM, Replace


def replace(variance: str = DDPM.variance) -> Method:
    """Replacement after every ancestral step.

    Args:
        variance: of the ancestral step: ``"small"``, ``"large"``, ``"learned"`` or ``"auto"``, see
            :class:`invdiff.transitions.DDPM`.
    """
    return Method(transition=Replace(DDPM(variance)))

"""Transitions: given a prediction at level t, how to draw the state at level s.

Each writes ``x_s = alpha_s * x0 + (eps and noise)``, so a shift of x0 by dx shifts x_s by exactly
alpha_s * dx.
"""

from invdiff.transitions.ddim import DDIM
from invdiff.transitions.ddpm import DDPM
from invdiff.transitions.deis import DEIS
from invdiff.transitions.dpm_solver import DPMSolver
from invdiff.transitions.dpm_solver_3m import DPMSolver3M
from invdiff.transitions.euler import Euler
from invdiff.transitions.euler_maruyama import EulerMaruyama
from invdiff.transitions.heun import Heun
from invdiff.transitions.kernel import (
    Ancestral,
    check_density,
    forward_variance,
    posterior_variance,
)
from invdiff.transitions.langevin import Langevin
from invdiff.transitions.lms import LMS
from invdiff.transitions.mala import MALA
from invdiff.transitions.predictor_corrector import PredictorCorrector
from invdiff.transitions.renoise import Renoise
from invdiff.transitions.replace import Replace
from invdiff.transitions.underdamped import Underdamped
from invdiff.transitions.unipc import UniPC

__all__ = [
    "Ancestral",
    "DDIM",
    "DDPM",
    "DEIS",
    "DPMSolver",
    "DPMSolver3M",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "LMS",
    "Langevin",
    "MALA",
    "PredictorCorrector",
    "Renoise",
    "Replace",
    "Underdamped",
    "UniPC",
    "check_density",
    "forward_variance",
    "posterior_variance",
]

"""MCGDiff, Monte Carlo guided diffusion (Cardoso et al., ICLR 2024, arXiv:2308.07983, algorithms 1
and 2): sequential Monte Carlo in the basis of A = U diag(s) V*, without gradients. The samples of
an image are its particles.

With x_i = (V* x)_i, y_i = (U* y)_i / s_i and tau_i the level where the state is as noisy as y_i,
sigma/alpha = rho_i = sigma_y / s_i, alpha_tau y_i is a draw of the forward process there:
conditioning the path on x_{tau_i, i} = alpha_tau y_i gives the posterior. Above tau_i the
likelihood of that is that of the forward process, with no network in it,

    g_t(x_t) = prod_i N(x_{t,i}; alpha_t y_i, v_i),    v_i = sigma_t² − alpha_t² rho_i²

and below tau_i component i is free. With m and std of p(x_s | x_t), particles are resampled by w
and drawn from p(x_s | x_t) g_s(x_s), normalised:

    w     = prod_i N(c_i; m_i, std² + v_i) / g_t(x_t)
    x_s,i = K_i c_i + (1 − K_i) m_i + sqrt(K_i v_i) z,    K_i = std² / (std² + v_i)

with c_i = alpha_s y_i and v_i at s; both become m_i + std z where i is free.

Symbols: w, the particles' weights; kappa, the paper's softening of the constraint at tau_i.
Published: eta 1, kappa 1e-4 or less, 32 to 64 particles.

Differences: the paper moves tau_i to the nearest level visited. Here a step across tau_i uses the
Gaussian bridge between its ends, exact for the forward process: y_i then observes x_s,i through c_i
and v_i below. The last step, whose std is zero in DDIM, takes the variance of x0 given x_t,
sigma_t²/(alpha_t² + sigma_t²) for data of unit variance, to fuse and weigh: components without
noise end as y_i. So nothing is divided by zero and kappa is not needed. The official code divides
by g again when i becomes free, the weight of a constraint of width kappa whose mean is infinite,
and weighs by p(y | x0) at the end, for which the path was conditioned already. Resampling is
systematic instead of multinomial. The first state is drawn from the prior instead of p_T g_T, with
the weights that this asks for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.problem import Measurement, Operator, SpectralOperator
from invdiff.sampling import Denoise, Step, Wrapping
from invdiff.sampling.particles import resample
from invdiff.transitions import DDIM, DDPM, Ancestral, check_density, forward_variance


@dataclass(frozen=True)
class MCGDiff(Wrapping):
    """See the module's docstring.

    Args:
        inner: p(x_s | x_t), of one variance for all pixels: DDIM(eta) with eta > 0, or DDPM of
            fixed variance.
    """

    inner: Ancestral = field(default_factory=lambda: DDIM(1.0))
    requires: ClassVar[type[Operator] | None] = SpectralOperator
    one_sigma: ClassVar[bool] = True
    particles: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_density(self.inner, "MCGDiff")
        if isinstance(self.inner, DDPM) and self.inner.variance == "learned":
            raise ValueError(
                "MCGDiff needs one variance for all pixels: use DDIM(1), or DDPM with "
                "variance 'small' or 'large'"
            )

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement) -> Tensor:
        t, s, operator = step.t, step.s, measurement.spectral
        mean, std = self.inner.kernel(replace(predict(x_t, t), variance_fraction=None), t, s)
        x, m, y = operator.Vt(x_t), operator.Vt(mean), measurement.components
        rho2 = measurement.component_sigma("MCGDiff") ** 2
        var = t.sigma**2 / (t.alpha**2 + t.sigma**2) if s.sigma == 0 else std**2

        v_t = t.sigma**2 - t.alpha**2 * rho2
        held = operator.measured & (v_t > 0)
        gap = torch.where(
            held, rho2 - s.ratio**2, 0.0
        )  # positive where tau is noisier than s: y then observes x_t as well
        share = t.alpha * gap.clamp(min=0) / forward_variance(t, s)
        c, v_s = (
            s.alpha * (y - share * x) / (1 - t.alpha * share),
            s.alpha**2 * gap.abs() / (1 - t.alpha * share),
        )

        log_w = _log_normal(c - m, var + v_s, held)
        if step.index > 0:
            log_w = log_w - _log_normal(x - t.alpha * y, v_t, held)
        rows, _ = resample(log_w, step)
        gain = torch.where(held, var / (var + v_s), 0.0)
        x_s = (m + gain * (c - m))[rows]
        if s.sigma > 0:
            x_s = x_s + torch.where(held, (gain * v_s).sqrt(), std) * operator.Vt(
                step.randn_like(x_t)
            )
        return operator.V(x_s)

    def up(self, x_t: Tensor, step: Step) -> Tensor:
        raise ValueError(
            "MCGDiff weighs particles on their way down and cannot climb; use the "
            "itinerary Straight"
        )


def _log_normal(r: Tensor, variance: Tensor, where: Tensor) -> Tensor:
    """log N(r; 0, variance) over some components but for a constant, (B,); in a Fourier basis they
    come in conjugate pairs, which are counted twice at half the precision of a complex number."""
    terms = torch.where(where, r.abs().square() / torch.where(where, variance, 1.0), 0.0)
    return -0.5 * terms.flatten(1).sum(1)

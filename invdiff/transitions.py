"""Transitions: given a prediction at level t, how to draw the state at level s.

Each writes ``x_s = alpha_s * x0 + (eps and noise)``, so a shift of x0 by dx shifts x_s by exactly alpha_s * dx.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.denoiser import Prediction
from invdiff.measurement import Measurement
from invdiff.operator import LinearOperator, Operator
from invdiff.sampling import Denoise, Step, Transition, renoise
from invdiff.schedules import Level


def forward_variance(t: Level, s: Level) -> float:
    """beta = sigma_t² − (alpha_t/alpha_s)² sigma_s²: the variance of q(x_t | x_s); DDPM's beta_t between neighbours."""
    return max(float(t.sigma) ** 2 - (float(t.alpha) / float(s.alpha) * float(s.sigma)) ** 2, 0.0)


def posterior_variance(t: Level, s: Level) -> float:
    """beta tilde = sigma_s²/sigma_t² beta: the variance of q(x_s | x_t, x0) (Ho et al. 2020, eq. 7)."""
    return (float(s.sigma) / float(t.sigma)) ** 2 * forward_variance(t, s)


def mean(p: Prediction, s: Level, variance: float) -> Tensor:
    """alpha_s x0 + sqrt(sigma_s² − variance) eps: the next state less the noise of that variance."""
    return torch.add(s.alpha * p.x0, p.eps, alpha=math.sqrt(max(float(s.sigma) ** 2 - variance, 0.0)))


@dataclass(frozen=True)
class DDPM(Transition):
    """Ancestral sampling (Ho et al. 2020, algorithm 2; learned variance: Nichol & Dhariwal 2021, eq. 15).

        x_s = alpha_s x0 + sqrt(sigma_s² − beta~) eps + std z

    Args:
        variance: ``"small"`` (std² = beta~), ``"large"`` (std² = beta), ``"learned"`` (std² = exp(f log beta +
            (1 − f) log beta~)), or ``"auto"``: learned where the network has it, small elsewhere.
    """

    variance: str = "auto"

    def __post_init__(self) -> None:
        if self.variance not in ("auto", "small", "large", "learned"):
            raise ValueError(f"variance must be 'auto', 'small', 'large' or 'learned', got {self.variance!r}")

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Tensor:
        x_s, std = self.kernel(predict(x_t, step.t), step.t, step.s)
        return x_s if step.s.sigma == 0 else x_s + std * step.randn_like(x_t)

    def kernel(self, p: Prediction, t: Level, s: Level) -> tuple[Tensor, Tensor | float]:
        """Mean and standard deviation of p(x_s | x_t); at the clean level no noise of it is drawn."""
        return mean(p, s, posterior_variance(t, s)), self.noise_std(p, t, s)

    def noise_std(self, p: Prediction, t: Level, s: Level) -> Tensor | float:
        """Standard deviation of the noise that a step from t to s draws."""
        small, large = posterior_variance(t, s), forward_variance(t, s)
        if self.variance == "large":
            return math.sqrt(large)
        if self.variance == "small" or (self.variance == "auto" and p.variance_fraction is None):
            return math.sqrt(small)
        if p.variance_fraction is None:
            raise ValueError("variance='learned' needs a network with learned variance (learned_variance=True); use 'small' or 'large'")
        if small == 0:  # from a level to itself
            return 0.0
        f = p.variance_fraction
        return torch.exp(0.5 * (f * math.log(large) + (1 - f) * math.log(small)))


@dataclass(frozen=True)
class DDIM(Transition):
    """Song et al. 2021 (DDIM), eq. 12 and 16; eta = 0 is probability-flow Euler in sigma/alpha, eta = 1 is DDPM.

        x_s = alpha_s x0 + sqrt(sigma_s² − std²) eps + std z,   std = eta sqrt(beta~)

    Args:
        eta: share of the ancestral noise.
        std: an explicit sigma' per step instead: a function of (t, s) that gives std <= sigma_s.
    """

    eta: float = 0.0
    std: Callable[[Level, Level], Tensor | float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")

    @property
    def deterministic(self) -> bool:
        return self.eta == 0 and self.std is None

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Tensor:
        x_s, std = self.kernel(predict(x_t, step.t), step.t, step.s)
        return torch.add(x_s, step.randn_like(x_t), alpha=std) if std > 0 else x_s

    def kernel(self, p: Prediction, t: Level, s: Level) -> tuple[Tensor, float]:
        """Mean and standard deviation of p(x_s | x_t)."""
        std = self.noise_std(p, t, s)
        return mean(p, s, std**2), std

    def noise_std(self, p: Prediction, t: Level, s: Level) -> float:
        """Standard deviation of the noise that a step from t to s draws."""
        std = float(self.std(t, s)) if self.std is not None else self.eta and self.eta * math.sqrt(posterior_variance(t, s))
        if std > float(s.sigma) * (1 + 1e-9):
            raise ValueError(f"the explicit std {std:.4g} exceeds sigma_s = {float(s.sigma):.4g}")
        return std


@dataclass(frozen=True)
class Renoise(Transition):
    """Fresh noise on the estimate: x_s = alpha_s x0 + sigma_s z. Multistep sampling of consistency networks (Song et al.
    2023, algorithm 1)."""

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Tensor:
        x_s = step.s.alpha * predict(x_t, step.t).x0
        return x_s + step.s.sigma * step.randn_like(x_t) if step.s.sigma > 0 else x_s


@dataclass(frozen=True)
class EulerMaruyama(Transition):
    """The reverse SDE (Song et al. 2021, eq. 6) as probability-flow Euler plus Langevin noise of the forward kernel's
    variance d = sigma_t² − (alpha_t/alpha_s)² sigma_s², which is g² dt on every schedule:

        x_s = alpha_s x0 + (sigma_s − d / (2 sigma_t)) eps + sqrt(d) z

    The last step returns x0. From alpha_t = 0 (flow at t = 1) the SDE forgets its state at once: x_s = alpha_s x0 + sigma_s z.
    """

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Tensor:
        p, t, s = predict(x_t, step.t), step.t, step.s
        if s.sigma == 0:
            return s.alpha * p.x0
        if t.alpha == 0:
            return s.alpha * p.x0 + s.sigma * step.randn_like(x_t)
        d = forward_variance(t, s)
        return s.alpha * p.x0 + (s.sigma - d / (2 * t.sigma)) * p.eps + math.sqrt(d) * step.randn_like(x_t)


@dataclass(frozen=True)
class Euler(Transition):
    """Probability-flow Euler with the churn of Karras et al. 2022 (algorithm 2, first order), in sigma~ = sigma/alpha.

    Args:
        s_churn: how much noise is put back, over the whole run (gamma = min(s_churn / steps, sqrt(2) − 1)).
        s_min, s_max: levels sigma~ between which it is put back.
        s_noise: standard deviation of that noise.
    """

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    @property
    def deterministic(self) -> bool:
        return self.s_churn == 0

    def _churn(self, x_t: Tensor, step: Step) -> tuple[Tensor, Level]:
        if self.s_churn == 0 or step.t.alpha == 0 or not self.s_min <= step.t.ratio <= self.s_max:
            return x_t, step.t
        gamma = min(self.s_churn / step.count, math.sqrt(2) - 1)
        hat = step.schedule.at(step.t.ratio * (1 + gamma))
        return renoise(x_t, step.t, hat, step, self.s_noise), hat

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Tensor:
        x_hat, hat = self._churn(x_t, step)
        p = predict(x_hat, hat)
        return step.s.alpha * p.x0 + step.s.sigma * p.eps


@dataclass(frozen=True)
class Heun(Euler):
    """Karras et al. 2022, algorithm 2: Euler, then a correction with the slope at s, in sigma~ = sigma/alpha.

        x_s = alpha_s (x0 + sigma~_t eps + (sigma~_s − sigma~_t)(eps + eps') / 2)

    The last step, and one from or to alpha = 0, stay Euler steps.
    """

    @property
    def predictions(self) -> int:
        return 2

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Tensor:
        x_hat, t = self._churn(x_t, step)
        s, p = step.s, predict(x_hat, t)
        x_s = s.alpha * p.x0 + s.sigma * p.eps
        if s.sigma == 0 or s.alpha == 0 or t.alpha == 0:
            return x_s
        p_s = predict(x_s, s)
        return x_s + s.alpha * (s.ratio - t.ratio) / 2 * (p_s.eps - p.eps)


@dataclass(frozen=True)
class DPMSolver(Transition):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), with lambda = log(alpha/sigma), h = lambda_s − lambda_t:

        x_s = alpha_s x0 + sigma_s eps + alpha_s (1 − e^−h) (D_t − D_last) h / (2 h_last)

    The first two terms are the paper's first-order step. D is the estimate that eps implies, (x_t − sigma_t eps)/alpha_t: x0 unless
    a guidance moved x0 alone, whose shift is then not extrapolated. The first step, the last one and the first after a climb
    are of first order.
    """

    @property
    def deterministic(self) -> bool:
        return True

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Tensor:
        p, t, s, last = predict(x_t, step.t), step.t, step.s, step.last
        x_s = s.alpha * p.x0 + s.sigma * p.eps
        if last is None or s.sigma == 0 or s.alpha == 0 or last.level.alpha == 0:
            return x_s
        h, h_last = -(s.ratio / t.ratio).log(), -(t.ratio / last.level.ratio).log()
        difference = _implied_x0(p) - _implied_x0(last)
        return x_s + s.alpha * (-torch.expm1(-h)) * h / (2 * h_last) * difference


def _implied_x0(p: Prediction) -> Tensor:
    return (p.x_t - p.level.sigma * p.eps) / p.level.alpha


@dataclass(frozen=True)
class Langevin(Transition):
    """Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1; step size of Song et al. 2021, algorithm 5):
    ``steps`` corrections at level t, then on to s; the last step returns x0.

        x <- x + e score + sqrt(2 e) z,   e = 2 a (snr ‖z‖ / ‖score‖)²,   a = (alpha_t/alpha_s)², norms per image

    (a is 1 on VE schedules and 1 − beta on VP ones). The steps shrink as the score grows, so a chain that lags behind its levels
    does not catch up: use many levels, several corrections at each, or start near the data.

    A shift that guidance put on x0 alone enters once in each correction, in full.

    Args:
        steps: corrections at each level.
        snr: signal-to-noise ratio of a correction, from which its size follows.
    """

    steps: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if self.steps < 1 or self.snr <= 0:
            raise ValueError(f"steps must be at least 1 and snr positive, got {self.steps} and {self.snr}")

    @property
    def predictions(self) -> int:
        return self.steps

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Tensor:
        t, s = step.t, step.s
        if s.sigma == 0:
            return s.alpha * predict(x_t, t).x0
        if t.alpha == 0:
            raise ValueError("Langevin dynamics needs signal in the state: start just below alpha = 0")
        x = x_t
        for _ in range(self.steps):
            p = predict(x, t)
            implied = (x - t.sigma * p.eps) / t.alpha
            x = langevin_correction(x, p.eps, t, step, self.snr) + t.alpha * (p.x0 - implied)
        return s.alpha / t.alpha * x


def langevin_correction(x: Tensor, eps: Tensor, level: Level, step: Step, snr: float) -> Tensor:
    """One Langevin step at ``level`` with the signal-to-noise ratio ``snr`` (Song et al. 2021, algorithms 4 and 5; 1 − beta_i
    there is (alpha_t/alpha_s)² of the step that is being made)."""
    score, z = -eps / level.sigma, step.randn_like(x)
    norm = [v.flatten(1).norm(dim=1).view(-1, *(1,) * (x.ndim - 1)) for v in (z, score)]
    size = 2 * (step.t.alpha / step.s.alpha) ** 2 * (snr * norm[0] / norm[1].clamp(min=1e-12)) ** 2
    return x + size * score + (2 * size).sqrt() * z


@dataclass(frozen=True)
class PredictorCorrector(Transition):
    """Song et al. 2021, algorithm 1: a predictor step to s, then ``steps`` Langevin corrections at s.

    The corrector reads eps only: a guidance that moves x0 alone, such as DPS, acts in the predictor, though it is paid for in each.

    Args:
        predictor: the transition of the first step.
        steps: corrections after it.
        snr: signal-to-noise ratio of a correction, from which its size follows.
    """

    predictor: Transition = field(default_factory=EulerMaruyama)
    steps: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if self.steps < 1 or self.snr <= 0:
            raise ValueError(f"steps must be at least 1 and snr positive, got {self.steps} and {self.snr}")

    @property
    def predictions(self) -> int:
        return self.predictor.predictions + self.steps

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Tensor:
        x = self.predictor.down(predict, x_t, step, measurement)
        if step.s.sigma > 0 and step.t.alpha > 0:  # from pure noise the step size would be zero
            for _ in range(self.steps):
                x = langevin_correction(x, predict(x, step.s).eps, step.s, step, self.snr)
        return x


@dataclass(frozen=True)
class Replace(Transition):
    """Replaces what was measured by the measurement, noised to level s, after a step of ``inner`` (Lugmayr et al. 2022,
    algorithm 1, lines 4 to 8; Song et al. 2021, appendix I.2):

        x_s <- (I − A†A) x_s + A†(alpha_s y + sigma_s A z)

    For a mask this is ``m (alpha_s y + sigma_s z) + (1 − m) x_s``. At the clean level the known part is y exactly.
    The measurement is taken as free of noise.
    """

    inner: Transition = field(default_factory=DDPM)
    requires: ClassVar[type[Operator] | None] = LinearOperator

    @property
    def predictions(self) -> int:
        return self.inner.predictions

    def around(self, inner: Transition) -> Transition:
        return inner if isinstance(inner, Replace) else replace(self, inner=self.inner.around(inner) or inner)

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Tensor:
        assert measurement is not None
        s, operator, y = step.s, measurement.operator, measurement.y
        assert isinstance(operator, LinearOperator)
        x_s = self.inner.down(predict, x_t, step, measurement)
        known = s.alpha * y
        if s.sigma > 0:
            known = known + s.sigma * operator(step.randn_like(x_s))
        return x_s - operator.pinv(operator(x_s)) + operator.pinv(known)

    def up(self, x_t: Tensor, step: Step) -> Tensor:
        return self.inner.up(x_t, step)


BY_NAME: dict[str, Callable[..., Transition]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "euler_maruyama": EulerMaruyama,
    "euler": Euler,
    "heun": Heun,
    "dpm_solver": DPMSolver,
    "langevin": Langevin,
    "predictor_corrector": PredictorCorrector,
    "renoise": Renoise,
}
"""Transitions that the command line knows by name."""

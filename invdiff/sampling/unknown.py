"""A measurement whose operator is unknown, under any method: the operator is estimated along with
the image.

    x_s  <- a step of the method, whose measurement has the operator phi
    phi  <- argmax p(y | x0, phi) p(phi),    x0 = x0(x_t) of the network in this step

This is the alternation of Fast diffusion EM (Laroche, Almansa and Coupeté, WACV 2024,
arXiv:2309.00287), with one particle and the network's estimate in its expectation; GibbsDDRM
(Murata et al., ICML 2023, arXiv:2301.12686) draws phi by Langevin steps instead. The method notices
nothing but another measurement in each step, so that every guidance and transition serves. The
maximum is the operator's own: :meth:`invdiff.problem.Operator.learned`.

While phi is uncertain y says less than its noise. So the measurement that the method sees has

    sigma² + kappa² min(r_t, 1)²,    r_t = sigma_t / alpha_t

for sigma² until r_t = ``SETTLED``, and phi is estimated from r_t = ``START`` on, below which x0 has
edges. Estimates are means of many images, whose smoothness the kernel would make up for by becoming
a point: the operator is given r_t, to take into account how they spread. All of it is in units in
which the network's images are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.noise import NoiseSource
from invdiff.problem import Measurement
from invdiff.sampling.joint import Chain
from invdiff.schedules import Level

KAPPA = 0.25
"""With less the first estimates ring with the wrong kernel, which the next kernels then explain;
with more y says too little while kernels can still change: DDRM does best at 0.1, DiffPIR at 0.3.
In units of half the network's range, as START and SETTLED are: of [-1, 1] the number itself."""
START, SETTLED = 3.0, 0.3
LATE = 0.25
"""The share of the last steps whose estimates are kept: how they spread tells how certain they
are."""


@dataclass(frozen=True)
class Belief:
    """What a run knows of a measurement.

    Attributes:
        given: the measurement, with the latest operator and its own sigma.
        measurement: as the method sees it.
        unit: half the width of the network's range; 1 where it has none, as of latents.
        chain: the state of what is unknown, where a diffusion network is its prior.
    """

    given: Measurement | None
    measurement: Measurement | None
    unit: float = 1.0
    chain: Chain | None = None

    @classmethod
    def at_first(
        cls, given: Measurement | None, level: Level, noise: NoiseSource, unit: float = 1.0
    ) -> Belief:
        """Before the first step, at its level."""
        if given is None:
            return cls(None, None, unit)
        chain = Chain.start(given, level, noise) if given.operator.unknown else None
        given = given if chain is None else chain.given(given)
        return cls(given, _seen(given, level, unit), unit, chain)

    @property
    def learns(self) -> bool:
        """Whether anything is unknown."""
        return self.given is not None and bool(self.given.operator.unknown)

    def learned(
        self, p: Prediction | None, s: Level, noise: NoiseSource, moved: Sequence[Tensor] = ()
    ) -> Belief:
        """After a step to s, in which the network first predicted p; None where it did not. The
        last step leaves an estimate however few there are. Particles take their operator with them
        when they are resampled (``moved``, :attr:`Step.moved`)."""
        if self.given is None or not self.learns:
            return self
        given = self.given
        rows = torch.arange(len(given), device=given.y.device)
        for ancestors in moved:
            rows = rows[ancestors]
        given = given.select(rows) if moved else given
        # Of branches that were stacked for one call, the first: that of the condition.
        x0 = None if p is None else p.x0[: len(given)][rows]
        if chain := self.chain:
            chain = (chain.select(rows) if moved else chain).stepped(given, x0, s, noise)
            given = chain.given(given)
        elif p is not None and x0 is not None:
            ratio = float(p.level.ratio) / self.unit
            if ratio <= START or s.sigma == 0:
                operator = given.operator.learned(x0, given.y, ratio)
                given = replace(given, operator=operator)
        return Belief(given, _seen(given, s, self.unit), self.unit, chain)

    @property
    def estimates(self) -> dict[str, Tensor]:
        """What is unknown as it is estimated now, (B, ...) each."""
        return {} if self.given is None else self.given.operator.estimates


def _seen(given: Measurement, level: Level, unit: float) -> Measurement:
    """The measurement with the noise that its unknown operator adds at a level."""
    if not given.operator.unknown:
        return given
    ratio = float(level.ratio) / unit
    extra = KAPPA * unit * min(ratio, 1.0) if ratio > SETTLED else 0.0
    sigma: Any = given.sigma
    wider = (sigma**2 + extra**2) ** 0.5
    return replace(given, sigma=wider if isinstance(wider, float) else torch.as_tensor(wider))

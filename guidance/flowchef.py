"""FlowChef (Patel et al., ICCV 2025, arXiv:2412.00100): steering a rectified flow without
differentiating it.

The gradient of the loss at the estimate x0 is applied to the state itself, as if d x0 / d x_t were
the identity, before an Euler step of the flow:

    x_s = x_t + (s − t) v − eta grad_{x0} L(x0),   L(x0) = mean of (y − A(x0))²

A latent network's loss is differentiated through the decoder, never through the network.

Symbols: eta, the size of a step (the official ``gradient_scale``). L is a mean over the m entries
of y, missing ones included, so eta grows with the image and is stable below about m / ‖A‖²:
published is 500 at 64x64 in [-1, 1], 100 or 200 steps. The paper's state is that of a flow, alpha +
sigma = 1, in which moving x0 by −eta grad / alpha_s = −eta (1 + sigma_s/alpha_s) grad is the same
update; the latter form is the same on every schedule. As in the official code the last step is not
steered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from invdiff.network import Prediction
from invdiff.problem import Measurement
from invdiff.sampling import Between, Denoise, Guidance, Method, Step, data_gradient
from invdiff.sampling.checks import nonnegative
from invdiff.transitions import DDIM


@dataclass(frozen=True)
class FlowChef(Guidance):
    """See the module's docstring."""

    eta: float = 500.0

    scale: ClassVar[tuple[str, ...]] = ("eta",)
    posterior: ClassVar[bool] = False

    def __post_init__(self) -> None:
        nonnegative(eta=self.eta)

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement
    ) -> Prediction:
        p = denoise(x_t, step.t)
        if step.s.sigma == 0:
            return p
        grad = data_gradient(measurement, p.x0) / measurement.y[0].numel()
        return p.move_x0(-self.eta * (1 + float(step.s.ratio)) * grad)


def flowchef(eta: Annotated[float, Between(10, 5000, log=True)] = FlowChef.eta) -> Method:
    """FlowChef on the Euler steps of the flow, which are DDIM's on any schedule.

    Args:
        eta: size of the gradient steps, on the mean of the squared residual.
    """
    return Method(FlowChef(eta), DDIM())

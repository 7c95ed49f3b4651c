"""Autoguidance (Karras et al., NeurIPS 2024, arXiv:2406.02507, eq. 3).

    x0 = x0_weak(x_t) + w (x0(x_t) − x0_weak(x_t))

The weak network is a worse one of the same task and condition, smaller or trained for less time;
away from its errors is where the better network's errors are smaller, too. eps moves with x0; the
network's clipping acts on the combination. It chains with any other guidance: what stands nearer to
the network changes the good prediction alone.

Symbols: w, the scale; w = 1 is the network alone, the paper has 1.4 to 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from invdiff.loading.model import load_model
from invdiff.network import Denoiser, Prediction
from invdiff.problem import Measurement, Operator
from invdiff.sampling import Between, Denoise, Guidance, Setting, Step
from invdiff.sampling.step import tiled_all


@dataclass(frozen=True)
class Autoguidance(Guidance):
    """See the module's docstring.

    Args:
        weak: the weak network: a Denoiser, or what ``load_model`` takes; it must be given.
        w: the scale.
        cond: what the weak network is conditioned on; by default what the run gives the network,
            without the label where the weak one has no classes.
    """

    weak: Denoiser | str | None = None
    w: Annotated[float, Between(1, 4)] = 2.0
    cond: Mapping[str, Any] | None = None

    requires: ClassVar[type[Operator] | None] = None
    per_image: ClassVar[tuple[str, ...]] = ("cond",)

    @classmethod
    def tried_with(cls) -> dict[str, Any]:
        """A network that knows nothing."""
        return {
            "weak": Denoiser(
                lambda x, t: torch.zeros_like(x),
                predicts="x0",
                schedule="linear",
                data_range=(-1, 1),
            )
        }

    def bind(self, setting: Setting) -> Autoguidance:
        weak = load_model(self.weak) if isinstance(self.weak, str) else self.weak
        if not isinstance(weak, Denoiser):
            raise ValueError(
                "autoguidance needs a weak network, weak=, a Denoiser or what load_model takes; "
                f"got {weak!r}"
            )
        good = setting.denoiser
        if (weak.channels, weak.data_range) != (good.channels, good.data_range):
            raise ValueError(
                f"the weak network must be of the same images: {weak.name} has "
                f"{weak.channels} channels in {weak.data_range}, {good.name} "
                f"{good.channels} in {good.data_range}"
            )
        cond = dict(setting.cond if self.cond is None else self.cond)
        if weak.num_classes is None and self.cond is None:
            cond.pop("label", None)
        elif weak.num_classes is not None:  # made here: nothing waits for a device later
            label = weak.labels(cond.get("label"), setting.shape[0])
            cond["label"] = label.to(setting.device)
        return replace(self, weak=weak.to(setting.device), cond=cond)

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Prediction:
        if not isinstance(self.weak, Denoiser) or self.cond is None:
            raise TypeError("Autoguidance is bound to a run before it is called: .bind(setting)")
        p = denoise(x_t, step.t, clip_x0=False)
        if self.w == 1:
            return p.clip()
        weak = self.weak(x_t, step.t, clip_x0=False, **tiled_all(self.cond, x_t))
        return p.move((self.w - 1) * (p.x0 - weak.x0)).clip()

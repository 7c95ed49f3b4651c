"""Classifier guidance (Dhariwal & Nichol, NeurIPS 2021, arXiv:2105.05233, algorithms 1 and 2).

    eps_hat = eps − s sigma_t grad_{x_t} log p(y | x_t, t)
    mu_hat  = mu  + s Sigma   grad_{x_t} log p(y | x_t, t),   x_s ~ N(mu_hat, Sigma)

(algorithm 2, for any transition; algorithm 1, :class:`MeanShift`)
with a classifier that was trained on noisy images. sigma_t and the gradient belong to the frame in
which x_t is sampled; their product is the same in the classifier's own. With the exact p(y | x_t)
and s = 1 the first is the exact conditional.

Any differentiable log-probability takes the classifier's place: of x_t, or of the estimate x0(x_t),
whose gradient passes through the network (universal guidance, Bansal et al. 2023, eq. 6).

Symbols: s, the gradient scale; y, the label; Sigma, the variance of the ancestral step, learned
where the network has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from invdiff.network import NoisyClassifier, Prediction
from invdiff.network.conditions import check_labels
from invdiff.problem import Measurement, Operator
from invdiff.sampling import Between, Denoise, Guidance, Method, Setting, Step, Wrapping, gradient
from invdiff.sampling.step import tiled
from invdiff.transitions import DDPM, Ancestral


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """Algorithm 2: shifts eps, and x0 with it.

    Args:
        label: the class y for all images, or one for each; by default what the run itself gives the
            network.
        s: the gradient scale.
        classifier: a :class:`~invdiff.network.NoisyClassifier`, a callable ``classifier(x_t, t) ->
            logits`` on the network's schedule, or the folder of one; by default the classifier that
            comes with the model.
        log_prob: in its place, ``log_prob(x_t, level)`` or ``log_prob(x0)``: differentiable, one
            value per image. x_t is the network's state, in its range; x0 is what the user gets,
            images in [0, 1] for image networks, decoded for latent ones.
        of: what ``log_prob`` is a function of, ``"x_t"`` or ``"x0"``.
    """

    label: int | Sequence[int] | Tensor | None = None
    s: float = 1.0
    classifier: NoisyClassifier | Callable[[Tensor, Tensor], Tensor] | str | Path | None = None
    log_prob: Callable[..., Tensor] | None = None
    of: str = "x_t"

    requires: ClassVar[type[Operator] | None] = None
    per_image: ClassVar[tuple[str, ...]] = ("label",)
    scale: ClassVar[tuple[str, ...]] = ("s",)

    def __post_init__(self) -> None:
        if not math.isfinite(self.s):
            raise ValueError(f"s must be a finite number, got {self.s}")
        if self.of not in ("x_t", "x0"):
            raise ValueError(f"of must be 'x_t' or 'x0', got {self.of!r}")
        if self.of == "x0" and self.log_prob is None:
            raise ValueError(
                "of='x0' needs log_prob=, a differentiable function of the estimate; a "
                "noise-aware classifier is of x_t"
            )
        if self.log_prob is not None and (self.label is not None or self.classifier is not None):
            raise ValueError(
                "log_prob= stands in the place of a classifier and its label; give one or the other"
            )

    def bind(self, setting: Setting) -> ClassifierGuidance:
        if self.log_prob is not None:
            if self.of == "x_t":
                return self
            own, autoencoder = self.log_prob, setting.denoiser.autoencoder
            low, high = setting.denoiser.image_range or (0.0, 1.0)

            def of_image(x0: Tensor) -> Tensor:
                return own(
                    ((x0 if autoencoder is None else autoencoder.decode(x0)) - low) / (high - low)
                )

            return replace(self, log_prob=of_image)
        classifier = self.classifier or setting.denoiser.classifier
        if classifier is None:
            raise ValueError(
                f"{setting.denoiser.name} comes without a noise-aware classifier; give "
                "classifier=, or log_prob= for any differentiable function"
            )
        if isinstance(classifier, str | Path):
            from invdiff.loading import load_classifier

            classifier = load_classifier(classifier).to(setting.device)
        if not isinstance(classifier, NoisyClassifier):
            name = (
                type(classifier).__name__
                if isinstance(classifier, torch.nn.Module)
                else getattr(classifier, "__name__", "classifier")
            )
            classifier = NoisyClassifier(classifier, schedule=setting.denoiser.schedule, name=name)
        classes = classifier.classes(setting.shape[1:], device=setting.device, dtype=setting.dtype)
        label = setting.cond.get("label") if self.label is None else self.label
        if label is None:
            raise ValueError(
                "classifier guidance needs to know which class: give label=, one of "
                f"0..{classes - 1}"
            )
        label = check_labels(label, setting.shape[0], classes, classifier.name).to(setting.device)
        return replace(self, label=label, classifier=classifier)

    def __call__(
        self, denoise: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None
    ) -> Prediction:
        if step.t.alpha == 0 or self.s == 0:  # pure noise says nothing about the class
            return denoise(x_t, step.t)
        p, grad = self.gradient(denoise, x_t, step)
        return p.move(self.s * step.t.sigma**2 / step.t.alpha * grad)

    def gradient(self, denoise: Denoise, x_t: Tensor, step: Step) -> tuple[Prediction, Tensor]:
        """The prediction at x_t, and grad_{x_t} log p(y | x_t, t)."""
        outer = (
            torch.is_grad_enabled() and x_t.requires_grad
        )  # another guidance differentiates through this one
        with torch.enable_grad():
            x = x_t if outer else x_t.detach().requires_grad_()
            if self.of == "x0":
                p = denoise(x, step.t)
                log_p = self._of_x0(p)
            else:
                with torch.set_grad_enabled(outer):
                    p = denoise(x_t, step.t)
                log_p = self._of_x_t(x, step)
            if log_p.shape != x.shape[:1]:
                raise ValueError(
                    f"log_prob must return one value per image, ({len(x)},), got shape "
                    f"{tuple(log_p.shape)}"
                )
            if not log_p.requires_grad:
                raise ValueError(
                    "log_prob does not depend on its argument in a way that can be "
                    "differentiated; is something detached in it?"
                )
            grad = gradient(log_p, x, create_graph=outer)
        return p if outer else p.detach(), grad

    def _of_x_t(self, x: Tensor, step: Step) -> Tensor:
        if self.log_prob is not None:
            return self.log_prob(x, step.t)
        if not (isinstance(self.classifier, NoisyClassifier) and isinstance(self.label, Tensor)):
            raise TypeError(
                "ClassifierGuidance is bound to a run before it is called: "
                "ClassifierGuidance(...).bind(setting)"
            )
        return self.classifier(x, step.t).gather(1, tiled(self.label, x)[:, None])[:, 0]

    def _of_x0(self, p: Prediction) -> Tensor:
        assert self.log_prob is not None
        if not p.x0.requires_grad:
            raise ValueError(
                "log_prob of x0 needs the gradient through the network, but what this "
                "guidance wraps gives none; put it nearest to the "
                "network (DPS may stand outside), or use one of x_t"
            )
        return self.log_prob(p.x0)


@dataclass(frozen=True)
class MeanShift(Wrapping):
    """Algorithm 1: the ancestral step of ``inner`` with its mean shifted by s Sigma grad log p(y |
    x_t, t).

    Args:
        inner: DDPM, whose variance may be learned, or DDIM(eta).
        guidance: whose gradient and scale s are taken.
    """

    inner: Ancestral = field(default_factory=DDPM)
    guidance: ClassifierGuidance = field(default_factory=ClassifierGuidance)

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Ancestral):
            raise ValueError(
                "MeanShift needs a transition whose variance it knows, DDPM or DDIM(eta), "
                f"got {self.inner}"
            )
        if self.inner.deterministic:
            raise ValueError(
                f"MeanShift shifts by the variance, but {self.inner} draws no noise; use "
                "ClassifierGuidance, or DDIM(eta) with eta > 0"
            )

    def down(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement) -> Tensor:
        p, grad = self.guidance.gradient(predict, x_t, step)
        x_s = self.inner.down(lambda *_, **__: p, x_t, step, measurement)
        std: Any = self.inner.noise_std(p, step.t, step.s)
        return x_s + self.guidance.s * std**2 * grad


def classifier(
    label: int | Sequence[int] | Tensor | None = None,
    s: Annotated[float, Between(0.1, 20, log=True)] = ClassifierGuidance.s,
    classifier: NoisyClassifier | Callable[[Tensor, Tensor], Tensor] | str | Path | None = None,
    mean_shift: bool = False,
    log_prob: Callable[..., Tensor] | None = None,
    of: str = ClassifierGuidance.of,
) -> Method:
    """Classifier guidance by name.

    Args:
        label: the class y for all images, or one for each; by default what the run itself gives the
            network.
        s: the gradient scale.
        classifier: a :class:`~invdiff.network.NoisyClassifier`, a callable ``classifier(x_t, t) ->
            logits``, or the folder of one; by default the classifier that comes with the model.
        log_prob: in its place, a differentiable ``log_prob(x_t, level)`` or ``log_prob(x0)`` with
            one value per image; from Python.
        of: what ``log_prob`` is a function of, ``"x_t"`` or ``"x0"``.
        mean_shift: algorithm 1, a shift of the ancestral step's mean, instead of algorithm 2.
    """
    guidance = ClassifierGuidance(label, s, classifier, log_prob, of)
    return Method(transition=MeanShift(guidance=guidance)) if mean_shift else Method(guidance)

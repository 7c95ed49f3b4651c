"""Classifier guidance (Dhariwal & Nichol, NeurIPS 2021, arXiv:2105.05233, algorithms 1 and 2).

    eps_hat = eps − s sigma_t grad_{x_t} log p(y | x_t, t)
    mu_hat  = mu  + s Sigma   grad_{x_t} log p(y | x_t, t),   x_s ~ N(mu_hat, Sigma)

(algorithm 2, for any transition; algorithm 1, :class:`MeanShift`)
with a classifier that was trained on noisy images. sigma_t and the gradient belong to the frame in
which x_t is sampled; their product is the same in the classifier's own. With the exact p(y | x_t)
and s = 1 the first is the exact conditional.

Any differentiable log-probability takes the classifier's place: of x_t, or of the estimate x0(x_t),
whose gradient passes through the network (universal guidance, Bansal et al. 2023, eq. 6). With a
prompt and a folder of CLIP it is CLIP guidance (Nichol et al., GLIDE, ICML 2022, arXiv:2112.10741,
section 2.3): log p is CLIP's logit of the prompt, 1/temperature times the cosine of the embeddings.
GLIDE has a CLIP of noisy images; here it is one of clean images, of x0 and averaged over random
crops, as Crowson's notebooks have it, where s = 1 is CLIP's own temperature.

Symbols: s, the gradient scale; y, the label; mu and Sigma, the mean and the variance of the
ancestral step, learned where the network has it.
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

Classifier = NoisyClassifier | Callable[[Tensor, Tensor], Tensor]
CLIP = "clip:"
"""Before the folder of a CLIP."""


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
        prompt: of CLIP, in the place of a label: one for all images or one for each. ``classifier``
            is then ``"clip:FOLDER"``, see :class:`invdiff.loading.clip.Clip`.
        crops: of CLIP guidance, how many of each image.
    """

    label: int | Sequence[int] | Tensor | None = None
    s: float = 1.0
    classifier: Classifier | str | Path | None = None
    log_prob: Callable[..., Tensor] | None = None
    of: str = "x_t"
    prompt: str | Sequence[str] | None = None
    crops: int = 16

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
        if (self.prompt is not None) != self._by_clip:
            raise ValueError(
                "CLIP guidance takes both a prompt, prompt=, and a folder, classifier='clip:FOLDER'"
            )
        if self.prompt is not None and self.label is not None:
            raise ValueError("prompt= stands in the place of label=; give one of them")

    @property
    def _by_clip(self) -> bool:
        named = isinstance(self.classifier, str) and self.classifier.startswith(CLIP)
        return named or isinstance(self.classifier, _Fits)

    def bind(self, setting: Setting) -> ClassifierGuidance:
        if self.log_prob is not None:
            if self.of == "x_t":
                return self
            own, image = self.log_prob, _images(setting)
            return replace(self, log_prob=lambda x0: own(image(x0)))
        if self.prompt is not None:
            return replace(self, classifier=self._clip(setting))
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

    def _clip(self, setting: Setting) -> _Fits:
        from invdiff.loading.clip import Clip  # imports transformers

        assert self.prompt is not None
        clip = Clip(Path(str(self.classifier).removeprefix(CLIP)), self.prompt, self.crops)
        channels = setting.shape[1]
        if setting.denoiser.autoencoder is not None:
            channels = setting.denoiser.autoencoder.image_channels
        if channels != 3:
            raise ValueError(
                f"CLIP takes images in colour, but those of {setting.denoiser.name} have "
                f"{channels} channels"
            )
        if clip.prompts not in (1, setting.shape[0]):
            raise ValueError(f"{clip.prompts} prompts do not go with {setting.shape[0]} images")
        texts = clip.text.expand(setting.shape[0], -1).to(setting.device)
        return _Fits(clip.to(setting.device), _images(setting), texts)

    def select(self, images: Sequence[int]) -> ClassifierGuidance:
        chosen = super().select(images)
        if not isinstance(chosen.classifier, _Fits):
            return chosen
        fits = chosen.classifier
        return replace(chosen, classifier=replace(fits, texts=fits.texts[list(images)]))

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
            if self.of == "x0" or self.prompt is not None:
                p = denoise(x, step.t)
                log_p = self._of_x0(p, step)
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

    def _of_x0(self, p: Prediction, step: Step) -> Tensor:
        if not p.x0.requires_grad:
            raise ValueError(
                "log_prob of x0 needs the gradient through the network, but what this "
                "guidance wraps gives none; put it nearest to the "
                "network (DPS may stand outside), or use one of x_t"
            )
        if isinstance(self.classifier, _Fits):
            places = p.x0.new_empty(len(p.x0), self.crops, 3)
            return self.classifier(p.x0, torch.special.ndtr(step.randn_like(places)))
        assert self.log_prob is not None
        return self.log_prob(p.x0)


@dataclass(frozen=True)
class _Fits:
    """How well each image of a run fits its prompt."""

    clip: Any
    image: Callable[[Tensor], Tensor]
    texts: Tensor

    def __call__(self, x0: Tensor, uniform: Tensor) -> Tensor:
        fits: Tensor = self.clip(self.image(x0), uniform, tiled(self.texts, x0))
        return fits


def _images(setting: Setting) -> Callable[[Tensor], Tensor]:
    """x0 of the network as images in [0, 1], decoded where they are latents."""
    autoencoder, (low, high) = (
        setting.denoiser.autoencoder,
        setting.denoiser.image_range or (0.0, 1.0),
    )

    def image(x0: Tensor) -> Tensor:
        return ((x0 if autoencoder is None else autoencoder.decode(x0)) - low) / (high - low)

    return image


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
    classifier: Classifier | str | Path | None = None,
    mean_shift: bool = False,
    log_prob: Callable[..., Tensor] | None = None,
    of: str = ClassifierGuidance.of,
    prompt: str | Sequence[str] | None = None,
    crops: int = ClassifierGuidance.crops,
) -> Method:
    """Classifier guidance by name.

    Args:
        label: the class y for all images, or one for each; by default what the run itself gives the
            network.
        s: the gradient scale.
        classifier: a :class:`~invdiff.network.NoisyClassifier`, a callable ``classifier(x_t, t) ->
            logits``, or the folder of one; by default the classifier that comes with the model; or
            ``"clip:FOLDER"``, a CLIP of transformers, with ``prompt``.
        log_prob: in its place, a differentiable ``log_prob(x_t, level)`` or ``log_prob(x0)`` with
            one value per image; from Python.
        of: what ``log_prob`` is a function of, ``"x_t"`` or ``"x0"``.
        mean_shift: algorithm 1, a shift of the ancestral step's mean, instead of algorithm 2.
        prompt: what CLIP's images are to show, one for all or one for each.
        crops: random crops of each image that CLIP sees.
    """
    guidance = ClassifierGuidance(label, s, classifier, log_prob, of, prompt, crops)
    return Method(transition=MeanShift(guidance=guidance)) if mean_shift else Method(guidance)

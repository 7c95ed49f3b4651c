"""Checks of models."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from invdiff.itineraries import Straight
from invdiff.loading.source import check_options
from invdiff.network import Denoiser, Prediction
from invdiff.network.facts import describe_model
from invdiff.problem.operator import Shape
from invdiff.schedules import Level
from invdiff.testing.imports import importing
from invdiff.testing.operators import draw
from invdiff.testing.randomness import generators, moved, seed_all
from invdiff.testing.report import Skip, distance, expect, within

SIDES = (32, 48)
"""Of the images, unless the author says otherwise."""
ODD = (37, 53)
"""Of the images whose shape is looked at, where the network is one of pixels."""
ROUNDING = 1e-3
"""For float32 networks, whose convolutions differ by batch size."""
MISREAD = 0.5
"""How far the estimate of what is all there is may be from it: noise at the noisiest level, the
image at the least noisy one."""


@dataclass(frozen=True)
class Case:
    """A model under test.

    Attributes:
        denoiser: as it is loaded.
        factory: what is registered; None of an object.
        given: shape of its images, if the author says it.
        given_cond: what it cannot run without and the kit does not know, tensors with two entries.
        module: whose import is tried.
        sides: of images whose shape the author does not say.
    """

    denoiser: Denoiser
    factory: Callable[..., Denoiser] | None
    given: Shape | None
    given_cond: Mapping[str, Any]
    module: str
    sides: tuple[int, int] = SIDES

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the images, with the batch."""
        coder = self.denoiser.autoencoder
        channels = (self.denoiser.channels or 3) if coder is None else coder.image_channels
        return (2, *(self.given or (channels, *self.sides)))

    @cached_property
    def cond(self) -> dict[str, Any]:
        """Its inputs: the author's, an image and the conditions of an empty prompt, as it
        needs."""
        known: dict[str, Any] = {}
        if (channels := self.denoiser.cond_channels) is not None:
            known["cond"] = draw(
                2, channels, *self.denoiser.state_shape(self.shape)[2:], dtype=torch.float32
            ).clamp(-1, 1)
        if self.denoiser.text is not None:
            known |= self.denoiser.conditions_of("", 2)
        return {**known, **self.given_cond}

    @cached_property
    def levels(self) -> dict[str, Level]:
        """The noisiest level that holds signal, one in the middle, and the least noisy."""
        schedule = self.denoiser.schedule
        share = {"noisiest": 0.999, "middle": 0.5, "least noisy": 0.0}
        return {
            name: schedule(schedule.t_min + part * (schedule.t_max - schedule.t_min))
            for name, part in share.items()
        }

    def state(self, level: Level, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """A noisy grey image, and its noise."""
        eps = draw(*self.denoiser.state_shape(self.shape), dtype=dtype)
        low, high = self.denoiser.data_range or (0.0, 0.0)
        return (level.alpha * (low + high) / 2 + level.sigma * eps).to(dtype), eps

    def predict(self, level: str = "middle", rows: slice = slice(None), **cond: Any) -> Prediction:
        """Its prediction for that state."""
        x, _ = self.state(self.levels[level])
        shown = {k: v[rows] for k, v in self.cond.items()}
        with torch.no_grad():
            return self.denoiser(x[rows], self.levels[level], **{**shown, **cond})


def shapes(case: Case) -> str:
    """x0 and eps have the state's shape, at an odd, non-square size."""
    odd = (
        replace(case, sides=ODD) if case.denoiser.autoencoder is None else case
    )  # an autoencoder says what sides it takes
    x, p = odd.state(odd.levels["middle"])[0], odd.predict()
    expect(
        p.x0.shape == p.eps.shape == x.shape,
        f"x0 {tuple(p.x0.shape)} and eps {tuple(p.eps.shape)} of a state {tuple(x.shape)}",
    )
    return f"states of {tuple(x.shape[1:])}"


def dtypes(case: Case) -> str:
    """The state's dtype is kept."""
    level = case.levels["middle"]
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            made = case.denoiser(case.state(level, dtype)[0], level, **case.cond).x0.dtype
        expect(made == dtype, f"a state of {dtype} gives x0 of {made}")
    return "float32 and float64 kept"


def meta(case: Case) -> str:
    """It runs where tensors hold no data, so that no stray CPU tensor and no read of the data makes
    a GPU wait."""
    if not isinstance(case.denoiser.net, torch.nn.Module) or case.denoiser.device is None:
        raise Skip("its network is no module that moves between devices")
    level = case.levels["middle"]
    cond = {k: v.to("meta") for k, v in case.cond.items()}
    p = copy.deepcopy(case.denoiser).to("meta")(case.state(level)[0].to("meta"), level, **cond)
    expect(p.x0.is_meta and p.eps.is_meta, f"x0 lies on {p.x0.device}")
    return "one evaluation on meta"


def finite(case: Case) -> str:
    """Finite at the levels of a run, from the noisiest to the least noisy."""
    levels = Straight()(case.denoiser.schedule, 3)[:-1]
    for level in levels:
        with torch.no_grad():
            p = case.denoiser(case.state(level)[0], level, **case.cond)
        expect(
            bool((p.x0.isfinite() & p.eps.isfinite()).all()),
            f"not finite at sigma/alpha = {float(level.ratio):.3g}",
        )
    return f"finite at sigma/alpha = {', '.join(f'{float(level.ratio):.3g}' for level in levels)}"


def reading(case: Case) -> str:
    """It finds the noise where there is nothing else, and the image where there is no noise: a
    wrong predicts or schedule hardly does."""
    found = {}
    for name in ("noisiest", "least noisy"):
        x, eps = case.state(level := case.levels[name])
        with torch.no_grad():
            p = case.denoiser(x, level, clip_x0=False, **case.cond)
        clean = ((x - level.sigma * eps) / level.alpha).float()
        found[name] = (
            distance(p.eps, eps)
            if name == "noisiest"
            else float((p.x0 - clean).norm() / eps.norm())
        )
    return ", ".join(
        within(f"error at the {name} level", error, MISREAD) for name, error in found.items()
    )


def repeatable(case: Case) -> str:
    """The same state gives the same prediction, whatever the global generators hold."""
    first = case.predict()
    seed_all(1)
    expect(torch.equal(case.predict().x0, first.x0), "two evaluations of one state differ")
    return "bit-equal under another global seed"


def global_rng(case: Case) -> str:
    """The global generators are not advanced."""
    before = generators()
    case.predict()
    expect(
        not (names := moved(before)), f"it advances the global generator of {' and '.join(names)}"
    )
    return "torch, numpy and random untouched"


def batch(case: Case) -> str:
    """An image alone gives what it gives in a batch."""
    together = case.predict()
    worst = max(
        distance(case.predict(rows=slice(k, k + 1)).x0, together.x0[k : k + 1]) for k in (0, 1)
    )
    return within("alone from in a batch", worst, ROUNDING)


def gradient(case: Case) -> str:
    """Its prediction can be differentiated with respect to the state."""
    level = case.levels["middle"]
    x = case.state(level)[0].requires_grad_()
    (grad,) = torch.autograd.grad(
        case.denoiser(x, level, clip_x0=False, **case.cond).x0.square().sum(), x
    )
    expect(
        bool(grad.isfinite().all()) and bool((grad != 0).any()),
        "the gradient is zero, or not finite",
    )
    return "finite, not zero"


def unchanged(case: Case) -> str:
    """An evaluation leaves weights, modes and the state as they are; weights need no gradients."""
    net, weights, level = case.denoiser.net, case.denoiser.hash, case.levels["middle"]
    x = case.state(level)[0]
    before = x.clone()
    case.denoiser(x, level, **case.cond)
    expect(torch.is_grad_enabled(), "it switched gradients off for the whole process")
    expect(torch.equal(x, before), "it changed the state")
    if isinstance(net, torch.nn.Module):
        expect(not net.training, "its network is in training mode")
        expect(not any(p.requires_grad for p in net.parameters()), "weights require gradients")
        expect(case.denoiser.hash == weights, "an evaluation changed its weights")
    return "weights, modes and state as before"


def conditions(case: Case) -> str:
    """Each condition changes its prediction; without a label it is unconditional, if it
    has a null label."""
    names = list(case.cond)
    for name, value in case.cond.items():
        changed: dict[str, Any] = {name: -value if value.is_floating_point() else value.flip(-1)}
        other = case.predict(**changed)
        expect(not torch.equal(other.x0, case.predict().x0), f"it does not look at {name}")
    if (classes := case.denoiser.num_classes) is not None:
        labels = [0, classes - 1, *([] if case.denoiser.null_label is None else [None])]
        seen = [case.predict(label=label).eps for label in labels]
        expect(
            not any(torch.equal(seen[0], other) for other in seen[1:]),
            "it does not look at its label",
        )
        names.append(f"{classes} labels{' and none' if None in labels else ''}")
    if not names:
        raise Skip("it is unconditional")
    return ", ".join(names)


def options(case: Case) -> str:
    """It is loaded with a Denoiser's options, as the command line gives ``dtype`` and
    ``model.key=value``."""
    if case.factory is None:
        raise Skip("it is an object already")
    check_options(case.factory, "the model", ["dtype"])
    loaded = case.factory(dtype=torch.bfloat16)
    expect(
        loaded.dtype == torch.bfloat16, "it takes dtype, but does not hand it on to the Denoiser"
    )
    return "dtype handed on"


def described(case: Case) -> str:
    """The description that ``invdiff info`` prints is plain data."""
    return f"{len(json.dumps(describe_model(case.denoiser)))} characters of JSON"


def imports(case: Case) -> str:
    """See :func:`~invdiff.testing.imports.importing`."""
    return importing(case.module)


CHECKS: dict[str, Callable[[Case], str]] = {
    f.__name__: f
    for f in (
        *(shapes, dtypes, meta, finite, reading, repeatable, global_rng),
        *(batch, gradient, unchanged, conditions, options, described, imports),
    )
}

"""Guidance that conditions: exact on labelled mixtures, equal to the official updates, per image,
and clear about what cannot work."""

from __future__ import annotations

import json
import random
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from oracles import Calls, D, Labelled, Mixture, OneStream, in_double, in_floors, rand
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.benchmarks.metrics import psnr
from invdiff.guidance.cfg import CFG
from invdiff.guidance.classifier import ClassifierGuidance, MeanShift
from invdiff.guidance.dps import DPS
from invdiff.guidance.sr3 import SR3
from invdiff.itineraries import Straight
from invdiff.loading import load_folder
from invdiff.loading.time_classifier import TimeClassifier
from invdiff.network import Denoiser, NoisyClassifier, Prediction
from invdiff.noise import NoiseSource
from invdiff.operators.inpaint import Inpaint
from invdiff.operators.jpeg import JPEG
from invdiff.operators.sr import SuperResolution
from invdiff.problem import Measurement
from invdiff.sampling import Setting, Step, Transition, make_method, sample
from invdiff.schedules import Level, Schedule
from invdiff.solving import generate, solve
from invdiff.solving.plan import complete
from invdiff.transitions import DDIM, DDPM, Heun

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULE = schedules.linear()
BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=D), 0)
PRIOR = Labelled(
    torch.tensor([0.2, 0.3, 0.25, 0.25], dtype=D),
    torch.tensor([[1.2, 0.0], [-0.8, 0.9], [-0.8, -0.9], [0.9, 1.1]], dtype=D),
    torch.tensor(
        [
            [[0.3, 0.1], [0.1, 0.2]],
            [[0.2, 0.0], [0.0, 0.2]],
            [[0.1, 0.0], [0.0, 0.4]],
            [[0.15, 0.0], [0.0, 0.15]],
        ],
        dtype=D,
    ),
    labels=[0, 1, 1, 2],  # class 1 is itself a mixture; all classes overlap
)
SHAPE = (3, 3, 4, 4)
CLASSES = 10


# Toy pieces ---------------------------------------------------------------------------------------


def toy(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """eps of an image network that hears its label; CLASSES is the null label."""
    shift = torch.sin(label.to(x)).view(-1, *(1,) * (x.ndim - 1))
    return torch.tanh(x * (1 + t.to(x).view_as(shift) / 1000) + shift) + 0.1 * x


def toy_logits(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x.flatten(1) @ rand(x[0].numel(), CLASSES, seed=21).to(x)) * (
        2 + t.to(x)[:, None] / 1000
    )


def toy_denoiser(net: Callable[..., Tensor] = toy, **options: Any) -> Denoiser:
    classifier = NoisyClassifier(toy_logits, schedule=SCHEDULE)
    return Denoiser(
        net,
        **{
            "schedule": SCHEDULE,
            "num_classes": CLASSES,
            "classifier": classifier,
            "data_range": (-1, 1),
            **options,
        },
    )


def toy_sr3(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    return toy(x[:, 3:] + 0.5 * x[:, :3], t, label)


def run(
    denoiser: Denoiser,
    method: Any,
    steps: int = 8,
    *,
    transition: Transition | None = None,
    schedule: Schedule = SCHEDULE,
    start: Tensor | None = None,
    measurement: Measurement | None = None,
    seed: int = 7,
    **cond: Any,
) -> Tensor:
    """The engine from a given state with one stream of noise, as the references below draw it; in
    the network's range."""
    x = rand(*SHAPE, seed=1) if start is None else start
    setting = Setting(denoiser, tuple(x.shape), measurement, cond, x.device, x.dtype)
    bound = complete(method, transition or DDIM()).bind(setting)
    assert bound.transition is not None
    return sample(
        denoiser,
        x,
        Straight("leading")(schedule, steps),
        schedule=schedule,
        noise=OneStream(seed),
        transition=bound.transition,
        guidance=bound.chain,
        measurement=measurement,
        cond=cond,
    )


def levels(steps: int = 8) -> list[tuple[int, Tensor, Tensor]]:
    """(t, alpha_bar_t, alpha_bar_s) of the same run, from the definition of DDPM alone."""
    times = [k * (1000 // steps) for k in range(steps)][::-1]
    after = [*(BAR[t] for t in times[1:]), torch.tensor(1.0, dtype=D)]
    return [(t, BAR[t], s) for t, s in zip(times, after, strict=True)]


def shown(t: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), float(t), dtype=x.dtype)


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    assert bool(theirs.isfinite().all())
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def grad_log_p(x: Tensor, t: int, label: Sequence[int]) -> Tensor:
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        log_p = toy_logits(z, shown(t, z)).log_softmax(1)[range(len(z)), list(label)]
        return torch.autograd.grad(log_p.sum(), z)[0]


LABEL, NEGATIVE = [3, 0, 7], [5, 5, 1]


# Exactness on a labelled mixture ------------------------------------------------------------------


def assert_distributed(x: Tensor, exact: Mixture, floors: float = 2.0) -> None:
    """Mean and covariance to 4 standard errors (and 1 % of discretisation), sliced Wasserstein
    distance at the Monte Carlo floor."""
    x = x.flatten(1)
    std = exact.covariance.diagonal().sqrt()
    assert bool(((x.mean(0) - exact.mean).abs() < 4 * std / len(x) ** 0.5 + 0.01 * std).all())
    bound = (4 * (2 / len(x)) ** 0.5 + 0.01) * torch.outer(std, std)
    assert bool(((torch.cov(x.T) - exact.covariance).abs() < bound).all())
    assert in_floors(x, exact) < floors


def exact_classifier(schedule: Schedule) -> NoisyClassifier:
    return NoisyClassifier(PRIOR.classifier(schedule), schedule=schedule)


@pytest.mark.parametrize("sampled", ["linear", "flow", "ve", "edm", "subvp"])
@pytest.mark.parametrize("network", ["linear", "flow"])
@pytest.mark.parametrize("of_classifier", ["linear", "ve"])
def test_the_exact_classifier_makes_the_exact_conditional_in_every_frame(
    sampled: str, network: str, of_classifier: str
) -> None:
    """At one state, to rounding: sigma_t and the gradient belong to the frame that is sampled,
    whatever network and classifier know."""
    schedule, own = getattr(schedules, sampled)(), getattr(schedules, network)()
    denoiser = Denoiser(PRIOR.network("eps", own), schedule=own)
    label = torch.tensor([0, 1, 2, 1])
    guidance = ClassifierGuidance(
        label, classifier=exact_classifier(getattr(schedules, of_classifier)())
    )
    for ratio in (0.1, 0.9, 8.0):
        level = schedule.at(ratio)
        x = level.alpha * rand(4, 2, seed=1) + level.sigma * rand(4, 2, seed=2)
        bound = guidance.bind(Setting(denoiser, (4, 2), None, {}, x.device, D))
        p = bound(
            denoiser, x, Step(0, level, schedule.at(ratio / 2), schedule, NoiseSource([])), None
        )
        alpha, sigma = float(level.alpha), float(level.sigma)
        expected = torch.cat(
            [
                PRIOR.given(int(k)).posterior_mean(x[i : i + 1], alpha, sigma)
                for i, k in enumerate(label)
            ]
        )
        assert_same(p.x0, expected, 1e-8)
        assert_same(p.eps, (x - alpha * expected) / sigma, 1e-8)


@pytest.mark.parametrize(
    ("sampled", "of_classifier", "label"),
    [("linear", "linear", 0), ("flow", "linear", 1), ("ve", "flow", 2), ("edm", "ve", 1)],
)
def test_classifier_guidance_samples_the_exact_conditional(
    sampled: str, of_classifier: str, label: int
) -> None:
    denoiser = Denoiser(PRIOR.network("eps", SCHEDULE), schedule=SCHEDULE)
    options: dict[str, Any] = {
        "transition": Heun(),
        "schedule": getattr(schedules, sampled)(),
        "steps": 30,
        "dtype": D,
    }
    classifier = exact_classifier(getattr(schedules, of_classifier)())
    x = generate(denoiser, (2000, 2), ClassifierGuidance(label, classifier=classifier), **options).x
    assert_distributed(x, PRIOR.given(label))
    assert in_floors(x, PRIOR.given((label + 1) % 3)) > 20
    if sampled == "linear":
        unguided = generate(
            denoiser, (2000, 2), ClassifierGuidance(label, 0.0, classifier), **options
        ).x
        assert_distributed(unguided, PRIOR)
        assert in_floors(unguided, PRIOR.given(label)) > 10


@pytest.mark.parametrize("w", [1.0, 1 + 1e-9])
@pytest.mark.parametrize("sampled", ["linear", "flow"])
def test_cfg_samples_the_exact_conditional(w: float, sampled: str) -> None:
    """w = 1 calls the network once; next to 1 both branches run and their combination is the
    conditional one."""
    denoiser = Denoiser(PRIOR.conditional("eps", SCHEDULE), schedule=SCHEDULE, num_classes=3)
    options: dict[str, Any] = {
        "transition": Heun(),
        "schedule": getattr(schedules, sampled)(),
        "steps": 30,
        "dtype": D,
    }
    result = generate(denoiser, (2000, 2), CFG(1, w), **options)
    once = 59 if sampled == "linear" else 58  # Heun leaves pure noise by an Euler step
    assert result.nfe == (once if w == 1 else 2 * once)
    assert_distributed(result.x, PRIOR.given(1))
    assert in_floors(result.x, PRIOR.given(0)) > 20
    if w == 1 and sampled == "linear":
        for wrong in (0.0, 2.0):
            assert (
                in_floors(generate(denoiser, (2000, 2), CFG(1, wrong), **options).x, PRIOR.given(1))
                > 5
            )


@pytest.mark.parametrize("exploding", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_shift_of_the_mean_becomes_exact_as_the_steps_grow(exploding: bool) -> None:
    denoiser = Denoiser(PRIOR.network("eps", SCHEDULE), schedule=SCHEDULE)
    method = MeanShift(DDPM(), ClassifierGuidance(1, classifier=exact_classifier(SCHEDULE)))
    schedule, off = schedules.from_sigmas(SCHEDULE.ratio) if exploding else SCHEDULE, []
    for steps in (10, 40, 200):
        start = schedule(1000 // steps * (steps - 1)).sigma * rand(1000, 2, seed=3)
        off.append(
            in_floors(
                run(denoiser, method, steps, transition=method, start=start, schedule=schedule),
                PRIOR.given(1),
            )
        )
    assert off[0] > 3 * off[2] and off[1] > off[2], off
    assert off[2] < 2, off


@pytest.mark.parametrize("sampled", ["linear", "flow"])
def test_sr3_samples_the_exact_posterior(sampled: str) -> None:
    """A network that knows p(x0 | x_t, y) and finds y in the image before the state, by channel;
    two images with a y of their own."""
    noise, known = 0.3, torch.tensor([0, 2])
    A = torch.eye(4, dtype=D)[known]
    root = rand(3, 4, 4, seed=4) / 2
    prior = Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=D),
        rand(3, 4, seed=5),
        root @ root.mT + 0.1 * torch.eye(4, dtype=D),
    )

    def net(x: Tensor, t: Tensor) -> Tensor:
        cond, x_t = x.chunk(2, 1)
        level = SCHEDULE(float(t[0]))
        alpha, sigma = float(level.alpha), float(level.sigma)
        x0 = prior.restored_mean(x_t, alpha, sigma, A, cond.flatten(1)[:, known], noise)
        return (x_t - alpha * x0) / sigma

    denoiser = Denoiser(net, schedule=SCHEDULE, cond_channels=1)
    operator = Inpaint(torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=D))
    measurement = operator.measure(rand(2, 1, 2, 2, seed=6), sigma=noise)
    options: dict[str, Any] = {
        "transition": Heun(),
        "schedule": getattr(schedules, sampled)(),
        "steps": 25,
        "dtype": D,
        "num_samples": 1000,
    }
    x = solve(measurement, denoiser, "sr3", **options).samples
    for k in range(2):
        posterior = prior.posterior(A, measurement.y[k].flatten()[known], noise)
        assert_distributed(x[:, k], posterior)
        assert in_floors(x[:, 1 - k], posterior) > 10, "the other image's posterior is another"


# The official updates, same noise -----------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("clip", [True, False])
def test_classifier_guidance_is_condition_score_of_guided_diffusion(eta: float, clip: bool) -> None:
    s, x, generator = 2.5, rand(*SHAPE, seed=1), torch.Generator().manual_seed(7)
    for t, bar, after in levels():
        eps = toy(x, shown(t, x), torch.full((3,), CLASSES))
        x0 = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
        if clip:
            x0 = x0.clamp(-1, 1)
        eps = (x - bar.sqrt() * x0) / (1 - bar).sqrt()
        eps = eps - (1 - bar).sqrt() * s * grad_log_p(x, t, LABEL)
        x0 = (x - (1 - bar).sqrt() * eps) / bar.sqrt()  # not clipped again
        std = eta * ((1 - after) / (1 - bar)).sqrt() * (1 - bar / after).sqrt()
        x = after.sqrt() * x0 + (1 - after - std**2).sqrt() * eps
        if eta and after < 1:
            x = x + std * torch.randn(SHAPE, dtype=D, generator=generator)
    mine = run(toy_denoiser(clip=clip), ClassifierGuidance(LABEL, s), transition=DDIM(eta))
    assert_same(mine, x)
    assert (
        float(
            (
                mine
                - run(toy_denoiser(clip=clip), ClassifierGuidance(LABEL, 1.0), transition=DDIM(eta))
            )
            .abs()
            .max()
        )
        > 0.01
    )


@pytest.mark.parametrize("learned", [False, True])
def test_the_shift_of_the_mean_is_condition_mean_of_guided_diffusion(learned: bool) -> None:
    """All steps but the last, which draws no noise: there the official code shifts by a variance
    clipped to the step before's, here by none where the variance is zero."""
    s, steps, generator = 2.5, 8, torch.Generator().manual_seed(7)

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        eps = toy(x, t, label)
        return torch.cat([eps, torch.sin(3 * x)], 1) if learned else eps

    x = rand(*SHAPE, seed=1)
    for t, bar, after in levels(steps):
        out = net(x, shown(t, x), torch.full((3,), CLASSES))
        x0 = ((x - (1 - bar).sqrt() * out[:, :3]) / bar.sqrt()).clamp(-1, 1)
        beta = 1 - bar / after
        small = beta * (1 - after) / (1 - bar)
        mean = (
            after.sqrt() * beta / (1 - bar) * x0 + (1 - beta).sqrt() * (1 - after) / (1 - bar) * x
        )
        variance: Tensor = small
        if learned and after < 1:
            fraction = (out[:, 3:] + 1) / 2
            variance = torch.exp(fraction * beta.log() + (1 - fraction) * small.log())
        x = mean + variance * s * grad_log_p(x, t, LABEL)
        if after < 1:
            x = x + variance.sqrt() * torch.randn(SHAPE, dtype=D, generator=generator)
    method = make_method("classifier", label=LABEL, s=s, mean_shift=True)
    assert_same(
        run(
            toy_denoiser(net, learned_variance=learned), method, steps, transition=method.transition
        ),
        x,
    )


@pytest.mark.parametrize("w", [0.5, 3.0])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_cfg_is_the_loop_of_diffusers(w: float, scheduler: Any, negative: list[int] | None) -> None:
    """Its scheduler clips x0 of the combination; were each branch clipped, a strong scale would
    leave the range."""
    reference = in_double(scheduler(clip_sample=True))
    reference.set_timesteps(8)
    options = {"eta": 0.5, "use_clipped_model_output": True} if scheduler is DDIMScheduler else {}
    x, generator = rand(*SHAPE, seed=1), torch.Generator().manual_seed(7)
    for t in reference.timesteps.tolist():
        uncond = toy(x, shown(t, x), torch.tensor(negative or [CLASSES] * 3))
        cond = toy(x, shown(t, x), torch.tensor(LABEL))
        x = reference.step(
            uncond + w * (cond - uncond), t, x, generator=generator, return_dict=False, **options
        )[0]
    transition = DDIM(0.5) if scheduler is DDIMScheduler else DDPM()
    assert_same(run(toy_denoiser(), CFG(LABEL, w, negative), transition=transition), x)


@pytest.mark.parametrize("schedule", ["linear", "ve"])
@pytest.mark.parametrize("phi", [0.7, 1.0])
def test_rescale_is_that_of_diffusers_for_a_network_of_v(phi: float, schedule: str) -> None:
    """One prediction. On another schedule than the network's own v has another scale, but the ratio
    of standard deviations has not."""
    rescale = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    w, t = 4.0, 600
    bar, x = BAR[t], rand(*SHAPE, seed=1)
    uncond, cond = (toy(x, shown(t, x), torch.tensor(label)) for label in ([CLASSES] * 3, LABEL))
    v = rescale(uncond + w * (cond - uncond), cond, phi)
    x0 = bar.sqrt() * x - (1 - bar).sqrt() * v
    denoiser = toy_denoiser(predicts="v", clip=False)
    level = SCHEDULE(t) if schedule == "linear" else schedules.ve().at(SCHEDULE(t).ratio)
    x_t = x * float((level.alpha**2 + level.sigma**2).sqrt())
    bound = CFG(LABEL, w, rescale=phi).bind(Setting(denoiser, SHAPE, None, {}, x.device, D))
    p = bound(denoiser, x_t, Step(0, level, SCHEDULE(300), SCHEDULE, NoiseSource([])), None)
    assert_same(p.x0, x0, 1e-8)
    assert_same(level.alpha * p.x0 + level.sigma * p.eps, x_t, 1e-8)
    one = CFG(LABEL[1], w, rescale=phi).bind(
        Setting(denoiser, (1, *SHAPE[1:]), None, {}, x.device, D)
    )
    assert_same(
        one(denoiser, x_t[1:2], Step(0, level, SCHEDULE(300), SCHEDULE, NoiseSource([])), None).x0,
        p.x0[1:2],
    )


@pytest.mark.parametrize("w", [0.0, 0.6, 1.0])
def test_cfg_plus_plus_is_algorithm_2(w: float) -> None:
    x = rand(*SHAPE, seed=1)
    for t, bar, after in levels():
        uncond, cond = (
            toy(x, shown(t, x), torch.tensor(label)) for label in ([CLASSES] * 3, LABEL)
        )
        x0 = (x - (1 - bar).sqrt() * (uncond + w * (cond - uncond))) / bar.sqrt()
        x = after.sqrt() * x0 + (1 - after).sqrt() * uncond
    mine = run(toy_denoiser(clip=False), CFG(LABEL, w, plus=True))
    assert_same(mine, x)
    if w:
        assert float((mine - run(toy_denoiser(clip=False), CFG(LABEL, w))).abs().max()) > 0.01


@pytest.mark.parametrize("plus", [False, True])
def test_interval_guides_inside_and_is_conditional_outside(plus: bool) -> None:
    """(low, high]: its lower end is outside, its upper end inside."""
    w, x = 0.7, rand(*SHAPE, seed=1)
    ratios = [float(SCHEDULE(t).ratio) for t, *_ in levels()]
    low, high = ratios[5], ratios[2]
    for k, (t, bar, after) in enumerate(levels()):
        uncond, cond = (
            toy(x, shown(t, x), torch.tensor(label)) for label in ([CLASSES] * 3, LABEL)
        )
        inside = 2 <= k < 5
        eps = uncond + w * (cond - uncond) if inside else cond
        x0 = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
        x = after.sqrt() * x0 + (1 - after).sqrt() * (uncond if plus and inside else eps)
    net = Calls.of(toy)
    assert_same(
        run(toy_denoiser(net, clip=False), CFG(LABEL, w, interval=(low, high), plus=plus)), x
    )
    assert net.batches == [3, 3, 6, 6, 6, 3, 3, 3]


@pytest.mark.parametrize("per_image", [False, True])
def test_a_map_scales_every_pixel_apart(per_image: bool) -> None:
    w = 4 * rand(*((3, 1) if per_image else ()), 4, 4, seed=5)
    x = rand(*SHAPE, seed=1)
    for t, bar, after in levels():
        uncond, cond = (
            toy(x, shown(t, x), torch.tensor(label)) for label in ([CLASSES] * 3, LABEL)
        )
        eps = uncond + w * (cond - uncond)
        x = after.sqrt() * (x - (1 - bar).sqrt() * eps) / bar.sqrt() + (1 - after).sqrt() * eps
    assert_same(run(toy_denoiser(clip=False), CFG(LABEL, w)), x)


def prompted(x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
    return (
        torch.tanh(x * (1 + t.to(x).view(-1, 1, 1, 1) / 1000) + prompt.mean(1).view(-1, 1, 1, 1))
        + 0.1 * x
    )


@pytest.mark.parametrize(
    "negative", [torch.full((5,), -0.4, dtype=D), rand(3, 5, seed=9)], ids=["for_all", "for_each"]
)
@pytest.mark.parametrize("batched", [True, False])
def test_a_condition_of_another_name_has_a_negative_of_that_name(
    negative: Tensor, batched: bool
) -> None:
    prompt, w, x = rand(3, 5, seed=8), 3.0, rand(*SHAPE, seed=1)
    for t, bar, after in levels():
        uncond, cond = (
            prompted(x, shown(t, x), negative.expand(3, 5)),
            prompted(x, shown(t, x), prompt),
        )
        eps = uncond + w * (cond - uncond)
        x = after.sqrt() * (x - (1 - bar).sqrt() * eps) / bar.sqrt() + (1 - after).sqrt() * eps
    denoiser = Denoiser(prompted, schedule=SCHEDULE)
    assert_same(
        run(denoiser, CFG(w=w, negative={"prompt": negative}, batched=batched), prompt=prompt), x
    )


def test_negatives_follow_their_images_through_micro_batches() -> None:
    method, prompt = CFG(w=3.0, negative={"prompt": rand(3, 5, seed=9)}), rand(3, 5, seed=8)
    a, b = (
        generate(
            Denoiser(prompted, schedule=SCHEDULE),
            SHAPE,
            method,
            steps=4,
            dtype=D,
            batch_size=n,
            prompt=prompt,
        ).x
        for n in (3, 2)
    )
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_the_label_of_the_run_is_what_cfg_guides_towards() -> None:
    a = generate(toy_denoiser(), SHAPE, CFG(w=3.0), label=torch.tensor(LABEL), steps=4, dtype=D).x
    assert torch.equal(a, generate(toy_denoiser(), SHAPE, CFG(LABEL, 3.0), steps=4, dtype=D).x)
    torch.testing.assert_close(
        generate(toy_denoiser(), SHAPE, CFG(w=3.0), label=LABEL, steps=4, dtype=D, batch_size=2).x,
        a,
        atol=1e-12,
        rtol=0,
    )
    b = generate(toy_denoiser(), SHAPE, "cfg", label=7, steps=4, dtype=D).x
    assert torch.equal(b, generate(toy_denoiser(), SHAPE, CFG(7, 2.0), steps=4, dtype=D).x)


# log_prob, gradients through gradients ------------------------------------------------------------


def test_any_log_probability_of_the_state() -> None:
    s, target = 0.8, rand(*SHAPE, seed=6)

    def log_prob(x_t: Tensor, level: Level) -> Tensor:
        return -(x_t - level.alpha * target).abs().pow(3).flatten(1).sum(1)

    x = rand(*SHAPE, seed=1)
    for t, bar, after in levels():
        r = x - bar.sqrt() * target
        eps = toy(x, shown(t, x), torch.tensor(LABEL)) + (1 - bar).sqrt() * s * 3 * r.abs() * r
        x = after.sqrt() * (x - (1 - bar).sqrt() * eps) / bar.sqrt() + (1 - after).sqrt() * eps
    assert_same(
        run(
            toy_denoiser(clip=False),
            ClassifierGuidance(s=s, log_prob=log_prob),
            label=torch.tensor(LABEL),
        ),
        x,
    )


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0), None])
def test_a_log_probability_of_the_estimate_sees_the_users_range_and_the_network(
    data_range: tuple[float, float] | None,
) -> None:
    s, target = 0.5, rand(*SHAPE, seed=6).sigmoid()
    low, high = data_range or (0.0, 1.0)

    def log_prob(x0: Tensor) -> Tensor:
        return -(x0 - target).square().flatten(1).sum(1)

    x = rand(*SHAPE, seed=1)
    for t, bar, after in levels():
        z = x.detach().requires_grad_()
        x0 = (z - (1 - bar).sqrt() * toy(z, shown(t, z), torch.tensor(LABEL))) / bar.sqrt()
        x0 = x0.clamp(low, high) if data_range else x0
        (grad,) = torch.autograd.grad(log_prob((x0 - low) / (high - low)).sum(), z)
        x0 = x0.detach() + s * (1 - bar) / bar.sqrt() * grad
        x = after.sqrt() * x0 + (1 - after).sqrt() * (x - bar.sqrt() * x0) / (1 - bar).sqrt()
    guidance = ClassifierGuidance(s=s, log_prob=log_prob, of="x0")
    denoiser = toy_denoiser(data_range=data_range)
    assert_same(run(denoiser, guidance, label=torch.tensor(LABEL)), x)
    result = generate(denoiser, SHAPE, guidance, label=LABEL, steps=4, dtype=D)
    assert (result.nfe, result.nbe) == (4, 4)


def test_dps_around_classifier_guidance_differentiates_the_classifiers_gradient() -> None:
    s, zeta = 0.6, 0.4
    operator = Inpaint("half")
    measurement = operator.measure(rand(*SHAPE, seed=3).sigmoid()).to_range(-1, 1)
    results = {}
    for second_order in (True, False):
        x = rand(*SHAPE, seed=1)
        for t, bar, after in levels():
            z = x.detach().requires_grad_()
            eps = toy(z, shown(t, z), torch.full((3,), CLASSES))
            log_p = toy_logits(z, shown(t, z)).log_softmax(1)[range(3), LABEL]
            (towards,) = torch.autograd.grad(log_p.sum(), z, create_graph=second_order)
            eps = eps - (1 - bar).sqrt() * s * towards
            x0 = (z - (1 - bar).sqrt() * eps) / bar.sqrt()
            norm = (measurement.y - operator(x0)).flatten(1).norm(dim=1)
            (grad,) = torch.autograd.grad(norm.sum(), z)
            x = (after.sqrt() * x0 + (1 - after).sqrt() * eps - zeta * grad).detach()
        results[second_order] = x
    mine = run(
        toy_denoiser(clip=False), [ClassifierGuidance(LABEL, s), DPS(zeta)], measurement=measurement
    )
    assert_same(mine, results[True], 1e-8)
    assert float((results[True] - results[False]).abs().max()) > 1e-3


# Invariants ---------------------------------------------------------------------------------------

W_MAP = 3 * rand(3, 1, 4, 4, seed=5).sigmoid()
METHODS: dict[str, Callable[[list[int]], Any]] = {
    "classifier": lambda k: ClassifierGuidance([LABEL[i] for i in k], 2.0),
    "mean_shift": lambda k: MeanShift(DDPM(), ClassifierGuidance([LABEL[i] for i in k], 2.0)),
    "mean_shift_ddim": lambda k: [
        "none",
        MeanShift(DDIM(1.0), ClassifierGuidance([LABEL[i] for i in k], 2.0)),
    ],
    "cfg": lambda k: CFG(torch.tensor([LABEL[i] for i in k]), 3.0),
    "cfg_separate": lambda k: CFG([LABEL[i] for i in k], 3.0, batched=False),
    "cfg_negative": lambda k: CFG([LABEL[i] for i in k], 3.0, [NEGATIVE[i] for i in k]),
    "cfg_map": lambda k: CFG([LABEL[i] for i in k], W_MAP[k]),
    "cfg_rescaled": lambda k: CFG([LABEL[i] for i in k], 3.0, rescale=0.7),
    "cfg_plus_plus": lambda k: CFG([LABEL[i] for i in k], 0.6, plus=True),
    "cfg_classifier": lambda k: [
        CFG([LABEL[i] for i in k], 3.0),
        ClassifierGuidance([LABEL[i] for i in k]),
    ],
}


@pytest.mark.parametrize("name", METHODS)
def test_an_image_alone_with_its_label_is_the_image_in_its_batch(name: str) -> None:
    options: dict[str, Any] = {"steps": 5, "num_samples": 2, "dtype": D}
    measurement = Inpaint().measure(rand(*SHAPE, seed=3).sigmoid())
    together = solve(measurement, toy_denoiser(), METHODS[name]([0, 1, 2]), **options)
    parts = solve(measurement, toy_denoiser(), METHODS[name]([0, 1, 2]), batch_size=4, **options)
    torch.testing.assert_close(parts.samples, together.samples, atol=1e-12, rtol=0)
    for k in range(3):
        alone = solve(
            measurement.select([k]), toy_denoiser(), METHODS[name]([k]), image_ids=[k], **options
        )
        torch.testing.assert_close(alone.samples[:, 0], together.samples[:, k], atol=1e-12, rtol=0)
    swapped = solve(measurement, toy_denoiser(), METHODS[name]([1, 0, 2]), **options)
    assert (
        float((swapped.samples - together.samples)[:, :2].abs().amax((0, 2, 3, 4)).min()) > 1e-3
    ), "labels do matter"


@pytest.mark.parametrize("name", METHODS)
def test_networks_of_eps_x0_and_v_are_guided_alike(name: str) -> None:
    def converted(kind: str) -> Callable[..., Tensor]:
        def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            eps, bar = toy(x, t, label), BAR[int(t[0])]
            x0 = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
            return x0 if kind == "x0" else bar.sqrt() * eps - (1 - bar).sqrt() * x0

        return net

    options: dict[str, Any] = {"steps": 5, "dtype": D}
    eps = generate(toy_denoiser(), SHAPE, METHODS[name]([0, 1, 2]), **options).x
    for kind in ("x0", "v"):
        other = generate(
            toy_denoiser(converted(kind), predicts=kind), SHAPE, METHODS[name]([0, 1, 2]), **options
        ).x
        torch.testing.assert_close(other, eps, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", [name for name in METHODS if "mean_shift" not in name])
def test_variance_preserving_and_exploding_runs_are_one(name: str) -> None:
    """The same levels in two frames, where states differ by 1/alpha: w, s and rescale must not
    notice. (Algorithm 1 does: it takes the gradient at x_t for one at x_s, which is off by
    alpha_t/alpha_s until the steps are small.)"""
    exploding = schedules.from_sigmas(SCHEDULE.ratio)
    start, alpha = rand(*SHAPE, seed=1), float(SCHEDULE(levels()[0][0]).alpha)
    method = METHODS[name]([0, 1, 2])
    a = run(toy_denoiser(), method, transition=DDIM(0.5), start=start)
    b = run(toy_denoiser(), method, transition=DDIM(0.5), start=start / alpha, schedule=exploding)
    assert_same(a, b, 1e-8)


@pytest.mark.parametrize(
    "method",
    [CFG(LABEL, 3.0), CFG(LABEL, 0.6, plus=True), CFG(LABEL, W_MAP, NEGATIVE, rescale=0.7)],
)
def test_both_branches_in_one_call_are_two_calls(method: CFG) -> None:
    apart = CFG(
        method.label,
        method.w,
        method.negative,
        rescale=method.rescale,
        plus=method.plus,
        batched=False,
    )
    nets = [Calls.of(toy), Calls.of(toy)]
    x = [
        generate(toy_denoiser(net), SHAPE, m, steps=4, dtype=D).x
        for net, m in zip(nets, (method, apart), strict=True)
    ]
    torch.testing.assert_close(x[0], x[1], atol=1e-12, rtol=0)
    assert (nets[0].batches, nets[1].batches) == ([6] * 4, [3] * 8)


@pytest.mark.parametrize(
    ("method", "nfe"),
    [
        (CFG(1, 1.0), 6),
        (CFG(1, 1), 6),
        (CFG(1, 0.0), 6),
        (CFG(1, 2.0), 12),
        (CFG(1, 2.0, batched=False), 12),
        (CFG(1, torch.tensor(1.0)), 12),
        (CFG(1, 1.0, plus=True), 12),
        (CFG(1, 0.0, plus=True), 6),
        (CFG(1, 2.0, interval=(1e9, 1e10)), 6),
        (CFG(1, 2.0, interval=(0.0, 1e10)), 12),
        (ClassifierGuidance(1), 6),
        (MeanShift(DDPM(), ClassifierGuidance(1)), 6),
    ],
)
def test_evaluations(method: Any, nfe: int) -> None:
    result = generate(toy_denoiser(), SHAPE, method, steps=6)
    assert (result.nfe, result.nbe) == (nfe, 0)


@pytest.mark.parametrize(
    "method",
    [
        ClassifierGuidance(LABEL, 0.0),
        MeanShift(DDPM(), ClassifierGuidance(LABEL, 0.0)),
        CFG(LABEL, 0.0),
    ],
)
def test_a_scale_of_zero_is_unguided(method: Any) -> None:
    assert torch.equal(
        generate(toy_denoiser(), SHAPE, method, steps=5).x,
        generate(toy_denoiser(), SHAPE, steps=5).x,
    )


def test_where_memory_is_short_the_branches_go_one_after_the_other() -> None:
    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        if len(x) > 4 and t[0] < 600:
            raise torch.OutOfMemoryError
        return toy(x, t, label)

    calls = Calls.of(net)
    with pytest.warns(UserWarning, match="out of memory") as caught:
        result = generate(toy_denoiser(calls), SHAPE, CFG(LABEL, 3.0), steps=6, dtype=D)
    assert {str(w.message) for w in caught} == {
        "out of memory; going on with the two branches one after the other"
    }
    assert calls.batches == [6, 6, 6] + [3, 3] + [6, 3, 3] * 3
    assert result.nfe == 12
    torch.testing.assert_close(
        result.x,
        generate(toy_denoiser(), SHAPE, CFG(LABEL, 3.0), steps=6, dtype=D).x,
        atol=1e-12,
        rtol=0,
    )
    with pytest.raises(RuntimeError, match="something else"):
        generate(toy_denoiser(Calls.of(fails)), SHAPE, CFG(LABEL, 3.0), steps=2)


def fails(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    raise RuntimeError("something else")


@pytest.mark.parametrize("name", ["classifier", "mean_shift", "cfg"])
def test_global_states_are_left_alone(name: str) -> None:
    denoiser = toy_denoiser()
    first = generate(denoiser, SHAPE, METHODS[name]([0, 1, 2]), steps=3).x
    for enabled in (True, False):
        before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
        with torch.set_grad_enabled(enabled):
            again = generate(denoiser, SHAPE, METHODS[name]([0, 1, 2]), steps=3).x
            assert torch.is_grad_enabled() == enabled
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
        assert random.getstate() == before[2]
        assert torch.equal(again, first)
        assert not again.requires_grad


def test_a_classifier_is_frozen_and_takes_a_state_of_any_precision() -> None:
    net = TimeClassifier(3, CLASSES, (8, 8), norm_num_groups=4).train()
    denoiser = toy_denoiser(classifier=NoisyClassifier(net, schedule=SCHEDULE))
    assert not net.training
    low, high = (
        generate(denoiser, SHAPE, ClassifierGuidance(3), steps=2, dtype=dtype)
        for dtype in (torch.float32, D)
    )
    assert (low.x.dtype, high.x.dtype) == (torch.float32, D)
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())


# Together -----------------------------------------------------------------------------------------

CHAINS: dict[str, Any] = {
    "cfg_dps": [CFG(LABEL, 3.0), DPS(0.3)],
    "classifier_dps": [ClassifierGuidance(LABEL), DPS(0.3)],
    "dps_classifier": [DPS(0.3), ClassifierGuidance(LABEL)],
    "cfg_classifier": [CFG(LABEL, 3.0), ClassifierGuidance(LABEL)],
    "classifier_repaint": [
        ClassifierGuidance(LABEL),
        make_method("repaint", jump_length=2, resamplings=2),
    ],
    "cfg_repaint": [CFG(LABEL, 3.0), make_method("repaint", jump_length=2, resamplings=2)],
    "mean_shift_dps": [DPS(0.3), MeanShift(DDPM(), ClassifierGuidance(LABEL))],
    "sr3_cfg": ["sr3", CFG(LABEL, 3.0)],
    "sr3_cfg_dps": ["sr3", CFG(LABEL, 3.0), DPS(0.3)],
    "sr3_classifier_replace": ["sr3", ClassifierGuidance(LABEL), "replace"],
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str) -> None:
    measurement = Inpaint("half").measure(rand(*SHAPE, seed=3).sigmoid())
    denoiser = toy_denoiser(toy_sr3, cond_channels=3) if "sr3" in name else toy_denoiser()
    options: dict[str, Any] = {"steps": 6, "num_samples": 2, "dtype": D}
    result = solve(measurement, denoiser, CHAINS[name], **options)
    assert bool(result.samples.isfinite().all())
    torch.testing.assert_close(
        solve(measurement, denoiser, CHAINS[name], batch_size=4, **options).samples,
        result.samples,
        atol=1e-12,
        rtol=0,
    )
    if "repaint" in name or "replace" in name:
        torch.testing.assert_close(result.x[..., :2], measurement.y[..., :2])
    for left_out in range(len(CHAINS[name])):
        rest = [piece for k, piece in enumerate(CHAINS[name]) if k != left_out]
        if CHAINS[name][left_out] != "sr3":
            assert (
                float(
                    (solve(measurement, denoiser, rest, **options).samples - result.samples)
                    .abs()
                    .max()
                )
                > 1e-3
            )


def test_what_conditions_the_network_commutes() -> None:
    """One call for two branches stacks the image condition as well, whichever of the two stands
    nearer."""
    measurement = Inpaint("half").measure(rand(*SHAPE, seed=3).sigmoid())
    denoiser = toy_denoiser(toy_sr3, cond_channels=3)
    a, b = (
        solve(measurement, denoiser, m, steps=5, dtype=D).x
        for m in (["sr3", CFG(LABEL, 3.0)], [CFG(LABEL, 3.0), "sr3"])
    )
    assert torch.equal(a, b)
    c = solve(
        measurement, denoiser, CFG(LABEL, 3.0), steps=5, dtype=D, cond=measurement.to_range(-1, 1).y
    ).x
    assert torch.equal(a, c)


@pytest.mark.parametrize("label", [1, 2])
@pytest.mark.parametrize("guidance", ["cfg", "classifier"])
def test_inpainting_keeps_what_is_known_and_the_class(guidance: str, label: int) -> None:
    """The known coordinate suits classes 1 and 2 alike; the other one tells them apart."""
    chains = 250
    if guidance == "cfg":
        denoiser, method = (
            Denoiser(PRIOR.conditional("eps", SCHEDULE), schedule=SCHEDULE, num_classes=3),
            make_method(CFG(label, 1.0)),
        )
    else:
        denoiser = Denoiser(
            PRIOR.network("eps", SCHEDULE), schedule=SCHEDULE, classifier=exact_classifier(SCHEDULE)
        )
        method = make_method("classifier", label=label)
    truth = torch.tensor([0.0, 1.0], dtype=D).expand(chains, 2).reshape(chains, 1, 1, 2)
    measurement = Inpaint(torch.tensor([[0.0, 1.0]], dtype=D)).measure(truth)
    repaint = make_method("repaint", jump_length=5, resamplings=4)
    x = solve(measurement, denoiser, [method, repaint], steps=40, dtype=D).x
    assert torch.equal(x[..., 1], truth[..., 1])
    assert float((PRIOR.log_p(x, 1.0, 1e-3).argmax(1) == label).double().mean()) > 0.97
    exact = PRIOR.given(label).posterior(
        torch.tensor([[0.0, 1.0]], dtype=D), torch.tensor([1.0], dtype=D), 1e-3
    )
    unknown = x[:, 0, 0, 0]
    assert float((unknown.mean() - exact.mean[0]).abs()) < 0.1
    assert float(unknown.std()) == pytest.approx(float(exact.covariance[0, 0].sqrt()), rel=0.3), (
        "RePaint's own error, at 40 steps"
    )


# What cannot work ---------------------------------------------------------------------------------


class Clean(torch.nn.Module):
    """A classifier of clean images."""

    def forward(self, x: Tensor) -> Tensor:
        return toy_logits(x, torch.zeros(len(x)))


def of_four_channels(x: Tensor, t: Tensor) -> Tensor:
    return torch.nn.functional.conv2d(x, torch.ones(CLASSES, 4, 4, 4)).flatten(1)


def per_pixel(x: Tensor, t: Tensor) -> Tensor:
    return x


NULLLESS: dict[str, Any] = {"null_label": False}
UNCONDITIONAL: dict[str, Any] = {"num_classes": None}
WITHOUT_CLASSIFIER: dict[str, Any] = {"classifier": None}
PROMPTED: dict[str, Any] = {"num_classes": None}
SR3_NET: dict[str, Any] = {"num_classes": None, "cond_channels": 3}
REFUSED: dict[str, tuple[str, Any, dict[str, Any], dict[str, Any]]] = {
    # name: (what is said, method, options of the denoiser, of the run)
    "cfg_unknown_label": (
        r"label 11 is unknown to network: its classes are 0\.\.9",
        CFG(11),
        {},
        {},
    ),
    "cfg_unknown_negative": (r"label 12 is unknown.*0\.\.9", CFG(3, negative=12), {}, {}),
    "cfg_negative_number": ("label -1 is unknown", CFG(-1), {}, {}),
    "cfg_no_label": (r"needs a label, one of 0\.\.9", CFG(), {}, {}),
    "cfg_no_classes": ("not class-conditional", CFG(3), UNCONDITIONAL, {}),
    "cfg_no_null_class": ("has no null class.*negative=LABEL", CFG(3), NULLLESS, {}),
    "cfg_labels_of_wrong_length": (
        r"one for each of the 3 images, got shape \(2,\)",
        CFG([1, 2]),
        {},
        {},
    ),
    "cfg_float_label": ("label must be a whole number.*2.5", CFG(2.5), {}, {}),  # type: ignore[arg-type]
    "cfg_float_labels": (
        "label must be a whole number",
        CFG(torch.tensor([1.0, 2.0, 3.0])),
        {},
        {},
    ),
    "cfg_bool_label": ("label must be a whole number.*True", CFG(True), {}, {}),
    "cfg_label_as_text": ("label must be a whole number.*'seven'", CFG("seven"), {}, {}),  # type: ignore[arg-type]
    "cfg_map_of_wrong_shape": (
        r"w must be a number, a map \(4, 4\).*got shape \(5, 5\)",
        CFG(3, torch.ones(5, 5)),
        {},
        {},
    ),
    "cfg_label_twice": ("label is given twice, to CFG and to the run", CFG(3), {}, {"label": 4}),
    "cfg_negative_of_no_condition": (
        "names conditions that the run itself gives.*not given: text",
        CFG(negative={"text": rand(5)}),
        {},
        {},
    ),
    "cfg_negative_mapping_and_label": (
        "names conditions that the run itself gives",
        CFG(3, negative={"label": torch.tensor(2)}),
        {},
        {},
    ),
    "cfg_negative_as_text": (
        "must be tensors, got str and Tensor",
        CFG(negative={"prompt": "ugly"}),
        PROMPTED,
        {"prompt": rand(3, 5)},
    ),  # type: ignore[dict-item]
    "cfg_prompt_as_text": (
        "must be tensors, got Tensor and str",
        CFG(negative={"prompt": rand(5)}),
        PROMPTED,
        {"prompt": "nice"},
    ),
    "cfg_negative_shape": (
        r"shape \(4,\), but the run gives prompt of shape \(3, 5\)",
        CFG(negative={"prompt": rand(4)}),
        PROMPTED,
        {"prompt": rand(3, 5)},
    ),
    "classifier_unknown_label": (
        r"label 10 is unknown to classifier: its classes are 0\.\.9",
        ClassifierGuidance(10),
        {},
        {},
    ),
    "classifier_no_label": (
        r"which class: give label=, one of 0\.\.9",
        ClassifierGuidance(),
        {},
        {},
    ),
    "classifier_labels_of_wrong_length": (
        r"one for each of the 3 images, got shape \(2,\)",
        ClassifierGuidance([1, 2]),
        {},
        {},
    ),
    "classifier_float_label": ("label must be a whole number", ClassifierGuidance(1.5), {}, {}),  # type: ignore[arg-type]
    "classifier_missing": (
        "comes without a noise-aware classifier; give classifier=",
        ClassifierGuidance(3),
        WITHOUT_CLASSIFIER,
        {},
    ),
    "classifier_by_name": (
        "comes without a noise-aware classifier",
        make_method("classifier", label=3),
        WITHOUT_CLASSIFIER,
        {},
    ),
    "mean_shift_without_a_classifier": (
        "without a noise-aware",
        make_method("classifier", label=3, mean_shift=True),
        WITHOUT_CLASSIFIER,
        {},
    ),
    "classifier_of_clean_images": (
        r"Clean cannot be called as classifier\(x_t, t\).*log_prob",
        ClassifierGuidance(3, classifier=Clean()),
        {},
        {},
    ),
    "classifier_channels": (
        "of_four_channels cannot be applied",
        ClassifierGuidance(3, classifier=of_four_channels),
        {},
        {},
    ),
    "classifier_shape": (
        r"per_pixel must return logits.*\(1, 3, 4, 4\)",
        ClassifierGuidance(3, classifier=per_pixel),
        {},
        {},
    ),
    "two_cfgs": ("CFG and CFG both give the network its label", [CFG(3), CFG(4)], {}, {}),
    "dps_before_cfg": (
        "CFG conditions the network.*than DPS.*put it first",
        [DPS(), CFG(3)],
        {},
        {},
    ),
    "classifier_before_cfg": (
        "CFG conditions the network.*than ClassifierGuidance",
        [ClassifierGuidance(3), CFG(3)],
        {},
        {},
    ),
    "dps_before_sr3": ("SR3 conditions the network.*than DPS", [DPS(), SR3()], SR3_NET, {}),
    "two_transitions": (
        r"MeanShift needs a transition whose variance it knows.*got Heun",
        [make_method("classifier", label=3, mean_shift=True), Heun()],
        {},
        {},
    ),
    "sr3_net_alone": ("conditioned on an image; use the method 'sr3'", DPS(), SR3_NET, {}),
    "sr3_net_with_cfg_alone": ("conditioned on an image", CFG(3), {"cond_channels": 3}, {}),
    "sr3_on_another_net": ("not conditioned on an image.*such as sr3x4", SR3(), {}, {}),
    "sr3_channels": (
        r"channels do not add up: network takes \[cond, x_t\] with 1 \+ 3",
        SR3(),
        {"num_classes": None, "cond_channels": 1},
        {},
    ),
    "sr3_size": (
        r"channels do not add up.*\(3, 3, 2, 2\)",
        SR3(lambda m: m.y[..., :2, :2]),
        SR3_NET,
        {},
    ),
    "sr3_cond_twice": (
        "cond is given twice, to SR3 and to the run",
        SR3(),
        SR3_NET,
        {"cond": torch.zeros(SHAPE)},
    ),
    "two_sr3s": ("SR3 and SR3 both give the network its cond", [SR3(), SR3("pinv")], SR3_NET, {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_before_the_network_is_called(name: str) -> None:
    says, method, options, cond = REFUSED[name]
    net = Calls.of(lambda x, t, label=None: x)
    measurement = Inpaint("half").measure(rand(*SHAPE, seed=3).sigmoid().float())
    with pytest.raises((ValueError, TypeError), match=re.compile(says, re.DOTALL)):
        solve(measurement, toy_denoiser(plain(net), **options), method, steps=2, **cond)
    assert net.times == []


def plain(net: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A signature that tells what it takes."""

    def called(
        x: Tensor, t: Tensor, label: Tensor | None = None, prompt: Tensor | None = None
    ) -> Tensor:
        return net(x, t)

    return called


def test_generation_has_nothing_to_show_to_sr3() -> None:
    with pytest.raises(ValueError, match="SR3 restores a measurement, but there is none"):
        generate(toy_denoiser(num_classes=None, cond_channels=3), SHAPE, "sr3")


@pytest.mark.parametrize(
    ("says", "make"),
    [
        ("w must be a finite number", lambda: CFG(1, float("nan"))),
        (r"rescale must be in \[0, 1\], got 1.5", lambda: CFG(1, rescale=1.5)),
        (r"CFG\+\+ interpolates: w must be in \[0, 1\]", lambda: CFG(1, 2.0, plus=True)),
        ("0 <= low < high", lambda: CFG(1, interval=(2.0, 1.0))),
        ("0 <= low < high", lambda: CFG(1, interval=(-1.0, 1.0))),
        ("0 <= low < high", lambda: CFG(1, interval=(1.0,))),  # type: ignore[arg-type]
        ("s must be a finite number", lambda: ClassifierGuidance(1, float("inf"))),
        ("of must be 'x_t' or 'x0'", lambda: ClassifierGuidance(log_prob=toy_logits, of="x1")),
        ("of='x0' needs log_prob=", lambda: ClassifierGuidance(1, of="x0")),
        ("give one or the other", lambda: ClassifierGuidance(1, log_prob=toy_logits)),
        ("whose variance it knows", lambda: MeanShift(Heun())),  # type: ignore[arg-type]
        ("DDIM.* draws no noise.*ClassifierGuidance", lambda: MeanShift(DDIM())),
        ("cond must be one of upsampled, pinv, adjoint", lambda: SR3("bicubic")),
        ("a classifier is a callable", lambda: NoisyClassifier(3, schedule=SCHEDULE)),  # type: ignore[arg-type]
    ],
)
def test_construction_errors(says: str, make: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        make()


def test_a_negative_label_takes_the_place_of_a_null_class_that_is_missing() -> None:
    x = generate(toy_denoiser(null_label=False), SHAPE, CFG(LABEL, 3.0, 5), steps=4).x
    assert torch.equal(x, generate(toy_denoiser(), SHAPE, CFG(LABEL, 3.0, 5), steps=4).x)


def test_a_wrong_log_probability_is_named() -> None:
    for log_prob, of, says in (
        (lambda x, level: x.sum(), "x_t", r"one value per image, \(3,\), got shape \(\)"),
        (lambda x0: x0, "x0", r"one value per image, \(3,\), got shape \(3, 3, 4, 4\)"),
    ):
        with pytest.raises(ValueError, match=says):
            generate(toy_denoiser(), SHAPE, ClassifierGuidance(log_prob=log_prob, of=of), steps=2)
    blind = toy_denoiser(lambda x, t, label: toy(x, t, label).detach(), predicts="x0")
    with pytest.raises(ValueError, match="gives no"):
        generate(
            blind,
            SHAPE,
            ClassifierGuidance(log_prob=lambda x0: x0.flatten(1).sum(1), of="x0"),
            steps=2,
        )


# What an SR3 network is shown ---------------------------------------------------------------------


@pytest.mark.parametrize("predicts", ["eps", "edm"])
@pytest.mark.parametrize("sampled", ["linear", "ve", "flow"])
def test_the_condition_comes_first_and_is_not_rescaled(predicts: str, sampled: str) -> None:
    own = schedules.edm() if predicts == "edm" else SCHEDULE
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return x[:, 2:]

    level, cond, x = (
        getattr(schedules, sampled)().at(3.0),
        rand(2, 2, 5, 6, seed=1),
        rand(2, 3, 5, 6, seed=2),
    )
    Denoiser(net, predicts=predicts, schedule=own, cond_channels=2)(x, level, cond=cond)
    assert torch.equal(seen[0][:, :2], cond)
    x_1 = x / float(
        (level.alpha**2 + level.sigma**2).sqrt()
    )  # of unit norm: the frame of a variance-preserving network
    assert_same(seen[0][:, 2:], x_1 * (10 / 9.25) ** 0.5 if predicts == "edm" else x_1)


def test_padding_pads_both() -> None:
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return x[:, 2:]

    cond, x = rand(2, 2, 5, 6, seed=1), rand(2, 3, 5, 6, seed=2)
    p = Denoiser(net, schedule=SCHEDULE, cond_channels=2, multiple=4)(x, SCHEDULE(500), cond=cond)
    assert seen[0].shape == (2, 5, 8, 8)
    assert torch.equal(
        seen[0], torch.nn.functional.pad(torch.cat([cond, x], 1), (0, 2, 0, 3), mode="reflect")
    )
    assert torch.equal(p.eps, x)


def test_a_network_may_be_conditioned_on_the_continuous_noise_level() -> None:
    net = Calls.of(lambda x, t: x[:, 1:])
    denoiser = Denoiser(net, schedule=SCHEDULE, cond_channels=1, time=lambda t: SCHEDULE(t).alpha)
    for t in (0, 300, 999):
        denoiser(torch.zeros(1, 1, 2, 2, dtype=D), SCHEDULE(t), cond=torch.zeros(1, 1, 2, 2))
    assert net.times == pytest.approx([float(BAR[t].sqrt()) for t in (0, 300, 999)])


@pytest.mark.parametrize(
    "cond", [None, torch.zeros(2, 1, 4, 4), torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 4, 5)]
)
def test_a_denoiser_says_which_image_it_wants(cond: Tensor | None) -> None:
    denoiser = Denoiser(lambda x, t: x[:, 2:], schedule=SCHEDULE, cond_channels=2)
    with pytest.raises(
        ValueError,
        match="sr3" if cond is None else r"an image of shape \(2, 2, 4, 4\) beside the state, got",
    ):
        denoiser(torch.zeros(2, 3, 4, 4), SCHEDULE(500), cond=cond)


@pytest.mark.parametrize("cond", ["upsampled", "pinv", "adjoint", "own"])
def test_what_sr3_makes_of_a_measurement(cond: str) -> None:
    """In the network's range; upsampling is bicubic with a = −1/2, as PIL's and SR3's."""
    operator = SuperResolution(factor=2)
    measurement = operator.measure(rand(2, 3, 8, 8, seed=3).sigmoid(), sigma=0.05)
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x[:, :3])
        return x[:, 3:]

    y = 2 * measurement.y - 1
    made = {
        "upsampled": torch.nn.functional.interpolate(
            y, size=(8, 8), mode="bicubic", antialias=True
        ),
        "pinv": operator.pinv(y),
        "adjoint": operator.adjoint(y),
        "own": 0 * torch.nn.functional.interpolate(y, scale_factor=2) + y.mean(),
    }[cond]
    method = SR3((lambda m: m.y.mean().expand(2, 3, 8, 8)) if cond == "own" else cond)
    solve(
        measurement,
        Denoiser(net, schedule=SCHEDULE, cond_channels=3, data_range=(-1, 1)),
        method,
        steps=2,
        dtype=D,
    )
    torch.testing.assert_close(seen[0], made, atol=1e-6, rtol=0)
    masked = Inpaint("half").measure(rand(2, 3, 8, 8, seed=3).sigmoid())
    solve(
        masked,
        Denoiser(net, schedule=SCHEDULE, cond_channels=3, data_range=(-1, 1)),
        "sr3",
        steps=2,
        dtype=D,
    )
    torch.testing.assert_close(seen[-1][..., :4], 2 * masked.y[..., :4] - 1)
    assert bool((seen[-1][..., 4:] == 0).all()), "missing pixels are mid-grey"


def test_sr3_is_given_a_nonlinear_measurement_in_the_networks_range() -> None:
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x[:, :3])
        return x[:, 3:]

    measurement = JPEG(20).measure(rand(2, 3, 16, 16, seed=3).sigmoid())
    denoiser = Denoiser(net, schedule=SCHEDULE, cond_channels=3, data_range=(-1, 1))
    solve(measurement, denoiser, "sr3", steps=2, dtype=D)
    torch.testing.assert_close(seen[0], 2 * measurement.y - 1)


def test_a_keyword_takes_the_image_where_nothing_is_concatenated() -> None:
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        seen.append(cond)
        return x

    measurement = Inpaint("half").measure(rand(*SHAPE, seed=3).sigmoid())
    solve(measurement, Denoiser(net, schedule=SCHEDULE), "sr3", steps=1, dtype=D)
    assert torch.equal(seen[0], measurement.y)


# Folders and shipped models -----------------------------------------------------------------------


def save_unet(
    folder: Path, null: int | None = None, variance: str = "fixed_small", **options: Any
) -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet2DModel(
            **{
                "sample_size": 16,
                "in_channels": 1,
                "out_channels": 1,
                "layers_per_block": 1,
                "block_out_channels": (8, 16),
                "down_block_types": ("DownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "UpBlock2D"),
                "norm_num_groups": 4,
                "add_attention": False,
                **options,
            }
        )
    net.save_pretrained(folder)
    DDPMScheduler(variance_type=variance).save_pretrained(folder)
    if null is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"_null_label": null}))
    return net.eval()


def says(denoiser: Denoiser, x: Tensor, **cond: Any) -> Prediction:
    with torch.no_grad():
        return denoiser(x, SCHEDULE(500), clip_x0=False, **cond)


@pytest.mark.parametrize(
    ("null", "classes", "null_label"), [(10, 10, 10), (0, 11, 0), (None, 11, None)]
)
def test_a_folder_of_a_class_conditional_network(
    tmp_path: Path, null: int | None, classes: int, null_label: int | None
) -> None:
    net = save_unet(tmp_path, null, num_class_embeds=11)
    denoiser = load_folder(tmp_path)
    assert (denoiser.num_classes, denoiser.null_label, denoiser.cond_channels) == (
        classes,
        null_label,
        None,
    )
    x = rand(2, 1, 16, 16).float()
    with torch.no_grad():
        theirs = {k: net(x, 500, class_labels=torch.tensor([k, k])).sample for k in (3, null or 0)}
    torch.testing.assert_close(says(denoiser, x, label=3).eps, theirs[3])
    assert float((theirs[3] - theirs[null or 0]).abs().max()) > 1e-4
    if null is None:
        with pytest.raises(ValueError, match="no null class"):
            says(denoiser, x)
    else:
        torch.testing.assert_close(says(denoiser, x).eps, theirs[null])
        assert generate(denoiser, (2, 1, 16, 16), CFG([3, 4]), steps=2).nfe == 4


def test_a_folder_of_a_network_with_neither_classes_nor_classifier(tmp_path: Path) -> None:
    save_unet(tmp_path)
    denoiser = load_folder(tmp_path)
    assert (
        denoiser.num_classes,
        denoiser.null_label,
        denoiser.cond_channels,
        denoiser.classifier,
    ) == (None, None, None, None)


@pytest.mark.parametrize(
    ("made", "variance", "learned"), [(3, "fixed_small", False), (6, "learned_range", True)]
)
def test_a_folder_of_an_sr3_network(
    tmp_path: Path, made: int, variance: str, learned: bool
) -> None:
    net = save_unet(tmp_path, variance=variance, in_channels=6, out_channels=made)
    denoiser = load_folder(tmp_path)
    assert (denoiser.channels, denoiser.cond_channels, denoiser.learned_variance) == (3, 3, learned)
    x, cond = rand(2, 3, 16, 16).float(), rand(2, 3, 16, 16, seed=1).float()
    p = says(denoiser, x, cond=cond)
    with torch.no_grad():
        theirs = net(torch.cat([cond, x], 1), 500).sample
    torch.testing.assert_close(p.eps, theirs[:, :3])
    if learned:
        torch.testing.assert_close(p.variance_fraction, (theirs[:, 3:] + 1) / 2)


def test_learned_variance_is_told_by_the_channels_or_by_the_scheduler(tmp_path: Path) -> None:
    save_unet(tmp_path / "a", in_channels=3, out_channels=6)
    save_unet(tmp_path / "b", variance="learned_range", in_channels=3, out_channels=6)
    for folder in ("a", "b"):
        denoiser = load_folder(tmp_path / folder)
        assert (denoiser.channels, denoiser.cond_channels, denoiser.learned_variance) == (
            3,
            None,
            True,
        )


def save_classifier(folder: Path, channels: int = 1) -> TimeClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TimeClassifier(channels, CLASSES, (8, 8), norm_num_groups=4)
    net.save_pretrained(folder)
    DDPMScheduler().save_pretrained(folder)
    return net.eval()


def test_a_folder_with_a_classifier(tmp_path: Path) -> None:
    save_unet(tmp_path)
    net = save_classifier(tmp_path / "classifier")
    denoiser = load_folder(tmp_path)
    assert isinstance(denoiser.classifier, NoisyClassifier)
    x = rand(2, 1, 16, 16).float()
    with torch.no_grad():
        expected, other = (net(x, torch.full((2,), t)).log_softmax(1) for t in (400.0, 900.0))
    torch.testing.assert_close(denoiser.classifier(x, SCHEDULE(400)), expected)
    assert float((expected - other).abs().max()) > 1e-4, "it hears the time"
    by_default = generate(denoiser, (2, 1, 16, 16), ClassifierGuidance(3, 50.0), steps=3).x
    for folder in (tmp_path / "classifier", str(tmp_path / "classifier")):
        assert torch.equal(
            generate(denoiser, (2, 1, 16, 16), ClassifierGuidance(3, 50.0, folder), steps=3).x,
            by_default,
        )
    assert not torch.equal(generate(denoiser, (2, 1, 16, 16), steps=3).x, by_default)


def test_a_classifier_of_other_channels_is_refused(tmp_path: Path) -> None:
    save_unet(tmp_path)
    save_classifier(tmp_path / "classifier", 3)
    with pytest.raises(
        ValueError, match="classifies images with 3 channels, but the network makes 1"
    ):
        generate(load_folder(tmp_path), (2, 1, 16, 16), ClassifierGuidance(3), steps=2)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    save_unet(tmp_path / "few", in_channels=1, out_channels=3)
    with pytest.raises(ValueError, match="takes 1 channels and returns 3: it is not a denoiser"):
        load_folder(tmp_path / "few")
    save_unet(tmp_path / "a")
    save_classifier(tmp_path / "a" / "classifier")
    config = tmp_path / "a" / "classifier" / "config.json"
    text = config.read_text()
    config.write_text(text.replace("TimeClassifier", "ResNet"))
    with pytest.raises(ValueError, match="holds a ResNet, not a TimeClassifier"):
        load_folder(tmp_path / "a")
    config.write_text(text)
    (tmp_path / "a" / "classifier" / "diffusion_pytorch_model.safetensors").write_bytes(
        b"no weights"
    )
    with pytest.raises(ValueError, match="weights in .*classifier cannot be read"):
        load_folder(tmp_path / "a")
    (tmp_path / "a" / "classifier" / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match="no scheduler_config.json in .*classifier"):
        load_folder(tmp_path / "a")


def test_digits32_is_what_it_says() -> None:
    denoiser = invdiff.load_model("digits32")
    facts = (
        denoiser.num_classes,
        denoiser.null_label,
        denoiser.channels,
        denoiser.image_size,
        denoiser.cond_channels,
        denoiser.data_range,
    )
    assert facts == (10, 10, 1, 32, None, (-1.0, 1.0))
    assert denoiser.classifier is not None
    x = rand(2, 1, 32, 32).float()
    log_p = denoiser.classifier(x, SCHEDULE(500))
    assert log_p.shape == (2, 10)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(2))
    assert says(denoiser, x, label=[3, 4]).x0.shape == x.shape


def test_sr3x4_is_what_it_says() -> None:
    denoiser = invdiff.load_model("sr3x4")
    assert (
        denoiser.num_classes,
        denoiser.channels,
        denoiser.image_size,
        denoiser.cond_channels,
    ) == (None, 3, 64, 3)
    measurement = SuperResolution(factor=4).measure(rand(1, 3, 32, 32, seed=3).sigmoid().float())
    assert solve(measurement, denoiser, "sr3", steps=2).x.shape == (1, 3, 32, 32)


def test_palette_jpeg_is_what_it_says() -> None:
    """Nearer to the photograph than the file, at the quality that its card names."""
    denoiser = invdiff.load_model("palette_jpeg")
    assert (denoiser.channels, denoiser.image_size, denoiser.cond_channels) == (3, 64, 3)
    photo = invdiff.images.sample_photo(128)[0]
    measurement = JPEG(10).measure(photo)
    assert psnr(solve(measurement, denoiser, "sr3", steps=5).x, photo) > psnr(measurement.y, photo)
    larger = SuperResolution(factor=4).measure(photo)
    with pytest.raises(ValueError, match="trained to enlarge by 1, but this measurement"):
        solve(larger, denoiser, "sr3", steps=2)


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(toy_denoiser(), SHAPE, [CFG(LABEL), ClassifierGuidance(LABEL)], steps=2)

"""APG, CFG-Zero* and autoguidance beside diffusers' guiders, from the same predictions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeZeroStarGuidance,
)
from oracles import D, NoNoise, rand
from torch import Tensor

from invdiff import schedules
from invdiff.guidance.apg import APG
from invdiff.guidance.autoguidance import Autoguidance
from invdiff.guidance.cfg import CFG
from invdiff.guidance.cfg_zero import CFGZero
from invdiff.network import Denoiser
from invdiff.sampling import Guidance, Setting, sample
from invdiff.schedules import Level, Schedule
from invdiff.solving import generate
from invdiff.transitions import DDIM, Euler

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (2, 3, 4, 4)


def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """Of any kind of prediction; the last label is none."""
    phase = label.view(-1, 1, 1, 1).to(x)
    return torch.tanh(x + 0.3 * phase) * (1 + 0.2 * phase) + 0.1 * torch.sin(3 * x + phase)


def network(predicts: str, schedule: Schedule) -> Denoiser:
    return Denoiser(net, predicts=predicts, schedule=schedule, num_classes=3, dtype=D)


def ours(guidance: Guidance, denoiser: Denoiser, levels: list[Level], x: Tensor) -> Tensor:
    device = torch.device("cpu")
    bound = guidance.bind(Setting(denoiser, SHAPE, None, {}, device, D))
    return sample(
        denoiser,
        x,
        levels,
        schedule=denoiser.schedule,
        noise=NoNoise(),
        transition=DDIM(),
        guidance=[bound],
    )


@pytest.mark.parametrize(("eta", "r", "beta"), [(0.0, 0.0, 0.0), (0.3, 2.0, -0.5), (1.0, 1.5, 0.2)])
def test_apg_of_diffusers(eta: float, r: float, beta: float) -> None:
    """The paper's formula, which starts from the conditional estimate, with w − 1 as the scale; the
    estimates are those of x0, as in the paper."""
    schedule, w = schedules.linear(), 5.0
    levels = [*map(schedule, (900.0, 600.0, 300.0, 100.0)), schedule(schedule.clean)]
    guider = AdaptiveProjectedGuidance(
        w - 1,
        adaptive_projected_guidance_momentum=beta,
        adaptive_projected_guidance_rescale=r,
        eta=eta,
        use_original_formulation=True,
    )
    denoiser, x, theirs = network("x0", schedule), rand(*SHAPE), rand(*SHAPE)
    for k, (t, s) in enumerate(pairwise(levels)):
        guider.set_state(step=k, num_inference_steps=4, timestep=t.t)
        if k == 0:
            from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

            guider.momentum_buffer = MomentumBuffer(beta)
        c, u = (net(theirs, t.t, torch.full((2,), label)) for label in (1, 3))
        x0 = guider.forward(c, u).pred
        theirs = s.alpha * x0 + s.sigma * (theirs - t.alpha * x0) / t.sigma
    mine = ours(APG(1, w, eta, r, beta), denoiser, levels, x)
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_apg_without_its_changes_is_cfg() -> None:
    denoiser, x = network("eps", schedules.linear()), rand(*SHAPE)
    schedule = denoiser.schedule
    levels = [*map(schedule, (900.0, 500.0)), schedule(schedule.clean)]
    plain = ours(CFG(1, w=3.0), denoiser, levels, x)
    torch.testing.assert_close(ours(APG(1, 3.0, eta=1.0, beta=0.0), denoiser, levels, x), plain)
    assert float((ours(APG(1, 3.0), denoiser, levels, x) - plain).abs().max()) > 0.1


@pytest.mark.parametrize("zero_steps", [0, 2])
def test_cfg_zero_star_of_diffusers(zero_steps: int) -> None:
    schedule, w = schedules.flow(), 4.0
    levels = [*map(schedule, (1.0, 0.8, 0.6, 0.3)), schedule(0.0)]
    guider = ClassifierFreeZeroStarGuidance(w, zero_init_steps=zero_steps)
    x = theirs = rand(*SHAPE)
    for k, (t, s) in enumerate(pairwise(levels)):
        guider.set_state(step=k, num_inference_steps=4, timestep=t.t)
        c, u = (net(theirs, t.t, torch.full((2,), label)) for label in (1, 3))
        theirs = theirs + (s.t - t.t) * guider.forward(c, u).pred
    denoiser = network("velocity", schedule)
    mine = ours(CFGZero(1, w, zero_steps), denoiser, levels, x)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)  # theirs has s in float32
    evaluations = generate(denoiser, SHAPE, CFGZero(1, w, zero_steps), steps=4, dtype=D).nfe
    assert evaluations == zero_steps + 2 * (4 - zero_steps)  # u = 0 needs one of the branches


@pytest.mark.parametrize("predicts", ["eps", "v"])
def test_autoguidance_of_diffusers(predicts: str) -> None:
    """Linear in the prediction, so of any kind of it."""
    schedule, w = schedules.linear(), 2.5
    good = network(predicts, schedule)
    weak = Denoiser(
        lambda x, t, label: 0.8 * net(x, t, label),
        predicts=predicts,
        schedule=schedule,
        num_classes=3,
        dtype=D,
    )
    guider = AutoGuidance(w, auto_guidance_layers=0, dropout=0.1)
    guider.set_state(step=0, num_inference_steps=1, timestep=torch.tensor(500))
    x, level, label = rand(*SHAPE), schedule(500.0), torch.tensor([0, 2])
    cond = {"label": label}
    bound = Autoguidance(weak, w).bind(Setting(good, SHAPE, None, cond, torch.device("cpu"), D))

    def denoise(x_t: Tensor, at: Level, **more: Any) -> Any:
        return good(x_t, at, label=label, **more)

    from oracles import step_of

    p = bound(denoise, x, step_of(schedule, level, schedule(400.0), NoNoise()), None)
    out = net(x, level.t, label)
    expected = guider.forward(out, 0.8 * out).pred
    alone = Denoiser(
        lambda x, t, label: expected, predicts=predicts, schedule=schedule, num_classes=3, dtype=D
    )(x, level, label=label)
    torch.testing.assert_close(p.x0, alone.x0, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(p.eps, alone.eps, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(bound.select([1]).cond["label"], label[1:])


def test_guiders_in_whole_runs_keep_the_images_apart() -> None:
    schedule = schedules.linear()
    good, weak = network("eps", schedule), network("v", schedule)
    for method, transition in (
        (APG(w=3.0, r=2.0), DDIM()),
        (CFGZero(w=3.0), Euler()),
        (Autoguidance(weak, 2.0), DDIM()),
        ([CFG(w=2.0), Autoguidance(weak, 2.0, {"label": torch.tensor([1, 2])})], DDIM()),
    ):
        options: dict[str, Any] = {"steps": 4, "transition": transition, "dtype": D}
        both = generate(good, SHAPE, method=method, label=torch.tensor([1, 2]), **options).x
        if not isinstance(method, list):
            one = generate(
                good, (1, *SHAPE[1:]), method=method, label=2, image_ids=[1], **options
            ).x
            torch.testing.assert_close(both[1:], one)


def test_guiders_refuse_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="beta in"):
        APG(beta=1.0)
    with pytest.raises(ValueError, match="zero_steps"):
        CFGZero(zero_steps=-1)
    good = network("eps", schedules.linear())
    setting = Setting(good, SHAPE, None, {}, torch.device("cpu"), D)
    with pytest.raises(ValueError, match="weak network"):
        Autoguidance(3).bind(setting)  # type: ignore[arg-type]
    other = good.read_as(data_range=(-1.0, 1.0))
    with pytest.raises(ValueError, match="same images"):
        Autoguidance(other).bind(setting)

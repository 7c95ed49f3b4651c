"""One exact posterior mean through every parameterisation, schedule, frame and network option."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from oracles import Calls, D, Gaussian, Mixture, correlated, rand

import invdiff
from invdiff import schedules
from invdiff.network import (
    Autoencoder,
    Denoiser,
    Facts,
    NoisyClassifier,
    OfLevel,
    Prediction,
    count_evaluations,
)
from invdiff.network.preconditioning import PREDICTS
from invdiff.schedules import Level, Schedule

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("net, said", [("mine.pt", "'mine.pt'"), (UNet2DModel, "the class UNet2D")])
def test_what_is_no_network_is_refused(net: Any, said: str) -> None:
    with pytest.raises(TypeError, match=f"called as net.x_t, t.*got {said}"):
        Denoiser(net, schedule=schedules.linear())


PRIOR = Mixture(
    torch.tensor([0.3, 0.7], dtype=D),
    torch.tensor([[1.0, -1.0, 0.5], [-0.5, 0.3, 0.0]], dtype=D),
    torch.stack([torch.diag(torch.tensor([0.2, 0.5, 0.1], dtype=D)), 0.3 * torch.eye(3, dtype=D)]),
)


def noisy(level: Level, batch: int = 4) -> torch.Tensor:
    """A plausible state of PRIOR at a level."""
    return level.alpha * rand(batch, 3, seed=1) + level.sigma * rand(batch, 3, seed=2)


def assert_says(p: Prediction, prior: Mixture, tolerance: float = 1e-9) -> None:
    """p is the exact posterior mean of its own state at its own level, with the eps that belongs to
    it."""
    alpha, sigma = float(p.level.alpha), float(p.level.sigma)
    x0 = prior.posterior_mean(p.x_t, alpha, sigma)
    torch.testing.assert_close(p.x0, x0, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(p.eps, (p.x_t - alpha * x0) / sigma, atol=tolerance, rtol=tolerance)


# Parameterisations and frames ---------------------------------------------------------------------


@pytest.mark.parametrize("predicts", [p for p in PREDICTS if p not in ("velocity", "consistency")])
@pytest.mark.parametrize("t", [0.0, 10.0, 437.0, 900.0])
def test_every_parameterisation_says_the_same(predicts: str, t: float) -> None:
    schedule = schedules.linear()
    level = schedule(t)
    p = Denoiser(PRIOR.network(predicts, schedule), predicts=predicts, schedule=schedule)(
        noisy(level), level
    )
    # The exact x0 passes through eps at alpha ~ 0.03 or c_out ~ sigma: a few digits are lost there,
    # no more.
    assert_says(p, PRIOR, 1e-8)
    torch.testing.assert_close(p.score, -p.eps / level.sigma)
    torch.testing.assert_close(p.v, level.alpha * p.eps - level.sigma * p.x0)


@pytest.mark.parametrize(
    "make",
    [
        schedules.flow,
        schedules.vp,
        schedules.subvp,
        schedules.ve,
        lambda: schedules.flow(noise_first=True),
    ],
)
@pytest.mark.parametrize("predicts", ["velocity", "v", "eps"])
def test_continuous_networks(make: Callable[[], Schedule], predicts: str) -> None:
    schedule = make()
    denoiser = Denoiser(PRIOR.network(predicts, schedule), predicts=predicts, schedule=schedule)
    for part in (0.2, 0.5, 0.9):
        level = schedule(schedule.t_min + part * (schedule.t_max - schedule.t_min))
        assert_says(denoiser(noisy(level), level), PRIOR, 1e-7)


@pytest.mark.parametrize("trained", ["linear", "cosine", "vp", "subvp", "ve", "edm", "flow"])
@pytest.mark.parametrize("sampled", ["linear", "vp", "subvp", "ve", "edm", "flow"])
def test_any_network_on_any_schedule(trained: str, sampled: str) -> None:
    own, foreign = getattr(schedules, trained)(), getattr(schedules, sampled)()
    predicts = "edm" if trained == "edm" else "eps"
    denoiser = Denoiser(PRIOR.network(predicts, own), predicts=predicts, schedule=own)
    for ratio in (0.05, 0.7, 9.0):
        level = foreign.at(ratio)
        assert_says(denoiser(noisy(level), level), PRIOR, 1e-7)


def test_consistency_preconditioning_is_song_et_al_appendix_c() -> None:
    seen: dict[str, Any] = {}

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.update(x=x, t=t)
        return torch.tanh(x)

    denoiser = Denoiser(net, predicts="consistency", schedule=schedules.edm(0.01), sigma_data=0.7)
    x = rand(4, 3, seed=1)
    for sigma in (0.01, 0.3, 20.0):
        p = denoiser(x, schedules.ve(0.001, 100.0).at(sigma))
        c_in = 1 / (sigma**2 + 0.49) ** 0.5
        torch.testing.assert_close(seen["x"], c_in * x)
        torch.testing.assert_close(seen["t"], torch.full((4,), 250 * math.log(sigma), dtype=D))
        c_skip = 0.49 / ((sigma - 0.01) ** 2 + 0.49)
        expected = c_skip * x + 0.7 * (sigma - 0.01) * c_in * torch.tanh(c_in * x)
        torch.testing.assert_close(p.x0, expected)
        torch.testing.assert_close(p.eps, (x - expected) / sigma)
    torch.testing.assert_close(denoiser(x, schedules.edm(0.01).at(0.01)).x0, x)


def test_edm_preconditioning_is_karras_table_1() -> None:
    seen: dict[str, Any] = {}

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.update(x=x, t=t)
        return torch.ones_like(x)

    sigma, data, x = 3.0, 0.7, rand(2, 5)
    p = Denoiser(net, predicts="edm", schedule=schedules.edm(), sigma_data=data)(
        x, schedules.edm()(sigma)
    )
    torch.testing.assert_close(seen["x"], x / math.sqrt(sigma**2 + data**2))
    torch.testing.assert_close(seen["t"], torch.full((2,), math.log(sigma) / 4, dtype=D))
    expected = data**2 / (sigma**2 + data**2) * x + sigma * data / math.sqrt(sigma**2 + data**2)
    torch.testing.assert_close(p.x0, expected)


def test_pure_noise() -> None:
    """alpha = 0: v, x0 and velocity answer, eps and score cannot; a foreign network answers from
    its noisiest level."""
    x = rand(4, 3)
    flow, zero = schedules.flow(), schedules.linear(zero_terminal_snr=True)
    mean = PRIOR.mean.expand(4, 3)
    for predicts, schedule, t in (("velocity", flow, 1.0), ("v", zero, 999), ("x0", zero, 999)):
        answers = {"velocity": x - mean, "v": -mean, "x0": mean}
        p = Denoiser(lambda x, t, a=answers[predicts]: a, predicts=predicts, schedule=schedule)(
            x, schedule(t)
        )
        torch.testing.assert_close(p.x0, mean)
        torch.testing.assert_close(p.eps, x)
    for predicts in ("eps", "score"):
        with pytest.raises(ValueError, match="alpha = 0"):
            Denoiser(lambda x, t: x, predicts=predicts, schedule=zero)(x, zero(999))
    for name in ("linear", "vp", "subvp", "ve", "edm", "brownian"):
        own = getattr(schedules, name)()
        predicts = "edm" if name == "edm" else "eps"
        p = Denoiser(PRIOR.network(predicts, own), predicts=predicts, schedule=own)(x, flow(1.0))
        assert bool((p.x0 - mean).abs().max() < 0.1), f"{name}: nearly nothing is known of x0"
        torch.testing.assert_close(p.eps, x, atol=0.05, rtol=0)


def test_a_clean_state_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma = 0"):
        Denoiser(lambda x, t: x, schedule=schedules.flow())(rand(1, 2), schedules.flow()(0.0))


# What the network is shown ------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["uniform", "leading", "trailing", "quadratic"])
def test_respacing_shows_the_original_integer_times(spacing: str) -> None:
    schedule = schedules.cosine()
    net = Calls.of(lambda x, t: x)
    denoiser = Denoiser(net, schedule=schedule)
    times = schedule.times(37, spacing)
    for t in times:
        denoiser(torch.zeros(1, 2), schedule(t))
    assert net.times == times.tolist()
    assert all(t == int(t) for t in net.times)


def test_levels_between_are_shown_fractional_and_quantize_rounds_them() -> None:
    schedule = schedules.linear()
    level = schedules.vp().at(schedule(300.7).ratio)
    for quantize, shown, dtype in ((False, 300.7, torch.float32), (True, 301.0, torch.int64)):
        seen: list[torch.Tensor] = []

        def net(x: torch.Tensor, t: torch.Tensor, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(t)
            return x

        Denoiser(net, schedule=schedule, quantize=quantize)(torch.zeros(2, 2), level)
        assert seen[0].tolist() == pytest.approx([shown] * 2, abs=1e-4)
        assert seen[0].dtype == dtype


def test_a_discrete_network_is_never_shown_a_time_it_does_not_know() -> None:
    for quantize in (False, True):
        net = Calls.of(lambda x, t: 0 * x)
        denoiser = Denoiser(net, schedule=schedules.linear(), quantize=quantize)
        for sigma in (
            0.002,
            500.0,
        ):  # the least noisy EDM level lies below level 0, the other beyond the last
            denoiser(torch.zeros(1, 2), schedules.edm()(sigma))
        assert net.times == [0.0, 999.0]


def test_time_maps_what_is_shown() -> None:
    net = Calls.of(lambda x, t: x)
    Denoiser(net, predicts="velocity", schedule=schedules.flow(), time=lambda t: 1000 * t)(
        torch.zeros(1, 2), schedules.flow()(0.25)
    )
    assert net.times == pytest.approx([250.0])


def test_a_time_of_the_level_does_not_depend_on_the_schedule_it_is_read_with() -> None:
    net = Calls.of(lambda x, t: x)
    first = Denoiser(net, schedule=schedules.linear(), time=OfLevel(lambda level: level.ratio))
    for denoiser in (
        first,
        first.read_as(schedule=schedules.cosine()),
        first.read_as(schedule=schedules.flow()),
    ):
        denoiser(torch.zeros(1, 2), schedules.edm()(0.7))
    assert net.times == pytest.approx([0.7] * 3)


# Learned variance, clipping -----------------------------------------------------------------------


def test_learned_variance_is_split_off_as_a_fraction() -> None:
    eps, raw = rand(2, 3, 4, 4), rand(2, 3, 4, 4, seed=1).clamp(-1, 1)
    level, x = schedules.linear()(500), rand(2, 3, 4, 4, seed=2)
    p = Denoiser(
        lambda x, t: torch.cat([eps, raw], 1), schedule=schedules.linear(), learned_variance=True
    )(x, level)
    plain = Denoiser(lambda x, t: eps, schedule=schedules.linear())(x, level)
    torch.testing.assert_close(p.variance_fraction, (raw + 1) / 2)
    assert torch.equal(p.x0, plain.x0)
    assert torch.equal(p.eps, plain.eps)
    assert plain.variance_fraction is None


@pytest.mark.parametrize(
    ("output", "learned", "says"),
    [
        ((2, 3, 4, 4), True, "expects 6 output channels"),
        ((2, 6, 4, 4), False, "needs learned_variance=True"),
        ((2, 3, 8, 8), False, r"returned shape \(2, 3, 8, 8\)"),
        ((2, 3, 4), False, r"returned shape \(2, 3, 4\)"),
    ],
)
def test_wrong_output_shapes_are_named(output: tuple[int, ...], learned: bool, says: str) -> None:
    denoiser = Denoiser(
        lambda x, t: torch.zeros(output), schedule=schedules.linear(), learned_variance=learned
    )
    with pytest.raises(ValueError, match=says):
        denoiser(torch.zeros(2, 3, 4, 4), schedules.linear()(5))


@pytest.mark.parametrize(
    "output", [{"sample": 1}, (torch.zeros(1, 3, 4, 4),), np.zeros((1, 3, 4, 4))]
)
def test_an_output_that_is_no_tensor_is_named(output: Any) -> None:
    with pytest.raises(
        TypeError,
        match=f"odd returned a {type(output).__name__} instead of a tensor; .*net\\(x, t\\).sample",
    ):
        Denoiser(lambda x, t: output, schedule=schedules.linear(), name="odd")(
            torch.zeros(1, 3, 4, 4), schedules.linear()(5)
        )


def test_a_vector_network_with_a_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"returned shape \(2, 3, 1\)"):
        Denoiser(lambda x, t: x[..., None], schedule=schedules.linear())(
            torch.zeros(2, 3), schedules.linear()(5)
        )


def test_clipping_rederives_eps_within_autograd() -> None:
    schedule = schedules.linear()
    level, x = schedule(800), 3 * rand(2, 3, 4, 4)
    x.requires_grad_()
    raw = Denoiser(
        lambda x, t: torch.zeros_like(x) + 0 * x, schedule=schedule, data_range=(-1, 1), clip=False
    )(x, level)
    p = Denoiser(lambda x, t: torch.zeros_like(x) + 0 * x, schedule=schedule, data_range=(-1, 1))(
        x, level
    )
    assert bool((raw.x0.abs() > 1).any())
    assert torch.equal(p.x0, raw.x0.clamp(-1, 1))
    torch.testing.assert_close(level.alpha * p.x0 + level.sigma * p.eps, x)
    (grad,) = torch.autograd.grad(p.x0.sum(), x)
    outside = raw.x0.abs() > 1
    assert bool((grad[outside] == 0).all())
    assert bool((grad[~outside] != 0).all())


def test_moves() -> None:
    level = schedules.linear()(300)
    x, dx = rand(2, 3), rand(2, 3, seed=5)
    p = Denoiser(lambda x, t: 0.1 * x, schedule=schedules.linear())(x, level)
    shifted, moved = p.move_x0(dx), p.move(dx)
    torch.testing.assert_close(shifted.x0, p.x0 + dx)
    assert torch.equal(shifted.eps, p.eps)
    torch.testing.assert_close(moved.x0, p.x0 + dx)
    torch.testing.assert_close(level.alpha * moved.x0 + level.sigma * moved.eps, x)


# Real networks ------------------------------------------------------------------------------------


class Wrapped(torch.nn.Module):
    """A small diffusers U-Net under our calling convention, random weights from a private
    generator."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = UNet2DModel(
                in_channels=channels,
                out_channels=channels,
                layers_per_block=1,
                block_out_channels=(8, 16),
                down_block_types=("DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D"),
                norm_num_groups=4,
            )

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.net(x, t, return_dict=False)[0]

    def enable_gradient_checkpointing(self) -> None:
        self.net.enable_gradient_checkpointing()


def unet(**options: Any) -> Denoiser:
    return Denoiser(Wrapped(), schedule=schedules.linear(), data_range=(-1, 1), **options)


LEVEL = schedules.linear()(400)


def test_odd_sizes_are_padded_by_reflection_and_cropped() -> None:
    x = rand(2, 3, 13, 18).float()
    net, seen = Wrapped(), []

    def spy(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(z)
        return net(z, t)

    p = Denoiser(spy, schedule=schedules.linear(), multiple=4)(x, LEVEL)
    assert p.x0.shape == x.shape
    assert seen[0].shape == (2, 3, 16, 20)
    torch.testing.assert_close(seen[0][..., :13, :18], x)
    torch.testing.assert_close(
        seen[0][..., 13:, :18], x[..., [11, 10, 9], :]
    )  # mirrored at the last row, not repeating it
    torch.testing.assert_close(seen[0][..., :13, 18:], x[..., [16, 15]])
    with torch.no_grad():
        eps = net(seen[0], torch.full((2,), 400.0))[..., :13, :18]
    torch.testing.assert_close(p.eps, eps)


def test_an_image_smaller_than_its_padding_still_runs() -> None:
    assert unet(multiple=8)(torch.zeros(1, 3, 2, 3), LEVEL).x0.shape == (1, 3, 2, 3)


def test_a_network_that_divides_the_size_is_not_padded() -> None:
    x = rand(1, 3, 16, 16).float()
    a, b = unet(multiple=4)(x, LEVEL), unet()(x, LEVEL)
    assert torch.equal(a.x0, b.x0)


def test_bfloat16_autocast_is_close_and_leaves_the_state_alone() -> None:
    x = rand(2, 3, 16, 16).float()
    full, half = unet()(x, LEVEL), unet(dtype=torch.bfloat16)(x, LEVEL)
    assert half.x0.dtype == half.eps.dtype == torch.float32
    scale = float(full.eps.std())
    assert 0 < float((full.eps - half.eps).abs().max()) < 0.05 * max(scale, 1.0), (
        "bf16 has 8 bits, and it was really used"
    )


@pytest.mark.parametrize("network", [torch.float32, torch.float64])
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
def test_state_and_network_precision_are_independent(
    network: torch.dtype, state: torch.dtype
) -> None:
    x = rand(1, 3, 16, 16)
    exact = unet(dtype=torch.float64)(x, LEVEL)
    p = unet(dtype=network)(x.to(state), LEVEL)
    assert p.x0.dtype == p.eps.dtype == state
    torch.testing.assert_close(p.eps.double(), exact.eps, atol=1e-4, rtol=1e-4)


def test_channels_last_is_equal() -> None:
    x = rand(2, 3, 16, 16).float()
    torch.testing.assert_close(
        unet(channels_last=True)(x, LEVEL).eps, unet()(x, LEVEL).eps, atol=1e-5, rtol=1e-5
    )


def test_gradient_checkpointing_gives_the_same_gradient_and_counts_once() -> None:
    grads, counts, block_runs = [], [], []
    for on in (False, True):
        denoiser = unet(gradient_checkpointing=on, clip=False)
        runs: list[int] = []
        denoiser.net.net.down_blocks[0].resnets[0].register_forward_pre_hook(
            lambda *_, runs=runs: runs.append(1)
        )  # type: ignore[attr-defined]
        x = rand(2, 3, 16, 16).float().requires_grad_()
        with count_evaluations() as n:
            (grad,) = torch.autograd.grad(denoiser(x, LEVEL).x0.square().sum(), x)
        grads.append(grad)
        counts.append((n.forward, n.backward))
        block_runs.append(len(runs))
    assert block_runs == [1, 2], "the block's activations were recomputed"
    torch.testing.assert_close(grads[0], grads[1], atol=1e-4, rtol=1e-4)
    assert counts == [(2, 2), (2, 2)]


def test_gradient_checkpointing_needs_a_network_that_has_it() -> None:
    with pytest.raises(ValueError, match="enable_gradient_checkpointing"):
        Denoiser(lambda x, t: x, schedule=schedules.linear(), gradient_checkpointing=True)


@pytest.mark.slow
def test_compile_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured by dynamo for real, but run eagerly: a C++ compiler and a minute are not what is
    tested."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    x = rand(1, 3, 16, 16).float()
    torch.testing.assert_close(
        unet(compile=True)(x, LEVEL).eps, unet()(x, LEVEL).eps, atol=1e-4, rtol=1e-4
    )


def test_a_module_is_frozen_and_in_eval_mode_and_reports_its_device() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.9)).train()
    denoiser = Denoiser(lambda x, t: net(x), schedule=schedules.linear())
    assert denoiser.device is None
    wrapped = Denoiser(Wrapped().train(), schedule=schedules.linear())
    assert not wrapped.net.training  # type: ignore[attr-defined]
    assert not any(p.requires_grad for p in wrapped.net.parameters())  # type: ignore[attr-defined]
    assert wrapped.device == torch.device("cpu")
    assert wrapped.to("meta").device == torch.device("meta")


# Counting -----------------------------------------------------------------------------------------


def test_evaluations_are_counted_in_images_forward_and_backward() -> None:
    denoiser = Denoiser(lambda x, t: x * x, schedule=schedules.linear())
    x = rand(5, 2).requires_grad_()
    with count_evaluations() as outer:
        p = denoiser(x, LEVEL)
        with count_evaluations() as inner:
            q = denoiser(p.x0[:3], LEVEL)  # a second call that depends on the first
            with torch.no_grad():
                denoiser(x, LEVEL)
        assert (inner.forward, inner.backward) == (8, 0)
        q.x0.sum().backward()  # passes through both
    assert (outer.forward, outer.backward) == (13, 8)
    assert (inner.forward, inner.backward) == (8, 3)
    denoiser(x, LEVEL)
    assert outer.forward == 13, "nothing is counted outside the block"


def test_a_double_call_and_a_graph_walked_twice_count_twice() -> None:
    denoiser = Denoiser(lambda x, t: x * x, schedule=schedules.linear())
    x = rand(2, 2).requires_grad_()
    with count_evaluations() as n:
        total = denoiser(x, LEVEL).x0.sum() + denoiser(x, LEVEL).x0.sum()
        torch.autograd.grad(total, x, retain_graph=True)
        torch.autograd.grad(total, x)
    assert (n.forward, n.backward) == (4, 8)


def test_counters_survive_an_error() -> None:
    denoiser = Denoiser(lambda x, t: x, schedule=schedules.linear())
    with pytest.raises(KeyboardInterrupt), count_evaluations() as n:
        denoiser(rand(2, 2), LEVEL)
        raise KeyboardInterrupt
    with count_evaluations() as fresh:
        denoiser(rand(2, 2), LEVEL)
    assert (n.forward, fresh.forward) == (2, 2)


# Labels -------------------------------------------------------------------------------------------


def labelled(**options: Any) -> tuple[Denoiser, list[list[int]]]:
    seen: list[list[int]] = []

    def net(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        assert label.dtype == torch.int64
        seen.append(label.tolist())
        return x

    return Denoiser(net, schedule=schedules.linear(), **options), seen


def test_labels() -> None:
    denoiser, seen = labelled(num_classes=10)
    x = torch.zeros(3, 2)
    denoiser(x, LEVEL, label=7)
    denoiser(x, LEVEL, label=torch.tensor([1, 2, 3]))
    denoiser(x, LEVEL, label=None)
    denoiser(x, LEVEL)
    denoiser(x, LEVEL, label=10)
    assert seen == [[7] * 3, [1, 2, 3], [10] * 3, [10] * 3, [10] * 3]
    other, seen = labelled(num_classes=10, null_label=0)
    other(x, LEVEL)
    assert seen == [[0] * 3]


def test_label_errors() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"classes are 0\.\.9"):
        labelled(num_classes=10)[0](x, LEVEL, label=11)
    with pytest.raises(ValueError, match="no null class"):
        labelled(num_classes=10, null_label=False)[0](x, LEVEL)
    with pytest.raises(ValueError, match="not class-conditional"):
        Denoiser(lambda x, t: x, schedule=schedules.linear())(x, LEVEL, label=1)
    Denoiser(lambda x, t: x, schedule=schedules.linear())(
        x, LEVEL, label=None
    )  # unconditional is what it is


def test_other_conditions_reach_the_network() -> None:
    seen: dict[str, Any] = {}

    def net(x: torch.Tensor, t: torch.Tensor, **cond: Any) -> torch.Tensor:
        seen.update(cond)
        return x

    Denoiser(net, schedule=schedules.linear())(torch.zeros(1, 2), LEVEL, low_resolution="y")
    assert seen == {"low_resolution": "y"}


def test_construction_errors() -> None:
    ok: dict[str, Any] = {"schedule": schedules.linear()}
    for error, says, options in (
        (ValueError, "eps, x0, v, score, edm, velocity, consistency", {"predicts": "noise"}),
        (TypeError, "schedules.linear", {"schedule": 1000}),
        (ValueError, "low < high", {"data_range": (1, -1)}),
        (ValueError, "needs a data_range", {"clip": True}),
        (ValueError, "bfloat16", {"dtype": torch.int32}),
        (ValueError, "continuous time", {"predicts": "velocity"}),
    ):
        with pytest.raises(error, match=says):
            Denoiser(lambda x, t: x, **{**ok, **options})


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("epsilon", "eps"),
        ("sample", "x0"),
        ("v_prediction", "v"),
        ("flow_prediction", "velocity"),
    ],
)
def test_the_words_of_diffusers_are_accepted(theirs: str, ours: str) -> None:
    schedule = schedules.flow() if ours == "velocity" else schedules.linear()
    x, level = rand(2, 3), schedule(0.5 * schedule.t_max)
    one, other = (
        Denoiser(lambda x, t: x.tanh(), predicts=name, schedule=schedule) for name in (theirs, ours)
    )
    assert one.predicts == ours
    assert torch.equal(one(x, level).x0, other(x, level).x0)


def test_a_network_states_facts_or_its_signature_does() -> None:
    def net(x: torch.Tensor, t: torch.Tensor, label: int, *, text: str) -> torch.Tensor:
        return x

    def anything(x: torch.Tensor, t: torch.Tensor, **cond: Any) -> torch.Tensor:
        return x

    class Stating(torch.nn.Module):
        facts = Facts(conditions=("text",), required=("text",), upsampling="bilinear")

        def forward(self, x: torch.Tensor, t: torch.Tensor, **cond: Any) -> torch.Tensor:
            return x

    plain, free, stated = (
        Denoiser(n, schedule=schedules.linear()) for n in (net, anything, Stating())
    )
    assert [plain.takes(n) for n in ("label", "text", "x", "cond")] == [True, True, False, False]
    assert free.takes("whatever") and not free.required and free.upsampling == "bicubic"
    assert stated.takes("text") and not stated.takes("label")
    assert (stated.required, stated.upsampling) == (("text",), "bilinear")


# Other readings, other places ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"dtype": D}, {"channels_last": True}, {"gradient_checkpointing": True}],
    ids=["float64", "channels_last", "checkpointing"],
)
def test_another_reading_leaves_the_first_as_it_was(options: dict[str, Any]) -> None:
    first = unet()
    first.source = {"path": "somewhere"}
    x, before = rand(1, 3, 16, 16).float(), first.hash
    out = first(x, LEVEL).eps
    other = first.read_as(**options)
    weight, copied = (next(d.net.parameters()) for d in (first, other))  # type: ignore[attr-defined]
    assert first.hash == before and weight.dtype == torch.float32 and weight is not copied
    assert first.net.net.conv_in.weight.is_contiguous()  # type: ignore[attr-defined]
    assert not first.net.net.is_gradient_checkpointing  # type: ignore[attr-defined]
    assert torch.equal(first(x, LEVEL).eps, out)
    torch.testing.assert_close(other(x, LEVEL).eps, out, atol=1e-4, rtol=1e-4)
    assert other.source == {"path": "somewhere"} and other.source is not first.source
    if options == {"dtype": D}:
        assert copied.dtype == D
        back = other.read_as(dtype=torch.float32)
        assert back.hash == before and next(other.net.parameters()).dtype == D  # type: ignore[attr-defined]


def test_a_reading_that_does_not_change_the_module_shares_its_weights() -> None:
    first = unet()
    for options in ({"predicts": "v"}, {"dtype": torch.bfloat16}, {"tile": 8}, {"compile": False}):
        assert first.read_as(**options).net is first.net  # type: ignore[arg-type]


def test_the_hash_is_that_of_the_weights_compiled_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    net = Wrapped()
    plain, compiled = (
        Denoiser(net, schedule=schedules.linear(), compile=on) for on in (False, True)
    )
    assert plain.hash == compiled.hash and compiled.net is not net
    assert compiled.read_as(predicts="v").net is compiled.net


def test_to_moves_all_that_belongs_to_it_in_place() -> None:
    coder, classifier = Wrapped(), Wrapped()
    denoiser = unet(
        autoencoder=Autoencoder(coder, coder, channels=3, factor=1, net=coder),
        classifier=NoisyClassifier(classifier, schedule=schedules.linear()),
    )
    assert denoiser.to("meta") is denoiser
    for net in (denoiser.net, coder, classifier):
        assert all(p.device.type == "meta" for p in net.parameters())  # type: ignore[attr-defined]


def test_images_of_another_number_of_channels_are_named() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    options = {"schedule": invdiff.schedules.linear(1000), "data_range": (-1, 1)}
    with pytest.raises(ValueError, match=r"shape \(1, 1, 8, 8\).* takes 3 channels, not 1; say ch"):
        invdiff.generate(invdiff.Denoiser(Net(), **options), (1, 1, 8, 8), steps=1)


def test_inference_mode_around_a_gradient_is_named() -> None:
    denoiser, x = unet(), rand(1, 3, 16, 16).float()
    with torch.inference_mode(), torch.enable_grad():
        denoiser(x, LEVEL)
        with pytest.raises(ValueError, match=r"inference_mode\(\) is on.*use torch.no_grad\(\)"):
            denoiser(x.clone().requires_grad_(), LEVEL)
    measurement = invdiff.make_operator("inpaint").measure(rand(1, 3, 16, 16).float())
    with torch.inference_mode():
        invdiff.solve(measurement, denoiser, "repaint", steps=2)
        with pytest.raises(ValueError, match=r"inference_mode\(\) is on"):
            invdiff.solve(measurement, denoiser, "dps", steps=2)


def test_another_default_dtype_changes_nothing() -> None:
    x = rand(2, 3, 16, 16).float()
    denoisers = [unet(predicts=predicts, multiple=8, tile=8) for predicts in ("eps", "edm", "v")]
    denoisers.append(invdiff.load_model("photo64"))
    before = [denoiser(x, LEVEL).x0 for denoiser in denoisers]
    torch.set_default_dtype(D)
    try:
        again = invdiff.load_model("photo64")
        assert again.hash == denoisers[-1].hash
        for denoiser, expected in zip([*denoisers, again], [*before, before[-1]], strict=True):
            assert torch.equal(denoiser(x, LEVEL).x0, expected)
        made = Denoiser(Wrapped(), schedule="linear", data_range=(-1, 1))  # now of float64
        assert made(x, LEVEL).x0.dtype == torch.float32
        assert invdiff.self_check(again) == []
    finally:
        torch.set_default_dtype(torch.float32)


def test_gaussian_oracle_against_monte_carlo() -> None:
    """The oracle itself: E[x0 | x_t] by self-normalised importance sampling from the prior."""
    prior: Gaussian = correlated(2)
    root = torch.linalg.cholesky(prior.covariance)
    x0 = prior.mean + rand(400_000, 2, seed=3) @ root.T
    alpha, sigma, x_t = 0.6, 0.8, torch.tensor([[0.4, -0.7]], dtype=D)
    weights = torch.softmax(-((x_t - alpha * x0) ** 2).sum(1) / (2 * sigma**2), 0)
    torch.testing.assert_close(
        weights @ x0, prior.posterior_mean(x_t, alpha, sigma)[0], atol=5e-3, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float64_state_with_a_low_precision_network(dtype: torch.dtype) -> None:
    net = torch.nn.Conv2d(3, 3, 3, padding=1)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = Denoiser(_Timeless(net), schedule=schedules.linear(), dtype=dtype)
    level = schedules.linear()(500)
    assert p(x, level).x0.dtype == torch.float64
    exact = Denoiser(_Timeless(net), schedule=schedules.linear())(x, level).eps
    torch.testing.assert_close(p(x, level).eps, exact, atol=0.03, rtol=0)


class _Timeless(torch.nn.Module):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize("last", [False, True])
def test_the_image_condition_comes_first_or_last(last: bool) -> None:
    given = []

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        given.append(x)
        return x[:, :1]

    denoiser = invdiff.Denoiser(net, schedule=schedules.vp(), cond_channels=2, cond_last=last)
    x, cond = rand(2, 1, 4, 4), rand(2, 2, 4, 4, seed=1)
    denoiser(x, denoiser.schedule(0.5), cond=cond)
    pair = [x, cond] if last else [cond, x]
    torch.testing.assert_close(given[0], torch.cat(pair, dim=1))

"""A network that is read wrongly is told so; one that is read rightly is left in peace, whatever
its range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.network import Denoiser, count_evaluations
from invdiff.network.selfcheck import self_check, why_unchecked
from invdiff.schedules import Level

SMALL: dict[str, Any] = {"image_size": 16}
"""Pictures are small here, for speed."""


def photo64(**options: Any) -> Denoiser:
    return invdiff.load_model("photo64").read_as(**SMALL, **options)


def trained_on(low: float, high: float) -> Callable[[Tensor, Tensor], Tensor]:
    """photo64 as an eps network of images in (low, high): ``k x - (k low + 1)`` brings these to
    (-1, 1), and multiplies the noise by k."""
    net, k = photo64(clip=False), 2 / (high - low)

    def eps(x: Tensor, t: Tensor) -> Tensor:
        level = net.schedule(float(t[0]))
        return net(
            k * x - float(level.alpha) * (k * low + 1), Level(level.t, level.alpha, k * level.sigma)
        ).eps

    return eps


def test_the_shipped_networks() -> None:
    with count_evaluations() as evaluations:
        assert self_check(invdiff.load_model("photo64")) == []
    assert evaluations.forward <= 60, "the docs state it"
    assert self_check(invdiff.load_model("sr3x4")) == [], "it is not asked"
    (said,) = self_check(invdiff.load_model("digits32"))
    assert "badly under every reading tried" in said and "something else than photographs" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"predicts": "v"}, "with predicts='eps' by"),
        ({"schedule": schedules.cosine()}, "with schedule=linear(1000) by"),
        (
            {"predicts": "velocity", "schedule": "flow"},
            "with predicts='eps' and schedule=linear(1000) by",
        ),
        ({"schedule": "ve"}, "is its schedule right?"),
        ({"data_range": (0.0, 255.0)}, "with data_range=(-1.0, 1.0) by"),
        pytest.param({"schedule": "edm"}, "is its schedule right?", marks=pytest.mark.slow),
        pytest.param({"schedule": "vp"}, "is its schedule right?", marks=pytest.mark.slow),
        pytest.param({"schedule": "flow"}, "is its schedule right?", marks=pytest.mark.slow),
        pytest.param({"predicts": "x0"}, "with predicts='eps' by", marks=pytest.mark.slow),
        pytest.param({"predicts": "score"}, "with predicts='eps' by", marks=pytest.mark.slow),
        pytest.param(
            {"predicts": "edm", "schedule": "edm"},
            "with predicts='eps' and schedule=linear(1000) by",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"schedule": schedules.scaled_linear(), "image_size": 64},
            "is its schedule right?",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"data_range": (-2.0, 2.0), "image_size": 64},
            "with data_range=(-1.0, 1.0) by",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_common_mistakes_are_found(options: dict[str, Any], says: str) -> None:
    (found,) = self_check(photo64().read_as(**options))
    assert says in found


@pytest.mark.parametrize("of", [(0.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("read", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_the_range_of_a_network(of: tuple[float, float], read: tuple[float, float]) -> None:
    found = self_check(
        Denoiser(trained_on(*of), schedule=schedules.linear(), data_range=read, channels=3, **SMALL)
    )
    assert found == [] if of == read else f"with data_range={of} by" in found[0]


def test_networks_of_other_families() -> None:
    """photo64 as a flow network that counts to 1000, read in the time 0..1 and as an eps
    network."""
    net, flow = photo64(clip=False), schedules.flow()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        p = net(x, flow(float(t[0]) / 1000))
        return p.eps - p.x0

    options: dict[str, Any] = {"data_range": (-1, 1), "channels": 3, **SMALL}
    right = Denoiser(
        velocity, predicts="velocity", schedule=flow, time=lambda t: 1000 * t, **options
    )
    assert self_check(right) == []
    for wrong in (
        right.read_as(time=None),
        Denoiser(velocity, schedule=schedules.linear(), **options),
    ):
        assert "time=lambda t: 1000 * t by" in self_check(wrong)[0]


def test_a_bad_network_is_not_called_ok() -> None:
    broken = Denoiser(
        lambda x, t: torch.zeros_like(x),
        schedule=schedules.linear(),
        data_range=(-1, 1),
        channels=3,
        **SMALL,
    )
    assert "badly under every reading tried" in self_check(broken)[0]
    failing = Denoiser(
        lambda x, t: x @ x[:, :, :3],
        schedule=schedules.linear(),
        data_range=(-1, 1),
        channels=3,
        name="odd",
        **SMALL,
    )
    assert "odd could not be checked, it fails at 16x16" in self_check(failing)[0]


def test_what_was_not_checked_is_said_of_a_network_that_may_be_one_of_images() -> None:
    unsaid = Denoiser(lambda x, t: x, predicts="eps", schedule="linear", name="mine")
    (said,) = self_check(unsaid)
    assert said.startswith("mine was not checked: it has no data_range") and "(-1, 1)" in said
    assert why_unchecked(unsaid) is not None
    latents = Denoiser(lambda x, t: x, schedule="linear", channels=4)
    assert self_check(latents) == [] and why_unchecked(latents) == "its states are not images"

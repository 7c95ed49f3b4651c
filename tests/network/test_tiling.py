"""Tiled denoising: exact where a network looks at one pixel, its gradient exact everywhere, and
small seams on a real one."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.commands.main import main
from invdiff.images import read_image, sample_photo
from invdiff.network import Autoencoder, Denoiser, Facts, count_evaluations
from invdiff.network.tiling import Tiled
from invdiff.plugins.registry import list_plugins

CONV = torch.nn.Conv2d(3, 6, 5, padding=2, dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pixelwise(x: Tensor, t: Tensor, control: Tensor, label: Tensor) -> Tensor:
    return torch.tanh(x * control) + t.view(-1, 1, 1, 1) * label.view(-1, 1, 1, 1)


def convolution(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(CONV(x)) * t.view(-1, 1, 1, 1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(40, 40), (23, 57), (9, 64), (16, 17)])
@pytest.mark.parametrize("overlap", [0, 3, 15])
@pytest.mark.parametrize("most, unit", [(0, 1), (20, 4), (19, 1)])
def test_a_network_that_looks_at_one_pixel_is_not_changed(
    size: tuple[int, int], overlap: int, batch: int, most: int, unit: int
) -> None:
    x, control = noise(2, 3, *size), noise(2, 3, *size, seed=1)
    t, label = noise(2), noise(2, seed=2)
    tiled = Tiled(pixelwise, 16, overlap, batch, most=most, unit=unit)
    whole, cut = (net(x, t, control=control, label=label) for net in (pixelwise, tiled))
    torch.testing.assert_close(cut, whole)


@pytest.mark.parametrize("batch, calls", [(1, 4 + 3), (2, 2 + 1), (4, 1)])
def test_the_last_windows_are_evaluated_once(batch: int, calls: int) -> None:
    """A gradient, and a second one through the same windows, of which nothing was kept."""
    made = 0

    def net(x: Tensor, t: Tensor) -> Tensor:
        nonlocal made
        made += 1
        return convolution(x, t)

    x = noise(1, 3, 24, 24).requires_grad_()
    out = Tiled(net, 16, 8, batch)(x, noise(1))
    first, again = (
        torch.autograd.grad(out.square().sum(), x, retain_graph=True)[0] for _ in range(2)
    )
    torch.testing.assert_close(first, again)
    assert made == calls + 4 // batch
    with torch.no_grad():
        made = 0
        Tiled(net, 16, 8, batch)(x, noise(1))
        assert made == 4 // batch


@pytest.mark.parametrize(
    "side, count, grown",
    [(256, 2, 144), (512, 4, 152), (128, 1, 128), (160, 1, 160), (168, 2, 128)],
)
def test_windows_grow_by_a_quarter_where_fewer_then_do(side: int, count: int, grown: int) -> None:
    seen: list[tuple[int, ...]] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(tuple(x.shape[-2:]))
        return x.tanh()

    denoiser = Denoiser(net, schedule=schedules.linear(), tile=128, multiple=8)
    denoiser(noise(1, 1, side, side), schedules.linear()(300))
    assert seen == [(grown, grown)] * count**2


@pytest.mark.parametrize("n", range(16, 200, 7))
def test_grown_windows_share_what_is_asked_for(n: int) -> None:
    tiled = Tiled(convolution, 16, 4, most=20, unit=2)
    spans = [span for span, _ in tiled._spans(noise(1, 1, n), -1)]
    assert spans[0].start == 0 and spans[-1].stop == n
    assert {s.stop - s.start for s in spans} <= {n, 16, 18, 20}
    assert all(a.stop - b.start >= 3 for a, b in pairwise(spans))  # to rounding


@pytest.mark.parametrize("batch", [1, 4])
def test_the_gradient_is_that_of_the_blended_windows(batch: int) -> None:
    tiled, x, t = (
        Tiled(convolution, 16, 5, batch),
        noise(2, 3, 30, 41),
        torch.ones(2, dtype=torch.float64),
    )
    by_hand = torch.zeros(2, 6, 30, 41, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    for part in tiled.windows(x):
        for (row, column), weight in part:
            piece = torch.zeros_like(by_hand)
            piece[..., row, column] = weight * convolution(a[..., row, column], t)
            by_hand = by_hand + piece
    out = tiled(b, t)
    torch.testing.assert_close(out, by_hand)
    outer = noise(*out.shape, seed=3)
    torch.testing.assert_close(
        torch.autograd.grad(out, b, outer), torch.autograd.grad(by_hand, a, outer)
    )


def test_it_is_a_denoiser_like_any_other() -> None:
    x, level = noise(2, 3, 40, 44), schedules.linear()(300)
    one, cut = (
        Denoiser(
            lambda x, t: torch.tanh(x),
            schedule=schedules.linear(),
            data_range=(-1, 1),
            multiple=8,
            tile=tile,
        )
        for tile in (None, 16)
    )
    with count_evaluations() as evaluations:
        a = x.clone().requires_grad_()
        p = cut(a, level)
        p.x0.sum().backward()
    torch.testing.assert_close(p.x0, one(x, level).x0)
    assert (evaluations.forward, evaluations.backward) == (2, 2)  # images, not windows


class Shown:
    """A network that is shown an image twice as large as the state, as a ControlNet is."""

    facts = Facts(image_conditions={"control": 2})

    def __call__(self, x: Tensor, t: Tensor, control: Tensor) -> Tensor:
        rows, columns = (2 * n - m for n, m in zip(x.shape[-2:], control.shape[-2:], strict=True))
        return torch.tanh(
            x * F.avg_pool2d(F.pad(control, (0, columns, 0, rows), mode="replicate"), 2)
        )


@pytest.mark.parametrize("batch", [1, 3])
def test_an_image_condition_larger_than_the_state_is_cut_with_it(batch: int) -> None:
    x, control, level = noise(2, 3, 21, 30), noise(2, 3, 42, 60, seed=1), schedules.linear()(300)
    whole, cut = (
        Denoiser(Shown(), schedule=schedules.linear(), multiple=8, **tile)
        for tile in ({}, {"tile": 16, "tile_batch": batch})
    )
    torch.testing.assert_close(
        cut(x, level, control=control).x0, whole(x, level, control=control).x0
    )
    with pytest.raises(ValueError, match="larger than"):
        cut(x, level, control=noise(2, 3, 80, 80))


def test_the_image_shown_beside_the_state_is_cut_with_it() -> None:
    x, shown, level = noise(2, 3, 21, 30), noise(2, 2, 21, 30, seed=1), schedules.linear()(300)
    options = {"schedule": schedules.linear(), "cond_channels": 2, "multiple": 8}
    whole, cut = (
        Denoiser(lambda x, t: x[:, 2:] * x[:, :1] + x[:, 1:2], **options, tile=tile)
        for tile in (None, 16)
    )
    torch.testing.assert_close(cut(x, level, cond=shown).x0, whole(x, level, cond=shown).x0)


def test_a_photo_larger_than_a_tile_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()[:150, :200]).save("photo.png")
    arguments = ["--input", "photo.png", "--method", "replace", "--steps", "1", "--quiet"]
    arguments += ["--output", "out", "model.tile=128", "model.tile_overlap=32"]
    assert main(["solve", *arguments]) == 0
    assert read_image(Path("out/restored.png")).shape == (1, 3, 150, 200)
    record = json.loads(Path("out/result.json").read_text())
    assert record["config"]["model"]["tile"] == 128 and record["nfe"] == 1


def test_what_cannot_be_tiled_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap < size"):
        Tiled(convolution, 16, 16)
    with pytest.raises(ValueError, match="at least one at once"):
        Tiled(convolution, 16, 4, 0)
    for options, error, says in (
        ({"multiple": 8, "tile": 20}, ValueError, "multiple of 8"),
        ({"tile": 0}, ValueError, "multiple of 1"),
        ({"tile": "banana"}, TypeError, "tile is a whole number, got 'banana'"),
        ({"tile": 64.5}, TypeError, "tile is a whole number"),
        ({"tile": 64, "tile_batch": True}, TypeError, "tile_batch is a whole number"),
        ({"tile": 64, "tile_batch": 0}, ValueError, "at least one at once"),
        ({"tile_overlap": 8}, ValueError, "give tile= as well"),
        ({"tile_batch": 2}, ValueError, "give tile= as well"),
    ):
        with pytest.raises(error, match=says):
            Denoiser(convolution, schedule=schedules.linear(), **options)  # type: ignore[arg-type]
    x = noise(1, 3, 24, 24).requires_grad_()
    (grad,) = torch.autograd.grad(
        Tiled(convolution, 16, 4)(x, torch.ones(1, dtype=torch.float64)).square().sum(),
        x,
        create_graph=True,
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_gradients_that_it_cannot_give_are_refused() -> None:
    x, shift, level = noise(1, 3, 24, 24), noise(1).requires_grad_(), schedules.linear()(300)
    tiled = Denoiser(
        lambda x, t, shift: x * shift.view(-1, 1, 1, 1), schedule=schedules.linear(), tile=16
    )
    with pytest.raises(ValueError, match="not to shift"):
        tiled(x, level, shift=shift)
    tiled(x, level, shift=shift.detach())
    nets: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, t: torch.from_numpy(np.tanh(x.numpy())),
        lambda x, t: x.detach().tanh(),
    ]
    for net in nets:
        denoiser = Denoiser(net, schedule=schedules.linear(), tile=16, name="blind")
        denoiser(x, level)
        with pytest.raises(ValueError, match="blind gives no gradient"):
            denoiser(x.clone().requires_grad_(), level).x0.sum().backward()


def test_the_learned_variance_is_cut_too() -> None:
    x, level, options = (
        noise(2, 3, 20, 30),
        schedules.linear()(300),
        {"schedule": schedules.linear(), "learned_variance": True},
    )
    whole, cut = (
        Denoiser(lambda x, t: torch.cat([x.tanh(), x.sin()], 1), **options, **tile)(x, level)
        for tile in ({}, {"tile": 16})
    )
    torch.testing.assert_close(cut.variance_fraction, whole.variance_fraction)


def test_a_network_of_one_size_takes_images_with_a_shorter_side() -> None:
    class Fixed:
        facts = Facts(fixed_size=(16, 16))

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            assert x.shape[-2:] == self.facts.fixed_size
            return x.tanh()

    level = schedules.linear()(300)
    for size in ((8, 40), (16, 30), (40, 5), (9, 9)):
        x = noise(1, 3, *size)
        whole = Denoiser(lambda x, t: x.tanh(), schedule=schedules.linear())(x, level)
        torch.testing.assert_close(
            Denoiser(Fixed(), schedule=schedules.linear(), tile=16)(x, level).x0, whole.x0
        )


def test_the_tile_of_a_latent_network_is_one_of_its_images() -> None:
    seen: list[tuple[int, ...]] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x.tanh()

    coder = Autoencoder(
        lambda x: F.avg_pool2d(x, 4),
        lambda z: F.interpolate(z, scale_factor=4.0),
        channels=3,
        factor=4,
    )
    options = {"schedule": schedules.linear(), "autoencoder": coder, "multiple": 2}
    measurement = invdiff.make_operator("inpaint", mask="box").measure(
        noise(1, 3, 64, 96).sigmoid(), seed=0
    )
    whole, cut = (
        invdiff.solve(measurement, Denoiser(net, **options, **tile), "dps", steps=2).x
        for tile in ({}, {"tile": 32})
    )
    torch.testing.assert_close(cut, whole)
    assert set(seen) == {(1, 3, 16, 24), (1, 3, 10, 10)}  # of 32 pixels and a quarter
    with pytest.raises(ValueError, match="multiple of 8"):
        Denoiser(net, **options, tile=36)


@pytest.mark.parametrize("method", list_plugins("guidance"))
def test_every_method_composes_with_it(method: str) -> None:
    """On a network that looks at one pixel tiles change nothing."""
    measurement = invdiff.make_operator("inpaint", mask="random").measure(
        noise(1, 3, 12, 20).sigmoid(), sigma=0.05, seed=0
    )

    def run(**tile: int) -> Tensor:
        denoiser = Denoiser(
            lambda x, t: x.tanh(), schedule=schedules.linear(20), data_range=(-1, 1), **tile
        )
        return invdiff.solve(measurement, denoiser, method, steps=4, dtype=torch.float64).x

    if method in (
        "cfg",
        "apg",
        "cfg_zero",
        "autoguidance",
        "pag",
        "seg",
        "slg",
        "classifier",
        "sr3",
        "psld",
        "resample",
        "latino",
        "flowdps",
        "flair",
    ):  # want labels, another network, a shown image or latents, with tiles or without
        for tile in ({}, {"tile": 8}):
            with pytest.raises(
                ValueError,
                match="class-conditional|noise-aware|conditioned on an image|latent diffusion"
                "|a weak network|a module of PyTorch",
            ):
                run(**tile)
        return
    torch.testing.assert_close(run(tile=8), run())


def test_seams_of_the_shipped_network_are_small() -> None:
    """The network normalises over what it sees, so windows differ a little from the whole; a seam
    would show in the differences between neighbouring pixels."""
    x, _ = sample_photo(192)
    level = schedules.linear()(150)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    x_t = (level.alpha * (2 * x - 1) + level.sigma * z).float()
    whole = invdiff.load_model("photo64")(x_t, level).x0 / 2
    cut = invdiff.load_model("photo64", tile=96, tile_overlap=32)(x_t, level).x0 / 2
    assert (cut - whole).square().mean().sqrt() < 0.01
    steps = (cut - whole).diff(dim=-1).abs().amax(dim=(0, 1, 2))
    assert steps.max() < 0.05

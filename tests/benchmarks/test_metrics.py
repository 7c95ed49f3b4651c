"""Metrics against scikit-image, the lpips package and published values."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from invdiff.benchmarks.lpips import alexnet_features, network
from invdiff.benchmarks.metrics import lpips, nmse, psnr, ssim
from invdiff.images import read_image, sample_photo

METRICS = [psnr, ssim, lpips]
EXAMPLES = Path(__file__).parents[1] / "data" / "lpips"
each = pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.__name__)


def pair(
    batch: int = 3, channels: int = 3, height: int = 40, width: int = 53
) -> tuple[Tensor, Tensor]:
    """Photographs and the same with noise that differs by image."""
    g = torch.Generator().manual_seed(0)
    photo = sample_photo(64)[0][:, :channels, :height, :width]
    noise = torch.randn(batch, *photo.shape[1:], generator=g) * torch.linspace(
        0.05, 0.2, batch
    ).view(-1, 1, 1, 1)
    return (photo + noise).clamp(0, 1), photo.repeat(batch, 1, 1, 1)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_psnr_and_ssim_equal_scikit_image(channels: int) -> None:
    x, reference = pair(channels=channels)
    a, b = x.double().numpy(), reference.double().numpy()
    options = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 1,
        "channel_axis": 0,
    }
    psnrs = [peak_signal_noise_ratio(v, w, data_range=1) for v, w in zip(b, a, strict=True)]
    ssims = [structural_similarity(v, w, **options) for v, w in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr(x, reference), psnrs, atol=1e-5)
    np.testing.assert_allclose(ssim(x, reference), ssims, atol=1e-5)


def test_psnr_by_hand() -> None:
    reference = torch.full((1, 1, 4, 4), 0.5)
    torch.testing.assert_close(psnr(reference + 0.1, reference), torch.tensor([20.0]))


def test_lpips_gives_the_published_values() -> None:
    reference, p0, p1 = (read_image(EXAMPLES / f"ex_{name}.png") for name in ("ref", "p0", "p1"))
    values = lpips(torch.cat([p0, p1]), torch.cat([reference, reference]))
    torch.testing.assert_close(values, torch.tensor([0.7219, 0.1376]), atol=1e-3, rtol=0)
    torch.testing.assert_close(lpips(reference, p0), values[:1])


def test_lpips_is_the_packages_own_forward() -> None:
    """Bit by bit, with the features that ship."""
    x, reference = pair()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lpips import LPIPS

        package = LPIPS(net="alex", pnet_rand=True, verbose=False)
    shipped = alexnet_features()
    names = {".".join(["features", *k.split(".")[1:]]): k for k in package.net.state_dict()}
    package.net.load_state_dict({name: shipped[k] for k, name in names.items()})
    expected = package(2 * x - 1, 2 * reference - 1).detach()
    assert torch.equal(network(torch.device("cpu"))(2 * x - 1, 2 * reference - 1), expected)
    assert torch.equal(lpips(x, reference), expected.view(-1))


def test_nmse_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 2.0]]]])
    reference = torch.tensor([[[[2.0, 2.0]]], [[[0.0, 4.0]]]])
    torch.testing.assert_close(nmse(x, reference), torch.tensor([1 / 8, 1 / 4]))


def test_identical_images() -> None:
    _, x = pair()
    assert psnr(x, x).eq(torch.inf).all()
    torch.testing.assert_close(ssim(x, x), torch.ones(3))
    assert lpips(x, x).eq(0).all()


@each
def test_one_value_per_image_whatever_the_batch(metric: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, reference = pair()
    together = metric(x, reference)
    assert (
        together.shape == (3,) and together.dtype == torch.float32 and together.device.type == "cpu"
    )
    assert len(set(together.tolist())) == 3
    torch.testing.assert_close(
        together,
        torch.cat([metric(x[k : k + 1], reference[k : k + 1]) for k in range(3)]),
        atol=1e-5,
        rtol=1e-5,
    )


@each
def test_grey_images_dtypes_and_gradients(metric: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, reference = pair(channels=1)
    grey = metric(x, reference)
    torch.testing.assert_close(
        grey, metric(x.expand(-1, 3, -1, -1), reference.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        metric(x.double().requires_grad_(), reference), grey, atol=1e-5, rtol=1e-5
    )
    assert not metric(x.requires_grad_(), reference).requires_grad


@each
def test_wrong_input_is_refused(metric: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, reference = pair()
    for a, b in ((x, reference[:1]), (x[0], reference[0]), (x, reference[..., :-1])):
        with pytest.raises(ValueError, match=r"must both be \(B, C, H, W\)"):
            metric(a, b)
    for bad in (2 * x - 1, 255 * x, x * torch.nan):
        with pytest.raises(ValueError, match=r"^x must lie in \[0, 1\]"):
            metric(bad, reference)
        with pytest.raises(ValueError, match=r"^reference must lie in \[0, 1\]"):
            metric(reference, bad)
    with pytest.raises(TypeError, match="divide 8-bit images by 255"):
        metric((255 * x).byte(), reference)


@each
def test_a_small_excess_is_clamped(metric: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, reference = pair()
    x = x.clamp(0, 1)
    excess = torch.where(x == 1, 1.0009, torch.where(x == 0, -0.0009, x))
    assert not torch.equal(excess, x)
    assert torch.equal(metric(excess, reference), metric(x, reference))


@pytest.mark.parametrize(("metric", "smallest"), [(ssim, 11), (lpips, 31)])
def test_smallest_images(metric: Callable[[Tensor, Tensor], Tensor], smallest: int) -> None:
    x, reference = pair(height=smallest, width=smallest)
    assert metric(x, reference).isfinite().all()
    with pytest.raises(
        ValueError,
        match=f"at least {smallest} x {smallest} pixels, got {smallest - 1} x {smallest}",
    ):
        metric(x[..., 1:, :], reference[..., 1:, :])


def test_lpips_refuses_other_channels() -> None:
    x = torch.zeros(1, 2, 40, 40)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        lpips(x, x)


def test_lpips_is_silent_and_leaves_random_state_alone(capfd: pytest.CaptureFixture[str]) -> None:
    x, reference = pair()
    network.cache_clear()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = lpips(x, reference)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert capfd.readouterr() == ("", "")
    assert torch.equal(lpips(x, reference), first)
    assert network.cache_info().misses == 1


def test_lpips_prefers_torchvisions_cached_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, reference = pair(batch=1)
    usual = lpips(x, reference)
    shipped = alexnet_features()
    (tmp_path / "checkpoints").mkdir()
    classifier = {"classifier.1.weight": torch.zeros(1)}
    torch.save(
        {**{k: -v.float() for k, v in shipped.items()}, **classifier},
        tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth",
    )
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network.cache_clear()
    try:
        assert not torch.allclose(lpips(x, reference), usual)
    finally:
        network.cache_clear()

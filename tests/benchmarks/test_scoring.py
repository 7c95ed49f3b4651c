"""What restorations are worth: consistency, spread, records' scores and scores of sets,
each against another computation."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

import invdiff
from invdiff.benchmarks import metrics, scoring
from invdiff.benchmarks.digest import of_code
from invdiff.benchmarks.scoring import identity, score, set_scores, spread
from invdiff.images import sample_photo
from invdiff.plugins.registry import list_plugins
from invdiff.problem import Measurement, Operator, make_operator
from invdiff.testing import CheckFailed, check_metric


def photos(n: int = 2, size: int = 40) -> Tensor:
    photo = sample_photo(64)[0][..., :size, :size]
    return torch.cat([photo, photo.flip(-1), photo.flip(1)])[:n]


def noisy(x: Tensor, samples: int, std: float = 0.1, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (x + std * torch.randn(samples, *x.shape, generator=g)).clamp(0, 1)


# Metrics ------------------------------------------------------------------------------------------


def test_the_identity_of_metrics() -> None:
    lpips = identity("lpips")
    assert lpips["implementation"] == "invdiff.benchmarks.metrics:lpips" and lpips[
        "version"
    ] == of_code(metrics.lpips)
    assert (
        lpips["better"] == "lower"
        and lpips["backend"].startswith("lpips 0.")
        and lpips["network"] == "alex"
    )
    psnr = identity("psnr")
    assert {k: psnr[k] for k in ("range", "crop", "better")} == {
        "range": [0, 1],
        "crop": 0,
        "better": "higher",
    } and "backend" not in psnr
    assert identity("ssim")["backend"].startswith("scikit-image ")


def test_a_metric_that_declares_the_wrong_direction_is_told() -> None:
    @metrics.rated(better="higher")
    def mae(x: Tensor, reference: Tensor) -> Tensor:
        return (x - reference).abs().flatten(1).mean(1)

    with pytest.raises(CheckFailed, match="declares better = 'higher', but lower values are"):
        check_metric(mae, only=["order"])
    for name in ("psnr", "ssim", "lpips"):
        check_metric(name, only=["order"])


# Spread -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("clipped", [False, True])
def test_coverage_is_calibrated_for_exchangeable_samples_even_where_they_tie(
    n: int, clipped: bool
) -> None:
    """Any distribution will do, as long as the truth is one more draw of it; clipped, a third of
    the values are 0."""
    g = torch.Generator().manual_seed(n)
    draws = torch.randn(n + 1, 400, 1, 30, 30, generator=g).exp() * torch.rand(
        400, 1, 30, 30, generator=g
    )
    draws = (draws - 0.25).clamp(min=0) if clipped else draws
    assert (draws == 0).float().mean() > 0.3 or not clipped
    with pytest.warns(
        UserWarning, match="diversity was not computed"
    ):  # 30 pixels are too few for LPIPS
        found = spread(draws[1:], draws[0])
    assert found["coverage_calibrated"].eq((n - 1) / (n + 1)).all()
    error = found["coverage"].std() / math.sqrt(400)
    assert abs(found["coverage"].mean() - (n - 1) / (n + 1)) < 4 * error < 0.01


def test_coverage_by_hand() -> None:
    samples = torch.tensor(
        [
            [0.1, 0.2, 0.3, 0.4, 0.5, 0.7],
            [0.3, 0.2, 0.1, 0.4, 0.6, 0.7],
            [0.2, 0.5, 0.3, 0.4, 0.5, 0.7],
        ]
    )[:, None]
    truth = torch.tensor([[0.25, 0.6, 0.3, 0.5, 0.5, 0.7]])
    #          inside, above all, one of three ties at the top, above, two of three ties at the
    # bottom, all tie
    shares = [1, 0, 2 / 3, 0, 2 / 3, 1 / 2]
    with pytest.warns(UserWarning):
        assert spread(samples, truth)["coverage"].item() == pytest.approx(sum(shares) / 6)


def test_samples_that_are_too_much_alike_do_not_cover() -> None:
    truth = photos()
    tight, wide = noisy(truth + 0.3, 4, std=0.01), noisy(truth, 4, std=0.2)
    assert (spread(tight, truth)["coverage"] < 0.2).all() and (
        spread(wide, truth)["coverage"] > 0.5
    ).all()


def test_std_and_diversity_by_hand() -> None:
    truth = photos()
    samples = noisy(truth, 3)
    found = spread(samples, truth)
    np.testing.assert_allclose(
        found["std"], samples.double().numpy().std(0, ddof=1).mean((1, 2, 3))
    )
    pairs = torch.stack(
        [metrics.lpips(samples[a], samples[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    )
    torch.testing.assert_close(found["diversity"], pairs.mean(0).double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("samples, truth", [((1, 2, 3), (2, 3)), ((4, 2, 3), (3, 3))])
def test_what_has_no_spread(samples: tuple[int, ...], truth: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        spread(torch.rand(samples), torch.rand(truth))


# Records ------------------------------------------------------------------------------------------


def test_values_are_means_over_the_samples_and_each_image_stands_for_itself() -> None:
    truth = photos()
    measurement = make_operator("inpaint").measure(truth, sigma=0.05, seed=1)
    samples = torch.stack(
        [noisy(truth, 1, 0.02)[0], noisy(truth, 1, 0.3, seed=1)[0]]
    )  # a good one and a bad one
    found = score(measurement, samples, truth, ["psnr", "lpips"])
    assert [set(record) for record in found] == [{"metrics", "mean", "spread"}] * 2
    for k, record in enumerate(found):
        values = [metrics.psnr(x[k : k + 1], truth[k : k + 1]).item() for x in samples]
        assert max(values) - min(values) > 15 and record["metrics"]["psnr"] == pytest.approx(
            sum(values) / 2
        )
        of_mean = metrics.psnr(samples.mean(0)[k : k + 1], truth[k : k + 1]).item()
        assert record["mean"] == {"psnr": pytest.approx(of_mean), "lpips": record["mean"]["lpips"]}
        assert set(record["metrics"]) == {"psnr", "lpips", "consistency"}
        assert set(record["spread"]) == {"std", "coverage", "coverage_calibrated", "diversity"}
        (alone,) = score(
            measurement.select([k]), samples[:, k : k + 1], truth[k : k + 1], ["psnr", "lpips"]
        )
        assert (
            alone["metrics"]["lpips"] == record["metrics"]["lpips"]
            and alone["spread"] == record["spread"]
        )


def test_the_truth_is_consistent_with_every_measurement_of_it() -> None:
    """Whatever the operator and the kind of sigma: what is missing, or complex, is counted
    right."""
    truth = photos(3, 64)
    sigmas: list[Any] = [0.02, [0.01, 0.05, 0.2]]
    for name in list_plugins("operators"):
        if name == "matrix":
            continue  # of 12,288 x 12,288 values
        for sigma in sigmas:
            measurement = make_operator(name).measure(truth, sigma=sigma, seed=3)
            for record in score(measurement, truth[None], truth, []):
                assert record["metrics"]["consistency"] == pytest.approx(1, abs=0.1), (name, sigma)
    poisson = make_operator("denoise").measure(truth, sigma=0.02, gain=0.01, seed=4)
    assert poisson.sigma.shape == truth.shape
    for record in score(poisson, truth[None], truth, []):
        assert record["metrics"]["consistency"] == pytest.approx(1, abs=0.1)


@dataclass(frozen=True, eq=False)
class Fourier(Operator):
    """Complex measurements."""

    def _forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x, norm="ortho")


def test_consistency_of_complex_values_and_of_pixels_of_their_own_sigma() -> None:
    truth = photos(2, 64)
    for operator in (Fourier(), make_operator("inpaint")):
        sigma = torch.linspace(0.01, 0.3, 64).expand(2, 3, 64, 64)
        sigma = (
            sigma.clone()
            if isinstance(operator, Fourier)
            else sigma * (operator.bind((3, 64, 64)).state["mask"] > 0)
        )
        measurement = operator.measure(truth, seed=5)
        noise = operator.measure(0 * truth, sigma=1.0, seed=6).y
        measurement = Measurement(measurement.y + sigma * noise, measurement.operator, sigma)
        assert measurement.y.is_complex() == isinstance(operator, Fourier)
        for record in score(
            measurement, truth[None], truth, []
        ):  # a sigma of zero where nothing is measured does no harm
            assert record["metrics"]["consistency"] == pytest.approx(1, abs=0.05)
        sigma[1, 0][sigma[1, 0] > 0] = 0.0  # where something is, it does
        first, second = score(
            Measurement(measurement.y, measurement.operator, sigma), truth[None], truth, []
        )
        assert (
            first["metrics"]["consistency"] is not None and second["metrics"]["consistency"] is None
        )


def test_what_cannot_be_computed_is_none() -> None:
    truth = photos(2, 20)  # too small for LPIPS
    measurement = make_operator("denoise").measure(truth, sigma=0.0)
    with pytest.warns(UserWarning, match="lpips was not computed: .*at least 31 x 31"):
        found = score(measurement, truth[None], truth, ["psnr", "ssim", "lpips"])
    for record in (
        found
    ):  # identical images: the PSNR is infinite; without noise nothing is to be consistent with
        assert record == {
            "metrics": {"psnr": None, "ssim": pytest.approx(1), "lpips": None, "consistency": None}
        }


def test_an_image_that_is_not_finite_takes_nothing_from_the_others() -> None:
    truth = photos()
    measurement = make_operator("denoise").measure(truth, sigma=0.1)
    samples = noisy(truth, 2)
    expected = score(measurement, samples, truth, ["psnr"])
    broken = samples.clone()
    broken[1, 0, 0, 3, 3] = torch.nan
    with pytest.warns(UserWarning, match="psnr was not computed"):
        first, second = score(measurement, broken, truth, ["psnr"])
    assert second == expected[1]
    assert (
        set(first["metrics"].values()) == {None}
        and first["spread"]["std"] is None
        and first["spread"]["coverage"] is None
    )


# Sets ---------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Stands for InceptionV3: a few random features and logits of eight-bit images."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.to_features, self.to_logits = (
            torch.randn(48, 6, generator=g),
            torch.randn(48, 4, generator=g),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        flat = nn.functional.adaptive_avg_pool2d(x.float() / 255, 4).flatten(1)
        return flat @ self.to_features, flat @ self.to_logits


def images(n: int, seed: int, channels: int = 3) -> list[Tensor]:
    return list(
        torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(seed)) ** (1 + seed)
    )


def test_fid_is_the_frechet_distance_of_two_gaussians() -> None:
    pytest.importorskip("torchmetrics")
    restored, truth = images(60, 0), images(80, 1)
    found = set_scores(restored, truth, ["fid"], network=Network())
    a, b = (
        Network()((255 * torch.stack(x)).round().byte())[0].double().numpy()
        for x in (restored, truth)
    )
    covariances = np.cov(a.T), np.cov(b.T)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    assert found == {"fid": pytest.approx(expected, rel=1e-6)}


def test_kid_is_the_unbiased_kernel_distance() -> None:
    """Over all subsets of half of the images its mean is that of the whole sets."""
    pytest.importorskip("torchmetrics")
    restored, truth = images(60, 0), images(60, 1)
    found = set_scores(restored, truth, ["kid"], network=Network())
    a, b = (
        Network()((255 * torch.stack(x)).round().byte())[0].double().numpy()
        for x in (restored, truth)
    )

    def kernel(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return (u @ v.T / u.shape[1] + 1) ** 3

    n = len(a)
    within = sum((kernel(u, u).sum() - np.trace(kernel(u, u))) / (n * (n - 1)) for u in (a, b))
    expected = within - 2 * kernel(a, b).mean()
    assert found["kid_std"] > 0
    assert abs(found["kid"] - expected) < 4 * found["kid_std"] / math.sqrt(100)


def test_inception_score() -> None:
    pytest.importorskip("torchmetrics")
    restored = images(50, 0)
    found = set_scores(restored, images(2, 1), ["is"], network=Network())
    p = Network()((255 * torch.stack(restored)).round().byte())[1].double().softmax(1)
    expected = (p * (p / p.mean(0)).log()).sum(1).mean().exp()
    assert found == {"is": pytest.approx(expected.item()), "is_std": None}
    many = set_scores(images(300, 0), images(2, 1), ["is"], network=Network())
    assert many["is_std"] > 0


def test_set_scores_take_batches_and_grey_images_and_leave_random_numbers_alone() -> None:
    pytest.importorskip("torchmetrics")
    restored, truth = images(12, 0), images(12, 1)
    state = torch.get_rng_state()
    one = set_scores(restored, truth, network=Network())
    assert set(one) == {"fid", "kid", "kid_std", "is", "is_std"}
    assert set_scores(
        [torch.stack(restored[:5]), torch.stack(restored[5:])], truth, network=Network()
    ) == pytest.approx(one)
    assert torch.equal(torch.get_rng_state(), state)
    grey = images(12, 0, channels=1)
    repeated = [x.expand(3, -1, -1) for x in grey]
    assert set_scores(grey, truth, network=Network()) == set_scores(
        repeated, truth, network=Network()
    )


def test_two_images_are_the_fewest() -> None:
    pytest.importorskip("torchmetrics")
    assert all(
        v is not None
        for v in set_scores(images(2, 0), images(2, 1), ["fid", "kid"], network=Network()).values()
    )
    for restored, truth in (
        (images(1, 0), images(3, 1)),
        (images(3, 0), images(1, 1)),
        ([], images(2, 1)),
    ):
        with pytest.raises(ValueError, match="at least 2"):
            set_scores(restored, truth, network=Network())


def test_unknown_set_scores_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown set score 'fidd'; known: fid, kid, is"):
        set_scores(images(2, 0), images(2, 1), ["fidd"])
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ValueError, match=r"pip install 'invdiff\[fid\]'"):
        set_scores(images(2, 0), images(2, 1))


def test_missing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="not downloaded by invdiff; get them from https://"):
        set_scores(images(2, 0), images(2, 1))
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="does not hold the weights"):
        set_scores(images(2, 0), images(2, 1), weights=tmp_path / "weights.pth")


@pytest.mark.slow
def test_inceptions_own_code_with_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published weights are not at hand: the file is one of random weights."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    with monkeypatch.context() as patched, torch.random.fork_rng():
        torch.manual_seed(0)
        patched.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patched.setattr(nn.Module, "load_state_dict", lambda *args, **kwargs: None)
        network = theirs.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"])
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    x = photos(3)
    state = torch.get_rng_state()
    found = set_scores(list(x), list(x.flip(0)), ["kid", "is"], weights=tmp_path / "weights.pth")
    assert (
        torch.equal(torch.get_rng_state(), state)
        and found["is"] == pytest.approx(1, abs=0.1)
        and found["kid"] is not None
    )
    features, logits = scoring.inception(tmp_path / "weights.pth")((255 * x).round().byte())
    assert features.shape == (3, 2048) and logits.shape == (3, 1008)
    torch.testing.assert_close((features, logits), network((255 * x).round().byte()))


def test_scores_are_what_solve_restores() -> None:
    """From a measurement to a record, with a network."""
    truth = photos(2, 32)
    measurement = make_operator("denoise").measure(truth, sigma=0.1, seed=0)
    denoiser = invdiff.load_model("photo64")
    result = invdiff.solve(measurement, denoiser, method="ddrm", steps=5, num_samples=2, seed=0)
    for record in score(measurement, result.samples, truth, ["psnr"]):
        assert (
            20 < record["metrics"]["psnr"] < record["mean"]["psnr"] < 40
            and 0.5 < record["metrics"]["consistency"] < 1.5
        )

"""Scores of a restoration: metrics of its samples, consistency with the measurement, spread,
and scores of whole sets.

consistency          ‖A x − y‖ / (sigma sqrt(m)), see
                     :meth:`~invdiff.problem.Measurement.consistency`. Of the truth it is 1, with a
                     standard deviation of 1/sqrt(2m). None where sigma is zero: there is no noise
                     to compare with.
std                  standard deviation of the samples, averaged over the pixels
coverage             share of the pixels whose truth lies between the least and the greatest sample
coverage_calibrated  what coverage is, in expectation, for samples from the true posterior: (S −
                     1)/(S + 1)
diversity            mean LPIPS between two samples

Values that are infinite or undefined, or cannot be computed, are None in records: JSON has no such
numbers.
"""

from __future__ import annotations

import importlib.metadata
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from invdiff.benchmarks import schema
from invdiff.benchmarks.digest import of_code
from invdiff.benchmarks.metrics import lpips
from invdiff.plugins.registry import load
from invdiff.problem import Measurement

Metric = Callable[[Tensor, Tensor], Tensor]
SETS = ("fid", "kid", "is")


def metric_of(name: str) -> Metric:
    """A metric by its registered name, or ``FAMILY:MEMBER`` of a registered family, such as
    ``pyiqa:dists``.

    Raises:
        ValueError: nobody registers it; the family has no such member, or cannot make it here.
    """
    return load("metrics", name)


def identity(name: str) -> schema.Metric:
    """The identity of a registered metric: rows are comparable where all of it is
    equal."""
    metric = metric_of(name)
    found: schema.Metric = {
        "implementation": f"{metric.__module__}:{metric.__qualname__}",
        "version": of_code(metric),
        "range": [0, 1],
        "crop": getattr(metric, "crop", 0),
        "better": getattr(metric, "better", None),
    }
    if (title := getattr(metric, "title", None)) is not None:
        found["title"] = title
    if (backend := getattr(metric, "backend", None)) is not None:
        found["backend"] = f"{backend} {importlib.metadata.version(backend)}"
    if (network := getattr(metric, "network", None)) is not None:
        found["network"] = network
    if (weights := getattr(metric, "weights", None)) is not None:
        found["weights"] = weights
    return found


def spread(samples: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """How the samples differ, and whether the truth is among them; see the module.

    Under exchangeability, the truth being one more draw of what the samples are drawn from, it is
    the least or the greatest of the S + 1 with probability 2/(S + 1), whatever the distribution:
    coverage is then (S − 1)/(S + 1) in expectation, and less if the samples are too much alike.
    Where the truth equals samples, as where pixels are known or clipped, ties are broken by chance:
    the probability counts, which keeps the expectation exact.

    Args:
        samples: (S, B, ...), S at least 2.
        truth: (B, ...).

    Returns:
        name -> (B,) float64 on the CPU; what cannot be computed is nan.
    """
    n = len(samples)
    if n < 2 or samples.shape[1:] != truth.shape:
        raise ValueError(
            "the spread is that of at least 2 samples (S, B, ...) about a truth (B, ...), "
            f"got {tuple(samples.shape)} and {tuple(truth.shape)}"
        )
    truth = truth.to(samples)
    below, equal, above = (
        compare(samples, truth).sum(0).double() for compare in (torch.lt, torch.eq, torch.gt)
    )
    inside = 1 - ((below == 0).double() + (above == 0).double()) / (1 + equal)
    inside = inside.where(samples.isfinite().all(0), torch.nan)
    first, second = torch.combinations(torch.arange(n)).unbind(1)
    diversity = [
        _mean_over(lpips, "diversity", own[first], own[second]) for own in samples.unbind(1)
    ]
    return {
        "std": samples.double().std(0).flatten(1).mean(1).cpu(),
        "coverage": inside.flatten(1).mean(1).cpu(),
        "coverage_calibrated": torch.full((len(truth),), (n - 1) / (n + 1), dtype=torch.float64),
        "diversity": torch.tensor(diversity, dtype=torch.float64),
    }


def metrics_of(samples: Tensor, truth: Tensor, metrics: Sequence[str]) -> schema.Figures:
    """Metrics of one image, means over its samples.

    Args:
        samples: (S, C, H, W) in [0, 1].
        truth: (C, H, W) in [0, 1].
        metrics: registered names.
    """
    reference = truth.expand_as(samples)
    return _known({name: _mean_over(metric_of(name), name, samples, reference) for name in metrics})


def score(
    measurement: Measurement, samples: Tensor, truth: Tensor, metrics: Sequence[str]
) -> list[schema.Scores]:
    """All that a record says of the quality of each image.

    A value is the mean over the samples, never the best of them. An image is scored apart from the
    others of its batch.

    Args:
        measurement: of the B images.
        samples: (S, B, C, H, W) in [0, 1].
        truth: (B, C, H, W).
        metrics: registered names.

    Returns:
        For each image ``{"metrics": {name: value}}``, the consistency among them; with several
        samples also ``"mean"``, the metrics of the samples' mean, and ``"spread"``. A metric that
        cannot be computed, such as of images that are too small for it, is None and warned of.
    """
    truth = truth.to(samples)
    y = measurement.y
    consistency = torch.stack(
        [measurement.consistency(x.to(y.device, y.real.dtype)) for x in samples]
    ).mean(0)
    found: list[schema.Scores] = []
    for k, own in enumerate(samples.unbind(1)):
        values = metrics_of(own, truth[k], metrics)
        found.append({"metrics": values | _known({"consistency": float(consistency[k])})})
    if len(samples) > 1:
        mean, spreads = samples.mean(0), spread(samples, truth)
        for k, record in enumerate(found):
            image = slice(k, k + 1)
            record["mean"] = metrics_of(mean[image], truth[k], metrics)
            record["spread"] = _known({name: float(values[k]) for name, values in spreads.items()})
    return found


def _mean_over(
    metric: Metric, name: str, x: Tensor, reference: Tensor, batch_size: int = 32
) -> float:
    """The mean of a metric over (N, C, H, W); nan, with a warning, where it cannot be computed."""
    try:
        parts = zip(x.split(batch_size), reference.split(batch_size), strict=True)
        return float(torch.cat([metric(a, b) for a, b in parts]).double().mean())
    except Exception as error:  # whatever a plug-in raises: the other values are not lost
        warnings.warn(f"{name} was not computed: {error}", stacklevel=3)
        return math.nan


def _known(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def set_scores(
    restored: Iterable[Tensor],
    truth: Iterable[Tensor],
    which: Sequence[str] = SETS,
    weights: Path | None = None,
    network: nn.Module | None = None,
) -> dict[str, float | None]:
    """Scores of a set of images against another, by torchmetrics (extra ``[fid]``).

    ``fid``  Fréchet distance of two Gaussians (Heusel et al. 2017). It is biased by the number of
             images: compare at equal numbers; below the 2,048 features of the network the
             covariances are singular.
    ``kid``  kernel distance (Bińkowski et al. 2018), unbiased: mean over 100 subsets, each of half
             of the smaller set, from 2 to 1,000 images; ``kid_std`` is their standard deviation.
    ``is``   inception score of the restored ones alone (Salimans et al. 2016), mean over 10 parts,
             fewer where a part would have less than 100 images; ``is_std`` is their standard
             deviation, None for one part.

    The network is torch-fidelity's InceptionV3 with TensorFlow's weights, which the published
    figures are from; it resizes to 299 x 299 by itself. This code was run and tested with other
    weights only: the published ones were never at hand.

    Args:
        restored, truth: images in [0, 1], (C, H, W) or (B, C, H, W), C 1 (repeated) or 3; at least
            2 of each.
        which: some of ``fid``, ``kid`` and ``is``.
        weights: file of the network's weights; by default where torch-fidelity keeps them. Nothing
            is downloaded.
        network: takes the place of InceptionV3: uint8 images (B, 3, H, W) to features (B, d) and
            logits (B, k).

    Raises:
        ValueError: a score that does not exist, fewer than 2 images, the extra or the weights are
            missing.
    """
    if unknown := [name for name in which if name not in SETS]:
        raise ValueError(f"unknown set score {unknown[0]!r}; known: {', '.join(SETS)}")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.inception import InceptionScore
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise ValueError(
            "FID, KID and the inception score need torchmetrics: pip install 'invdiff[fid]'"
        ) from error
    network = inception(weights) if network is None else network
    (features, logits), (real, _) = (_features(network, images) for images in (restored, truth))
    fewest = min(len(features), len(real))
    if fewest < 2:
        raise ValueError(
            "scores of sets need at least 2 restored and 2 true images, got "
            f"{len(features)} and {len(real)}"
        )
    found = dict[str, float]()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns that it keeps features in memory
        torch.manual_seed(0)  # of subsets and parts
        if "fid" in which:
            fid = FrechetInceptionDistance(_Given(features.shape[1]))
            fid.update(real, real=True)
            fid.update(features, real=False)
            found["fid"] = float(fid.compute())
        if "kid" in which:
            kid = KernelInceptionDistance(
                _Given(features.shape[1]), subset_size=max(2, min(1000, fewest // 2))
            )
            kid.update(real, real=True)
            kid.update(features, real=False)
            found["kid"], found["kid_std"] = map(float, kid.compute())
        if "is" in which:
            score = InceptionScore(
                _Given(logits.shape[1]), splits=min(10, max(1, len(logits) // 100))
            )
            score.update(logits)
            found["is"], found["is_std"] = map(float, score.compute())
    return _known(found)


class _Given(nn.Module):
    """Hands features on to torchmetrics: they are computed once for all scores."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


@torch.no_grad()
def _features(network: nn.Module, images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Features and logits of all images, float64."""
    found = [network(_eight_bit(image if image.ndim == 4 else image[None])) for image in images]
    if not found:
        raise ValueError("scores of sets need at least 2 restored and 2 true images, got none")
    features, logits = (torch.cat(part).double().cpu() for part in zip(*found, strict=True))
    return features, logits


def _eight_bit(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            "images must be (C, H, W) or (B, C, H, W) with 1 or 3 channels, got "
            f"{tuple(images.shape)}"
        )
    return (255 * images.clamp(0, 1)).round().byte().expand(-1, 3, -1, -1)


def inception(weights: Path | None = None) -> nn.Module:
    """torch-fidelity's InceptionV3: uint8 images (B, 3, H, W) to features (B, 2048) and logits
    without bias (B, 1008).

    Args:
        weights: its file; by default where torch-fidelity keeps it. Nothing is downloaded.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise ValueError(
            "FID, KID and the inception score need torch-fidelity: pip install 'invdiff[fid]'"
        ) from error
    file = (
        weights or Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    )
    if not file.is_file():
        raise ValueError(
            f"the weights of InceptionV3 are not in {file}, and are not downloaded by "
            f"invdiff; get them from {URL_INCEPTION_V3}"
        )
    try:
        torch.load(
            file, map_location="cpu", weights_only=True
        )  # torch-fidelity reads it again in a way that could run code
        with torch.random.fork_rng(devices=[]):
            return FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], str(file)
            )
    except Exception as error:
        raise ValueError(
            f"{file} does not hold the weights of torch-fidelity's InceptionV3: {error}"
        ) from error

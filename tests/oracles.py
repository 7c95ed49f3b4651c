"""Priors whose networks and posteriors are known exactly, noise that a test controls, and other
shared tools.

Nothing here uses the package's own formulas: what a network says is derived from the prior alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from invdiff.network import Prediction
from invdiff.noise import NoiseSource
from invdiff.sampling import Step
from invdiff.schedules import Level, Schedule

Network = Callable[..., Tensor]
D = torch.float64


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 numbers that touch no global state."""
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def built(cls: Any, /, seed: int = 0, **config: Any) -> Any:
    """A network with random weights everywhere: some of diffusers' layers start at zero and would
    hide what they do."""
    net = cls(**config).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.copy_(
            torch.randn(p.shape, generator=generator, dtype=D)
            * 0.7
            / max(1, p[0].numel() if p.ndim > 1 else 2) ** 0.5
        )
        if p.ndim == 1:
            p += 0.3
        p.copy_(p.float())  # what a checkpoint is read as
    return net


class Mixture:
    """sum_k w_k N(m_k, C_k): exact posterior mean at every noise level, exact networks, exact
    posterior of y = A x + n."""

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.weights, self.means, self.covariances = weights, means, covariances

        self._at = cache(self._solve)

    def _solve(self, alpha: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Precision of x_t, log weight and gain Cov(x0, x_t) Cov(x_t)^-1 of every component."""
        noisy = alpha**2 * self.covariances + sigma**2 * torch.eye(self.means.shape[1], dtype=D)
        precision = torch.linalg.inv(noisy)
        return (
            precision,
            self.weights.log() - 0.5 * torch.logdet(noisy),
            alpha * self.covariances @ precision,
        )

    def posterior_mean(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x0 | alpha x0 + sigma eps = x_t]."""
        gain, means = self._at(alpha, sigma)[2].to(x_t), self.means.to(x_t)
        r = x_t.flatten(1)[:, None] - alpha * means  # (B, K, d)
        if len(means) == 1:
            return (means + r[:, 0] @ gain[0].T).view_as(x_t)
        share = torch.softmax(self.log_joint(x_t, alpha, sigma), dim=1)
        return torch.einsum(
            "bk,bkd->bd", share, means + torch.einsum("kde,bke->bkd", gain, r)
        ).view_as(x_t)

    def log_joint(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        """log p(k, x_t) of every component k but for a constant, (B, K)."""
        precision, log_weights = (a.to(x_t) for a in self._at(alpha, sigma)[:2])
        r = x_t.flatten(1)[:, None] - alpha * self.means.to(x_t)
        return log_weights - 0.5 * torch.einsum("bkd,kde,bke->bk", r, precision, r)

    def restored_mean(
        self, x_t: Tensor, alpha: float, sigma: float, A: Tensor, y: Tensor, noise: float
    ) -> Tensor:
        """E[x0 | x_t, y] for y = A x0 + noise n, one y (B, m) for each state: state and measurement
        as one observation of x0."""
        H = torch.cat([A / noise, alpha / sigma * torch.eye(self.means.shape[1], dtype=D)])
        r = (
            torch.cat([y / noise, x_t.flatten(1) / sigma], dim=1)[:, None] - self.means @ H.T
        )  # (B, K, m + d)
        covariance = H @ self.covariances @ H.T + torch.eye(len(H), dtype=D)
        precision = torch.linalg.inv(covariance)
        log_w = (
            self.weights.log()
            - 0.5 * torch.logdet(covariance)
            - 0.5 * torch.einsum("bkd,kde,bke->bk", r, precision, r)
        )
        means = self.means + torch.einsum("kde,bke->bkd", self.covariances @ H.T @ precision, r)
        return torch.einsum("bk,bkd->bd", log_w.softmax(1), means).view_as(x_t)

    def posterior(self, A: Tensor, y: Tensor, sigma: float) -> Mixture:
        """The posterior under one y = A x + sigma n: again a mixture."""
        s = A @ self.covariances @ A.T + sigma**2 * torch.eye(len(A), dtype=D)
        r = y - self.means @ A.T
        log_w = (
            self.weights.log()
            - 0.5 * torch.einsum("kd,kde,ke->k", r, torch.linalg.inv(s), r)
            - 0.5 * torch.logdet(s)
        )
        gain = self.covariances @ A.T @ torch.linalg.inv(s)
        means = self.means + torch.einsum("kde,ke->kd", gain, r)
        return Mixture(
            torch.softmax(log_w, 0), means, self.covariances - gain @ A @ self.covariances
        )

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """n exact samples, (n, d)."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], dtype=D, generator=generator)
        return self.means[k] + torch.einsum(
            "bde,be->bd", torch.linalg.cholesky(self.covariances)[k], z
        )

    @property
    def mean(self) -> Tensor:
        """The mean, (d,)."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """The covariance, (d, d)."""
        spread = self.means - self.mean
        return torch.einsum("k,kde->de", self.weights, self.covariances) + torch.einsum(
            "k,kd,ke->de", self.weights, spread, spread
        )

    def network(self, predicts: str, schedule: Schedule, sigma_data: float = 0.5) -> Network:
        """A network ``net(x, t)`` that is exact for this prior, as one trained on ``schedule``
        would be."""

        at = cache(schedule.__call__)

        def net(x: Tensor, t: Tensor, **cond: object) -> Tensor:
            assert bool((t == t[0]).all())
            if predicts == "edm":  # x arrives as c_in * (x0 + sigma n), t as log(sigma) / 4
                sigma = float((4 * t[0].double()).exp())
                scale = (sigma**2 + sigma_data**2) ** 0.5
                noisy = x * scale
                x0 = self.posterior_mean(noisy, 1.0, sigma)
                return (x0 - sigma_data**2 / scale**2 * noisy) * scale / (sigma * sigma_data)
            level = at(float(t[0]))
            alpha, sigma = float(level.alpha), float(level.sigma)
            x0 = self.posterior_mean(x, alpha, sigma)
            eps = (x - alpha * x0) / sigma
            if predicts == "velocity":
                h = 1e-6
                up, down = schedule(float(t[0]) + h), schedule(float(t[0]) - h)
                return (
                    float(up.alpha - down.alpha) / (2 * h) * x0
                    + float(up.sigma - down.sigma) / (2 * h) * eps
                )
            return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "score": -eps / sigma}[
                predicts
            ]

        return net


class Gaussian(Mixture):
    """N(mean, covariance); ``covariance`` (d, d), or (d,) for a diagonal one."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        covariance = torch.diag(covariance) if covariance.ndim == 1 else covariance
        super().__init__(torch.ones(1, dtype=D), mean[None].to(D), covariance[None].to(D))


class Labelled(Mixture):
    """A mixture whose components belong to classes 0, 1, ...: exact conditional networks and the
    exact p(y | x_t)."""

    def __init__(
        self, weights: Tensor, means: Tensor, covariances: Tensor, labels: Sequence[int]
    ) -> None:
        super().__init__(weights, means, covariances)
        self.labels, self.classes = torch.tensor(labels), max(labels) + 1

    def given(self, label: int) -> Mixture:
        """p(x0 | y), itself a mixture."""
        own = self.labels == label
        return Mixture(
            self.weights[own] / self.weights[own].sum(), self.means[own], self.covariances[own]
        )

    def log_p(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        """log p(y | x_t) of every class, (B, classes)."""
        joint = self.log_joint(x_t, alpha, sigma)
        of_class = [joint[:, self.labels == label].logsumexp(1) for label in range(self.classes)]
        return torch.stack(of_class, dim=1).log_softmax(1)

    def classifier(self, schedule: Schedule) -> Network:
        """``net(x_t, t) -> logits``, exact, as one trained on ``schedule``; logits are not
        normalised, as a network's."""

        def net(x: Tensor, t: Tensor) -> Tensor:
            level = schedule(float(t[0]))
            return self.log_p(x, float(level.alpha), float(level.sigma)) + x.flatten(1).sum(
                1, keepdim=True
            )

        return net

    def conditional(self, predicts: str, schedule: Schedule) -> Network:
        """``net(x_t, t, label)``, exact; label ``classes`` is the null label."""
        nets = [self.given(label).network(predicts, schedule) for label in range(self.classes)] + [
            self.network(predicts, schedule)
        ]

        def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return torch.stack([n(x, t) for n in nets])[label, torch.arange(len(x))]

        return net


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """First-order Wasserstein distance of two samples (n, ...) of one size, averaged over fixed
    directions."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    along = torch.nn.functional.normalize(rand(a.shape[1], directions, seed=17), dim=0)
    return float(((a @ along).sort(0).values - (b @ along).sort(0).values).abs().mean())


def in_floors(x: Tensor, exact: Mixture) -> float:
    """How far a sample is from a distribution, in units of how far exact samples of its size are:
    about 1 for one that is exact."""
    pairs = [(exact.draw(len(x), 2 * k), exact.draw(len(x), 2 * k + 1)) for k in range(100, 104)]
    floor = sum(sliced_wasserstein(a, b) for a, b in pairs) / len(pairs)
    distance = sum(sliced_wasserstein(x, a) for a, _ in pairs) / len(pairs)
    return distance / floor


def correlated(d: int, seed: int = 0) -> Gaussian:
    """A Gaussian in d dimensions with a full covariance."""
    root = rand(d, d, seed=seed) / d**0.5
    return Gaussian(rand(d, seed=seed + 1), root @ root.T + 0.05 * torch.eye(d, dtype=D))


class OneStream(NoiseSource):
    """One generator for the whole batch: thousands of chains are drawn at once."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def randn_like(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, dtype=x.dtype, generator=self.generator)


class Given(NoiseSource):
    """Noise that was written down beforehand, drawn in order; ``drawn`` counts."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self.draws, self.drawn = list(draws), 0

    def randn_like(self, x: Tensor) -> Tensor:
        self.drawn += 1
        return self.draws[self.drawn - 1].to(x.dtype).expand(x.shape)


class NoNoise(NoiseSource):
    """For samplers that must not draw anything."""

    def __init__(self) -> None: ...

    def randn_like(self, x: Tensor) -> Tensor:
        raise AssertionError("a deterministic sampler drew noise")


def step_of(
    schedule: Schedule,
    t: Level,
    s: Level,
    noise: NoiseSource,
    last: Prediction | None = None,
    count: int = 1,
) -> Step:
    """A lone step, for calling a transition by hand."""
    return Step(0, t, s, schedule, noise, count=count, last=last)


def in_double(scheduler: Any) -> Any:
    """diffusers keeps its tables in float32; their float64 values make comparisons exact."""
    scheduler.betas = torch.linspace(1e-4, 0.02, scheduler.config.num_train_timesteps, dtype=D)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    scheduler.one = torch.tensor(1.0, dtype=D)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=D)
    return scheduler


@dataclass
class Calls:
    """Wraps a network and remembers how it was called."""

    net: Network
    times: list[float]
    batches: list[int]

    @classmethod
    def of(cls, net: Network) -> Calls:
        return cls(net, [], [])

    def __call__(self, x: Tensor, t: Tensor, **cond: object) -> Tensor:
        self.times.append(float(t[0]))
        self.batches.append(len(x))
        return self.net(x, t, **cond)

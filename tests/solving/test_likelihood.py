"""The density of a network's distribution, beside that of a mixture whose network is exact."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from oracles import D, correlated, rand
from torch import Tensor

from invdiff import schedules
from invdiff.commands.main import main
from invdiff.images import write_image
from invdiff.network import Autoencoder, Denoiser
from invdiff.solving import log_likelihood

pytestmark = pytest.mark.usefixtures("one_thread")


def mixture_log_density(x: Tensor, means: Tensor, std: float) -> Tensor:
    """Two equally likely N(m, std² I)."""
    d = x.shape[1]
    logs = [
        -((x - m) ** 2).sum(1) / (2 * std**2) - d * math.log(std * math.sqrt(2 * math.pi))
        for m in means
    ]
    return torch.logsumexp(torch.stack(logs), 0) - math.log(2)


MEANS, STD = torch.tensor([[0.6, -0.2, 0.3], [-0.5, 0.4, 0.1]], dtype=D), 0.4


def mixture(schedule: schedules.Schedule, **options: object) -> Denoiser:
    """The exact network of the mixture of N(m, STD² I)."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        level = schedule(float(t[0]))
        alpha, sigma = float(level.alpha), float(level.sigma)
        v = alpha**2 * STD**2 + sigma**2
        flat = x.flatten(1)
        share = torch.stack([-((flat - alpha * m) ** 2).sum(1) / (2 * v) for m in MEANS], 1)
        mean = share.softmax(1) @ MEANS
        return (mean + alpha * STD**2 / v * (flat - alpha * mean)).view_as(x)

    return Denoiser(net, predicts="x0", schedule=schedule, dtype=D, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("frame", ["linear", "ve", "flow", "edm"])
def test_the_density_of_a_mixture(frame: str) -> None:
    schedule = getattr(schedules, frame)()
    low = float(schedule(schedule.t_min).ratio)
    x = torch.cat([MEANS + 0.3 * rand(2, 3), 2 * rand(1, 3, seed=4)])
    found = log_likelihood(mixture(schedule), x, probes=None, rtol=1e-7, atol=1e-7)
    exact = mixture_log_density(x, MEANS, math.hypot(STD, low))
    # The end of the flow is taken as noise: var/rho_T² of the log density, 2e-4 at the most here.
    torch.testing.assert_close(found.nats, exact, atol=2e-3, rtol=2e-4)
    torch.testing.assert_close(found.bits_per_dimension, -found.nats / (3 * math.log(2)))
    assert bool((found.evaluations > 10).all())


def test_info_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a network of N(0, 0.25 I) in [-1, 1], beside the density of its grey levels."""
    (tmp_path / "net.py").write_text(
        "import invdiff\n"
        "def make(**options):\n"
        "    s = invdiff.schedules.ve()\n"
        "    def net(x, t):\n"
        "        return x * 0.25 / (0.25 + s(t).sigma.view(-1, 1, 1, 1).to(x) ** 2)\n"
        "    known = dict(predicts='x0', schedule=s, data_range=(-1.0, 1.0), channels=1)\n"
        "    return invdiff.Denoiser(net, **known | options)\n"
    )
    levels = torch.tensor([[90, 200, 128], [140, 60, 255]])
    for name, x in {"a.png": levels, "b.png": 255 - levels // 2}.items():
        write_image(tmp_path / name, x[None] / 255)
    files = [str(tmp_path / name) for name in ("a.png", "b.png")]
    command = ["info", f"{tmp_path / 'net.py'}:make", "--likelihood", *files, "--probes", "4"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for row, x in zip(found, (levels, 255 - levels // 2), strict=True):
        z = (2 * (x + 0.5) / 256 - 1).double()  # the middle of each level, which is 2/256 wide
        nats = -(z**2) / 0.5 - math.log(0.5 * math.sqrt(2 * math.pi)) + math.log(2 / 256)
        assert abs(row["bits_per_dimension"] + float(nats.mean()) / math.log(2)) < 0.02
        assert row["evaluations"] > 10
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"a.png  {found[0]['bits_per_dimension']:.3f} bits per dimension, ")


def test_probes_are_unbiased_and_each_image_has_its_own() -> None:
    schedule = schedules.edm()
    prior = correlated(3)
    denoiser = Denoiser(prior.network("x0", schedule), predicts="x0", schedule=schedule, dtype=D)
    x = prior.mean + 0.5 * rand(2, 3)
    exact = log_likelihood(denoiser, x, probes=None)
    many = log_likelihood(denoiser, x, probes=512)
    one = log_likelihood(denoiser, x, probes=1)
    assert float((one.nats - exact.nats).abs().max()) > 0.05, "one probe is an estimate"
    torch.testing.assert_close(many.nats, exact.nats, atol=0.15, rtol=0)
    alone = log_likelihood(denoiser, x[1:], probes=1, image_ids=[1])
    assert float(alone.nats[0]) == float(one.nats[1])


def test_images_and_their_levels() -> None:
    """A density of [-1, 1] is one of [0, 1] times 2^d; of levels, over the width of a level."""
    schedule = schedules.edm()
    denoiser = mixture(schedule, data_range=(-1.0, 1.0))
    plain = mixture(schedule)
    image = torch.tensor([[[[0.5, 0.25, 0.75]]]], dtype=D)
    found = log_likelihood(denoiser, image, probes=None)
    same = log_likelihood(plain, 2 * image.view(1, 3) - 1, probes=None)
    torch.testing.assert_close(found.nats, same.nats + 3 * math.log(2), atol=1e-4, rtol=0)
    levels = log_likelihood(denoiser, image, probes=None, levels=256)
    expected = found.bits_per_dimension + 8
    torch.testing.assert_close(levels.bits_per_dimension, expected, atol=0.05, rtol=0)


def test_what_has_no_density_is_refused() -> None:
    denoiser, x = mixture(schedules.edm()), rand(1, 3)
    with pytest.raises(ValueError, match="probes must be"):
        log_likelihood(denoiser, x, probes=0)
    with pytest.raises(ValueError, match="levels must be"):
        log_likelihood(denoiser, x, levels=256)
    with pytest.raises(ValueError, match="image_ids"):
        log_likelihood(denoiser, x, image_ids=[1, 2])
    coder = Autoencoder(lambda v: v, lambda v: v, channels=3, factor=1)
    with pytest.raises(ValueError, match="latent"):
        log_likelihood(denoiser.read_as(autoencoder=coder), x)


def test_images_without_a_density_are_refused() -> None:
    denoiser = mixture(schedules.linear(), data_range=(-1, 1))
    with pytest.raises(ValueError, match=r"images in \[0, 1\], got values from 10 to 200"):
        log_likelihood(denoiser, torch.tensor([[10.0, 100.0, 200.0]], dtype=D))
    with pytest.raises(ValueError, match="1 values that are not finite"):
        log_likelihood(denoiser, torch.tensor([[0.1, float("nan"), 0.2]], dtype=D))

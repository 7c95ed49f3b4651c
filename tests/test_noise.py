"""The noise of chains: Philox's published answers, Box and Muller's moments, and independence of
batch, block, dtype and global state."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.noise import BLOCK, NoiseSource, philox, seed_of

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
KNOWN = {  # Salmon et al. 2011, Random123, kat_vectors of philox4x32 with 10 rounds
    (0,) * 6: (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    (0xFFFFFFFF,) * 6: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    PI: (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
}


@pytest.mark.parametrize("given", KNOWN)
def test_philox_known_answers(given: tuple[int, ...]) -> None:
    words = [torch.full((2, 3), word) for word in given]
    made = philox(words[:4], words[4:])
    assert [w.unique().tolist() for w in made] == [[word] for word in KNOWN[given]]


def test_normal_moments_and_quantiles() -> None:
    n = 400_000
    z = NoiseSource([7]).randn_like(torch.empty(1, n, dtype=torch.float64))[0]
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        spread = math.sqrt(math.prod(range(1, 2 * power, 2)))  # of z^power
        assert abs(float((z**power).mean()) - moment) < 4 * spread / math.sqrt(n)
    uniform = torch.special.ndtr(z).sort().values
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert float((uniform - steps).abs().max()) < 1.95 / math.sqrt(n)  # Kolmogorov, p = 0.001
    lagged = [float((z[:-k] * z[k:]).mean()) for k in (1, 2, n // 4, n // 2)]
    assert max(map(abs, lagged)) < 4 / math.sqrt(n / 2)


def test_draws_chains_and_images_are_uncorrelated() -> None:
    source = NoiseSource([seed_of("sampling", 0, k, 0) for k in range(4)])
    x = torch.empty(4, 20_000)
    z = torch.cat([source.randn_like(x) for _ in range(3)])
    correlation = torch.corrcoef(z) - torch.eye(12)
    assert float(correlation.abs().max()) < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 63, 100, 12_288, 4 * BLOCK + 5])
def test_a_number_depends_on_its_chain_draw_and_place_alone(n: int) -> None:
    """Bit-equal alone and in any batch, whatever was drawn before and in whichever shape."""
    seeds = [seed_of("any", k) for k in range(5)]
    together = NoiseSource(seeds)
    draws = [together.randn_like(torch.empty(5, n)) for _ in range(4)]
    for k in (0, 4):
        alone = NoiseSource([seeds[k]])
        for i, draw in enumerate(draws):
            if i == 2:  # another shape between
                alone.randn_like(torch.empty(1, 2, 2))
                continue
            assert torch.equal(alone.randn_like(torch.empty(1, n)), draw[k : k + 1])


def test_dtypes_see_the_same_noise_to_rounding() -> None:
    x = torch.empty(2, 3, 8, 8)
    z = NoiseSource([1, 2]).randn_like(x.double())
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.02), (torch.float16, 4e-3)):
        drawn = NoiseSource([1, 2]).randn_like(x.to(dtype))
        assert drawn.dtype == dtype and drawn.shape == x.shape
        torch.testing.assert_close(drawn.double(), z, atol=tolerance, rtol=0)


def test_complex_noise_has_variance_one_in_all() -> None:
    z = NoiseSource([3]).randn_like(torch.empty(1, 50_000, dtype=torch.complex64))
    assert abs(float(z.abs().square().mean()) - 1) < 0.03
    assert abs(float(z.real.square().mean()) - 0.5) < 0.02


def test_the_global_state_is_neither_read_nor_advanced() -> None:
    before = torch.get_rng_state()
    first = NoiseSource([1]).randn_like(torch.empty(1, 9))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    assert torch.equal(first, NoiseSource([1]).randn_like(torch.empty(1, 9)))


def test_another_number_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to 2 images, got a tensor of 3"):
        NoiseSource([1, 2]).randn_like(torch.empty(3, 1))

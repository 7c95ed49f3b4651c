"""Blur whose border is unknown: the image is larger than its measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

import invdiff
from invdiff.images import sample_photo
from invdiff.operators.blur import FourierBlur, SeparableBlur, blur
from invdiff.problem import Measurement


def rand(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


KERNELS = {
    "gaussian": blur("gaussian", sigma=1.0, kernel_size=7, border="valid"),
    "box": blur("box", kernel_size=5, border="valid"),
    "motion": blur("motion", kernel_size=9, seed=1, border="valid"),
    "even": blur(rand(4, 3, seed=2) / 6, border="valid"),
    "one row": blur(rand(1, 6, seed=3) / 3, border="valid"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_it_is_scipys_valid_convolution(name: str) -> None:
    blur, x = KERNELS[name], rand(2, 3, 17, 24)
    kernel = blur.make_kernel().numpy()
    expected = np.stack(
        [[scipy.signal.convolve2d(c, kernel, mode="valid") for c in i] for i in x.numpy()]
    )
    np.testing.assert_allclose(blur(x).numpy(), expected, atol=1e-12)
    bound = blur.bind((3, 17, 24))
    assert bound.measurement_shape == expected.shape[1:]
    assert blur.image_shape(bound.measurement_shape) == (3, 17, 24)


@pytest.mark.parametrize("name", KERNELS)
def test_adjoint_pseudo_inverse_and_prox(name: str) -> None:
    blur, x = KERNELS[name], rand(1, 1, 17, 24)
    y = rand(*blur(x).shape, seed=5)
    assert float((blur(x) * y).sum()) == pytest.approx(
        float((x * blur.adjoint(y)).sum()), rel=1e-10
    )
    assert isinstance(blur, SeparableBlur) == (name in ("gaussian", "box"))
    assert not isinstance(blur, FourierBlur)
    fitted = blur(blur.pinv(blur(x), ridge=1e-9))
    torch.testing.assert_close(fitted, blur(x), atol=1e-4, rtol=0)
    z = blur.prox(x, y, 3.0)
    torch.testing.assert_close(z + 3 * blur.adjoint(blur(z) - y), x, atol=1e-4, rtol=0)


def test_a_photograph_that_goes_on_has_no_frame_of_ringing() -> None:
    """The restored interior, against a circular border that a real photograph does not have."""
    photo = sample_photo(96)[0].double()
    operator = blur("gaussian", sigma=2.0, kernel_size=13, border="valid")
    y = operator(photo)
    inner = photo[..., 6:-6, 6:-6]
    error = {}
    for border in ("valid", "circular"):
        x = blur("gaussian", sigma=2.0, kernel_size=13, border=border).pinv(y, ridge=1e-4)
        x = x[..., 6:-6, 6:-6] if border == "valid" else x
        frame = torch.ones(84, 84, dtype=torch.bool)
        frame[8:-8, 8:-8] = False
        error[border] = float((x - inner)[..., frame].square().mean().sqrt())
    assert error["valid"] < 0.6 * error["circular"]


def test_it_is_saved_and_solved(tmp_path: Path) -> None:
    net = invdiff.Denoiser(
        lambda x, t: 0.3 * x, schedule=invdiff.schedules.linear(), data_range=(-1.0, 1.0)
    )
    for name, operator in KERNELS.items():
        m = Measurement(rand(1, 3, 20, 22).float(), operator, 0.05)
        m.save(tmp_path / "m.safetensors")
        loaded = Measurement.load(tmp_path / "m.safetensors")
        assert loaded.hash == m.hash and loaded.image_shape == m.image_shape
        for method in ("dps", "diffpir"):
            x = invdiff.solve(loaded, net, method, steps=2).x
            assert x.shape[1:] == m.image_shape, name


def test_notes_and_sizes() -> None:
    (note,) = KERNELS["even"].bind((1, 9, 9)).notes
    assert note == "blur: kernel of 4x3 pixels, border valid"
    assert (
        blur("box", kernel_size=5).bind((1, 9, 9)).notes[0].endswith("5x5 pixels, border circular")
    )
    with pytest.raises(ValueError, match="smaller kernel_size"):
        blur("box", kernel_size=11, border="valid").bind((1, 9, 20))

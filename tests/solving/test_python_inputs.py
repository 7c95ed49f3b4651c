"""What people hand over in Python: each is taken, or refused with what to write instead."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import invdiff
from invdiff import Measurement, generate, load_model, make_operator, solve

X = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
INPAINT = make_operator("inpaint")


def photo64() -> invdiff.Denoiser:
    return load_model("photo64")


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: INPAINT.measure(X.numpy()), TypeError, r"torch.from_numpy\(x\)"),
        (lambda: INPAINT(X.numpy()), TypeError, r"torch.from_numpy\(x\)"),
        (lambda: Measurement(X.numpy(), INPAINT, 0.1), TypeError, r"torch.from_numpy\(y\)"),
        (lambda: INPAINT.measure(X[0]), ValueError, r"x\[None\]"),
        (lambda: INPAINT.measure(X.half()), TypeError, r"give x.float\(\)"),
        (lambda: Measurement(X.bfloat16(), INPAINT, 0.1), TypeError, r"give y.float\(\)"),
        (lambda: INPAINT.measure((255 * X).byte()), TypeError, "divide 8-bit values by 255"),
        (
            lambda: solve(INPAINT.measure(X, sigma=25.0), photo64(), "ddnm"),
            ValueError,
            "25/255 = 0.098",
        ),
        (lambda: solve(X, photo64()), TypeError, "must be an invdiff.Measurement"),
        (lambda: generate(photo64(), 3), TypeError, r"e.g. \(16, 3, 32, 32\)"),
        (lambda: photo64()(X, 5), TypeError, r"denoiser.schedule\(500\)"),
        (lambda: photo64()(X.numpy(), photo64().schedule(5)), TypeError, "got ndarray"),
        (
            lambda: solve(INPAINT.measure(X), photo64(), "ddnm", steps=2.5),
            TypeError,
            "a whole number",
        ),
        (
            lambda: solve(Measurement(X / 0, make_operator("denoise"), 0.1), photo64(), "ddnm"),
            ValueError,
            "768 of the 768 values of the measurement are not finite",
        ),
    ],
)
def test_refused(call: Callable[[], object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()


def test_taken() -> None:
    known = np.ones((16, 16))
    known[4:8, 4:8] = 0
    measurement = make_operator("inpaint", mask=known).measure(X, sigma=np.float32(0.1))
    assert float(measurement.y[..., 4:8, 4:8].abs().sum()) == 0
    blurred = make_operator("blur", kernel=np.full((3, 3), 1 / 9)).measure(X)
    assert blurred.y.shape == X.shape
    assert solve(measurement, photo64(), "ddnm", steps=np.int64(2)).nfe == 2
    assert float(invdiff.benchmarks.metrics.psnr(X, X)[0]) == float("inf")

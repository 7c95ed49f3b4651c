"""A network that is read wrongly is told so; one that is read rightly, or of something else than photographs, is left in peace."""

from __future__ import annotations

from typing import Any

import pytest

import invdiff
from invdiff import schedules
from invdiff.selfcheck import self_check


@pytest.mark.parametrize("model", ["photo64", "digits32", "sr3x4"])
def test_the_shipped_networks_are_read_rightly(model: str) -> None:
    assert self_check(invdiff.load_model(model)) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"predicts": "v"}, "with predicts='eps' by"),
        ({"data_range": (0.0, 1.0)}, "data_range=(0.0, 1.0)"),
        ({"schedule": schedules.cosine()}, "is its schedule right"),
        pytest.param({"predicts": "x0"}, "with predicts='eps' by", marks=pytest.mark.slow),
        pytest.param({"predicts": "score"}, "with predicts='eps' by", marks=pytest.mark.slow),
        pytest.param({"data_range": (0.0, 255.0)}, "data_range=(0.0, 255.0)", marks=pytest.mark.slow),
        pytest.param({"schedule": schedules.scaled_linear()}, "is its schedule right", marks=pytest.mark.slow),
    ],
)
def test_common_mistakes_are_found(options: dict[str, Any], says: str) -> None:
    found = self_check(invdiff.load_model("photo64").read_as(**options))
    assert any(says in sentence for sentence in found), found

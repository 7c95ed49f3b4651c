"""Metrics of pyiqa by name."""

from __future__ import annotations

import pytest
import torch

from invdiff.benchmarks.scoring import identity, metric_of, metrics_of

try:
    import pyiqa
except ImportError:
    HERE = False
else:
    HERE = True
needed = pytest.mark.skipif(not HERE, reason="needs pyiqa, whose other packages are many")


@needed
def test_a_metric_is_what_pyiqa_computes() -> None:
    x, y = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    expected = pyiqa.create_metric("fsim", device="cpu")(x, y).view(-1)
    assert torch.equal(metric_of("pyiqa:fsim")(x, y), expected)
    assert metrics_of(x, y[0], ["pyiqa:fsim"])["pyiqa:fsim"] is not None


@needed
def test_the_record_has_direction_version_and_weights() -> None:
    found = identity("pyiqa:fsim")
    assert found["better"] == "higher" and found["title"] == "FSIM"
    assert found["backend"].startswith("pyiqa ") and found["network"] == "fsim"
    assert len(found["weights"]) == 64
    assert identity("pyiqa:gmsd")["better"] == "lower"


@needed
def test_weights_are_not_downloaded(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("pyiqa.utils.download_util.DEFAULT_CACHE_DIR", str(tmp_path), raising=False)
    for name in ("pyiqa:brisque", "pyiqa:dists"):
        with pytest.raises(ValueError, match="are not downloaded by invdiff; get .*put it to"):
            metric_of(name)


@needed
def test_an_unknown_metric_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="pyiqa has no metric 'nique'; it has .*niqe"):
        metric_of("pyiqa:nique")


@pytest.mark.skipif(HERE, reason="pyiqa is here")
def test_the_extra_is_named() -> None:
    with pytest.raises(ValueError, match=r"pip install 'invdiff\[iqa\]'"):
        metric_of("pyiqa:fsim")


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown family of metrics 'piq'. Did you mean 'pyiqa'"):
        metric_of("piq:fsim")

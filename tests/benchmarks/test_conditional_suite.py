"""``invdiff bench --suite conditional``: the measures against other computations, and the suite on
made-up digits."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from invdiff.benchmarks import conditional
from invdiff.commands.main import main

SMALL = [
    "samples=20",
    "steps=3",
    "batch_size=20",
    "methods.cfg.w=[0,2]",
    "methods.classifier.s=[1]",
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten patterns with noise, which a few steps of training tell apart."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, size=(10, 28, 28))
    arrays = {}
    for part, n in (("train", 200), ("test", 100)):
        y = np.arange(n) % 10
        arrays |= {
            f"x_{part}": np.clip(
                patterns[y] + rng.integers(-20, 20, size=(n, 28, 28)), 0, 255
            ).astype(np.uint8),
            f"y_{part}": y,
        }
    np.savez(tmp_path / "digits.npz", **arrays)
    monkeypatch.setattr(
        conditional, "train_judge", partial(conditional.train_judge, steps=60, batch_size=32)
    )
    return tmp_path / "digits.npz"


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]


def bench(data: Path, out: Path, *more: str) -> int:
    return main(
        [
            "bench",
            "--suite",
            "conditional",
            f"data={data}",
            *SMALL,
            "--output",
            str(out),
            "--quiet",
            *more,
        ]
    )


def test_the_interval_is_wilsons() -> None:
    for hits, n in ((0, 50), (47, 50), (300, 500)):
        expected = binomtest(hits, n).proportion_ci(method="wilson")
        assert conditional.interval(hits / n, n) == pytest.approx(
            (expected.low, expected.high), abs=1e-4
        )


def test_variety_by_hand() -> None:
    """One class of two opposite images, the others of equal ones; contrast and brightness do not
    count."""
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 10
    x[10:] = 0.3 * x[:10] + 0.5
    x[10] = 1 - x[0]
    assert conditional.variety(x, labels) == pytest.approx(2 / 10, abs=1e-3)


@pytest.mark.slow
def test_the_suite_resumes_draws_and_reports(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert bench(data, out) == 0
    found = records(out)
    assert sorted((r["cell"]["label"], *r["cell"]["values"].items()) for r in found) == [
        ("cfg", ("w", 0)),
        ("cfg", ("w", 2)),
        ("classifier", ("s", 1)),
    ]
    assert data.with_suffix(".judge.safetensors").is_file() and all(
        r["cell"]["judge"]["accuracy"] >= 0.99 for r in found
    )
    nfe = {
        tuple(r["cell"]["values"]): r["result"]["nfe"]
        for r in found
        if r["cell"]["values"] != {"w": 0}
    }
    assert nfe == {("w",): 6, ("s",): 3}
    for r in found:
        low, high = r["result"]["interval"]
        assert low <= r["result"]["as_asked"] <= high and r["result"]["variety"] > 0
        assert (out / r["result"]["files"]["samples"]).is_file()
    stamps = {p: p.stat().st_mtime_ns for p in out.glob("*.json")}
    assert (
        bench(data, out, "methods.cfg.w=[0,2,1]") == 0
    )  # what is there is kept, what is asked besides is made
    assert len(records(out)) == 4 and all(
        p.stat().st_mtime_ns == stamp for p, stamp in stamps.items()
    )
    text = (out / "results.md").read_text()
    assert "| cfg, w = 1 |" in text and "| classifier, s = 1 |" in text and " % (" in text
    # Every setting again, from its record alone.
    for record in out.glob("*.json"):
        assert main(["bench", "--reproduce", str(record), "--input", str(data), "--quiet"]) == 0, (
            capsys.readouterr().err
        )
    data.with_suffix(".judge.safetensors").write_bytes(b"another")
    assert main(["bench", "--reproduce", str(record), "--input", str(data), "--quiet"]) == 2
    assert "not the file of this cell" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["samples=25"], "samples must be a multiple of 10, at least 20, got 25"),
        (["data=nowhere.npz"], "nowhere.npz is no file"),
        (["methods.cfg.w=a"], "w of method 'cfg' is a number"),
        (["--method", "dps"], "has no parameter 'dps'. It has: cfg, classifier"),
        (["--sigma", "0.1"], "has no sigma"),
    ],
)
def test_wrong_requests(
    arguments: list[str], says: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(data, tmp_path / "out", *arguments) == 2
    assert says in capsys.readouterr().err
    assert not data.with_suffix(".judge.safetensors").exists()  # nothing is trained for it


def test_a_bad_judge_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    save_file(conditional.judge_network().state_dict(), tmp_path / "bad.safetensors")
    assert bench(data, tmp_path / "out", f"classifier={tmp_path}/bad.safetensors") == 2
    assert "less than 99 %; delete the file to train it again" in capsys.readouterr().err

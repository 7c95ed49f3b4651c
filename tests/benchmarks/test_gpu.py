"""The command for GPUs, tried on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from invdiff import load_model
from invdiff.benchmarks import gpu
from invdiff.plugins.registry import list_plugins


def test_every_method_and_operator_that_fits_is_held_against_the_cpu() -> None:
    given = gpu.measurements()
    found = gpu.pairs(load_model("photo64"), given)
    operators = {operator for _, operator in found}
    assert operators == set(given) and len(given) > 12
    methods = {method for method, _ in found}
    assert {"dps", "ddrm", "diffpir", "daps", "tds", "mmps"} <= methods
    assert len(found) <= len(operators) + len(list_plugins("guidance"))


@pytest.mark.slow
def test_the_command_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "pairs", lambda *_: [("ddrm", "sr"), ("dps", "inpaint")])
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    command = ["--device", "cpu", "--only", "agreement", "waits", "--output", str(tmp_path)]
    assert gpu.main(command) == 0
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    assert "| ddrm, sr | 0.0e+00 | True |" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "gpu.json").read_text())["agreement"]) == {
        "ddrm, sr",
        "dps, inpaint",
    }
    real = gpu.solve
    calls: list[int] = []

    def wrong(*arguments: object, **options: object) -> object:
        calls.append(1)
        result = real(*arguments, **options)  # type: ignore[arg-type]
        if len(calls) == 2:
            result.samples.add_(0.1)
        return result

    monkeypatch.setattr(gpu, "solve", wrong)
    assert gpu.main(["--device", "cpu", "--only", "agreement"]) == 1
    assert "1 differ or wait: ddrm, sr" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "device 'cuda' cannot be used here" in capsys.readouterr().err

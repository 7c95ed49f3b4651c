"""The commands of docs/science.md, each a process of its own, in fewer steps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from invdiff.problem import Measurement
from invdiff.problem.physics import PhysicsOperator

PAGE = Path(__file__).parents[2] / "docs" / "science.md"


@pytest.mark.slow
def test_a_scanner_end_to_end(tmp_path: Path) -> None:
    section = (
        PAGE.read_text(encoding="utf-8").split("## A scanner, end to end")[1].split("\n## ")[0]
    )
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert sum(block.count("--operator deepinv:") for block in blocks) == 2
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    out = ""
    for block in blocks:
        script = "set -e\n" + block.replace("--steps 20", "--steps 2")
        done = subprocess.run(
            script, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        out += done.stdout
    measured = Measurement.load(tmp_path / "mri" / "sample_001" / "measurement.safetensors")
    described = measured.describe()
    assert described["operator"] == "deepinv:MRI" and described["versions"]["deepinv"]
    assert isinstance(measured.operator, PhysicsOperator)
    assert measured.y.shape == (1, 2, 32, 32)
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert again["measurement"]["hash"] == measured.hash
    assert again["config"]["operator"]["name"] == "deepinv:MRI"
    # 2 operators, 2 methods and a baseline, 4 images.
    assert len(list((tmp_path / "scans").glob("*.json"))) == 24
    for shown_once in ("## mri (", "## ct (", "| pigdm", "| diffpir", "| pinv"):
        assert shown_once in out

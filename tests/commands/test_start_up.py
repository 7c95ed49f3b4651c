"""What costs time before the first step is imported by what needs it, and by nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "diffusers",
    "transformers",
    "deepinv",
    "kornia",
    "torchvision",
    "torch._dynamo",
    "sympy",
    "scipy.stats",
    "skimage.io",
    "matplotlib",
    "optuna",
)
SCRIPT = """
import sys
from invdiff.commands.main import main
assert main(sys.argv[1:]) == 0
print(len(sys.modules), *sorted(sys.modules))
"""


@pytest.mark.parametrize(
    "command",
    [
        ["solve", "--steps", "1", "--output", "out"],
        ["solve", "--operator", "blur", "--method", "dps", "--steps", "1", "--output", "out"],
        ["generate", "--steps", "1", "--num-samples", "1", "--output", "out"],
        ["info", "photo64"],
    ],
    ids=lambda command: " ".join(command[:3]),
)
def test_shipped_networks_and_operators_need_nothing_heavy(
    command: list[str], tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    count, *modules = run.stdout.splitlines()[-1].split()
    assert not [name for name in HEAVY if name in modules]
    # 1,760 in solve, of which torch itself has 1,200.
    assert int(count) < 2000


def test_the_list_of_plug_ins_needs_no_torch(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, "list", "operators"], capture_output=True, text=True
    )
    assert run.returncode == 0 and "torch" not in run.stdout.splitlines()[-1].split()

"""What costs time before the first step is imported by what needs it, and by nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
for command in sys.argv[1:]:
    assert main(command.split()) == 0
print(len(sys.modules), *sorted(sys.modules))
"""


def modules_after(folder: Path, *commands: str) -> list[str]:
    """Those that a process has which runs these commands."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *commands],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    count, *modules = run.stdout.splitlines()[-1].split()
    assert int(count) == len(modules)
    return modules


def test_shipped_networks_and_operators_need_nothing_heavy(tmp_path: Path) -> None:
    modules = modules_after(
        tmp_path,
        "solve --steps 1 --output inpainted",
        "solve --operator blur --method dps --steps 1 --output deblurred",
        "generate --steps 1 --num-samples 1 --output samples",
        "info photo64",
    )
    assert not [name for name in HEAVY if name in modules]
    assert len(modules) < 2000  # 1,800, of which torch itself has 1,200


def test_the_list_of_plug_ins_needs_no_torch(tmp_path: Path) -> None:
    assert "torch" not in modules_after(tmp_path, "list operators")

"""The environment that figures were measured in."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from invdiff.benchmarks.schema import Environment


def environment() -> Environment:
    """Versions and machine, of this process."""
    return {
        "invdiff": version("invdiff"),
        "torch": version("torch"),
        "deepinv": version("deepinv"),
        "python": platform.python_version(),
        "code": code(),
        "git": git(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }


@cache
def processor() -> str:
    """The processor's model where the system tells, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


@cache
def git() -> str | None:
    """The commit of the checkout that this code runs from, with ``+dirty`` if it was edited since;
    None where it was installed."""
    here = Path(__file__).resolve().parent

    def ask(*command: str) -> str:
        return subprocess.run(
            ["git", *command], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # An environment within some other checkout is not ours.
        ask("ls-files", "--error-unmatch", Path(__file__).name)
        return ask("rev-parse", "HEAD") + (
            "+dirty" if ask("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def code() -> str:
    """A digest of the package's modules: records that were made by other code are reported."""
    import invdiff.benchmarks
    import invdiff.guidance
    import invdiff.operators

    content = hashlib.sha256()
    for package in (invdiff, invdiff.benchmarks, invdiff.guidance, invdiff.operators):
        for folder in package.__path__:
            for file in sorted(Path(folder).rglob("*.py")):
                content.update(file.read_bytes())
    return content.hexdigest()[:16]

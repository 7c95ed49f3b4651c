"""Side effects of importing a module, tried in a process of its own, in which the framework is
loaded already."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import entry_points

from invdiff.testing.report import Skip, expect

TIMEOUT = 300
SCRIPT = """
import contextlib, importlib, importlib.util, io, json, os, random, sys, warnings
sys.path[:0] = [p for p in json.loads(sys.argv[2]) if p not in sys.path]
import numpy, torch
import invdiff.solving

def state():
    return {
        "torch's default dtype": str(torch.get_default_dtype()),
        "torch's default device": str(torch.get_default_device()),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's threads": torch.get_num_threads(),
        "torch's matmul precision": torch.get_float32_matmul_precision(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch's global generator": torch.get_rng_state().tolist(),
        "numpy's global generator": str(numpy.random.get_state()),
        "random's global generator": str(random.getstate()),
        "the warnings filters": str(warnings.filters),
        "the environment": dict(os.environ),
        "the working directory": os.getcwd(),
    }

def effects(name):
    try:
        if importlib.util.find_spec(name) is None:
            return None
    except (ImportError, ValueError):
        return None
    before, filters, said, known = state(), warnings.filters[:], io.StringIO(), set(sys.modules)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        importlib.import_module(name)
    after = state()
    if after["the warnings filters"] != before["the warnings filters"]:
        # Other packages that it needs change them, too (torchvision does): again without those.
        warnings.filters[:] = filters
        for module in set(sys.modules) - known:
            if module.partition(".")[0] == name.partition(".")[0]:
                del sys.modules[module]
        importlib.import_module(name)
        after["the warnings filters"] = str(warnings.filters)
    printed = [f"prints {said.getvalue().strip()[:80]!r}"] if said.getvalue() else []
    return printed + [f"changes {what}" for what in before if before[what] != after[what]]

print(json.dumps({name: effects(name) for name in json.loads(sys.argv[1])}))
"""

_seen: dict[str, list[str] | None] = {}


def examine(modules: Sequence[str]) -> None:
    """Imports modules in one new process and remembers what each did; several at once cost little
    more than one."""
    missing = sorted(set(modules) - _seen.keys())
    if not missing:
        return
    command = [sys.executable, "-c", SCRIPT, json.dumps(missing), json.dumps(sys.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    expect(
        done.returncode == 0,
        f"importing {', '.join(missing)} fails: "
        f"{(done.stderr.strip().splitlines() or ['no message'])[-1]}",
    )
    _seen.update(json.loads(done.stdout.splitlines()[-1]))


def _siblings(module: str) -> list[str]:
    """The modules of all plug-ins of a package."""
    package = module.partition(".")[0]
    groups = [group for group in entry_points().groups if group.startswith("invdiff.")]
    modules = {point.module for group in groups for point in entry_points(group=group)}
    return [name for name in modules if name.partition(".")[0] == package]


def importing(module: str) -> str:
    """Importing it prints nothing and changes no setting, generator, filter or variable of the
    process."""
    if module not in _seen:
        with suppress(AssertionError):  # one of them fails; the check of each says which
            examine(_siblings(module))
    examine([module])
    found = _seen[module]
    if found is None:
        raise Skip(f"{module} is not importable by its name")
    expect(not found, f"importing {module} {' and '.join(found)}")
    return f"{module} changes nothing"

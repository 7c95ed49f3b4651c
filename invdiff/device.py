"""Devices: choosing one, its free and peak memory, and what running out of it looks like."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch


def peak_memory_mb(device: torch.device | None) -> float | None:
    """Peak since :func:`reset_peak_memory`, in MiB: allocated on the GPU, else resident in this
    process; None where the system does not tell."""
    if device is not None and device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    with contextlib.suppress(
        OSError
    ):  # what Linux lets us reset; getrusage's figure is that of the whole life of the process
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(
            next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10, 1
        )
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def reset_peak_memory(device: torch.device | None) -> bool:
    """Lets the peak begin anew; says whether it does, as on CUDA and, for the process, on Linux."""
    try:
        if device is not None and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def free_memory_mb(device: torch.device) -> float | None:
    """What may still be allocated, in MiB: on the GPU what is free there or held for reuse, else
    what the system can give, less where a container (control group) allows less; None where
    neither tells."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + held) / 2**20
    if device.type != "cpu":
        return None
    try:
        system = _numbers(Path("/proc/meminfo"))["MemAvailable:"] / 2**10
    except (OSError, KeyError):
        return None
    with contextlib.suppress(OSError, KeyError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        used = int((group / "memory.current").read_text())
        files = _numbers(group / "memory.stat")["inactive_file"]  # given back when asked for
        return min(system, (limit - used + files) / 2**20)
    return system


def _numbers(path: Path) -> dict[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows}


def out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception of its own; the CPU's allocator raises a RuntimeError."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "can't allocate memory" in str(error)
        or "out of memory" in str(error)
    )


def choose_device(name: str) -> torch.device:
    """The device of a --device flag; one that cannot be used is refused."""
    if name == "auto":
        return torch.device(
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        if name == "meta":
            raise RuntimeError("it holds no data")
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return device

"""Devices: choosing one, its peak memory, and what running out of it looks like."""

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

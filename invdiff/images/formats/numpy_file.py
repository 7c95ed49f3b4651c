"""NumPy's .npy and .npz (one array of it: ``FILE.npz:name``). Axes are guessed."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.images.formats.volume import Volume, check_count, chosen, guessed_axes, native


def read(path: Path, part: str | None) -> Volume:
    opened = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(opened, np.ndarray):
        check_count(path, opened.shape)
        name, array = None, np.array(opened)
    else:
        with opened as archive:
            name = chosen(path, sorted(archive.files), part, "array")
            size = archive.zip.getinfo(f"{name}.npy").file_size
            check_count(path, (size // 16,))
            array = archive[name]
    axes, notes = guessed_axes(array.shape)
    return Volume(native(array), axes, metadata=name, format=sys.modules[__name__], notes=notes)


def encode(volume: Volume, path: Path) -> bytes:
    buffer = io.BytesIO()
    if path.suffix.lower() == ".npy":
        np.save(buffer, volume.array)
    else:
        named: dict[str, Any] = {volume.metadata or "array": volume.array}
        np.savez_compressed(buffer, **named)
    return buffer.getvalue()

"""Files with bytes changed, cut off or added are read or refused: nothing else is raised."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from invdiff.images import ImageError, read_image, read_kernel, read_mask

LEVELS = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)


def picture(format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(LEVELS).save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def tiff(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, photometric="rgb")
    return buffer.getvalue()


def stored(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


FILES = {
    ".png": picture("PNG"),
    ".jpg": picture("JPEG", quality=80),
    ".webp": picture("WEBP"),
    ".bmp": picture("BMP"),
    "8.tif": tiff(LEVELS),
    "16.tif": tiff(LEVELS.astype(np.uint16) * 257),
    ".npy": stored(lambda buffer: np.save(buffer, LEVELS[..., 0])),
    ".pt": stored(lambda buffer: torch.save(torch.from_numpy(LEVELS[..., 0]), buffer)),
}


def damaged(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    what = chance.random()
    if what < 0.2:
        return bytes(changed[: chance.randrange(len(changed))])
    if what < 0.3:
        return bytes(changed) + chance.randbytes(20)
    for _ in range(chance.choice([1, 2, 5, 20])):
        place = chance.randrange(min(len(changed), chance.choice([64, 300, len(changed)])))
        changed[place] = chance.choice([0, 255, 1, 128, chance.randrange(256)])
    return bytes(changed)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    chance = random.Random(name)
    path = tmp_path / f"x{name}"
    readers: list[Callable[[], object]] = [
        lambda: read_mask(path, (24, 20)),
        lambda: read_kernel(path),
    ]
    if name not in (".npy", ".pt"):
        readers.append(lambda: read_image(path))
    refused = 0
    for _ in range(60):
        path.write_bytes(damaged(FILES[name], chance))
        for read in readers:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read()
            except ImageError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 600
    assert refused > 20

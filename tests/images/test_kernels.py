"""Kernel files, and arrays in files."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from invdiff.images import read_image, read_kernel
from invdiff.images.arrays import read_array
from invdiff.operators.blur import blur

KERNEL = np.outer([1.0, 2, 3], [1.0, 4, 2])


def test_pictures_are_divided_by_their_sum(tmp_path: Path) -> None:
    expected = torch.from_numpy(KERNEL / KERNEL.sum())
    levels = (KERNEL * 20).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "8.png")
    Image.fromarray(levels.astype(np.uint16) * 200).save(tmp_path / "16.png")
    Image.fromarray(np.dstack([levels] * 3)).save(tmp_path / "colour.png")
    Image.fromarray(np.dstack([levels, np.full_like(levels, 255)])).save(tmp_path / "opaque.png")
    tifffile.imwrite(tmp_path / "int32.tif", levels.astype(np.int32))
    tifffile.imwrite(tmp_path / "float.tif", KERNEL)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(levels[::-1, ::-1].copy()).save(tmp_path / "turned.png", exif=exif)
    for path in tmp_path.iterdir():
        torch.testing.assert_close(read_kernel(path), expected, atol=1e-7, rtol=0)


def test_arrays_are_as_they_are_or_divided_aloud(tmp_path: Path) -> None:
    kernel = KERNEL / KERNEL.sum()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k, same in enumerate((kernel, kernel[..., None], kernel[None, None], 1.02 * kernel)):
            np.save(tmp_path / f"{k}.npy", same)
            read = read_kernel(tmp_path / f"{k}.npy").numpy()
            np.testing.assert_array_equal(read, same.reshape(3, 3))
    torch.save(torch.from_numpy(KERNEL * 17).byte(), tmp_path / "k.PT")
    with pytest.warns(UserWarning, match="sum 714 and is divided by it"):
        divided = blur(tmp_path / "k.PT").make_kernel()
    torch.testing.assert_close(divided, torch.from_numpy(kernel))


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda p: np.save(p, KERNEL.astype(complex)), "real"),
        (lambda p: np.save(p, KERNEL * np.nan), "finite"),
        (lambda p: np.save(p, 0 * KERNEL), "not all zeros"),
        (lambda p: np.save(p, KERNEL - KERNEL.mean()), "sum .*no blur"),
        (lambda p: np.save(p, np.ones((2, 3, 4))), r"two dimensions .*\(2, 3, 4\)"),
        (lambda p: np.save(p, np.array(["a"])), "cannot be read as a kernel"),
        (lambda p: p.write_bytes(b""), "cannot be read as a kernel"),
    ],
)
def test_what_is_no_kernel_is_refused(
    tmp_path: Path, write: Callable[[Path], object], says: str
) -> None:
    write(tmp_path / "k.npy")
    with pytest.raises(ValueError, match=says) as caught:
        blur(tmp_path / "k.npy").bind((3, 16, 16))
    assert "k.npy" in str(caught.value) and "\n" not in str(caught.value)


def test_transparent_kernels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 3, 4), 7, np.uint8)).save(tmp_path / "k.png")
    with pytest.raises(ValueError, match="transparent pixels"):
        read_kernel(tmp_path / "k.png")


def test_sizes_are_checked_before_they_are_read(tmp_path: Path) -> None:
    """A header that promises more than the file holds, and an archive that would unpack to more
    than is allowed."""
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"shape": (10**6, 10**6), "fortran_order": False, "descr": "<f8"}
        )
    with pytest.raises(ValueError, match="a.npy"):
        read_array(tmp_path / "a.npy", "a mask")
    np.save(tmp_path / "b.npy", np.zeros(101))
    with pytest.raises(ValueError, match="declares 101 numbers, more than the 100"):
        read_array(tmp_path / "b.npy", "a mask", max_values=100)
    with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**6))
    with pytest.raises(ValueError, match="declares 125,000 numbers"):
        read_array(tmp_path / "c.pt", "a mask", max_values=10**5)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path(str(tmp_path / "ran")).touch, ()  # type: ignore[return-value]

    torch.save(Bad(), tmp_path / "k.pt")
    with pytest.raises(ValueError, match="never loaded"):
        read_kernel(tmp_path / "k.pt")
    assert not (tmp_path / "ran").exists()


# Compressed TIFF files ----------------------------------------------------------------------------


@pytest.fixture
def no_imagecodecs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tifffile finds it where the package is not installed."""
    from tifffile import TiffPage

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(TiffPage, "asarray", refuse)


@pytest.mark.usefixtures("no_imagecodecs")
def test_lzw_of_16_bits(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (6, 7)).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "grey.tif", compression="tiff_lzw")
    expected = torch.from_numpy((levels / 65535).astype(np.float32))
    torch.testing.assert_close(read_image(tmp_path / "grey.tif")[0, 0], expected, atol=1e-7, rtol=0)
    tifffile.imwrite(tmp_path / "colour.tif", np.dstack([levels] * 3), photometric="rgb")
    with pytest.raises(ValueError, match="needs the package imagecodecs: pip install imagecodecs"):
        read_image(tmp_path / "colour.tif")


def test_lzw_with_its_decoder(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    levels = np.random.default_rng(0).integers(0, 65536, (6, 7, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", levels, photometric="rgb", compression="lzw", predictor=2)
    expected = torch.from_numpy((levels / 65535).astype(np.float32)).movedim(-1, 0)
    torch.testing.assert_close(read_image(tmp_path / "x.tif")[0], expected, atol=1e-7, rtol=0)

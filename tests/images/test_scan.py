"""Slices of a file of science are images of their own, and come back as a file of its kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.benchmarks.dataset import Dataset
from invdiff.images import ImageError, phase, read_image, viewable, window_of, write_image
from invdiff.images.formats import read_volume, write_volume
from invdiff.images.formats.scan import Scan, find_files, is_scan

RANDOM = np.random.default_rng(0)
STACK = RANDOM.integers(100, 3000, (3, 12, 10)).astype(np.uint16)


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "cells.tif"
    tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZYX", "unit": "um"})
    return path


def test_slices_are_images_of_the_range(stack: Path) -> None:
    scan = Scan(stack, (0, 4000))
    assert scan.names == ["cells_000", "cells_001", "cells_002"] and len(scan) == 3
    expected = torch.from_numpy(STACK[1] / 4000.0).float()
    torch.testing.assert_close(scan.image(1, 3), expected.expand(1, 3, 12, 10))
    torch.testing.assert_close(scan.image(1), expected.expand(1, 1, 12, 10))


def test_restored_slices_are_a_file_like_the_one_read(stack: Path, tmp_path: Path) -> None:
    scan = Scan(stack, (100, 4000))
    written = tmp_path / "again.tif"
    write_volume(written, scan.restored([scan.image(k, 3)[0] for k in range(3)]))
    again = read_volume(written)
    assert again.array.dtype == np.uint16 and again.axes == "ZYX"
    np.testing.assert_array_equal(again.array, STACK)


def test_slices_of_another_size_are_written_without_the_metadata(stack: Path) -> None:
    scan = Scan(stack, (0, 4000))
    larger = [torch.full((3, 24, 20), 0.5)] * 3
    with pytest.raises(ImageError, match="would not describe"):
        scan.restored(larger)
    plain = scan.plain(larger)
    assert plain.array.shape == (3, 1, 24, 20) and float(plain.array.max()) == 2000


def test_complex_slices_are_two_channels(tmp_path: Path) -> None:
    kspace = (RANDOM.standard_normal((2, 8, 8)) + 1j).astype(np.complex64)
    np.savez(tmp_path / "k.npz", k=kspace)
    scan = Scan(f"{tmp_path / 'k.npz'}:k", (0, 2))
    x = scan.image(0, 2)
    torch.testing.assert_close(x[0, 0] * 2, torch.from_numpy(kspace[0].real))
    assert bool((x[0, 1] == 0.5).all())
    back = scan.restored([scan.image(k)[0] for k in range(2)])
    np.testing.assert_allclose(back.array, kspace, rtol=1e-6)
    with pytest.raises(ImageError, match="1 complex channels, the network 3"):
        scan.image(0, 3)


def test_a_tiff_of_one_page_is_a_picture_unless_its_range_is_given(tmp_path: Path) -> None:
    path = tmp_path / "one.tif"
    write_image(path, torch.rand(3, 8, 8))
    assert not is_scan(path) and is_scan(path, (0, 255)) and is_scan("x.fits.gz")


def test_folders_with_pictures_give_those_alone(stack: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RANDOM.standard_normal((8, 8)))
    assert find_files(tmp_path) == [stack]
    stack.unlink()
    assert find_files(tmp_path) == [tmp_path / "x.npy"]


def test_a_benchmark_takes_slices(stack: Path) -> None:
    dataset = Dataset(str(stack), channels=1, data_range=(0, 4000), limit=2)
    assert [image["name"] for image in dataset.identities()] == ["cells_000", "cells_001"]
    torch.testing.assert_close(dataset["cells_001"], Scan(stack, (0, 4000)).image(1))


def test_pictures_of_data(tmp_path: Path) -> None:
    """Two channels are real and imaginary part; a window of the middle values is black to white."""
    x = torch.stack([torch.full((8, 8), 3.0), torch.full((8, 8), -4.0)])
    torch.testing.assert_close(viewable(x, (0, 10)), torch.full((1, 8, 8), 0.5))
    assert torch.allclose(
        phase(torch.tensor([[[0.0, -1.0]], [[0.0, 0.0]]])), torch.tensor([0.5, 1])
    )
    ramp = torch.linspace(-1000, 3000, 1000).view(1, 10, 100)
    low, high = window_of(ramp)
    assert low == pytest.approx(-980, abs=1) and high == pytest.approx(2980, abs=1)
    picture = viewable(ramp, (low, high))
    assert float(picture.min()) == 0 and float(picture.max()) == 1
    write_image(tmp_path / "x.png", viewable(torch.rand(5, 8, 8)))
    assert read_image(tmp_path / "x.png").shape == (1, 1, 8, 8)


def test_a_range_that_does_not_suit_the_values_is_said(stack: Path) -> None:
    """Twelve bits in a file of sixteen, and a range far below the values."""
    assert "--range" in Scan(stack).notes[-1]
    assert "--range" in Scan(stack, (0, 1)).notes[-1]
    assert len(Scan(stack, (0, 4000)).notes) == 1

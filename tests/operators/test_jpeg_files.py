"""JPEG files as measurements: their own tables and subsampling are the operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from invdiff import Measurement
from invdiff.images import read_image, write_image
from invdiff.operators.jpeg import JPEG, quality_of, read_tables, standard_tables

PHOTO = skimage.data.astronaut()[60:188, 90:186]  # sides that are multiples of 16
SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def saved(path: Path, photo: np.ndarray = PHOTO, **options: object) -> Path:
    Image.fromarray(photo).save(path, "JPEG", **options)  # type: ignore[arg-type]
    return path


def distance(path: Path, operator: JPEG, photo: np.ndarray = PHOTO) -> float:
    """PSNR between the file and what the operator makes of the photograph, both upright."""
    with Image.open(path) as image:
        orientation = image.getexif().get(0x0112, 1)
    truth = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].double() / 255
    from invdiff.images.read import _upright

    y = operator(_upright(truth, orientation))
    return float(-10 * (y - read_image(path)).square().mean().log10())


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("quality", [3, 10, 49, 50, 75, 100])
def test_quality_and_subsampling_are_read(tmp_path: Path, quality: int, subsampling: str) -> None:
    path = saved(tmp_path / "x.jpg", quality=quality, subsampling=SUBSAMPLINGS[subsampling])
    operator = JPEG().of_file(path)
    assert (operator.quality, operator.subsampling) == (quality, subsampling)
    assert operator.tables is None
    assert operator.notes == (f"jpeg: quality {quality}, chroma {subsampling}",)
    assert distance(path, operator) > 39


def test_what_is_given_is_kept(tmp_path: Path) -> None:
    """A file that was saved twice: the user knows better."""
    path = saved(tmp_path / "x.jpg", quality=95, subsampling=0)
    assert JPEG(quality=7).of_file(path).quality == 7
    assert JPEG(subsampling="4:2:0").of_file(path).subsampling == "4:2:0"


def test_tables_of_their_own(tmp_path: Path) -> None:
    """Tables of no standard quality, of a camera say, by the file that has them."""
    tables = [[min(255, 3 + 2 * i) for i in range(64)], [9] * 64]
    path = saved(tmp_path / "x.jpg", qtables=tables, subsampling=0)
    operator = JPEG().of_file(path)
    assert operator.quality is None and operator.tables == tuple(map(tuple, tables))
    assert operator.notes == ("jpeg: tables of its own, chroma 4:4:4",)
    assert distance(path, operator) > 39
    assert JPEG(tables=path).tables == operator.tables and JPEG(tables=path).subsampling == "4:4:4"
    measured = Measurement(read_image(path), operator, 0.02)
    measured.save(tmp_path / "m.safetensors")
    path.unlink()
    loaded = Measurement.load(tmp_path / "m.safetensors")
    assert loaded.hash == measured.hash
    torch.testing.assert_close(loaded.operator(measured.y), operator(measured.y))


def test_grey(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.jpg", PHOTO[..., 1].copy(), quality=30)
    operator = JPEG().of_file(path)
    assert (operator.quality, operator.subsampling) == (30, None)
    y = operator(torch.from_numpy(PHOTO[..., 1].copy())[None, None].double() / 255)
    assert float((y - read_image(path)).abs().mean()) < 1 / 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_that_are_stored_turned(tmp_path: Path, orientation: int) -> None:
    """Tables and blocks turn with the picture; an uneven table and 4:2:2 tell the axes apart."""
    tables = [[2 + 3 * (i % 8) + (i // 8) for i in range(64)], [4 + 5 * (i % 8) for i in range(64)]]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "x.jpg", qtables=tables, subsampling=1, exif=exif)
    right = JPEG().of_file(path)
    assert right.subsampling == ("4:4:0" if orientation >= 5 else "4:2:2")
    assert distance(path, right) > 42
    if orientation >= 5:
        wrong = JPEG(tables=tables, subsampling="4:2:2")
        assert distance(path, wrong) < distance(path, right) - 3
    odd = saved(tmp_path / "odd.jpg", PHOTO[:121, :91].copy(), quality=30, exif=exif)
    if orientation in (1, 5):
        assert distance(odd, JPEG().of_file(odd), PHOTO[:121, :91]) > 39
    else:
        with pytest.raises(ValueError, match=f"EXIF orientation {orientation}.*operator.quality=Q"):
            JPEG().of_file(odd)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "missing.jpg"])
def test_what_is_no_jpeg_file_needs_a_quality(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "x.png", torch.zeros(3, 8, 8))
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff" + b"0" * 50)
    with pytest.raises(ValueError, match=f"no JPEG file.*{name}|{name} is no JPEG file"):
        JPEG().of_file(tmp_path / name)


def test_other_codings_are_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16)).save(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="does not describe"):
        read_tables(tmp_path / "x.jpg")
    for tables, says in ([], "one or two"), ([[1] * 63], "64"), ([[0] * 64], "from 1"):
        with pytest.raises(ValueError, match=says):
            JPEG(tables=tables)
    with pytest.raises(ValueError, match="the same thing"):
        JPEG(quality=10, tables=[[1] * 64])


def test_every_quality_is_known_by_its_tables() -> None:
    for q in range(1, 101):
        tables = standard_tables(q)
        assert standard_tables(quality_of(tables) or 0) == tables
    assert quality_of(((1,) * 63 + (2,),)) is None


def test_solve_reads_the_quality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from invdiff.__main__ import main

    path = saved(tmp_path / "x.jpg", PHOTO[:32, :32].copy(), quality=23, subsampling=0)
    given = ["--measurement", str(path), "--operator", "jpeg", "--method", "dps", "--steps", "2"]
    assert main(["solve", *given, "--output", str(tmp_path / "out")]) == 0
    assert "jpeg: quality 23, chroma 4:4:4" in capsys.readouterr().err
    saved_operator = Measurement.load(tmp_path / "out" / "measurement.safetensors").operator
    assert saved_operator.parameters["quality"] == 23
    write_image(tmp_path / "x.png", torch.zeros(3, 16, 16))
    given[1] = str(tmp_path / "x.png")
    assert main(["solve", *given, "--output", str(tmp_path / "two")]) != 0
    assert "give the quality" in capsys.readouterr().err

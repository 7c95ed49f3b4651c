"""Files of science come back with their numbers, units and metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import tifffile
import torch

from invdiff.images.formats import Volume, read_volume, write_volume
from invdiff.images.read import ImageError
from invdiff.plugins.registry import list_plugins

RANDOM = np.random.default_rng(0)
STACK = RANDOM.integers(0, 4000, (3, 7, 9)).astype(np.uint16)
XYZ = STACK.T.astype(np.int16)
REAL = RANDOM.standard_normal((7, 9)).astype(np.float32)
COMPLEX = (REAL + 1j * RANDOM.standard_normal((7, 9))).astype(np.complex64)


def npz(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def fits_file(path: Path) -> None:
    fits = pytest.importorskip("astropy.io.fits")
    primary = fits.PrimaryHDU()
    primary.header["OBSERVER"] = "Annie Cannon"
    image = fits.ImageHDU(REAL, name="SCI")
    image.header["BUNIT"], image.header["CRVAL1"] = "Jy/beam", 12.5
    image.header["DATAMIN"], image.header["DATAMAX"] = -4.0, 4.0
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1, 2])])
    fits.HDUList([primary, image, table]).writeto(path, checksum=True)


def nifti_file(path: Path, array: np.ndarray = XYZ) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(array, np.diag([0.5, 0.5, 2.0, 1.0]))
    image.header["cal_max"], image.header["descrip"] = 4000, b"phantom"
    nibabel.save(image, path)


def dicom_file(path: Path, frames: int = 1, signed: bool = False) -> Any:
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data.PatientName, data.Modality, data.ImageType = "A^B", "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Rows, data.Columns, data.SamplesPerPixel = 7, 9, 1
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", int(signed)
    data.RescaleSlope, data.RescaleIntercept, data.PixelSpacing = 1, -1024, [0.7, 0.7]
    stored = STACK[:frames] if not signed else STACK[:frames].astype(np.int16) - 2000
    data.PixelData = stored.tobytes()
    if frames > 1:
        data.NumberOfFrames = frames
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return data


def hdf5_file(path: Path, array: np.ndarray = COMPLEX) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.attrs["acquisition"] = "AXT2"
        file.create_dataset("scan/kspace", data=array).attrs["units"] = "a.u."
        file["header"] = "no image"


# How it is written, and what is expected: array, axes, unit, range.
FILES: dict[str, tuple[str, Callable[[Path], object], np.ndarray, str, str, object]] = {
    "npy": ("x.npy", lambda p: np.save(p, REAL), REAL, "YX", "", None),
    "npy, complex": ("x.npy", lambda p: np.save(p, COMPLEX), COMPLEX, "YX", "", None),
    "npy, big-endian": ("x.npy", lambda p: np.save(p, STACK.astype(">u2")), STACK, "CYX", "", None),
    "npz": ("x.npz", lambda p: npz(p, im=REAL), REAL, "YX", "", None),
    "stack": (
        "x.tif",
        lambda p: tifffile.imwrite(p, STACK, photometric="minisblack", metadata={"axes": "ZYX"}),
        STACK,
        "ZYX",
        "",
        (0.0, 65535.0),
    ),
    "imagej": (
        "x.tif",
        lambda p: tifffile.imwrite(
            p,
            STACK,
            imagej=True,
            resolution=(4.0, 4.0),
            metadata={"axes": "ZYX", "spacing": 2.5, "unit": "um"},
        ),
        STACK,
        "ZYX",
        "",
        (0.0, 65535.0),
    ),
    "ome": (
        "x.ome.tif",
        lambda p: tifffile.imwrite(
            p,
            np.stack([STACK, STACK + 1], 1),
            ome=True,
            metadata={"axes": "ZCYX"},
            photometric="minisblack",
        ),
        np.stack([STACK, STACK + 1], 1),
        "ZCYX",
        "",
        (0.0, 65535.0),
    ),
    "rgb tiff": (
        "x.tiff",
        lambda p: tifffile.imwrite(p, np.dstack([STACK[0]] * 3), photometric="rgb"),
        np.dstack([STACK[0]] * 3),
        "YXS",
        "",
        (0.0, 65535.0),
    ),
    "fits": ("x.fits", fits_file, REAL, "YX", "Jy/beam", (-4.0, 4.0)),
    "fits.gz": ("x.fits.gz", fits_file, REAL, "YX", "Jy/beam", (-4.0, 4.0)),
    "nifti": ("x.nii.gz", nifti_file, STACK.T.astype(np.int16), "XYZ", "", (0.0, 4000.0)),
    "nifti, complex": (
        "x.nii",
        lambda p: nifti_file(p, COMPLEX.T),
        COMPLEX.T,
        "XY",
        "",
        (0.0, 4000.0),
    ),
    "dicom": ("x.dcm", dicom_file, STACK[0] - 1024.0, "YX", "HU", (-1024.0, 3071.0)),
    "dicom frames": (
        "x.dcm",
        lambda p: dicom_file(p, 3),
        STACK - 1024.0,
        "ZYX",
        "HU",
        (-1024.0, 3071.0),
    ),
    "dicom, signed": (
        "x.dcm",
        lambda p: dicom_file(p, 1, True),
        STACK[0] - 3024.0,
        "YX",
        "HU",
        (-3072.0, 1023.0),
    ),
    "hdf5": ("x.h5", hdf5_file, COMPLEX, "YX", "a.u.", None),
    "mat": (
        "x.mat",
        lambda p: scipy.io.savemat(p, {"im": COMPLEX, "fs": 2.0}),
        COMPLEX,
        "YX",
        "",
        None,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_read(tmp_path: Path, name: str) -> None:
    file, write, array, axes, unit, data_range = FILES[name]
    write(tmp_path / file)
    volume = read_volume(tmp_path / file)
    assert (volume.axes, volume.unit, volume.data_range) == (axes, unit, data_range)
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype.isnative and volume.slices.shape[-2:] == (7, 9)
    assert volume.slices.is_complex() == np.iscomplexobj(array)


@pytest.mark.parametrize("name", FILES)
def test_written_again(tmp_path: Path, name: str) -> None:
    """The same numbers and others, in the file's own layout, dtype and metadata."""
    file, write, array, *_ = FILES[name]
    write(tmp_path / file)
    volume = read_volume(tmp_path / file)
    changed = volume.with_slices(volume.slices.flip(-1))
    columns = volume.axes.index("X")
    out = tmp_path / f"out.{file.split('.', 1)[1]}"
    for written, expected in ((volume, array), (changed, np.flip(array, columns))):
        write_volume(out, written)
        back = read_volume(out)
        np.testing.assert_array_equal(back.array, expected)
        assert (back.axes, back.unit) == (volume.axes, volume.unit)
        assert back.array.dtype == volume.array.dtype


def test_metadata_is_kept(tmp_path: Path) -> None:
    for name in ("fits", "nifti", "dicom", "hdf5", "imagej", "mat", "npz"):
        file, write, *_ = FILES[name]
        write(tmp_path / file)
        out = tmp_path / f"{name}-out.{file.split('.', 1)[1]}"
        write_volume(out, read_volume(tmp_path / file))
    fits = pytest.importorskip("astropy.io.fits")
    with fits.open(tmp_path / "fits-out.fits") as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "SCI", ""]
        assert hdus[0].header["OBSERVER"] == "Annie Cannon" and hdus["SCI"].header["CRVAL1"] == 12.5
        assert "restored by invdiff" in str(hdus["SCI"].header["HISTORY"])
        assert "DATASUM" not in hdus["SCI"].header and hdus[2].data["a"].tolist() == [1, 2]
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.load(tmp_path / "nifti-out.nii.gz")
    assert image.header.get_zooms() == (0.5, 0.5, 2.0) and image.header["descrip"] == b"phantom"
    pydicom = pytest.importorskip("pydicom")
    old, new = (pydicom.dcmread(tmp_path / f) for f in ("x.dcm", "dicom-out.dcm"))
    assert new.PatientName == "A^B" and new.PixelSpacing == [0.7, 0.7]
    assert new.ImageType[0] == "DERIVED" and new.SOPInstanceUID != old.SOPInstanceUID
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "hdf5-out.h5") as kept:
        assert kept.attrs["acquisition"] == "AXT2" and kept["scan/kspace"].attrs["units"] == "a.u."
    with tifffile.TiffFile(tmp_path / "imagej-out.tif") as tif:
        assert tif.imagej_metadata is not None
        assert tif.imagej_metadata["spacing"] == 2.5 and tif.imagej_metadata["unit"] == "um"
        assert tif.pages.first.tags.valueof("XResolution") == (4, 1)
    assert scipy.io.loadmat(tmp_path / "mat-out.mat")["fs"].item() == 2.0
    assert np.load(tmp_path / "npz-out.npz").files == ["im"]


# Parts, axes, ranges ------------------------------------------------------------------------------


def test_one_of_several_arrays_is_named(tmp_path: Path) -> None:
    npz(tmp_path / "x.npz", a=REAL, b=2 * REAL)
    np.testing.assert_array_equal(read_volume(f"{tmp_path}/x.npz:b").array, 2 * REAL)
    with pytest.raises(ImageError, match=r"holds the arrays a, b; say which one: x\.npz:a"):
        read_volume(tmp_path / "x.npz")
    with pytest.raises(ImageError, match="a, b; there is no 'c'"):
        read_volume(f"{tmp_path}/x.npz:c")
    hdf5_file(tmp_path / "x.h5")
    assert read_volume(f"{tmp_path}/x.h5:/scan/kspace").array.dtype == np.complex64
    fits_file(tmp_path / "x.fits")
    for part in ("SCI", "1"):
        np.testing.assert_array_equal(read_volume(f"{tmp_path}/x.fits:{part}").array, REAL)
    (tmp_path / "a:b.npy").write_bytes(b"")
    np.save(tmp_path / "a:b.npy", REAL)  # a name with a colon is a name
    assert read_volume(tmp_path / "a:b.npy").axes == "YX"


@pytest.mark.parametrize(
    ("shape", "axes", "slices"),
    [
        ((7, 9), "YX", (1, 1, 7, 9)),
        ((7, 9, 3), "YXC", (1, 3, 7, 9)),
        ((3, 7, 9), "CYX", (1, 3, 7, 9)),
        ((20, 7, 9), "ZYX", (20, 1, 7, 9)),
        ((5, 15, 7, 9), "ZCYX", (5, 15, 7, 9)),
        ((5, 7, 9, 3), "ZYXC", (5, 3, 7, 9)),
        ((2, 5, 6, 7, 9), "TZCYX", (10, 6, 7, 9)),
    ],
)
def test_axes_are_guessed_aloud(
    tmp_path: Path, shape: tuple[int, ...], axes: str, slices: tuple[int, ...]
) -> None:
    array = RANDOM.random(shape)
    np.save(tmp_path / "x.npy", array)
    volume = read_volume(tmp_path / "x.npy")
    assert volume.axes == axes and volume.slices.shape == slices
    assert len(volume.notes) == (len(shape) > 2)
    np.testing.assert_array_equal(volume.with_slices(volume.slices).array, array)
    said = read_volume(tmp_path / "x.npy", axes="ABCD"[: len(shape) - 2] + "XY")
    assert said.slices.shape[-2:] == shape[:-3:-1] and said.notes == ()
    np.testing.assert_array_equal(said.with_slices(said.slices).array, array)
    for bad in ("Y", "YXZZZ", "Y" * len(shape)):
        with pytest.raises(ImageError, match="axes must name"):
            read_volume(tmp_path / "x.npy", axes=bad)


def test_ranges() -> None:
    volume = Volume(np.array([[0.0, 50.0], [100.0, 200.0]]), "YX", unit="e-")
    with pytest.raises(ImageError, match="data_range=.*from 0 to 200 e-"):
        volume.images()
    x = volume.images((0, 100))
    assert x.flatten().tolist() == [0, 0.5, 1, 2]
    np.testing.assert_array_equal(volume.with_images(x, (0, 100)).array, volume.array)
    counts = Volume(STACK, "ZYX", data_range=(0, 4095))
    assert counts.images().dtype == torch.float32
    np.testing.assert_array_equal(counts.with_images(counts.images()).array, STACK)
    clipped = counts.with_images(torch.full((3, 1, 7, 9), 99.0)).array
    assert clipped.dtype == np.uint16 and (clipped == 65535).all()
    for bad in ((1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ImageError, match="low < high"):
            counts.images(bad)
    with pytest.raises(ImageError, match="low = 0 for complex"):
        Volume(COMPLEX, "YX").images((-1, 1))
    assert torch.equal(Volume(COMPLEX, "YX").images((0, 2))[0, 0], torch.from_numpy(COMPLEX) / 2)


def test_numbers_are_kept_whole() -> None:
    """Float32 holds 16 bits; more need float64."""
    large = np.array([[2**31 - 1, 2**24 + 1]], np.int32)
    assert Volume(large, "YX").slices.flatten().tolist() == large.flatten().tolist()
    assert Volume(STACK, "ZYX").slices.dtype == torch.float32
    assert Volume(COMPLEX.astype(np.complex128), "YX").slices.dtype == torch.complex128


def test_slices_of_another_kind_are_refused() -> None:
    volume = Volume(REAL, "YX")
    for x, says in (
        (torch.zeros(1, 1, 14, 18), "metadata would not describe"),
        (torch.zeros(1, 1, 7, 9, dtype=torch.complex64), "complex"),
        (torch.full((1, 1, 7, 9), torch.nan), "63 values not finite"),
    ):
        with pytest.raises(ImageError, match=says):
            volume.with_slices(x)


def test_pictures_for_people() -> None:
    assert list(Volume(REAL, "YX").pictures()) == ["picture"]
    coils = np.stack([COMPLEX, 2j * COMPLEX, COMPLEX, COMPLEX])[None]
    shown = Volume(coils, "ZCYX").pictures()
    assert list(shown) == ["magnitude", "phase"]
    for picture in (
        *shown.values(),
        *Volume(np.where(REAL > 1, np.nan, REAL), "YX").pictures().values(),
    ):
        assert picture.shape == (1, 1, 7, 9) and picture.min() >= 0 and picture.max() <= 1


# Other formats and broken files -------------------------------------------------------------------


def test_another_format_takes_the_array(tmp_path: Path) -> None:
    fits_file(tmp_path / "x.fits")
    volume = read_volume(tmp_path / "x.fits")
    for name in ("y.npy", "y.tif", "y.h5", "y.mat", "y.npz"):
        write_volume(tmp_path / name, volume)
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, REAL)
    assert read_volume(tmp_path / "y.h5").unit == "Jy/beam"
    write_volume(tmp_path / "y.nii", volume)
    assert torch.equal(read_volume(tmp_path / "y.nii").slices, volume.slices)
    np.save(tmp_path / "x.npy", REAL)
    write_volume(tmp_path / "y.fits", read_volume(tmp_path / "x.npy"))
    np.testing.assert_array_equal(read_volume(tmp_path / "y.fits").array, REAL)
    with pytest.raises(ImageError, match="needs the data set"):
        write_volume(tmp_path / "y.dcm", volume)
    with pytest.raises(ImageError, match="cannot hold complex64"):
        write_volume(tmp_path / "z.fits", Volume(COMPLEX, "YX"))
    assert not (tmp_path / "z.fits").exists() and not (tmp_path / "y.dcm").exists()
    with pytest.raises(ImageError, match=r"known: \.dcm, \.fit, \.fits"):
        write_volume(tmp_path / "z.xyz", volume)


def test_matlab_73_is_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    with h5py.File(tmp_path / "x.mat", "w", userblock_size=512) as file:
        pairs = np.zeros(COMPLEX.T.shape, [("real", "<f4"), ("imag", "<f4")])
        pairs["real"], pairs["imag"] = COMPLEX.T.real, COMPLEX.T.imag
        file["im"] = pairs
    content = bytearray((tmp_path / "x.mat").read_bytes())
    content[: len(header)] = header
    (tmp_path / "x.mat").write_bytes(content)
    volume = read_volume(tmp_path / "x.mat")
    np.testing.assert_array_equal(volume.array, COMPLEX)


@pytest.mark.parametrize("suffix", list_plugins("formats"))
def test_broken_files_are_named(tmp_path: Path, suffix: str) -> None:
    for content in (b"", b"no file of this kind" * 9):
        (tmp_path / f"x.{suffix}").write_bytes(content)
        with pytest.raises(ImageError, match=f"x.{suffix}") as caught:
            read_volume(tmp_path / f"x.{suffix}")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(ImageError, match="no file at"):
        read_volume(tmp_path / f"missing.{suffix}")


def test_truncated_files(tmp_path: Path) -> None:
    for name, (file, write, *_) in FILES.items():
        folder = tmp_path / name
        folder.mkdir()
        write(folder / file)
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ImageError, match=file):
            read_volume(folder / file)


def test_objects_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(ImageError, match="cannot be read"):
        read_volume(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("file", "module"),
    [("x.fits", "astropy"), ("x.nii", "nibabel"), ("x.dcm", "pydicom"), ("x.h5", "h5py")],
)
def test_a_missing_package_is_named(
    tmp_path: Path, file: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    real = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    (tmp_path / file).touch()
    with pytest.raises(ImageError, match=rf"needs the package {module}: .*invdiff\[science\]"):
        read_volume(tmp_path / file)


@pytest.mark.parametrize("suffix", [".fits.gz", ".nii.gz"])
def test_damaged_compression_is_noticed(tmp_path: Path, suffix: str) -> None:
    """Astropy reads such a file for hours; the checksum of gzip says it at once."""
    (fits_file if suffix == ".fits.gz" else nifti_file)(tmp_path / f"x{suffix}")
    whole = bytearray((tmp_path / f"x{suffix}").read_bytes())
    whole[len(whole) // 2] ^= 255
    (tmp_path / f"x{suffix}").write_bytes(whole)
    with pytest.raises(ImageError, match=f"x{suffix}"):
        read_volume(tmp_path / f"x{suffix}")


def test_a_broken_tiff_is_one_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tifffile.imwrite(tmp_path / "x.tif", STACK, photometric="minisblack")
    content = bytearray((tmp_path / "x.tif").read_bytes())
    content[20:60] = b"\xff" * 40
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(ImageError, match="x.tif"):
        read_volume(tmp_path / "x.tif")
    assert caplog.records == []

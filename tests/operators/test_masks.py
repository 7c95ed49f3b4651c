"""Mask files: every way in which a mask is drawn and saved gives the hole that a viewer shows,
under every method, or is refused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageFilter
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.images import read_image, read_mask, sample_photo, write_image
from invdiff.network import Denoiser
from invdiff.operators.inpaint import Inpaint
from invdiff.plugins.registry import list_plugins
from invdiff.problem import Measurement
from invdiff.sampling import make_method
from invdiff.solving import solve

H, W = 48, 40
HOLE = (slice(12, 30), slice(8, 21))
KNOWN = np.ones((H, W), bool)
KNOWN[HOLE] = False
WHITE = (255 * KNOWN).astype(np.uint8)


def rgba(colour: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([colour, colour, colour, alpha]).astype(np.uint8))


def turned(path: Path) -> None:
    """Stored upside down and mirrored, with the EXIF orientation that undoes it."""
    image = Image.fromarray(np.ascontiguousarray(WHITE[::-1, ::-1]))
    exif = image.getexif()
    exif[0x0112] = 3
    image.save(path, quality=95, exif=exif)


def lying(path: Path) -> None:
    """Stored lying on its side, as a phone does that is held upright."""
    image = Image.fromarray(np.ascontiguousarray(np.rot90(WHITE)))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def painted(path: Path) -> None:
    """Black strokes on transparent: the layer of an editor, exported alone."""
    rgba(np.zeros_like(WHITE), 255 - WHITE).save(path)


# How it is written, and a warning that comes with it.
SAME: dict[str, tuple[str, Callable[[Path], object], str | None]] = {
    "png": (".png", lambda p: Image.fromarray(WHITE).save(p), None),
    "colour": (".png", lambda p: Image.fromarray(np.dstack([WHITE] * 3)).save(p), None),
    "palette": (".png", lambda p: Image.fromarray(WHITE).quantize(2).save(p), None),
    "one bit": (".png", lambda p: Image.fromarray(KNOWN).save(p), None),
    "16 bits": (".png", lambda p: Image.fromarray(WHITE.astype(np.uint16) * 257).save(p), None),
    "bmp": (".bmp", lambda p: Image.fromarray(WHITE).save(p), None),
    "0 and 1": (".png", lambda p: Image.fromarray(KNOWN.astype(np.uint8)).save(p), "0 and 1"),
    "0 and 200": (".png", lambda p: Image.fromarray(WHITE // 255 * 200).save(p), None),
    "alpha": (".png", lambda p: rgba(np.full_like(WHITE, 255), WHITE).save(p), None),
    "grey and alpha": (
        ".png",
        lambda p: Image.fromarray(np.dstack([np.full_like(WHITE, 255), WHITE])).save(p),
        None,
    ),
    "alpha, hole black": (".png", lambda p: rgba(WHITE, WHITE).save(p), None),
    "black strokes": (".png", painted, "transparent counts as white"),
    "opaque alpha": (".png", lambda p: rgba(WHITE, np.full_like(WHITE, 255)).save(p), None),
    "exif 3": (".jpg", turned, None),
    "exif 6": (".png", lying, None),
    "int32": (".tif", lambda p: tifffile.imwrite(p, WHITE.astype(np.int32)), None),
    "int32, 0 and 1": (".tif", lambda p: tifffile.imwrite(p, KNOWN.astype(np.int32)), None),
    "uint32": (".tif", lambda p: tifffile.imwrite(p, WHITE.astype(np.uint32)), "0 and 255"),
    "float": (".tif", lambda p: tifffile.imwrite(p, KNOWN.astype(np.float32)), None),
    "float, 0 and 255": (".tif", lambda p: tifffile.imwrite(p, WHITE.astype(np.float32)), None),
    "bool array": (".npy", lambda p: np.save(p, KNOWN), None),
    "byte array": (".npy", lambda p: np.save(p, WHITE), None),
    "(H, W, 1) array": (".npy", lambda p: np.save(p, WHITE[..., None]), None),
    "(H, W, 3) array": (".NPY", lambda p: saved_as(p, np.dstack([WHITE] * 3)), None),
    "big-endian uint16": (".npy", lambda p: np.save(p, WHITE.astype(">u2")), None),
    "tensor": (".pt", lambda p: torch.save(torch.from_numpy(KNOWN), p), None),
    "float16 tensor": (".pt", lambda p: torch.save(torch.from_numpy(KNOWN).half(), p), None),
}
# Those that lose a little of what is known around the hole: their edges are soft.
SOFT: dict[str, tuple[str, Callable[[Path], object], int]] = {
    "jpeg 75": (".jpg", lambda p: Image.fromarray(WHITE).save(p, quality=75), 8),
    "jpeg 30": (".jpg", lambda p: Image.fromarray(WHITE).save(p, quality=30), 8),
    "webp": (".webp", lambda p: Image.fromarray(WHITE).save(p, quality=50), 8),
    "blurred": (
        ".png",
        lambda p: Image.fromarray(WHITE).filter(ImageFilter.GaussianBlur(2)).save(p),
        5,
    ),
    "blurred floats": (".npy", lambda p: np.save(p, blurred()), 5),
    "blurred alpha": (
        ".png",
        lambda p: rgba(np.full_like(WHITE, 255), 255 * blurred()).save(p),
        5,
    ),
}
REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "dark": (".png", lambda p: Image.fromarray(np.uint8(90 * blurred())).save(p), "not clear"),
    "float 0 to 300": (".tif", lambda p: tifffile.imwrite(p, 300 * blurred()), "not clear"),
    "negative": (".npy", lambda p: np.save(p, KNOWN - 0.5), "from -0.5 to 0.5"),
    "nan": (".tif", lambda p: tifffile.imwrite(p, np.where(KNOWN, 1.0, np.nan)), "nan"),
    "nan array": (".npy", lambda p: np.save(p, np.where(KNOWN, 1.0, np.nan)), "finite"),
    "complex": (".npy", lambda p: np.save(p, KNOWN.astype(complex)), "real"),
    "colours and alpha disagree": (
        ".png",
        lambda p: rgba(WHITE, np.roll(WHITE, 9, 1)).save(p),
        "disagree",
    ),
    "transparent": (".png", lambda p: rgba(WHITE, 0 * WHITE).save(p), "transparent everywhere"),
    "black": (".png", lambda p: Image.fromarray(0 * WHITE).save(p), "no pixel as known"),
    "a vector": (".npy", lambda p: np.save(p, np.ones(9)), r"must be \(H, W\)"),
    "no image": (".png", lambda p: p.write_bytes(b"no image"), "cannot be read as a mask"),
    "objects": (
        ".npy",
        lambda p: np.save(p, np.array([{"a": 1}], object), allow_pickle=True),
        "cannot be read as a mask",
    ),
    "damaged array": (".npy", lambda p: p.write_bytes(npy()[:-100]), "cannot be read as a mask"),
    "damaged header": (".npy", lambda p: p.write_bytes(npy()[:40]), "cannot be read as a mask"),
    "an archive": (".npy", lambda p: saved_as(p, WHITE, np.savez), "archive"),
    "a pickle": (".pt", lambda p: torch.save({"a": Path("x")}, p), "cannot be read as a mask"),
    "damaged tensor": (".pt", lambda p: p.write_bytes(b"PK\x03\x04" + b"0" * 99), "cannot be read"),
    "empty": (".pt", lambda p: p.touch(), "cannot be read as a mask"),
    "a dict": (".pt", lambda p: torch.save({"mask": torch.ones(3)}, p), "a dict, not one tensor"),
    "a huge view": (
        ".pt",
        lambda p: torch.save(torch.zeros(1).expand(10**6, 10**6), p),
        "more than the",
    ),
    "a pixel bomb": (".png", lambda p: p.write_bytes(bomb()), "pixels, more than|too large"),
}


def saved_as(path: Path, array: np.ndarray, save: Callable = np.save) -> None:
    """Through a file object: numpy appends its own suffix to names."""
    with path.open("wb") as file:
        save(file, array)


def blurred() -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return np.clip(gaussian_filter(KNOWN.astype(np.float64), 2), 0, 1)


def npy() -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, WHITE)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG that declares 60 000 x 60 000 pixels."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("name", SAME)
def test_the_same_mask_in_every_form(tmp_path: Path, name: str) -> None:
    suffix, write, said = SAME[name]
    write(tmp_path / f"m{suffix}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mask = Inpaint(tmp_path / f"m{suffix}").bind((3, H, W)).state["mask"]
    assert [str(w.message) for w in caught if said is None or said not in str(w.message)] == []
    assert len(caught) == (said is not None)
    assert np.array_equal(mask.numpy() == 1, np.broadcast_to(KNOWN, mask.shape))
    assert set(mask.unique().tolist()) == {0.0, 1.0}


@pytest.mark.filterwarnings("ignore:the mask .* the smaller part")
@pytest.mark.parametrize("keep", ["white", "black"])
@pytest.mark.parametrize("name", SOFT)
def test_soft_edges_are_missing(tmp_path: Path, name: str, keep: str) -> None:
    suffix, write, reach = SOFT[name]
    write(tmp_path / f"m{suffix}")
    missing = read_mask(tmp_path / f"m{suffix}", (H, W), keep).numpy() == 0
    hole = ~KNOWN if keep == "white" else KNOWN
    assert missing[hole].all()
    from scipy.ndimage import binary_dilation

    assert not missing[~binary_dilation(hole, np.ones((3, 3)), iterations=reach)].any()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_unclear_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    suffix, write, says = REFUSED[name]
    write(tmp_path / f"m{suffix}")
    with pytest.raises(ValueError, match=says) as caught:
        Inpaint(tmp_path / f"m{suffix}").bind((3, H, W))
    assert f"m{suffix}" in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_smaller_part_is_warned_of(tmp_path: Path) -> None:
    Image.fromarray(255 - WHITE).save(tmp_path / "m.png")  # as diffusers, LaMa and OpenCV draw it
    with pytest.warns(UserWarning, match=r"keeps 12\.2 % .*--mask-keep black"):
        Inpaint(tmp_path / "m.png").bind((3, H, W))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = Inpaint(tmp_path / "m.png", keep="black").bind((3, H, W)).state["mask"]
    assert np.array_equal(mask[0].numpy() == 1, KNOWN)
    Image.fromarray(np.full_like(WHITE, 255)).save(tmp_path / "m.png")
    with pytest.warns(UserWarning, match="every pixel as known"):
        Inpaint(tmp_path / "m.png").bind((3, H, W))


def test_notes_say_the_share_and_the_colour(tmp_path: Path) -> None:
    Image.fromarray(WHITE).save(tmp_path / "m.png")
    (note,) = Inpaint(tmp_path / "m.png").bind((3, H, W)).notes
    assert note == (
        "mask: 12.2 % of the pixels are missing; white is known "
        "(--mask-keep black for the opposite)"
    )
    assert Inpaint("box").bind((3, 8, 8)).notes == ("mask: 25.0 % of the pixels are missing",)
    assert Inpaint("box").notes == ()


def test_a_photograph_and_its_mask_agree_in_orientation(tmp_path: Path) -> None:
    """Both are read as a viewer shows them; one that was drawn on the stored pixels is named."""
    photo = Image.fromarray(np.rot90(np.dstack([WHITE] * 3)).copy())
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "photo.png", exif=exif)
    lying(tmp_path / "m.png")
    x = read_image(tmp_path / "photo.png")
    mask = Inpaint(tmp_path / "m.png").bind(tuple(x.shape[1:])).state["mask"]
    assert torch.equal(x[0, :1].double(), mask)
    Image.fromarray(np.rot90(WHITE).copy()).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match="fits when turned by 90 degrees"):
        Inpaint(tmp_path / "m.png").bind((3, H, W))


def test_grow(tmp_path: Path) -> None:
    dot = np.full((11, 11), 255, np.uint8)
    dot[5, 5] = 0
    Image.fromarray(dot).save(tmp_path / "m.png")
    rows = torch.arange(11)
    for n in (0, 1, 3):
        mask = Inpaint(tmp_path / "m.png", grow=n).bind((1, 11, 11)).state["mask"][0]
        disk = (rows[:, None] - 5) ** 2 + (rows - 5) ** 2 <= n**2
        assert torch.equal(mask == 0, disk)
    soft = torch.full((2, 3, 11, 11), 0.5, dtype=torch.float64)
    soft[1, 0, 0, 0] = 0
    grown = Inpaint(soft, grow=2).bind((3, 11, 11)).state["mask"]
    assert torch.equal(grown[0], soft[0]) and int((grown[1, 0] == 0).sum()) == 6
    assert torch.equal(grown[1, 1:], soft[1, 1:])
    with pytest.raises(ValueError, match="leaves no pixel"):
        Inpaint(tmp_path / "m.png", grow=20).bind((1, 11, 11))
    with pytest.raises(ValueError, match="grow must be"):
        Inpaint(grow=-1)


def test_resizing_makes_nothing_known(tmp_path: Path) -> None:
    """A scratch of one pixel is not lost when its mask is larger than the photograph."""
    mask = np.full((60, 60), 255, np.uint8)
    mask[:, 31] = 0
    Image.fromarray(mask).save(tmp_path / "m.png")
    with pytest.warns(UserWarning, match="resized from 60x60 to the image's 20x20"):
        small = Inpaint(tmp_path / "m.png").bind((1, 20, 20)).state["mask"][0]
    assert int((small == 0).sum()) == 20 and not small[:, 10].any()


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(WHITE).save(tmp_path / "m.png")
    assert bool(Inpaint("~/m.png").bind((3, H, W)).state["mask"].any())


def test_measurements_of_before_a_parameter_are_read(tmp_path: Path) -> None:
    """A file written before ``grow`` existed: its hash is that of what it says."""
    import hashlib
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    Inpaint("box").measure(torch.rand(1, 3, 8, 8), 0.1).save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        described = json.loads(file.metadata()["invdiff"])
    del described["hash"], described["parameters"]["grow"]
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(json.dumps(described, sort_keys=True).encode())
    for recorded, damaged in ((digest.hexdigest(), False), ("0" * 64, True)):
        metadata = {"invdiff": json.dumps(described | {"hash": recorded})}
        save_file(tensors, tmp_path / "old.safetensors", metadata)
        if damaged:
            with pytest.raises(ValueError, match="damaged or was edited"):
                Measurement.load(tmp_path / "old.safetensors")
        else:
            loaded = Measurement.load(tmp_path / "old.safetensors")
            assert torch.equal(loaded.y, tensors["y"])


# Every method -------------------------------------------------------------------------------------


class Shrink(torch.nn.Module):
    """A denoiser with a mean and some smoothness, cheap and different at every pixel."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        local = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
        return x - 0.6 * local - 0.1


def denoiser(cond_channels: int | None) -> Denoiser:
    class Net(Shrink):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x[:, -3:], t)

    return Denoiser(
        Net(), schedule=schedules.linear(), data_range=(-1, 1), cond_channels=cond_channels
    )


def methods() -> list[str]:
    """Those that a plain network for images can run on a measurement of a mask."""
    measurement = Inpaint(torch.from_numpy(KNOWN).double()).measure(torch.rand(1, 3, H, W), 0.02)
    able = []
    for name in list_plugins("guidance"):
        try:
            solve(measurement, denoiser(network_input(name)), name, steps=2)
            able.append(name)
        except (ValueError, TypeError):  # needs labels, a classifier, an autoencoder
            continue
    return able


def network_input(name: str) -> int | None:
    return 3 if any("cond" in g.sets for g in make_method(name).chain) else None


METHODS = methods()


def test_most_methods_are_in_the_table() -> None:
    missing = set(list_plugins("guidance")) - set(METHODS)
    assert len(METHODS) >= 18, missing
    assert {"dps", "ddnm", "ddrm", "pigdm", "diffpir", "daps", "repaint", "reddiff"} <= set(METHODS)


def hole_error(mask: Inpaint, photo: Tensor, method: str) -> tuple[float, Tensor]:
    """Of a scratched photograph, whose hole is white: root mean square error in the hole."""
    scratched = torch.where(torch.from_numpy(KNOWN), photo, 1.0)
    measurement = Measurement(scratched, mask, sigma=0.02)
    x = solve(measurement, denoiser(network_input(method)), method, steps=3, seed=1).x
    hole = torch.from_numpy(~KNOWN)
    return math.sqrt(float((x - photo)[..., hole].square().mean())), x


@pytest.mark.filterwarnings("ignore:the mask")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_restores_the_same_hole(tmp_path: Path, method: str) -> None:
    """Of each table one form: the masks of all forms are held against each other above."""
    photo = sample_photo(H)[0][..., :W]
    clean, expected = hole_error(Inpaint(torch.from_numpy(KNOWN).double()), photo, method)
    suffix, write, _ = SAME["alpha"]
    write(tmp_path / f"m{suffix}")
    assert torch.equal(hole_error(Inpaint(tmp_path / f"m{suffix}"), photo, method)[1], expected)
    suffix, write, _ = SOFT["jpeg 30"]
    write(tmp_path / f"soft{suffix}")
    error, _ = hole_error(Inpaint(tmp_path / f"soft{suffix}"), photo, method)
    assert error == pytest.approx(clean, rel=0.2, abs=0.02)


def test_solve_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = sample_photo(H)[0][..., :W]
    write_image(tmp_path / "scratched.png", torch.where(torch.from_numpy(KNOWN), photo, 1.0))
    Image.fromarray(WHITE).save(tmp_path / "m.png")
    from invdiff.__main__ import main

    given = ["--measurement", str(tmp_path / "scratched.png"), "--mask", str(tmp_path / "m.png")]
    run = [
        "--mask-grow",
        "1",
        "--steps",
        "2",
        "--output",
        str(tmp_path / "out"),
        "--method",
        "ddnm",
    ]
    assert main(["solve", *given, *run]) == 0
    said = capsys.readouterr().err
    assert "mask: 15.4 % of the pixels are missing; white is known" in said
    saved = invdiff.Measurement.load(tmp_path / "out" / "measurement.safetensors")
    assert round(float((saved.operator.state["mask"] == 0).double().mean()), 3) == 0.154

"""Image files of every supported kind in and out, and pictures made for people."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from invdiff.images import (
    ImageError,
    error_map,
    find_images,
    grid,
    read,
    read_image,
    sample_photo,
    std_map,
    write_gif,
    write_image,
)

LOSSLESS = [
    (s, b)
    for s in (".png", ".tif", ".tiff", ".webp", ".bmp")
    for b in (8, 16)
    if b == 8 or s in (".png", ".tif", ".tiff")
]


def random_levels(channels: int, bits: int, height: int = 9, width: int = 14) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return (
        np.random.default_rng(0)
        .integers(0, 2**bits, shape)
        .astype(np.uint8 if bits == 8 else np.uint16)
    )


def tensor_of(levels: np.ndarray) -> torch.Tensor:
    """(1, C, H, W) in [0, 1]."""
    stored = levels[..., None] if levels.ndim == 2 else levels
    return torch.from_numpy((stored / np.iinfo(levels.dtype).max).astype(np.float32)).permute(
        2, 0, 1
    )[None]


def png(
    width: int, height: int, depth: int, kind: int, data: bytes, *extra: tuple[bytes, bytes]
) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(chunk(*e) for e in extra)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def png16(levels: np.ndarray, *extra: tuple[bytes, bytes]) -> bytes:
    height, width, channels = levels.shape
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], data, *extra)


# Finding ------------------------------------------------------------------------------------------


def test_find_file_folder_and_glob(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.tiff", "notes.txt", ".hidden.png", "sub/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path / "b.png") == [tmp_path / "b.png"]
    assert [p.name for p in find_images(tmp_path)] == ["a.JPG", "b.png", "c.tiff"]
    assert [p.name for p in find_images(f"{tmp_path}/*")] == ["a.JPG", "b.png", "c.tiff"]
    assert [p.name for p in find_images(f"{tmp_path}/**/*.png")] == ["b.png", "d.png"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x[1].png").touch()
    assert find_images(tmp_path / "x[1].png") == [tmp_path / "x[1].png"]


@pytest.mark.parametrize("what", ["notes.txt", "nothing.png", "*.webp", "empty", "sub"])
def test_nothing_found_says_what_was_given_and_what_is_allowed(tmp_path: Path, what: str) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").touch()
    with pytest.raises(
        ValueError, match=r"\.png, \.jpg, \.jpeg, \.tif, \.tiff, \.webp, \.bmp"
    ) as caught:
        find_images(tmp_path / what)
    assert str(tmp_path / what) in str(caught.value)


# Round trips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("suffix", "bits"), LOSSLESS)
def test_lossless_formats_come_back_exactly(
    tmp_path: Path, suffix: str, bits: int, channels: int
) -> None:
    x = tensor_of(random_levels(channels, bits))
    write_image(tmp_path / f"x{suffix}", x, bits)
    back = read_image(tmp_path / f"x{suffix}")
    if suffix == ".webp" and channels == 1:  # WebP knows colour only
        assert back.shape[1] == 3
        back = back[:, :1]
    assert back.dtype == torch.float32
    assert torch.equal(back, x)


def test_jpeg_comes_back_nearly(tmp_path: Path) -> None:
    x, _ = sample_photo(64)
    write_image(tmp_path / "x.jpg", x)
    assert (read_image(tmp_path / "x.jpg") - x).abs().mean() < 0.01


def test_other_readers_agree_on_our_16_bit_png(tmp_path: Path) -> None:
    levels = random_levels(3, 16)
    write_image(tmp_path / "colour.png", tensor_of(levels), 16)
    with Image.open(tmp_path / "colour.png") as image:  # checks the checksums; keeps the upper byte
        assert np.array_equal(np.asarray(image), levels >> 8)
    write_image(tmp_path / "grey.png", tensor_of(levels[..., 0]), 16)
    with Image.open(tmp_path / "grey.png") as image:
        assert np.array_equal(np.asarray(image), levels[..., 0])


def test_16_bit_png_of_other_writers(tmp_path: Path) -> None:
    for channels in (1, 3):
        levels = random_levels(channels, 16).reshape(9, 14, channels)
        (tmp_path / "x.png").write_bytes(png16(levels))
        assert torch.equal(read_image(tmp_path / "x.png"), tensor_of(levels))
    Image.fromarray(levels[..., 0]).save(tmp_path / "x.png")
    assert torch.equal(read_image(tmp_path / "x.png"), tensor_of(levels[..., 0]))
    (tmp_path / "x.png").write_bytes(png16(levels[..., :2]))
    with pytest.raises(ImageError, match="grey with alpha"):
        read_image(tmp_path / "x.png")


def test_writing_rounds_and_clamps(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", torch.tensor([[[-0.5, 0.9 / 255, 100.6 / 255, 1.7]]]))
    with Image.open(tmp_path / "x.png") as image:
        assert np.asarray(image).tolist() == [[0, 1, 101, 255]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_writing_takes_other_dtypes_and_gradients(tmp_path: Path, dtype: torch.dtype) -> None:
    write_image(tmp_path / "x.png", torch.ones(3, 4, 5, dtype=dtype, requires_grad=True))
    assert read_image(tmp_path / "x.png").eq(1).all()


# Kinds of files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    levels = np.kron(random_levels(3, 8, 2, 3), np.ones((8, 8, 1), np.uint8))
    image = Image.fromarray(levels)
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {}
    image.save(tmp_path / f"x{suffix}", exif=exif, **options)
    with Image.open(tmp_path / f"x{suffix}") as stored:
        expected = tensor_of(np.asarray(ImageOps.exif_transpose(stored)))
    x = read_image(tmp_path / f"x{suffix}")
    assert x.shape[2:] == ((24, 16) if orientation >= 5 else (16, 24))
    assert torch.equal(x, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_16_bit_files_agrees_with_8_bits(tmp_path: Path, orientation: int) -> None:
    levels = random_levels(3, 8)
    options = {"photometric": "rgb", "extratags": [(274, 3, 1, orientation, False)]}
    tifffile.imwrite(tmp_path / "8.tif", levels, **options)
    tifffile.imwrite(tmp_path / "16.tif", levels.astype(np.uint16) * 257, **options)
    assert torch.equal(read_image(tmp_path / "8.tif"), read_image(tmp_path / "16.tif"))


def over_white(levels: np.ndarray) -> torch.Tensor:
    x = tensor_of(levels)
    return x[:, :-1] * x[:, -1:] + 1 - x[:, -1:]


@pytest.fixture
def alpha_unsaid() -> None:
    read._warn_of_alpha.cache_clear()


@pytest.mark.usefixtures("alpha_unsaid")
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("8.png", 2),
        ("8.png", 4),
        ("16.png", 4),
        ("8.tif", 2),
        ("8.tif", 4),
        ("16.tif", 2),
        ("16.tif", 4),
        ("8.webp", 4),
    ],
)
def test_alpha_is_composited_over_white(tmp_path: Path, name: str, channels: int) -> None:
    bits, suffix = name.split(".")
    levels = random_levels(channels, int(bits))
    path = tmp_path / name
    if name == "16.png":
        path.write_bytes(png16(levels))
    elif suffix == "tif":
        photometric = "rgb" if channels == 4 else "minisblack"
        tifffile.imwrite(
            path,
            levels,
            photometric=photometric,
            planarconfig="contig",
            extrasamples=["unassalpha"],
        )
    else:
        Image.fromarray(levels).save(
            path, **({"lossless": True, "exact": True} if suffix == "webp" else {})
        )
    with pytest.warns(UserWarning, match="over white"):
        x = read_image(path)
    assert x.shape[1] == channels - 1
    torch.testing.assert_close(x, over_white(levels), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("alpha_unsaid")
def test_alpha_warns_once_for_a_folder_of_images(tmp_path: Path) -> None:
    for k in range(3):
        Image.fromarray(random_levels(4, 8)).save(tmp_path / f"{k}.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for path in find_images(tmp_path):
            read_image(path)
    assert len(caught) == 1


@pytest.mark.usefixtures("alpha_unsaid")
def test_premultiplied_alpha(tmp_path: Path) -> None:
    levels = random_levels(4, 16)
    alpha = levels[..., 3:] / 65535
    stored = (
        np.concatenate([levels[..., :3] * alpha, levels[..., 3:]], -1).round().astype(np.uint16)
    )
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    with pytest.warns(UserWarning, match="over white"):
        x = read_image(tmp_path / "x.tif")
    torch.testing.assert_close(x, over_white(levels), atol=2e-5, rtol=0)


@pytest.mark.usefixtures("alpha_unsaid")
def test_a_transparent_colour_counts_as_alpha(tmp_path: Path) -> None:
    levels = random_levels(3, 16)
    (tmp_path / "x.png").write_bytes(
        png16(levels, (b"tRNS", struct.pack(">HHH", *map(int, levels[4, 5]))))
    )
    with pytest.warns(UserWarning, match="over white"):
        x = read_image(tmp_path / "x.png")
    expected = tensor_of(levels)
    expected[..., 4, 5] = 1
    assert torch.equal(x, expected)


def test_palettes_bilevel_and_cmyk(tmp_path: Path) -> None:
    levels = random_levels(3, 8) // 64 * 64
    palette = Image.fromarray(levels).quantize(64)
    palette.save(tmp_path / "palette.png")
    assert torch.equal(
        read_image(tmp_path / "palette.png"), tensor_of(np.asarray(palette.convert("RGB")))
    )

    bilevel = random_levels(1, 8) > 127
    Image.fromarray(bilevel).save(tmp_path / "bilevel.png")
    assert torch.equal(
        read_image(tmp_path / "bilevel.png")[0, 0], torch.from_numpy(bilevel).float()
    )
    Image.fromarray(bilevel).save(tmp_path / "bilevel.tif")
    assert torch.equal(
        read_image(tmp_path / "bilevel.tif")[0, 0], torch.from_numpy(bilevel).float()
    )

    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    cyan = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    torch.testing.assert_close(read_image(tmp_path / "cmyk.jpg"), cyan, atol=0.02, rtol=0)


def test_asking_for_channels(tmp_path: Path) -> None:
    write_image(tmp_path / "grey.png", torch.full((1, 2, 2), 0.2))
    write_image(
        tmp_path / "colour.png", torch.tensor([1.0, 0.4, 0.2]).view(3, 1, 1).expand(3, 2, 2)
    )
    assert read_image(tmp_path / "grey.png").shape == (1, 1, 2, 2)
    assert read_image(tmp_path / "grey.png", channels=3).eq(0.2).all()
    luma = read_image(tmp_path / "colour.png", channels=1)
    torch.testing.assert_close(luma, torch.full((1, 1, 2, 2), 0.299 + 0.4 * 0.587 + 0.2 * 0.114))
    with pytest.raises(ValueError, match="channels must be 1, 3 or None"):
        read_image(tmp_path / "grey.png", channels=2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_tiff(tmp_path: Path, dtype: type) -> None:
    values = np.random.default_rng(0).random((6, 7, 3)).astype(dtype)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="rgb")
    assert torch.equal(
        read_image(tmp_path / "x.tif")[0].permute(1, 2, 0),
        torch.from_numpy(values.astype(np.float32)),
    )
    for bad in (values * 300, values - 1, np.full_like(values, np.nan)):
        tifffile.imwrite(tmp_path / "bad.tif", bad, photometric="rgb")
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            read_image(tmp_path / "bad.tif")


def test_tiff_layouts(tmp_path: Path) -> None:
    levels = random_levels(3, 16)
    tifffile.imwrite(
        tmp_path / "planar.tif",
        np.moveaxis(levels, -1, 0),
        photometric="rgb",
        planarconfig="separate",
    )
    assert torch.equal(read_image(tmp_path / "planar.tif"), tensor_of(levels))
    tifffile.imwrite(
        tmp_path / "big.tif",
        levels,
        photometric="rgb",
        bigtiff=True,
        byteorder=">",
        tile=(16, 16),
        compression="zlib",
    )
    assert torch.equal(read_image(tmp_path / "big.tif"), tensor_of(levels))
    tifffile.imwrite(tmp_path / "white.tif", levels[..., 0], photometric="miniswhite")
    torch.testing.assert_close(read_image(tmp_path / "white.tif"), 1 - tensor_of(levels[..., 0]))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.complex64])
def test_other_tiffs_are_refused(tmp_path: Path, dtype: type) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((4, 4), dtype))
    with pytest.raises(ValueError, match="Convert it first"):
        read_image(tmp_path / "x.tif")


def test_several_pages_or_frames_are_refused(tmp_path: Path) -> None:
    for bits in (8, 16):
        tifffile.imwrite(
            tmp_path / "x.tif", np.stack([random_levels(1, bits)] * 5), photometric="minisblack"
        )
        with pytest.raises(ValueError, match="5 pages"):
            read_image(tmp_path / "x.tif")
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="2 frames"):
        read_image(tmp_path / "x.webp")


# Hostile and broken files -------------------------------------------------------------------------


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
@pytest.mark.parametrize("depth", [8, 16])
def test_decompression_bombs_are_refused_by_their_header(
    tmp_path: Path, side: int, depth: int
) -> None:
    (tmp_path / "bomb.png").write_bytes(png(side, side, depth, 2, b"\0"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"bomb\.png .*(allowed|too large)"):
            read_image(tmp_path / "bomb.png")


def test_tiff_bomb(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.uint16):
        tifffile.imwrite(tmp_path / "x.tif", np.zeros((8, 8), dtype))
        content = bytearray((tmp_path / "x.tif").read_bytes())
        with tifffile.TiffFile(tmp_path / "x.tif") as tif:
            for name in ("ImageWidth", "ImageLength"):
                tag = tif.pages.first.tags[name]
                struct.pack_into("<I" if tag.dtype == 4 else "<H", content, tag.valueoffset, 60_000)
        (tmp_path / "bomb.tif").write_bytes(content)
        with pytest.raises(ValueError, match="60000 x 60000 pixels"):
            read_image(tmp_path / "bomb.tif")


def test_pixel_cap_is_the_callers(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", torch.zeros(1, 10, 10))
    read_image(tmp_path / "x.png", max_pixels=100)
    with pytest.raises(ValueError, match="10 x 10 pixels, more than the 99 allowed"):
        read_image(tmp_path / "x.png", max_pixels=99)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("suffix", "bits"), [*LOSSLESS, (".jpg", 8)])
def test_truncated_files_name_the_file(tmp_path: Path, suffix: str, bits: int) -> None:
    path = tmp_path / f"cut{suffix}"
    write_image(path, tensor_of(random_levels(3, bits, 40, 40)), bits)
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.5):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ImageError, match="cut"):
            read_image(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("suffix", "bits"), [(".png", 16), (".tif", 16), (".webp", 8)])
def test_corrupted_bytes_give_an_image_or_our_error(tmp_path: Path, suffix: str, bits: int) -> None:
    path = tmp_path / f"x{suffix}"
    write_image(path, tensor_of(random_levels(3, bits)), bits)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(100):
        content = bytearray(whole)
        for place in random.integers(0, min(len(whole), 200), 2):
            content[place] = random.integers(0, 256)
        path.write_bytes(content)
        try:
            x = read_image(path)
        except ImageError:
            continue
        assert x.shape[:1] == (1,) and x.shape[1] in (1, 3) and x.min() >= 0 and x.max() <= 1


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("hello")
    with pytest.raises(ImageError, match=r"x\.png cannot be read as an image"):
        read_image(tmp_path / "x.png")
    with pytest.raises(ImageError, match="no image file at"):
        read_image(tmp_path / "missing.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "x.gif")
    (tmp_path / "x.gif").rename(tmp_path / "gif.png")
    with pytest.raises(ImageError):
        read_image(tmp_path / "gif.png")


@pytest.mark.parametrize(
    ("name", "x", "bits"),
    [
        ("x.gif", torch.zeros(3, 4, 4), 8),
        ("x.jpg", torch.zeros(3, 4, 4), 16),
        ("x.png", torch.zeros(3, 4, 4), 12),
        ("x.png", torch.zeros(2, 4, 4), 8),
        ("x.png", torch.zeros(2, 3, 4, 4), 8),
        ("x.png", torch.full((1, 4, 4), torch.nan), 8),
        ("nowhere/x.png", torch.zeros(3, 4, 4), 8),
    ],
)
def test_refused_writes_leave_nothing(
    tmp_path: Path, name: str, x: torch.Tensor, bits: int
) -> None:
    with pytest.raises(ImageError):
        write_image(tmp_path / name, x, bits)
    assert not list(tmp_path.iterdir())


def test_a_failing_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "x.png", torch.zeros(1, 4, 4))
    before = (tmp_path / "x.png").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_image(tmp_path / "x.png", torch.ones(1, 4, 4))
    with pytest.raises(OSError, match="disk full"):
        write_gif(tmp_path / "x.gif", [torch.ones(1, 4, 4)])
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == before


# Pictures -----------------------------------------------------------------------------------------


def test_grid_enlarges_panels_by_whole_pixels() -> None:
    x = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    small, grey = x[:, ::4, ::4], x[:1]
    picture = grid([x, small[None], grey], padding=8)
    assert picture.shape == (3, 256 + 16, 3 * 256 + 4 * 8)
    panels = [picture[:, 8:264, 8 + 264 * k :][..., :256] for k in range(3)]
    for panel, source, factor in zip(
        panels, (x, small, grey.expand(3, -1, -1)), (4, 16, 4), strict=True
    ):
        expected = source.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        torch.testing.assert_close(panel, expected, atol=0.5 / 255 + 1e-6, rtol=0)
    assert picture[:, :8].eq(1).all()


def test_large_panels_keep_their_pixels() -> None:
    assert grid([torch.zeros(1, 300, 200)], padding=0).shape == (3, 300, 200)


def test_grid_columns_and_labels() -> None:
    panels = list(torch.zeros(5, 1, 256, 256))
    plain = grid(panels, columns=2)
    assert plain.shape == (3, 3 * 264 + 8, 2 * 264 + 8)
    labelled = grid(
        panels,
        ["a", "b", "c", "d", "σ₀ = 0.05 × 2 and so many words that they need another line"],
        columns=2,
    )
    assert labelled.shape[1] > plain.shape[1] and labelled.shape[2] == plain.shape[2]
    assert labelled[:, 8:28].min() < 0.5  # ink
    assert torch.equal(grid(panels[:1], ["σ"]), grid(panels[:1], ["sigma"]))
    with pytest.raises(ValueError, match="a label for each"):
        grid(panels, ["a"])


def test_words_wider_than_a_panel_widen_the_column() -> None:
    narrow = torch.zeros(1, 256, 16)
    assert grid([narrow], ["a-very-long-word"]).shape[2] > grid([narrow], ["a"]).shape[2]


def test_gif_holds_its_last_frame(tmp_path: Path) -> None:
    frames = [torch.full((3, 8, 8), k / 9) for k in range(10)]
    write_gif(tmp_path / "x.gif", frames, seconds=1.0)
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 10 and gif.size == (256, 256) and gif.info["loop"] == 0
        durations = []
        for k in range(10):
            gif.seek(k)
            durations.append(gif.info["duration"])
        assert np.asarray(gif.convert("RGB")).min() == 255
    assert durations == [100] * 9 + [1600]
    assert [p.name for p in tmp_path.iterdir()] == ["x.gif"]


def test_gif_thins_out_too_many_frames_and_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    write_gif(
        tmp_path / "x.gif", [torch.full((1, 256, 4), k / 99) for k in range(100)], seconds=0.5
    )
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 25
        gif.seek(24)
        assert np.asarray(gif.convert("L")).min() == 255
    for bad in ([], [torch.zeros(1, 4, 4), torch.zeros(1, 5, 5)]):
        with pytest.raises(ImageError, match="frames of one shape"):
            write_gif(tmp_path / "y.gif", bad)
    with pytest.raises(ImageError, match=r"\.gif"):
        write_gif(tmp_path / "y.png", [torch.zeros(1, 4, 4)])


def test_heat_maps_have_one_fixed_scale() -> None:
    x = torch.zeros(2, 3, 4, 5)
    std = torch.tensor([0.0, 0.1, 0.2, 0.5]).view(1, 1, 4, 1).expand(2, 3, 4, 5)
    heat = error_map(x + std, x)
    assert heat.shape == (2, 3, 4, 5)
    assert torch.equal(heat, std_map(std)) and torch.equal(heat[0], std_map(std[0, :1]))
    assert torch.equal(heat[..., 2, :], heat[..., 3, :])
    brightness = heat[0].mean(0)[:, 0]
    assert brightness[0] < 0.01 and brightness[0] < brightness[1] < brightness[2]
    with pytest.raises(ValueError, match="one shape"):
        error_map(x, x[:1])


def test_sample_photo_is_offline_fixed_and_area_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    full, name = sample_photo(256)
    x, _ = sample_photo(64)
    assert name == "chelsea" and x.shape == (1, 3, 64, 64)
    torch.testing.assert_close(x, full.unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2)))
    assert x.min() >= 0 and x.max() <= 1 and x.std() > 0.1
    with pytest.raises(ValueError, match="1 to 256"):
        sample_photo(300)


def test_16_bit_files_are_rewritten_exactly(tmp_path: Path) -> None:
    x, _ = sample_photo(32)
    write_image(tmp_path / "a.png", x, 16)
    write_image(tmp_path / "b.png", read_image(tmp_path / "a.png"), 16)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

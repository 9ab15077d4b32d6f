"""Every mode, rotation and kind of broken file that pictures of real data sets come with."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ciod.core.errors import DataError
from ciod.data.images import as_array, header_sizes, image_size, read_image, save_image

ORIENTATION = 0x0112
GREY = 114


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def rotated_file(folder: Path, orientation: int, suffix: str = ".png") -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = folder / f"turned{orientation}{suffix}"
    Image.fromarray(noise(6, 10, 3)).save(path, exif=exif)
    return path


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 3), 77), (77, 77, 77)),
        (Image.new("1", (4, 3), 1), (255, 255, 255)),
        (Image.new("RGB", (4, 3), (10, 20, 30)), (10, 20, 30)),
        (Image.new("RGBA", (4, 3), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("RGBA", (4, 3), (10, 20, 30, 0)), (GREY,) * 3),
        (Image.new("LA", (4, 3), (214, 0)), (GREY,) * 3),
        (Image.new("LA", (4, 3), (214, 255)), (214,) * 3),
        (Image.new("RGB", (4, 3), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE), (10, 20, 30)),
        (Image.fromarray(np.full((3, 4), 51400, np.uint16)), (200,) * 3),
        (Image.fromarray(np.full((3, 4), 200, np.uint16)), (200,) * 3),
        (Image.fromarray(np.full((3, 4), 51400, np.int32)), (200,) * 3),
    ],
    ids=lambda v: v.mode if isinstance(v, Image.Image) else "",
)
def test_every_mode_becomes_rgb(tmp_path, image, expected):
    path = tmp_path / ("picture.tif" if image.mode == "I" else "picture.png")
    image.save(path)
    pixels = read_image(path)
    assert pixels.shape == (3, 4, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == expected).all()


def test_transparent_palette_colour_is_laid_over_grey(tmp_path):
    path = tmp_path / "picture.gif"
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 250, 0, 0])
    image.save(path, transparency=1)
    assert (read_image(path) == GREY).all()


def test_cmyk_jpeg(tmp_path):
    path = tmp_path / "picture.jpg"
    Image.new("CMYK", (16, 8), (0, 255, 255, 0)).save(path)
    pixels = read_image(path)
    assert pixels.shape == (8, 16, 3)
    assert pixels[..., 0].min() > 200
    assert pixels[..., 1:].max() < 80


@pytest.mark.parametrize(("value", "expected"), [(0.5, 128), (128.0, 128), (51400.0, 200), (np.nan, 0)])
def test_float_tiff(tmp_path, value, expected):
    path = tmp_path / "picture.tif"
    Image.fromarray(np.full((3, 4), value, np.float32)).save(path)
    assert (read_image(path) == expected).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_and_the_header_agrees(tmp_path, orientation, suffix):
    path = rotated_file(tmp_path, orientation, suffix)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    pixels = read_image(path)
    assert np.array_equal(pixels, expected)
    assert image_size(path) == pixels.shape[:2]


@pytest.mark.parametrize(
    ("size", "shape"), [(None, (10, 6)), ((10, 6), (10, 6)), ((6, 10), (6, 10)), ((50, 60), (10, 6))]
)
def test_rotation_follows_the_annotated_size(tmp_path, size, shape):
    path = rotated_file(tmp_path, 6)
    assert header_sizes(path) == ((10, 6), (6, 10))
    assert read_image(path, size).shape[:2] == shape


def test_unrotated_pixels_are_those_stored(tmp_path):
    assert np.array_equal(read_image(rotated_file(tmp_path, 8), (6, 10)), noise(6, 10, 3))


def test_broken_exif_does_not_spoil_the_picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(noise(6, 10, 3)).save(path, exif=b"Exif\x00\x00garbage")
    assert read_image(path).shape == (6, 10, 3)


def encoded(suffix: str) -> bytes:
    stream = BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(stream, format=suffix)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bad\.png is empty \(0 bytes\)"),
        (b"<html>404</html>", r"bad\.png is not a picture"),
        (encoded("PNG")[:3000], r"bad\.png cannot be read"),
        (encoded("JPEG")[:1500], r"bad\.png cannot be read: .*truncated"),
        (encoded("PNG")[:20], r"bad\.png"),
        (encoded("WEBP")[:300], r"bad\.png"),
        (encoded("GIF")[:900], r"bad\.png"),
        (encoded("BMP")[:900], r"bad\.png"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_image(path)


def test_absent_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        image_size(tmp_path / "none.png")
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("limit", [10 * 10, 10 * 15])  # Pillow raises at twice the limit, and warns below
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb(tmp_path, monkeypatch, limit):
    path = tmp_path / "bomb.png"
    Image.new("L", (20, 20)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"bomb\.png has more than 1.0 pixels"):
            read(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(DataError, match="attack"):
        read_image(path)


@pytest.mark.filterwarnings("error")
def test_decompression_bomb_when_warnings_are_errors(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("L", (20, 20)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(DataError, match="attack"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_save_makes_folders_and_leaves_no_other_file(tmp_path, suffix):
    path = tmp_path / "a" / f"b{suffix}"
    save_image(path, np.full((5, 7, 3), 90, np.uint8))
    assert abs(read_image(path).astype(int) - 90).max() <= 3
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_save_in_an_unknown_format(tmp_path):
    with pytest.raises(DataError, match=r"b\.xyz cannot be written"):
        save_image(tmp_path / "b.xyz", noise(2, 2, 3))
    assert not list(tmp_path.iterdir())


def test_as_array_takes_files_arrays_and_pil(tmp_path):
    pixels = noise(6, 10, 3)
    save_image(tmp_path / "a.png", pixels)
    for image in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        pixels,
        pixels.astype(np.float64),
        Image.fromarray(pixels),
    ):
        assert np.array_equal(as_array(image), pixels)
    assert as_array(pixels[..., 0]).shape == (6, 10, 3)
    with Image.open(rotated_file(tmp_path, 6)) as image:
        assert as_array(image).shape == (10, 6, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 5)), r"float64 \[3, 4, 5\]"),
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
        (np.zeros((4, 3, 3), complex), "complex"),
        (np.full((4, 4, 3), 300), r"0\.\.255; this array has 300\.\.300"),
        (np.full((4, 4, 3), np.nan), "nan"),
    ],
)
def test_as_array_refuses_arrays_that_are_not_images(array, message):
    with pytest.raises(DataError, match=message):
        as_array(array)

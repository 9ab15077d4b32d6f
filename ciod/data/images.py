"""Pictures in and out: every mode Pillow knows becomes RGB, every failure a sentence naming the file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ciod.core.errors import DataError
from ciod.core.files import atomic_write, exists, is_folder

# The grey that pads a letterboxed picture: what is transparent looks like padding and adds no edge. White or black
# would draw one around every cut-out object, and the colours stored under alpha 0 are arbitrary.
BACKGROUND = (114, 114, 114)

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jp2", ".avif")
)

Size = tuple[int, int]  # height, width


def fit_within(height: int, width: int, longest: int) -> Size:
    """(height, width) in pixels after the longest side was brought down to ``longest``; smaller pictures stay."""
    scale = min(1.0, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def read_image(path: str | Path, size: Size | None = None) -> np.ndarray:
    """A picture as [H, W, 3] uint8 RGB.

    EXIF rotation is applied, unless the annotations count the pixels before it: ``size`` equals the picture as it
    is stored and not the rotated one. Transparency is laid over grey (114). Pictures of 16 bits and more are brought
    to 8: divided by 257 if any value is above 255, else taken as they are.

    Args:
        path: the file; of several frames the first counts.
        size: (height, width) as the annotations have it, in pixels.

    Raises:
        DataError: the file is absent, empty, no picture, truncated, or too large (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    return read_within(path, size, None)[0]


def read_within(path: str | Path, size: Size | None, longest: int | None) -> tuple[np.ndarray, Size]:
    """As ``read_image``, with the longest side brought down to ``longest`` pixels; and the file's own (height, width).

    JPEGs are made smaller by the decoder as far as it can, which takes a fraction of the time.

    Raises:
        DataError: as ``read_image``.
    """
    with _opened(path) as picture:
        turn = _orientation(picture)
        rotated, stored = _sizes(picture, turn)
        height, width = fit_within(*stored, longest) if longest else stored
        smaller = (height, width) != stored
        if smaller:
            picture.draft(None, (width, height))  # to a half, a quarter or an eighth, never below what is asked
        pixels = _rgb(picture)
        if smaller and pixels.shape[:2] != (height, width):
            pixels = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    if size is not None and tuple(size) == stored and tuple(size) != rotated:
        turn, rotated = 1, stored
    return np.ascontiguousarray(_turned(pixels, turn)), rotated


def as_array(image: str | Path | np.ndarray | Image.Image) -> np.ndarray:
    """A picture however it is given, as [H, W, 3] uint8 RGB: a file, a PIL image, or an array of 0..255.

    Raises:
        DataError: as ``read_image``; or an array that is not [H, W, 3] (or grey [H, W]) with values 0..255.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return np.ascontiguousarray(_turned(_rgb(image), _orientation(image)))
    array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size or array.dtype.kind not in "uif":
        raise DataError(f"A picture must be an array [H, W, 3] RGB, not {array.dtype} {list(array.shape)}.")
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 255):
            raise DataError(f"The values of a picture must be 0..255; this array has {low:g}..{high:g}.")
        array = np.rint(array).astype(np.uint8)
    return np.ascontiguousarray(array)


def image_size(path: str | Path) -> Size:
    """(height, width) in pixels after EXIF rotation, from the header alone.

    Raises:
        DataError: as ``read_image``, as far as the header shows it.
    """
    return header_sizes(path)[0]


def header_sizes(path: str | Path) -> tuple[Size, Size]:
    """(height, width) after EXIF rotation, and as stored.

    Raises:
        DataError: as ``image_size``.
    """
    with _opened(path) as picture:
        return _sizes(picture, _orientation(picture))


def save_image(path: str | Path, array: np.ndarray) -> None:
    """Writes [H, W, 3] (or [H, W]) uint8 in the format of the suffix, beside and then renamed: never half a file.

    Raises:
        DataError: the suffix is not that of a picture format.
        WriteError: no room, no permission, or another fault of the disk.
    """
    path, content = Path(path), io.BytesIO()
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise DataError(f"The picture {path} cannot be written: '{path.suffix}' is no format that Pillow writes.")
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(content, kind, quality=95)  # some formats ignore it
    atomic_write(path, content.getvalue())


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    path = Path(path)
    try:
        with Image.open(path) as picture:
            # Pillow itself refuses at twice the limit only and warns below; changing warning filters is not safe
            # in threads, so the limit is checked here.
            if Image.MAX_IMAGE_PIXELS and picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"The picture {path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which may be an attack; "
            "raise PIL.Image.MAX_IMAGE_PIXELS if it is real."
        ) from error
    except Exception as error:  # decoders of broken files raise almost anything: SyntaxError, struct.error, …
        raise DataError(_why(path, error)) from error


def _why(path: Path, error: Exception) -> str:
    if not exists(path):
        return f"The picture {path} does not exist."
    if is_folder(path):
        return f"{path} is a folder, not a picture."
    try:
        if path.stat().st_size == 0:
            return f"The picture {path} is empty (0 bytes)."
    except OSError:
        pass
    if isinstance(error, Image.UnidentifiedImageError):
        return f"{path} is not a picture that Pillow can read."
    return f"The picture {path} cannot be read: {error or type(error).__name__}."


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation 1..8. Asked before loading, so that header and pixels never disagree."""
    if picture.format == "TIFF":
        return 1  # Pillow turns TIFF itself, header size included
    if picture.format == "PNG" and not {"exif", "Raw profile type exif", "xmp"} & picture.info.keys():
        return 1  # Pillow would decode the whole picture to look for a late EXIF chunk
    try:
        turn = picture.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF around a good picture
        return 1
    return turn if turn in range(1, 9) else 1


def _sizes(picture: Image.Image, turn: int) -> tuple[Size, Size]:
    stored = (picture.height, picture.width)
    return ((picture.width, picture.height) if turn >= 5 else stored), stored


def _turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    if turn in (5, 7):  # the transpose, or the one over the other diagonal
        pixels = (pixels if turn == 5 else pixels[::-1, ::-1]).transpose(1, 0, 2)
    elif turn in (6, 8):  # a quarter clockwise, counter-clockwise
        pixels = np.rot90(pixels, -1 if turn == 6 else 1)
    elif turn in (3, 4):
        pixels = pixels[::-1, ::-1] if turn == 3 else pixels[::-1]
    elif turn == 2:
        pixels = pixels[:, ::-1]
    return pixels


def _rgb(picture: Image.Image) -> np.ndarray:
    """[H, W, 3] uint8."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        return np.repeat(_eight_bits(np.asarray(picture))[..., None], 3, axis=2)
    if picture.mode in ("La", "RGBa"):  # premultiplied alpha converts to its plain twin only
        picture = picture.convert(picture.mode.upper())
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
        picture = Image.alpha_composite(ground, picture)
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Grey of 16 or 32 bits, or float, as uint8; one rule for all pictures, so brightness stays comparable."""
    values = np.nan_to_num(grey.astype(np.float32))
    top = float(values.max(initial=0.0))
    if grey.dtype.kind == "f" and top <= 1:
        values = values * 255
    elif top > 255:
        values = values / 257
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)

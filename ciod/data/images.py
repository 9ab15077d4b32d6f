"""Reading and writing images: every mode of Pillow becomes RGB, and every error names the file."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ciod.core.errors import DataError
from ciod.core.files import atomic_write, exists, is_address, is_folder
from ciod.core.reading import Unreadable, check_regular, lfs_hint

# The grey of letterbox padding: transparent pixels then look like padding. White or black would add an edge around
# every cut-out object, and the colours stored under alpha 0 are arbitrary.
BACKGROUND = (114, 114, 114)

# Phone photographs: read if the package pillow-heif is installed
HEIF = frozenset((".heic", ".heif", ".hif"))
try:
    from pillow_heif import register_heif_opener  # type: ignore[import-not-found]

    register_heif_opener()
    READS_HEIF = True
except ImportError:
    READS_HEIF = False

_ALWAYS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif",
    ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif",
    ".avifs",
)  # fmt: skip
SUFFIXES = frozenset(_ALWAYS) | (HEIF if READS_HEIF else frozenset())

# The formats that are opened, whatever a file is called: for PostScript, Pillow would start Ghostscript, which runs it.
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "HEIF")

MAX_PIXELS = 250_000_000  # of a picture: 750 MB decoded; more is treated as an attack
DARK = 16  # of 255: a picture of floats that is never brighter and has fractions is in another range
PIXELS_VARIABLE = "CIOD_MAX_PIXELS"  # environment variable for another limit, which loader processes see too
_PILLOW_LIMIT = Image.MAX_IMAGE_PIXELS
_OPENING = threading.Lock()
# Pillow warns at a third of our limit, in the middle of progress lines; we check every image ourselves.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Size = tuple[int, int]  # height, width


def is_picture(name: str) -> bool:
    """Whether a file is an image that ciod reads, by its name."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 (asked by the hundred thousand)


def fit_within(height: int, width: int, longest: int) -> Size:
    """(height, width) in pixels with the longest side reduced to ``longest``; smaller images stay the same."""
    scale = min(1.0, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def read_image(path: str | Path, size: Size | None = None, stored: bool = False) -> np.ndarray:
    """An image as [H, W, 3] uint8 RGB.

    EXIF rotation is applied, unless the annotations refer to the unrotated pixels: ``stored`` is set, or ``size``
    equals the size as stored and not the rotated one. Transparency is blended with grey (114). Images with 16 bits
    or more are converted to 8: divided by 257 if any value is above 255, else unchanged.

    Args:
        path: the file; of several frames, the first is read.
        size: (height, width) according to the annotations, in pixels.
        stored: do not apply EXIF rotation.

    Raises:
        DataError: the file is missing, empty, not an image, truncated, or larger than ``max_pixels``.
    """
    return read_within(path, size, None, stored)[0]


def read_within(
    path: str | Path, size: Size | None, longest: int | None, stored: bool = False
) -> tuple[np.ndarray, Size]:
    """Like ``read_image``, with the longest side reduced to ``longest`` pixels; and the (height, width) of the file.

    The JPEG decoder does most of the reduction, which takes a fraction of the time.

    Raises:
        DataError: see ``read_image``.
    """
    with _opened(path) as picture:
        turn = _orientation(picture)
        rotated, plain = _sizes(picture, turn)
        height, width = fit_within(*plain, longest) if longest else plain
        smaller = (height, width) != plain
        if smaller:
            picture.draft(None, (width, height))  # to a half, a quarter or an eighth, but never below ``longest``
        pixels = _rgb(picture)
        if smaller and pixels.shape[:2] != (height, width):
            pixels = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    if stored or (size is not None and tuple(size) == plain and tuple(size) != rotated):
        turn, rotated = 1, plain
    return np.ascontiguousarray(_turned(pixels, turn)), rotated


def as_array(image: str | Path | np.ndarray | Image.Image) -> np.ndarray:
    """A file, PIL image, array or tensor as [H, W, 3] uint8 RGB.

    Arrays are [H, W, 3] RGB or grey [H, W] or [H, W, 1]: integers 0..255, ``uint16`` (converted to 8 bits as for
    files), or floats 0..255; if no float is above 1, they are taken as 0..1. Fractions up to DARK are refused: such a
    picture is in another range and would be read as black.

    Raises:
        DataError: see ``read_image``; or an array of another shape, type or range.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return np.ascontiguousarray(_turned(_rgb(image), _orientation(image)))
    if isinstance(image, (list, tuple)):
        raise DataError("A picture must not be a list of numbers; make it an array: numpy.asarray(…, dtype='uint8').")
    if isinstance(image, (bytes, bytearray, memoryview)) or hasattr(image, "read"):
        raise DataError("A picture must not be an open file or its bytes; give its path, or PIL.Image.open(…).")
    array = _values_of(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3) or not array.size or array.dtype.kind not in "uif":
        raise DataError(
            f"A picture must be an array [H, W, 3] RGB, not {array.dtype} {list(array.shape)}{_advice(array)}."
        )
    array = np.ascontiguousarray(_bytes_of(array))
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return array if array.flags.writeable else array.copy()  # tensors share memory, but not read-only memory


def _values_of(image: Any) -> np.ndarray:
    """The numbers of an array, or of a tensor on any device."""
    if not hasattr(image, "detach"):
        try:
            return np.asarray(image)
        except Exception as error:  # an object of any kind may raise anything
            kind = type(image).__name__
            raise DataError(f"A picture must be a path, a PIL image or an array, not {kind}.") from error
    tensor = image.detach().cpu()
    return (tensor.float() if tensor.dtype.is_floating_point else tensor).numpy()  # NumPy has no bfloat16


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """Values of an allowed range as uint8."""
    if array.dtype == np.uint8:
        return array
    low, high = float(array.min()), float(array.max())
    if array.dtype == np.uint16:
        return _eight_bits(array)
    if not (low >= 0 and high <= 255):
        hint = "; a normalized picture must be brought back to 0..255 or 0..1 first" if low < 0 else ""
        raise DataError(f"The values of a picture must be 0..255; this array has {low:g}..{high:g}{hint}.")
    if array.dtype.kind == "f" and 0 < high <= DARK:
        if high <= 1.001:  # at most 1 plus a rounding error
            array = np.minimum(array, 1).astype(np.float32) * 255
        elif (array != np.rint(array)).any():
            raise DataError(
                f"The values of a picture of floats must be 0..1 or 0..255; this array has {low:g}..{high:g}, which "
                "is neither. Scale it to 0..255 and make it uint8."
            )
    return np.rint(array).astype(np.uint8)


def _advice(array: np.ndarray) -> str:
    """Advice for an array with wrong axes or type."""
    if array.ndim == 4:
        return "; give the pictures of a batch as a list"
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        return "; it looks like [3, H, W], so transpose it: array.transpose(1, 2, 0)"
    if array.ndim == 3 and array.shape[2] == 4:
        return "; leave its alpha channel out: array[..., :3]"
    if array.dtype.kind == "b":
        return "; make it uint8: array.astype('uint8') * 255"
    return ""


def image_size(path: str | Path) -> Size:
    """(height, width) in pixels after EXIF rotation, only from the header.

    Raises:
        DataError: see ``read_image``, as far as the header shows it.
    """
    return header_sizes(path)[0]


def header_sizes(path: str | Path) -> tuple[Size, Size]:
    """(height, width) after EXIF rotation, and as stored.

    Raises:
        DataError: see ``image_size``.
    """
    return read_header(path)[:2]


def read_header(path: str | Path) -> tuple[Size, Size, int]:
    """(height, width) after EXIF rotation, the same as stored, and the EXIF orientation 1..8.

    Raises:
        DataError: see ``image_size``.
    """
    with _opened(path) as picture:
        turn = _orientation(picture)
        return *_sizes(picture, turn), turn


def max_pixels() -> int:
    """Maximum number of pixels of an image: the environment variable ``CIOD_MAX_PIXELS``, else
    ``PIL.Image.MAX_IMAGE_PIXELS`` if it was changed, else ``MAX_PIXELS``.

    Raises:
        DataError: the variable is not a number of pixels.
    """
    if text := os.environ.get(PIXELS_VARIABLE, "").strip():
        try:
            number = float(text.replace("_", ""))
        except ValueError:
            number = 0
        if not 1 <= number < 2**63:
            raise DataError(f"{PIXELS_VARIABLE}={text} is not a number of pixels; write for example 400e6.")
        return int(number)
    with _OPENING:  # not while it is suspended
        theirs = Image.MAX_IMAGE_PIXELS
    return MAX_PIXELS if theirs == _PILLOW_LIMIT else theirs or 2**63


def save_image(path: str | Path, array: np.ndarray) -> None:
    """Writes [H, W, 3] (or [H, W]) uint8 in the format of the suffix, atomically.

    Raises:
        DataError: the suffix is not that of an image format.
        WriteError: a full disk, no permission, or another fault of the disk.
    """
    path, content = Path(path), io.BytesIO()
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise DataError(
            f"The picture {path} cannot be written: '{path.suffix}' is not a format that Pillow writes; use .png."
        )
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(content, kind, quality=95)  # some formats ignore it
    atomic_write(path, content.getvalue())


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    path, limit = Path(path), max_pixels()
    try:
        check_regular(path)
        with _open(path) as picture:
            if picture.width * picture.height > limit:
                raise Image.DecompressionBombError
            yield picture
    except Image.DecompressionBombError as error:
        raise DataError(
            f"The picture {path} has more than {limit:,} pixels, which may be an attack; if it is real, set the "
            f"environment variable {PIXELS_VARIABLE} to a larger number, such as {4 * limit:.2g}."
        ) from error
    except Exception as error:  # decoders of broken files raise almost anything: SyntaxError, struct.error, …
        raise DataError(_why(path, error)) from error


def _open(path: Path) -> Image.Image:
    """Opens an image of any size: Pillow's own limit is suspended, for all threads, while a large one is opened."""
    try:
        return Image.open(path, formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        with _OPENING:
            theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(path, formats=_formats())
            finally:
                Image.MAX_IMAGE_PIXELS = theirs


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this Pillow supports."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _why(path: Path, error: Exception) -> str:
    if is_address(path):
        return f"{path} is an address; ciod reads files only: download the picture first."
    if not exists(path):
        return f"The picture {path} does not exist."
    if is_folder(path):
        return f"{path} is a folder, not a picture."
    if isinstance(error, Unreadable):
        return str(error)
    try:
        if path.stat().st_size == 0:
            return f"The picture {path} is empty (0 bytes)."
    except OSError:
        pass
    if isinstance(error, Image.UnidentifiedImageError):
        hint = ""
        if path.suffix.lower() in HEIF and not READS_HEIF:
            hint = " Convert it to JPEG, or install pillow-heif."
        return f"{path} is not a picture in a format that ciod reads.{hint or lfs_hint(path)}"
    return f"The picture {path} cannot be read: {error or type(error).__name__}."


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation 1..8. Read before loading, so that header and pixels always agree."""
    if picture.format == "TIFF":
        return 1  # Pillow rotates TIFF itself, including the header size
    if picture.format == "PNG" and not {"exif", "Raw profile type exif", "xmp"} & picture.info.keys():
        return 1  # Pillow would decode the full image to look for a late EXIF chunk
    try:
        turn = picture.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF in a good image
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
    if picture.mode in ("La", "RGBa"):  # premultiplied alpha can only be converted to plain alpha
        picture = picture.convert(picture.mode.upper())
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
        picture = Image.alpha_composite(ground, picture)
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Grey of 16 or 32 bits, or float, as uint8; the same rule for all images, so brightness stays comparable."""
    values = np.nan_to_num(grey.astype(np.float32))
    top = float(values.max(initial=0.0))
    if grey.dtype.kind == "f" and top <= 1:
        values = values * 255
    elif top > 255:
        values = values / 257
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)

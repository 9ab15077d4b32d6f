"""How pictures must be given to a foreign graph: from its metadata, or from ``input=``. It is never guessed, because a
detector can be confident with wrong inputs.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from ciod.core.errors import CiodError, ConfigError, did_you_mean
from ciod.core.limits import LARGEST
from ciod.core.plural import counted
from ciod.data.augment import Placement
from ciod.detectors.base import IMAGENET, Input
from ciod.detectors.files.checkpoint import spelled_out
from ciod.detectors.onnx.file import OnnxFile

LONGEST = 16 << 20  # characters of one entry of the metadata
DEFAULT_SIZE = 640

RANGES: dict[str, dict[str, Any]] = {
    "0..1": {"mean": (0.0,) * 3, "std": (255.0,) * 3},
    "0..255": {"mean": (0.0,) * 3, "std": (1.0,) * 3},
    "-1..1": {"mean": (127.5,) * 3, "std": (127.5,) * 3},
    "imagenet": IMAGENET,
}
COLOURS = ("rgb", "bgr")
PLACES = get_args(Placement)


def parse(given: Any) -> Input:
    """``0..255,bgr,corner,114`` → Input (with the default size).

    Raises:
        ConfigError: an unknown word, a repeated part, or no range or no order of colours.
    """
    text = given if isinstance(given, str) else ",".join(map(str, given if isinstance(given, list) else [given]))
    found: dict[str, list[str]] = {"range": [], "colours": [], "place": []}
    numbers: list[float] = []
    problems = []
    for word in (w.strip().lower() for w in text.split(",")):
        if word in RANGES:
            found["range"].append(word)
        elif word in COLOURS:
            found["colours"].append(word)
        elif word in PLACES:
            found["place"].append(word)
        elif (number := _number(word)) is not None:
            numbers.append(number)
        else:
            problems.append(f"input: {word!r} is unknown; {did_you_mean(word, [*RANGES, *COLOURS, *PLACES])}")
    problems += [f"input: it has {' and '.join(words)}; give only one." for words in found.values() if len(words) > 1]
    if len(numbers) not in ((0, 1) if found["range"] else (0, 1, 6, 7)):
        problems.append(
            f"input: it has {counted(len(numbers), 'number')}; write mean and deviation of R, G, B (six, in 0..255), a "
            f"fill, or both."
        )
    elif any(s <= 0 for s in numbers[3:6]):
        problems.append("input: a deviation must be above 0.")
    has_range = found["range"] or len(numbers) >= 6
    if not problems and not (has_range and found["colours"]):
        lacking = "the order of colours, rgb or bgr" if has_range else f"the range of values: {', '.join(RANGES)}"
        problems.append(f"input: {text!r} lacks {lacking}.")
    if problems:
        raise ConfigError(problems)
    values = RANGES[found["range"][0]] if found["range"] else {"mean": (*numbers[:3],), "std": (*numbers[3:6],)}
    fill = numbers[-1] if len(numbers) in (1, 7) else 114.0
    place = found["place"][0] if found["place"] else "corner"
    return Input(bgr=found["colours"] == ["bgr"], fill=fill, place=place, **values)  # type: ignore[arg-type]


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def words(network_input: Input) -> str:
    """``0..255, BGR, corner``."""
    same = (k for k, v in RANGES.items() if v["mean"] == network_input.mean and v["std"] == network_input.std)
    values = next(same, f"mean {network_input.mean}, deviation {network_input.std}")
    return f"{values}, {'BGR' if network_input.bgr else 'RGB'}, {network_input.place}"


def choose(source: OnnxFile, given: Any, size: int | None) -> tuple[Input, str]:
    """How pictures are given, and the source of this.

    Args:
        given: ``input=``, or None.
        size: ``size=``, for a graph that takes any.

    Raises:
        ConfigError: ``input=`` or ``size=`` is impossible, or contradicts the file.
        CiodError: neither the file nor the user says it.
    """
    side = size_of(source, size)
    found = of_metadata(source)
    chosen = None if given is None else parse(given)
    if found is not None:
        own = replace(found[0], size=side)
        if chosen is not None and replace(chosen, size=side, fill=own.fill, place=own.place) != own:
            raise ConfigError(
                [f"input: {source.path.name} takes {words(own)} ({found[1]}); input={given} contradicts it."]
            )
        return own, found[1]
    if chosen is None:
        raise CiodError(
            f"{source.path} does not say how pictures must be given. Write input=0..1,rgb (YOLOv5 to 26, "
            "RT-DETR, torchvision's detection models), input=0..255,bgr (YOLOX), input=imagenet,bgr (NanoDet), "
            "input=imagenet,rgb (PaddleDetection), or six numbers, mean and deviation in 0..255; then corner, "
            "letterbox or stretch."
        )
    return replace(chosen, size=side), "input="


def size_of(source: OnnxFile, size: int | None) -> int:
    """The side of the input in pixels.

    Raises:
        ConfigError: the file has another fixed size.
    """
    if source.picture.side is not None:
        if size not in (None, source.picture.side):
            raise ConfigError(
                [f"size: {source.path.name} takes pictures of {source.picture.side} pixels and no others."]
            )
        return source.picture.side
    if size is not None:
        return size
    own = ciod_metadata(source).get("input", {}).get("size")
    sizes = _literal(source.metadata.get("imgsz"))
    side = own or (max(sizes) if isinstance(sizes, list) and sizes else sizes)
    return side if isinstance(side, int) and 32 <= side <= LARGEST else DEFAULT_SIZE


def of_metadata(source: OnnxFile) -> tuple[Input, str] | None:
    """What the metadata of the file say, except the size."""
    own = ciod_metadata(source)
    if "normalised_in_graph" in own:  # written by ciod export
        given = own.get("input", {})
        place = "stretch" if given.get("place") == "stretch" else "corner"
        return Input(fill=float(given.get("fill", 114.0)), place=place), "metadata of ciod"
    if isinstance(own.get("input"), dict) and "mean" in own["input"]:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in own["input"].items()}
        try:
            return Input(**fields), "metadata of ciod"
        except TypeError as error:
            raise CiodError(
                f"{source.path} is damaged: its metadata do not describe an input ({error}). Export it again."
            ) from error
    if isinstance(_literal(source.metadata.get("names")), (dict, list)) and "stride" in source.metadata:
        return Input(place="letterbox", **RANGES["0..1"]), "metadata of Ultralytics"
    return None


def ciod_metadata(source: OnnxFile) -> dict[str, Any]:
    """What ciod last wrote into the file; {} for a file from elsewhere."""
    keys = [k for k in source.metadata if re.fullmatch(r"ciod(\.[0-9]{1,9})?", k)]
    if not keys:
        return {}
    text = source.metadata[max(keys, key=lambda k: int(k.removeprefix("ciod").removeprefix(".") or 0))]
    try:
        found = json.loads(text) if len(text) <= LONGEST else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CiodError(
            f"{source.path} is damaged: what ciod wrote into its metadata is not readable. Export it again."
        )
    return found


def _literal(text: str | None) -> Any:
    """A value in Python's notation, as Ultralytics writes it; no code is run."""
    if text is None or len(text) > LONGEST:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


# Names ----------------------------------------------------------------------------------------------------------------

NO_CLASS = ("__background__", "background", "N/A")


def names_of(source: OnnxFile, given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Class names: the given ones (a list, ``coco``, a file with one name per line), or those of the metadata.

    Raises:
        ConfigError: a repeated name, or another number of names than the file has.
    """
    own = ciod_metadata(source).get("class_names") or _literal(source.metadata.get("names"))
    if isinstance(own, dict):
        own = [own[k] for k in sorted(own, key=lambda k: (isinstance(k, str), k))]
    in_file = tuple(str(n) for n in own) if isinstance(own, list) else None
    if given is None:
        return in_file
    found = spelled_out(given)
    real = [n for n in found if n not in NO_CLASS]
    if twice := next((n for n in real if real.count(n) > 1), None):
        raise ConfigError([f"names: {twice!r} appears twice."])
    if in_file is not None and len(in_file) != len(found):
        raise ConfigError(
            [f"names: {source.path.name} has {counted(len(in_file), 'class')}, but names= gives {len(found)}."]
        )
    return found

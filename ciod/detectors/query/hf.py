"""Folders of ``transformers``: ``hf:FOLDER``, or ``hf:OWNER/NAME`` from huggingface.co.

What a folder says about its model: configuration, class names, how pictures are given, its licence. Only JSON is read
here, and ``files.hf_files`` reads the weights; no code of a folder runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ciod.core.errors import CiodError, DataError
from ciod.core.files import expanded, is_file, is_folder, near_path
from ciod.core.limits import LARGEST
from ciod.core.reading import SETTINGS, read_object, read_text
from ciod.data import names as known
from ciod.detectors.base import Input
from ciod.detectors.query import configs

WEIGHTS = "model.safetensors"
_TEXTS = ["config.json", "preprocessor_config.json", "README.md"]
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_NAMELESS = re.compile(r"(?i)(label_\d+|n/a|none|(__)?background(__)?|)")
NOT_FREE = (
    (r"(?i)rf-?detr[-_]?(x|2x|xx)-?l", "RF-DETR XL and 2XL are under PML-1.0"),
    (r"(?i)\bpml\b|platform[ -]model", "its licence is PML-1.0"),
    (r"(?i)\bcc-by-nc|non-?commercial|\bnc-", "its licence forbids commercial use"),
    (r"(?i)\b(open)?rail\b|research[ -]only|academic", "its licence restricts what it may be used for"),
)


@dataclass(frozen=True)
class Described:
    """What a folder says."""

    folder: Path
    config: dict[str, Any]
    """The network, see ``configs.plain``."""
    labels: tuple[str, ...]
    """One for each row of the class layers, also rows that no class has."""
    input: Input

    @property
    def rows(self) -> list[int]:
        """Those that have the name of a class."""
        return [i for i, n in enumerate(self.labels) if not _NAMELESS.fullmatch(n.strip())]

    def names(self, given: Sequence[str] | None = None) -> tuple[list[int], tuple[str, ...]]:
        """Rows and names of the classes.

        Args:
            given: names that replace those of the folder; one for each row, or for each row with a name.

        Raises:
            CiodError: there are none, or another number of them, or a name appears twice.
        """
        every, rows = list(range(len(self.labels))), self.rows
        found = tuple(self.labels[i] for i in rows)
        if given:
            rows = rows if len(given) == len(rows) else every
            found = tuple(given)
        elif not rows and len(every) == len(known.COCO):
            rows, found = every, known.COCO
        if not found:
            raise CiodError(f"{self.folder} has {len(every)} classes but no class names; give them: names=a,b,c.")
        if len(found) != len(rows):
            raise CiodError(f"{self.folder} has {len(every)} classes, but {len(found)} names were given.")
        if len(set(found)) < len(found):
            twice = next(n for i, n in enumerate(found) if n in found[:i])
            raise CiodError(f"{self.folder} has two classes that are called {twice!r}; give names=a,b,c.")
        return rows, found


def folder_of(name: str, *, weights: bool = False) -> Path:
    """The folder of ``hf:FOLDER`` or ``hf:OWNER/NAME``, which is downloaded from huggingface.co if it is not a folder.

    Args:
        weights: fetch the weights too.

    Raises:
        CiodError: there is none, it cannot be fetched, or it is not under a free licence.
    """
    given = name.removeprefix(configs.PREFIX)
    folder = expanded(given)
    _check_licence(given, given)
    if not is_folder(folder):
        if is_file(folder):
            raise CiodError(f"{name}: {given} is a file; name the folder that holds its config.json.")
        if not _NAME.fullmatch(given):
            raise CiodError(
                f"{name}: there is no folder {given}{near_path(folder, is_folder)} A model on the Hub is hf:user/model."
            )
        folder = _fetched(given, [*_TEXTS, WEIGHTS] if weights else _TEXTS)
    _check_licence(given, _licence(folder / "README.md"))
    return folder


def _fetched(name: str, files: list[str]) -> Path:
    configs.package()
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=files))
    except Exception as error:  # of the network, of the hub, or of the cache
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise CiodError(
            f"hf:{name}: there is no folder {name}, and it cannot be fetched from huggingface.co: {why} Give the "
            "folder of a model that save_pretrained wrote."
        ) from error


def _licence(card: Path) -> str:
    """What the head of a model card says about the licence."""
    if not is_file(card):
        return ""
    try:
        head = read_text(card, SETTINGS).split("---")
    except DataError:
        return ""
    return " ".join(re.findall(r"(?m)^license(?:_name)?:\s*(.+)$", head[1])) if len(head) > 2 else ""


def why_not_free(text: str) -> str | None:
    """Why the weights of this name, or under this licence, are refused; None: they are not."""
    return next((why for pattern, why in NOT_FREE if re.search(pattern, text)), None)


def _check_licence(name: str, text: str) -> None:
    if why := why_not_free(text):
        raise CiodError(f"hf:{name} is refused: {why}. ciod builds on weights under free licences only.")


def describe(name: str, *, weights: bool = False) -> Described:
    """Reads the JSON of a folder.

    Raises:
        CiodError: no such folder, or it describes no detector that ciod reads.
    """
    folder = folder_of(name, weights=weights)
    raw = read_object(folder / "config.json", SETTINGS)
    config = configs.plain(raw, str(folder))
    pictures = folder / "preprocessor_config.json"
    if not is_file(pictures):
        raise CiodError(f"{folder} has no preprocessor_config.json, which says how pictures are given.")
    given = input_of(read_object(pictures, SETTINGS), str(pictures), configs.multiple(config))
    return Described(folder, config, _labels(raw, folder), given)


def model_type(name: str) -> str:
    """The family of ``hf:FOLDER``; of ``hf:rt_detr``, as a model file has it, itself."""
    given = name.removeprefix(configs.PREFIX)
    if given in configs.FAMILIES:
        return given
    folder = folder_of(name)
    return configs.model_type(read_object(folder / "config.json", SETTINGS), str(folder))


def _labels(raw: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    found = raw.get("id2label")
    if not isinstance(found, Mapping):  # of a model whose number of classes alone is known
        count = raw.get("num_labels", 2)
        found = {str(i): f"LABEL_{i}" for i in range(count if isinstance(count, int) and count < LARGEST else 0)}
    try:
        labels = {int(k): str(v) for k, v in found.items()}
    except ValueError:
        labels = {}
    if not labels or sorted(labels) != list(range(len(labels))):
        raise CiodError(f"{folder}/config.json: id2label is not a list of classes numbered from 0.")
    return tuple(labels[i] for i in range(len(labels)))


def input_of(given: Mapping[str, Any], source: str, multiple: int = 32) -> Input:
    """How pictures are given, as a ``preprocessor_config.json`` says it.

    Args:
        multiple: of this the side must be one.

    Raises:
        CiodError: in a way that ciod does not have: not square, or of no fixed size.
    """
    size = given.get("size") or {"height": 640, "width": 640}
    size = size if isinstance(size, Mapping) else {"height": size, "width": size}
    pad = given.get("pad_size") or {}
    place: Literal["corner", "stretch"] = "stretch"
    sides = [size.get("height"), size.get("width")]
    if "max_height" in size and given.get("do_pad") and isinstance(pad, Mapping):
        place, sides = "corner", [size.get(k) for k in ("max_height", "max_width")] + [*pad.values()]
    side = sides[0]
    if not isinstance(side, int) or set(sides) != {side} or not 32 <= side <= LARGEST or side % multiple:
        raise CiodError(
            f"{source}: size {dict(size)} is not a square with sides of a multiple of {multiple} pixels, stretched "
            "(height, width) or with a border (max_height, max_width, pad_size)."
        )
    try:
        scale = float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0
        mean, std = [0.0] * 3, [1.0] * 3
        if given.get("do_normalize", False):
            mean, std = ([float(v) for v in given[k]] for k in ("image_mean", "image_std"))
        means, stds = (tuple(round(v / scale, 4) for v in values) for values in (mean, std))
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise CiodError(f"{source}: image_mean, image_std and rescale_factor must be numbers ({error}).") from error
    if not len(means) == len(stds) == 3 or min(stds) <= 0:
        raise CiodError(f"{source}: image_mean and image_std must have three numbers, the latter above 0.")
    return Input(size=side, mean=_three(means), std=_three(stds), fill=0.0, place=place)


def settings_of(name: str) -> dict[str, Any]:
    """Settings of a detector for ``hf:FOLDER``, with which a model file is enough to build it."""
    found = describe(name)
    return {
        "name": configs.PREFIX + found.config["model_type"],
        "config": json.dumps(found.config),
        **input_settings(found.input),
    }


def input_settings(given: Input) -> dict[str, Any]:
    """An ``Input`` as settings of a detector."""
    return {"size": given.size, "mean": list(given.mean), "std": list(given.std), "place": given.place}


def input_from(settings: Mapping[str, Any]) -> Input:
    """The inverse of ``input_settings``.

    Raises:
        CiodError: they describe none.
    """
    mean, std, place = settings.get("mean"), settings.get("std"), settings.get("place")
    triples = all(isinstance(v, list) and len(v) == 3 and all(isinstance(x, float) for x in v) for v in (mean, std))
    if not triples or place not in ("corner", "stretch") or min(std or [0]) <= 0:
        raise CiodError(f"{settings['name']}: mean, std and place in its settings do not describe an input.")
    return Input(settings["size"], _three(mean or ()), _three(std or ()), fill=0.0, place=place)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue

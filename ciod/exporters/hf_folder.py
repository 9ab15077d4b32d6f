"""Exports a query detector to a folder that ``transformers`` loads: configuration, weights, how pictures are given."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciod.core.errors import CiodError
from ciod.core.files import atomic_write, exists, explained
from ciod.core.reading import Unreadable, read_object
from ciod.core.version import __version__
from ciod.detectors.base import Detector

if TYPE_CHECKING:
    from ciod.detectors.base import Input

FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


@dataclass(frozen=True)
class Written:
    folder: Path
    notes: list[str]
    """Notes for users who load the folder."""

    def lines(self) -> list[str]:
        """Text for the terminal."""
        return [str(self.folder), *self.notes]

    def content(self) -> dict[str, Any]:
        """The entries for ``--json``."""
        return {"folder": str(self.folder), "notes": self.notes}


def export(
    model: str | Path | Detector,
    folder: str | Path,
    *,
    size: int | None = None,
    names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Written:
    """Writes ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` into ``folder``.

    The class layers are written in one piece, so that nothing of ciod is needed to read them. Denoising queries, which
    only training in ``transformers`` has, are switched off (``num_denoising`` is 0), as their embedding has no row for
    a new class.

    Args:
        model: a detector, or a file for ``ciod.load``.
        size: side of the images (default: that of the model).
        names: class names for a checkpoint without them.
        overwrite: also replace files with these names that ``ciod export`` did not write.

    Raises:
        CiodError: no model, a detector that ``transformers`` does not have, or the folder cannot be written.
    """
    from ciod.detectors.files import hf_files
    from ciod.detectors.files.weights import open_detector
    from ciod.detectors.query import configs

    out = Path(folder)
    _keep(out, model, overwrite)
    detector = open_detector(model, size, names).frozen().cpu()
    if not detector.num_classes:
        raise CiodError("The model has no classes yet; train it first.")
    network = hf_files.to_transformers(detector)
    with tempfile.TemporaryDirectory() as beside, configs.quiet(), explained(out):
        network.save_pretrained(beside)
        found = {p.name: p.read_bytes() for p in Path(beside).iterdir()}
    found["preprocessor_config.json"] = json.dumps(pictures(detector.input), indent=2).encode()
    found["config.json"] = json.dumps({**json.loads(found["config.json"]), "ciod": __version__}, indent=2).encode()
    for name in FILES:
        atomic_write(out / name, found[name])
    return Written(out, notes(detector.input))


def _keep(folder: Path, model: str | Path | Detector, overwrite: bool) -> None:
    """Raises CiodError if a file would be lost: the model itself, or without ``overwrite`` one that ciod did not
    write."""
    from ciod.detectors.files.weights import file_of

    there = [n for n in FILES if exists(folder / n)]
    if not there:
        return
    if not isinstance(model, Detector) and any(
        os.path.realpath(folder / n) == os.path.realpath(file_of(model)) for n in there
    ):
        raise CiodError(f"hf: {folder} is the model itself; choose another folder.")
    if not overwrite and "ciod" not in _config(folder / "config.json"):
        raise CiodError(
            f"hf: {folder / there[0]} already exists and was not written by 'ciod export'; choose another folder, or "
            "write overwrite=true."
        )


def _config(path: Path) -> Mapping[str, Any]:
    try:
        return read_object(path)
    except Unreadable:
        return {}


def pictures(given: Input) -> dict[str, Any]:
    """The image processor of ``transformers`` that prepares pictures as ``given`` says.

    Raises:
        CiodError: it cannot.
    """
    side = given.size
    if given.bgr or given.place == "letterbox" or (given.place == "corner" and given.fill):
        raise CiodError(
            "The image processor of transformers has neither BGR nor a border in the middle or of a colour."
        )
    stretched = {"size": {"height": side, "width": side}, "do_pad": False}
    border = {
        "size": {"max_height": side, "max_width": side},
        "do_pad": True,
        "pad_size": {"height": side, "width": side},
    }
    return {
        "image_processor_type": "RTDetrImageProcessor",
        "format": "coco_detection",
        "do_convert_annotations": True,
        "do_resize": True,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": any(given.mean) or set(given.std) != {255.0},
        "image_mean": [v / 255 for v in given.mean],
        "image_std": [v / 255 for v in given.std],
        **(stretched if given.place == "stretch" else border),
    }


def notes(given: Input) -> list[str]:
    """Notes for users who load the folder."""
    if given.place == "stretch":
        return []
    return [
        "This model takes pictures with a border at the right and at the bottom. The pipeline of transformers scales "
        "boxes as if the picture filled the square: call post_process_object_detection yourself, with the longest side "
        "of the picture as height and width in target_sizes."
    ]

"""Settings of the commands without sections: their types and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from ciod.config import checks, outputs, reader
from ciod.config.marks import NO_RESULT
from ciod.config.reader import Table
from ciod.config.settings import Positive, Section, Seed, Share, Size
from ciod.core.errors import ConfigError

Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
"""``a,b`` or ``[a, b]``: one or more names of classes."""

Engine = Literal["auto", "torch", "onnx"]


class Eval(Section):
    """Settings of ``ciod eval``."""

    data: str
    """Data set in any format that ciod reads."""
    split: str = "val"
    """The split of it that is scored."""
    size: Size | None = None
    """Side of the input in pixels; None: the model's own."""
    score_threshold: Share = 0.001
    """Detections below this are not scored."""
    nms_iou: Share | None = None
    """IoU above which the weaker of two boxes of one class is suppressed; None: 0.65, or 1 for query detectors."""
    max_detections: Positive | None = None
    """Maximum number of detections per class and image, the best first; None: 100. With ``metric=lvis`` it counts per
    image, and None means 300."""
    multi_label: bool | None = None
    """Each class of a position counts (true), or only the best (false); None: as is usual for the detector."""
    device: Annotated[str, NO_RESULT] = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``."""
    engine: Annotated[Engine, NO_RESULT] = "torch"
    """What runs the network. ``torch``: PyTorch, the model as it is. ``onnx``: ONNX Runtime, on a CPU; scores differ by
    rounding. ``auto``: the faster one, as in ``ciod predict``."""
    classes: Names | None = None
    """Only these are scored."""
    names: Names | None = None
    """Class names for a checkpoint without names, a file with them, or ``coco``."""
    detector: str | None = None
    """For a model of a detector of your own, ``FILE.py:CLASS`` (docs/adding-a-detector.md)."""
    arbiter: bool = True
    """``off``: the raw scores of branches (docs/extend.md)."""
    input: list[str] | None = None
    """How pictures are given, for an ONNX file that does not say it: ``0..255,bgr``."""
    metric: Literal["coco", "voc07", "voc", "lvis"] = "coco"
    """``voc07`` (11-point) and ``voc`` (area) are reported in addition to COCO's AP. ``lvis``: LVIS's AP instead."""
    json_file: Annotated[str | None, NO_RESULT] = None
    """File for the scores (written ``json=FILE``)."""
    out: Annotated[str | None, NO_RESULT] = None
    """Folder for a page with precision-recall curves and the confusion matrix, ``eval.html``, and its figures."""


class Predict(Section):
    """Settings of ``ciod predict``."""

    out: Annotated[str, NO_RESULT] = "predictions"
    """Folder for drawn pictures, videos and ``predictions.json``."""
    score: Share | None = None
    """Lowest score that is shown; None: 0.3."""
    classes: Names | None = None
    """Detect only these classes."""
    draw: Annotated[bool, NO_RESULT] = True
    """False: write only JSON."""
    overwrite: Annotated[bool, NO_RESULT] = False
    """True: replaces an earlier prediction in ``out``, and other files of the same names."""
    coco: Annotated[str | None, NO_RESULT] = None
    """File for COCO results."""
    data: str | None = None
    """Data set with the image and category ids of the COCO results, and the pictures if no file is named."""
    split: str = "val"
    """The split of it that is used."""
    batch: Annotated[Positive, NO_RESULT] = 8
    """Pictures per forward pass."""
    size: Size | None = None
    """Side of the input in pixels; None: the model's own."""
    nms_iou: Share | None = None
    """IoU above which the weaker of two boxes of one class is suppressed; None: 0.65."""
    max_detections: Positive | None = None
    """Maximum number of detections per picture, the best first; None: 100."""
    device: Annotated[str, NO_RESULT] = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``."""
    engine: Annotated[Engine, NO_RESULT] = "auto"
    """What runs the network. ``onnx``: ONNX Runtime, on a CPU. ``torch``: PyTorch. ``auto``: ONNX Runtime for 100
    pictures or a video on a CPU, where it is installed and can run the network; else PyTorch."""
    names: Names | None = None
    """Class names for a checkpoint without names, a file with them, or ``coco``."""
    finest: bool = False
    """Where a class became several (``ciod extend split=``), a box has one name: that of its surest kind, or of the
    class itself where no kind has half of its score."""
    detector: str | None = None
    """For a model of a detector of your own, ``FILE.py:CLASS`` (docs/adding-a-detector.md)."""
    arbiter: bool = True
    """``off``: the raw scores of branches (docs/extend.md)."""
    input: list[str] | None = None
    """How pictures are given, for an ONNX file that does not say it: ``0..255,bgr``."""


class Export(Section):
    """Settings of ``ciod export MODEL onnx=FILE``."""

    onnx: Annotated[str, NO_RESULT]
    """The file to write."""
    nms: bool = False
    """Non-maximum suppression in the graph."""
    size: Size | None = None
    """Side of the input in pixels; None: the model's own."""
    dynamic_size: bool = False
    """The graph also accepts other sizes."""
    opset: int = 17
    """Version of the ONNX operators."""
    score_threshold: Share | None = None
    """With ``nms``: lowest score that is returned; None: the detector's own."""
    nms_iou: Share | None = None
    """With ``nms``: IoU above which the weaker of two boxes of one class is suppressed; None: the detector's own."""
    max_detections: Positive | None = None
    """With ``nms``: largest number of detections per picture, the best first; None: 100."""
    overwrite: Annotated[bool, NO_RESULT] = False
    """True: also replaces a file that 'ciod export' did not write."""
    images: Annotated[str | None, NO_RESULT] = None
    """Folder of pictures to compare graph and model on."""
    tolerance: Annotated[Annotated[float, Field(gt=0, le=1)] | None, NO_RESULT] = None
    """Largest difference between them: of a score, and of a box as a share of its side; None: 0.001."""
    names: Names | None = None
    """Class names for a checkpoint without names, a file with them, or ``coco``."""
    detector: str | None = None
    """For a model of a detector of your own, ``FILE.py:CLASS`` (docs/adding-a-detector.md)."""
    arbiter: bool = True
    """``off``: the raw scores of branches (docs/extend.md)."""


class ExportMMDet(Section):
    """Settings of ``ciod export MODEL mmdet=FOLDER``."""

    mmdet: Annotated[str, NO_RESULT]
    """The folder for config and checkpoint."""
    overwrite: Annotated[bool, NO_RESULT] = False
    """True: also replaces a config or checkpoint that 'ciod export' did not write."""
    size: Size | None = None
    """Side of the input in pixels; None: the model's own."""
    names: Names | None = None
    """Class names for a checkpoint without names, a file with them, or ``coco``."""


class ExportHF(Section):
    """Settings of ``ciod export MODEL hf=FOLDER``."""

    hf: Annotated[str, NO_RESULT]
    """The folder that transformers loads."""
    overwrite: Annotated[bool, NO_RESULT] = False
    """True: also replaces a folder that 'ciod export' did not write."""
    size: Size | None = None
    """Side of the input in pixels; None: the model's own."""
    names: Names | None = None
    """Class names for a checkpoint without names, a file with them, or ``coco``."""


class Check(Section):
    """Settings of ``ciod check``."""

    input: list[str] | None = None
    """How pictures are given: ``0..255,bgr``."""
    names: Names | None = None
    """Class names, a file with them, or ``coco``."""
    size: Positive | None = None
    """Side of the input in pixels, for a file that accepts any."""
    old_outputs: str = "auto"
    """Layout of the outputs, by name."""
    taps: str | None = None
    """Tensors to read: ``8:a,b 16:c,d 32:e``."""


class CheckCode(Section):
    """Settings of ``ciod check FILE.py:CLASS``."""

    size: Size = 64
    """Side of the pictures in pixels."""
    onnx: bool = True
    """Whether a detector is also exported; false: it need not be exportable."""


class Demo(Section):
    """Settings of ``ciod demo``."""

    out: Annotated[str, NO_RESULT] = "demo"
    """Folder for the comparison and its page."""
    seed: Seed = 0
    """Seed of scenes, weights and training."""
    device: Annotated[str, NO_RESULT] = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``."""


class Download(Section):
    """Settings of ``ciod data``."""

    out: Annotated[str | None, NO_RESULT] = None
    """Folder for the data set; without it nothing is downloaded."""
    mirror: Annotated[str | None, NO_RESULT] = None
    """Web folder with the same archives."""
    keep: Annotated[bool, NO_RESULT] = False
    """Keep the archives."""


class Push(Section):
    """Settings of ``ciod push``."""

    license: Annotated[str | None, NO_RESULT] = None
    """Licence of the weights and of those they started from, as the Hub names it: ``apache-2.0``."""
    private: Annotated[bool, NO_RESULT] = False
    """Only its owner sees a repository that is made."""
    results: Annotated[str | None, NO_RESULT] = None
    """Run folder with the numbers of the card; None: the one that the model lies in."""


EVAL = Table(Eval, {"json": "json_file"})
PREDICT = Table(Predict)
EXPORT = Table(Export)
EXPORTS = {"mmdet": Table(ExportMMDet), "hf": Table(ExportHF)}
"""Formats of ``ciod export`` that are a folder: the setting with the folder → the other settings of the format."""
CHECK = Table(Check)
CHECK_CODE = Table(CheckCode)
DEMO = Table(Demo)
DOWNLOAD = Table(Download)
PUSH = Table(Push)


def export_table(words: Sequence[str] | None) -> Table:
    """The settings of ``ciod export`` for the kind of output that is asked for.

    Raises:
        ConfigError: several kinds are.
    """
    asked = [k for k in ("onnx", *EXPORTS) if any(w.startswith(f"{k}=") for w in words or ())]
    if len(asked) > 1:
        raise ConfigError(
            [f"export writes one kind of file at a time, not {'= and '.join(asked)}=; write one of them."]
        )
    return EXPORTS.get(asked[0] if asked else "", EXPORT)


def read(table: Table, words: Sequence[str] | None, *, takes: str | None = None) -> tuple[list[str], dict[str, Any]]:
    """Plain words, and the settings that were given, by name.

    Args:
        takes: begins the message about plain words if the command does not use them: "eval takes one model".

    Raises:
        ConfigError: everything that is wrong, before anything is read.
    """
    from ciod.detectors import own

    plain, found, problems = reader.read(table, words, plain=takes)
    problems += checks.folder_of_data(found.get("data"))
    problems += [*checks.device(found.get("device")), *own.problems(found.get("detector"))]
    problems += [p for k in ("out", "coco", "onnx", "mmdet", "hf", "json_file") for p in checks.target(k, found.get(k))]
    problems += outputs.data_folder("out", found.get("out"), found.get("data"))
    if problems:
        raise ConfigError(problems)
    return plain, found

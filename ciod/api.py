"""The Python functions of the package; the command line calls them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ciod.core.errors import CiodError, ConfigError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ciod.config.settings import Evaluation
    from ciod.core.results_schema import ExtensionResults, ResultsFile
    from ciod.core.types import Detections
    from ciod.data.index import Index
    from ciod.detectors.base import Detector
    from ciod.evaluation.detect import Scored
    from ciod.inference.quick import Engine
    from ciod.training.hooks import Hooks


def train(config: str | Path | None = None, *, callbacks: Sequence[Hooks] = (), **settings: Any) -> ResultsFile:
    """Runs a scenario, or resumes it, and returns the content of its ``results.json``, which a notebook shows as a
    table, curves and pictures.

    Args:
        config: a YAML file of settings.
        callbacks: called at the events of the run; see ``ciod.Hooks``.
        settings: override the file; sections as mappings, or leaf names: ``train(data="f", split="3+3", epochs=20)``.

    Raises:
        ConfigError: every problem of the settings, before any data is read.
        CiodError: any other problem that the user can fix.
    """
    from ciod.config import load as cfg
    from ciod.report.notebook import Run
    from ciod.runs.run import train as run

    words = ", ".join(f"{k}={v!r}" for k, v in settings.items())
    folder = run(cfg.load(config, settings), command=f"ciod.train({words})", hooks=callbacks)
    return cast("ResultsFile", Run(folder))


def extend(
    model: str | Path, data: str | Path, out: str | Path, *, callbacks: Sequence[Hooks] = (), **settings: Any
) -> ExtensionResults:
    """Adds the classes of a folder to a model, without old images; returns the content of ``results.json``.

    Args:
        model: a file for ``ciod.load``.
        data: a folder in COCO, VOC or YOLO format; classes are matched by name.
        out: run folder; the new model is ``out/model.safetensors``, of an ONNX file ``out/model.onnx``.
        callbacks: called at the events of the extension; see ``ciod.Hooks``.
        settings: as in ``ciod extend``: ``extend(m, "cards/", "runs/cards", effort="quick", drop=["cat"])``.

    Raises:
        ConfigError: every problem of settings or of class names at once.
        CiodError: any other problem that the user can fix. ``ciod.extension.run.NotKept``: ``min_retention`` is not
            reached.
    """
    from ciod.extension.run import extend as run
    from ciod.extension.settings import load
    from ciod.report.notebook import Run

    given = {"model": str(model), "data": str(data), "out": str(out), **settings}
    words = ", ".join(f"{k}={v!r}" for k, v in given.items())
    folder = run(load(given), command=f"ciod.extend({words})", hooks=callbacks)
    return cast("ExtensionResults", Run(folder))


def check(
    model: str | Path,
    *,
    input: str | None = None,
    names: Sequence[str] | None = None,
    size: int | None = None,
    old_outputs: str = "auto",
    taps: str | None = None,
) -> list[str]:
    """Inspects an ONNX detector and describes it in sentences; writes nothing. See docs/extend-onnx.md.

    Args:
        model: an ONNX file.
        input: preprocessing of images, if the file does not state it: ``"0..255,bgr"``.
        names: class names, ``["coco"]``, or one file with one name per line.
        size: side of the input in pixels, if the file accepts any size.
        old_outputs: the layout of its outputs by name, ``auto`` or ``none``.
        taps: tensors to read, given by hand: ``"8:a,b 16:c,d 32:e"``.

    Raises:
        CiodError: it cannot be read or is not supported, or an argument is needed that the file does not state.
    """
    from ciod.detectors.onnx.recognise import Asked, recognise

    if Path(model).suffix.lower() != ".onnx":
        raise CiodError(f"check takes an ONNX file, not {model}; ciod list MODEL.safetensors shows a ciod model.")
    return recognise(Path(model), Asked(input, names, size, old_outputs, taps)).lines()


def evaluate(
    model: str | Path | Detector,
    data: str | Path,
    *,
    split: str = "val",
    size: int | None = None,
    score_threshold: float = 0.001,
    nms_iou: float | None = None,
    max_detections: int | None = None,
    multi_label: bool | None = None,
    device: str = "auto",
    engine: Engine = "torch",
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    input: str | Sequence[str] | None = None,
    metric: str = "coco",
    arbiter: bool = True,
    detector: str | None = None,
    progress: bool = False,
) -> Scored:
    """COCO AP of a model on a data set. Classes are matched by name; the result lists those that do not match.

    Args:
        model: a detector, or a file for ``ciod.load``.
        size: side of the input in pixels (default: that of the model).
        nms_iou: above it the weaker of two boxes of a class is suppressed (default: 0.65; 1 for query detectors).
        max_detections: number of best detections of each class and image that count (default: 100; with
            ``metric="lvis"`` of each image, default 300).
        multi_label: every class of a position above ``score_threshold`` makes a detection, not only the best (default:
            depends on the detector).
        engine: what runs the network. ``torch``: PyTorch, the model as it is. ``onnx`` and ``auto``: see ``ciod.fast``;
            scores differ by rounding.
        classes: only these are evaluated (default: all that both have).
        names: class names for a checkpoint without them.
        input: how pictures are given, for an ONNX file that does not say it: ``"0..255,bgr"``.
        metric: ``voc07`` (11-point) or ``voc`` (area) adds VOC's AP to COCO's, under its own name; ``lvis``: LVIS's
            AP instead of COCO's, with APr, APc and APf.
        arbiter: False: scores of branches stay as the branches give them.
        detector: for a model of a detector of your own, ``FILE.py:Class``.
        progress: it is shown on the terminal.

    Raises:
        ConfigError: impossible settings of the evaluation.
        CiodError: no file, no data, a class that the data does not have, no class in common, or an engine that cannot
            run the model.
    """
    from ciod.config.load import data_folder
    from ciod.data import formats
    from ciod.detectors.files.weights import open_detector

    settings = _evaluation(metric, score_threshold, nms_iou, max_detections, multi_label)
    opened = open_detector(model, size, names, input, arbiter, detector=detector)
    if nms_iou is None:
        settings.nms_iou = opened.run_defaults.get("eval.nms_iou", settings.nms_iou)
    index = formats.read(data_folder(str(data)) or "", split)
    both = _in_common(opened, index, data, classes)
    return _score(opened, index, settings, both, device=device, engine=engine, metric=metric, progress=progress)


def _score(
    detector: Detector,
    index: Index,
    settings: Evaluation,
    both: tuple[str, ...],
    *,
    device: str,
    engine: Engine,
    metric: str,
    progress: bool,
) -> Scored:
    """``both``: the classes that model and data have."""
    from ciod.core import terminal
    from ciod.core.distributed import World, pick_device
    from ciod.evaluation.confusions import confusion
    from ciod.evaluation.detect import Scored
    from ciod.evaluation.detect import evaluate as run
    from ciod.evaluation.lvis import metric_warnings
    from ciod.inference.quick import quick

    world = World(device=pick_device(device))
    detector.to(world.device)
    if engine != "torch":
        detector = quick(detector, engine, len(index))
    with terminal.counting(terminal.console(quiet=not progress), "images", len(index)) as tick:
        table, found, broken = run(detector, index, settings, classes=both, world=world, metric=metric, tick=tick)
    return Scored(
        table,
        both,
        tuple(n for n in index.class_names if n not in detector.class_names),
        tuple(n for n in detector.class_names if n not in index.class_names),
        len(index),
        broken,
        [*(f"{index.source}: {line}" for line in index.problems.lines()), *metric_warnings(metric, index)],
        confusion(found, index, both) if index.federated is None else None,  # LVIS: it may be right without an object
    )


def draw(
    picture: str | Path | np.ndarray | Image.Image,
    detections: Detections,
    *,
    score: float = 0.0,
    new: Collection[str] = (),
) -> Image.Image:
    """A picture with its detections drawn on it; a notebook shows it.

    Args:
        picture: a file, a PIL image, or an RGB array [H, W, 3] of 0..255 or 0..1.
        detections: from ``Detector.predict`` for this picture.
        score: detections below it are left out.
        new: class names whose labels say "new" and whose lines are thicker.

    Raises:
        CiodError: no such file, or not a picture.
    """
    from PIL import Image

    from ciod.data.images import as_array
    from ciod.report.draw import draw_boxes

    return Image.fromarray(draw_boxes(as_array(picture), detections, min_score=score, new=new))


def _evaluation(
    metric: str, score_threshold: float, nms_iou: float | None, max_detections: int | None, multi_label: bool | None
) -> Evaluation:
    """Settings of an evaluation. Raises ConfigError with all that is wrong."""
    from ciod.config.load import Evaluation, problems_of
    from ciod.evaluation.voc import NAMES

    given = {
        "score_threshold": score_threshold,
        "multi_label": multi_label,
        **{k: v for k, v in (("nms_iou", nms_iou), ("max_detections", max_detections)) if v is not None},
    }
    problems = problems_of(Evaluation, given)
    known = ["coco", *NAMES, "lvis"]
    if metric not in known:
        problems.append(f"metric: there is no '{metric}'; {did_you_mean(metric, known)}")
    if problems:
        raise ConfigError(problems)
    return Evaluation.model_validate(given)


def _in_common(detector: Detector, index: Index, data: str | Path, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Those of ``classes`` (None: all) that both model and data have. Raises CiodError if there are none."""
    from ciod.detectors.inference import mask_of

    both = tuple(n for n in index.class_names if n in detector.class_names)
    if not both:
        raise CiodError(
            f"The model knows none of the classes of {data} ({', '.join(index.class_names[:8])}); it knows "
            f"{', '.join(detector.class_names[:8])}{', …' if detector.num_classes > 8 else ''}. Names must be equal."
        )
    if classes is None:
        return both
    mask = mask_of(both, classes)
    return both if mask is None else tuple(n for i, n in enumerate(both) if bool(mask[i]))

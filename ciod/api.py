"""The verbs of the package, for Python; the command line calls these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciod.core.errors import CiodError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from ciod.detectors.base import Detector
    from ciod.evaluation.detect import Scored


def train(config: str | Path | None = None, **settings: Any) -> dict[str, Any]:
    """Runs a scenario, or goes on with it, and returns the content of its ``results.json``.

    Args:
        config: a YAML file of settings.
        settings: override it; sections as mappings or leaf names: ``train(data="f", split="3+3", epochs=20)``.

    Raises:
        ConfigError: every problem of the settings, before any data is read.
        CiodError: anything else a user can mend.
    """
    import json

    from ciod.config import load as cfg
    from ciod.runs.run import train as run

    words = ", ".join(f"{k}={v!r}" for k, v in settings.items())
    folder = run(cfg.load(config, settings), command=f"ciod.train({words})")
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def extend(model: str | Path, data: str | Path, out: str | Path, **settings: Any) -> dict[str, Any]:
    """Teaches a model the classes of a folder, without old images; returns the content of ``results.json``.

    Args:
        model: a file ``ciod.load`` reads.
        data: a folder in COCO, VOC or YOLO format; classes are matched by name.
        out: run folder; the new model is ``out/model.safetensors``.
        settings: as in ``ciod extend``: ``extend(m, "cards/", "runs/cards", effort="quick", drop=["cat"])``.

    Raises:
        ConfigError: every problem of settings or of class names at once.
        CiodError: anything else a user can mend; ``ciod.extension.run.NotKept`` when ``min_retention`` is not reached.
    """
    import json

    from ciod.extension.run import extend as run
    from ciod.extension.settings import load

    given = {"model": str(model), "data": str(data), "out": str(out), **settings}
    words = ", ".join(f"{k}={v!r}" for k, v in given.items())
    folder = run(load(given), command=f"ciod.extend({words})")
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def check(
    model: str | Path,
    *,
    input: str | None = None,
    names: Sequence[str] | None = None,
    size: int | None = None,
    old_outputs: str = "auto",
    taps: str | None = None,
) -> list[str]:
    """What an ONNX detector is taken for, in sentences; nothing is trained or written. See docs/extend-onnx.md.

    Args:
        model: an ONNX file.
        input: how pictures are given, where the file does not say it: ``"0..255,bgr"``.
        names: class names, ``["coco"]``, or one file with a name per line.
        size: side of the input in pixels, where the file takes any.
        old_outputs: the layout of its outputs by name, ``auto`` or ``none``.
        taps: tensors to read, by hand: ``"8:a,b 16:c,d 32:e"``.

    Raises:
        CiodError: it cannot be read or does not fit, or something must be said that the file does not.
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
    nms_iou: float = 0.65,
    max_detections: int = 100,
    multi_label: bool | None = None,
    device: str = "auto",
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    metric: str = "coco",
    arbiter: bool = True,
) -> Scored:
    """COCO AP of a model on a data set; classes are matched by name and the others are named in the result.

    Args:
        model: a detector or a file ``ciod.load`` reads.
        size: side of the input in pixels (default: the model's own).
        multi_label: every class above ``score_threshold`` is a detection of a position, not the best alone (default: as
            is usual for the detector).
        classes: only these are scored (default: all that both know).
        names: class names for a checkpoint without them.
        metric: ``voc07`` (11-point) or ``voc`` (area) puts VOC's AP beside COCO's, under its own name.
        arbiter: False: scores of branches stay as the branches give them.

    Raises:
        ConfigError: settings of the evaluation that cannot be.
        CiodError: no file, no data, a class the data does not have, or not one class in common.
    """
    from ciod.config.load import Evaluation, data_folder, problems_of
    from ciod.core.distributed import World, pick_device
    from ciod.data import formats
    from ciod.detectors.files.weights import open_detector
    from ciod.detectors.inference import mask_of
    from ciod.evaluation.detect import Scored
    from ciod.evaluation.detect import evaluate as run
    from ciod.evaluation.voc import NAMES

    decoding = {
        "score_threshold": score_threshold,
        "nms_iou": nms_iou,
        "max_detections": max_detections,
        "multi_label": multi_label,
    }
    problems = problems_of(Evaluation, decoding)
    if metric != "coco" and metric not in NAMES:
        problems.append(f"metric: there is no '{metric}'; {did_you_mean(metric, ['coco', *NAMES])}")
    if problems:
        raise ConfigError(problems)
    detector = open_detector(model, size, names, arbiter)
    index = formats.read(data_folder(str(data)) or "", split)
    both = tuple(n for n in index.class_names if n in detector.class_names)
    if not both:
        raise CiodError(
            f"The model knows none of the classes of {data} ({', '.join(index.class_names[:8])}); it knows "
            f"{', '.join(detector.class_names[:8])}{', …' if detector.num_classes > 8 else ''}. Names must be equal."
        )
    if classes is not None:
        mask = mask_of(both, classes)
        both = both if mask is None else tuple(n for i, n in enumerate(both) if bool(mask[i]))
    world = World(device=pick_device(device))
    detector.to(world.device)
    settings = Evaluation.model_validate(decoding)
    table, _, broken = run(detector, index, settings, classes=both, world=world, metric=metric)
    return Scored(
        table,
        both,
        tuple(n for n in index.class_names if n not in detector.class_names),
        tuple(n for n in detector.class_names if n not in index.class_names),
        len(index),
        broken,
        [f"{index.source}: {line}" for line in index.problems.lines()],
    )

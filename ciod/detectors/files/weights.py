"""A detector from a file, in one pass: the kind of file, its content, the class names, the detector.

``parse`` reads a file once, with ``model_file`` (ciod's own) or ``checkpoint`` and ``foreign`` (other projects');
``_build`` makes the detector, with ``mmdet_files`` if it is one of MMDetection. None of them calls this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ciod import detectors
from ciod.core.errors import CiodError, ConfigError
from ciod.core.files import is_file, no_model_file
from ciod.core.limits import LARGEST
from ciod.data import names as known
from ciod.detectors import own
from ciod.detectors.base import Detector
from ciod.detectors.branched import has_branches
from ciod.detectors.files import foreign, foreign_rcnn, hub, model_file
from ciod.detectors.files.checkpoint import named, names_in_metadata, read_checkpoint, spelled_out, tensors_of
from ciod.detectors.files.model_file import read_metadata, save_model
from ciod.detectors.files.transfer import Taken, start_from
from ciod.detectors.layers.refiner import FIRST_HIDDEN
from ciod.detectors.staged_branches import StagedBranches

__all__ = [
    "donor",
    "file_of",
    "load",
    "load_fitting",
    "load_trunk",
    "open_detector",
    "read_checkpoint",
    "read_metadata",
    "recognise",
    "save_model",
]


def load(
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    input: str | Sequence[str] | None = None,
    size: int | None = None,
    old_outputs: str = "auto",
    taps: str | None = None,
    arbiter: bool = True,
    detector: str | None = None,
) -> Detector:
    """A detector from a file, in eval mode.

    Args:
        path: a ciod model (``.safetensors``), an official YOLOX checkpoint, an MMDetection checkpoint (YOLOX or GFL,
            or, with the extra mmdet, any supported head), with its config inside or as ``mmdet:CONFIG,CHECKPOINT``;
            ``hf:FOLDER`` of transformers (docs/query-detectors.md); ``hf:user/model`` on the Hugging Face Hub, of
            ciod or of transformers; or a detector of any framework as ``.onnx`` (docs/extend-onnx.md).
        classes: class names, for a file without names. With 80 classes and no names, COCO's.
        input: for an ONNX file that does not say it, how pictures are given: ``"0..255,bgr"``.
        size: for an ONNX file that accepts any size, the side of its input in pixels.
        old_outputs: for an ONNX file, the layout of its outputs by name, ``auto`` or ``none``.
        taps: for an ONNX file, the tensors to read, set by hand: ``"8:a,b 16:c,d 32:e"``.
        arbiter: False: scores of branches are not changed (see docs/extend.md).
        detector: for a model whose detector is a class of your own, ``FILE.py:Class``; the file is run.

    Raises:
        CiodError: the file is missing, damaged, has another architecture, needs code to load, or lacks class names.
    """
    path = hub.local(path) if hub.is_name(path) and not _is_hf(path) else path
    if Path(path).suffix.lower() == ".onnx" and not _is_hf(path):
        from ciod.detectors.onnx import detector as onnx
        from ciod.detectors.onnx.recognise import Asked

        if detector is not None:
            raise CiodError(f"detector: {path} holds its network itself; leave detector= out.")
        return onnx.load(Path(path), Asked(input, classes, size, old_outputs, taps), arbiter=arbiter)
    given = {"input": input, "taps": taps, "old_outputs": None if old_outputs == "auto" else old_outputs}
    if problems := [f"{k}: this is a setting of ONNX files, and {path} is none." for k, v in given.items() if v]:
        raise ConfigError(problems)
    parsed = parse(path)
    if detector is not None:
        _check_own(parsed, detector)
    found = _build(parsed, classes, detector)
    if found.arbiter is not None:
        found.arbiter.on = arbiter
    return found


@dataclass(frozen=True)
class Parsed:
    """A file that was read, before the detector is built."""

    path: Path
    kind: Literal["ciod", "known", "mmdet", "hf"]
    """A model of ciod; a checkpoint of another project for a detector of ciod; one for a detector that only MMDetection
    has; a folder of transformers, which is not read yet."""
    content: dict[str, Any]
    """Metadata of a ciod model; the complete content of a checkpoint."""
    state: dict[str, Tensor]
    """Tensors under ciod's names, if they have one; with ``config`` under MMDetection's."""
    name: str = ""
    """Kind ``known``: the name of the detector."""
    config: str | None = None
    """Kind ``mmdet``: the config that was given with the file; None: the one in the file."""


def parse(path: str | Path) -> Parsed:
    """Reads a model file, without running code of it.

    Raises:
        CiodError: the file is missing, damaged, has another architecture, or needs code to load.
    """
    if _is_hf(path):
        return Parsed(Path(path), "hf", {}, {})
    config, path = _config_of(path)
    if not is_file(path):
        no_model_file(path, (".safetensors", ".pth", ".pt"))
    if config is None and path.suffix == ".safetensors":
        return Parsed(path, "ciod", *model_file.read(path))
    content = read_checkpoint(path)
    theirs = tensors_of(content)
    if config is not None:
        return Parsed(path, "mmdet", content, theirs, config=config)
    state = foreign.rename(theirs)
    if name := recognise(state):
        return Parsed(path, "known", content, state, name)
    if {"format", "identity", "task"} <= content.keys():
        raise CiodError(f"{path} is the saved state of a run, not a model; give a model.safetensors of its folder.")
    if not any(k.startswith("bbox_head.") for k in theirs):
        raise CiodError(
            f"{path} is not a checkpoint of a detector that ciod has ({', '.join(detectors.available())}). Its tensors "
            f"are called, for example, {', '.join(list(state)[:3]) or 'nothing: there are none'}. ciod takes any "
            "detector as an ONNX file (docs/extend-onnx.md)."
        )
    return Parsed(path, "mmdet", content, state)


def _check_own(parsed: Parsed, asked: str) -> None:
    """Raises CiodError if the detector is not a class in a file, or the model needs none."""
    if problems := own.problems(asked):
        raise ConfigError(problems)
    name = parsed.content["detector"]["name"] if parsed.kind == "ciod" else parsed.name or "checkpoint"
    if not detectors.is_own(name):
        raise CiodError(f"detector: {parsed.path} is a {name}, for which no file is needed; leave detector= out.")


def _build(parsed: Parsed, classes: Sequence[str] | None, asked: str | None = None) -> Detector:
    if parsed.kind == "ciod":
        its = tuple(parsed.content["class_names"])
        if classes and spelled_out(classes) != its:
            raise CiodError(
                f"names: {parsed.path} has its own class names ({', '.join(its[:4])}{', …' if its[4:] else ''}); leave "
                "names= out. Detector.rename changes them."
            )
        return _build_own(parsed, asked)
    if parsed.kind == "known":
        return _build_known(parsed, classes)
    if parsed.kind == "hf":
        from ciod.detectors.files import hf_files

        return hf_files.build(str(parsed.path), classes)
    from ciod.detectors.files import mmdet_files

    return mmdet_files.build(parsed.path, parsed.content, classes, parsed.config)


def _build_own(parsed: Parsed, asked: str | None = None) -> Detector:
    path, meta = parsed.path, parsed.content
    settings = {k: v for k, v in meta["detector"].items() if k != "backbone_weights"}  # must not name another file
    if detectors.is_own(settings["name"]):
        settings["name"] = own.permitted(settings, asked, path)
    try:
        detector = detectors.build((), **settings)
    except TypeError as e:
        raise CiodError(
            f"{path} is not a valid ciod model: its detector settings are unknown ({e}). Is it from a newer ciod?"
        ) from e
    regrow(detector, meta["class_names"], meta.get("growth") or [{"rows": n} for n in meta["blocks"]])
    counts = parsed.state.get("arbiter.count")
    try:
        if counts is not None:
            detector.add_arbiter(len(counts))
        detector.load_state_dict(parsed.state)
    except RuntimeError as e:
        raise CiodError(f"{path} does not fit the detector its metadata describes: {e}") from e
    detector.lineage = meta["lineage"]
    return detector.eval()


def _build_known(parsed: Parsed, classes: Sequence[str] | None) -> Detector:
    path, state = parsed.path, parsed.state
    theirs = tensors_of(parsed.content)
    if foreign_rcnn.CLASSES in theirs:
        state, classes = foreign_rcnn.coco_classes(state, classes, foreign.torchvision_coco())
    elif "backbone.body.conv1.weight" in theirs:
        state, classes = _torchvision_classes(state, classes)
    found = named(path, parsed.content, classes, foreign.count_classes(state))
    # torchvision's frozen batch normalisation has no counter: the trunk was trained frozen, so it stays frozen.
    counts = any(k.endswith("num_batches_tracked") for k in state)
    detector = detectors.build(found, name=parsed.name, **({} if counts else {"frozen": True}))
    detector.load_state_dict(state, strict=False)
    detector.lineage = [{"from": path.name, "classes": list(found)}]
    return detector.eval()


def open_detector(
    model: str | Path | Detector,
    size: int | None = None,
    names: Sequence[str] | None = None,
    input: str | Sequence[str] | None = None,
    arbiter: bool = True,
    detector: str | None = None,
) -> Detector:
    """A detector, or that of a file, for pictures of ``size`` pixels. ``arbiter=False`` turns its arbiter off.

    Raises:
        CiodError: as ``ciod.load``; or a size that is not a multiple of 32.
    """
    model = hub.local(model) if not isinstance(model, Detector) and hub.is_name(model) and not _is_hf(model) else model
    if not isinstance(model, Detector) and Path(model).suffix.lower() == ".onnx" and not _is_hf(model):
        return load(model, classes=names, size=size, input=input, arbiter=arbiter, detector=detector)
    opened = model if isinstance(model, Detector) else load(model, classes=names, input=input, detector=detector)
    if not arbiter and opened.arbiter is not None:
        opened.arbiter.on = False
    if size is not None:
        if not 32 <= size <= LARGEST or size % 32:
            near = min(LARGEST, max(32, round(size / 32) * 32))
            raise CiodError(f"size: {size} is not a multiple of 32{f' to {LARGEST:,}' * (size > LARGEST)}; try {near}.")
        opened.input = replace(opened.input, size=size)
    return opened


def file_of(path: str | Path) -> Path:
    """The file of a model: of ``mmdet:CONFIG,CHECKPOINT`` the checkpoint, of ``hf:FOLDER`` its weights."""
    if _is_hf(path):
        from ciod.detectors.files import hf_files

        return hf_files.file_of(str(path))
    return _config_of(path)[1]


def _is_hf(path: str | Path) -> bool:
    """Whether it names a checkpoint of transformers."""
    return str(path).startswith(detectors.HF) and hub.is_of_transformers(str(path))


def _config_of(path: str | Path) -> tuple[str | None, Path]:
    """``mmdet:CONFIG,CHECKPOINT`` → its parts; anything else is a file.

    Raises:
        CiodError: no checkpoint is named.
    """
    if not str(path).startswith("mmdet:"):
        return None, hub.local(path)
    config, comma, file = str(path).removeprefix("mmdet:").rpartition(",")
    if not comma:
        raise CiodError(f"{path} names a config but no checkpoint; write mmdet:CONFIG,CHECKPOINT.")
    return config, Path(file)


def regrow(detector: Detector, names: Sequence[str], growth: Sequence[dict[str, Any]]) -> None:
    """Grows a detector without classes as another was grown: with the same blocks, branches and arithmetic."""
    first = 0
    for step in growth:
        size = step["branch"] if "branch" in step else step["rows"]
        arriving = names[first : first + size]
        first += size
        if "parent" in step:
            assert isinstance(detector, StagedBranches)
            refine = step.get("refine", False)
            detector.add_children(step["parent"], arriving, inner=step["inner"], refine=refine)
        elif isinstance(detector, StagedBranches) and "branch" in step:
            refine = step.get("refine", False)
            hidden = FIRST_HIDDEN if refine is True else refine
            more = {"refine": hidden, "rescore": step.get("rescore", False)}
            detector.add_branch(arriving, taught=step["taught"], inner=step["inner"], **more)
        elif "branch" in step:
            assert has_branches(detector)
            detector.add_branch(arriving, taught=step["taught"], inner=step["inner"])
        else:
            detector.grow(arriving)


def recognise(state: dict[str, Tensor]) -> str | None:
    """The name of the detector of a renamed state dict, by the shapes of everything except its class layers."""
    shapes = {k: v.shape for k, v in state.items()}
    fitting: dict[str, int] = {}
    for name in detectors.available():
        if detectors.find(name).extra:
            continue  # its checkpoints are folders of another package
        with torch.device("meta"):
            model = detectors.build(("x",), name=name, backbone_weights=None)
        rows = {r.name for r in model.class_layers()}
        wanted = {k: v.shape for k, v in model.state_dict().items() if k not in rows and "num_batches" not in k}
        if all(shapes.get(k) == shape for k, shape in wanted.items()) and rows <= shapes.keys():
            fitting[name] = len(wanted)
    # A ResNet-101 has all tensors of a ResNet-50: the larger match is the right one.
    return max(fitting, key=fitting.__getitem__, default=None)


def _torchvision_classes(
    state: dict[str, Tensor], classes: Sequence[str] | None
) -> tuple[dict[str, Tensor], Sequence[str] | None]:
    """Rows of real classes: of COCO's 91 the 80 with a name; of N + 1 rows with N names all except the background."""
    count, coco = foreign.count_classes(state), foreign.torchvision_coco()
    if classes is None and count == max(coco.values()) + 1:
        return foreign.class_rows(state, list(coco.values())), list(coco)
    if classes is not None and count == len(classes) + 1:
        return foreign.class_rows(state, list(range(1, count))), classes
    return state, classes


def donor(path: Path) -> Detector:
    """The model that another one starts from; a checkpoint without class names gets numbers as names.

    Raises:
        CiodError: see ``load``.
    """
    parsed = parse(path)
    if parsed.kind == "ciod":
        return _build(parsed, None)
    if parsed.kind == "hf":
        from ciod.detectors.files import hf_files

        return hf_files.build(str(path), numbered=True)
    count = foreign.count_classes(parsed.state)
    # Without its own names or COCO's, no row can be taken by name, so the names are numbers, which match no class.
    coco = foreign_rcnn.COCO_ROWS if parsed.name.startswith("fasterrcnn") else foreign.COCO_ROWS
    knows = count in (len(known.COCO), coco) or bool(names_in_metadata(parsed.content.get("meta")))
    return _build(parsed, None if knows else [f"\0{i}" for i in range(count)])


def load_trunk(detector: Detector, path: Path) -> Taken:
    """Copies backbone and neck of a model file into ``detector``; its head is not changed. See ``start_from``."""
    return load_fitting(detector, path, trunk_only=True)


def load_fitting(
    detector: Detector, model: Detector | Path, *, trunk_only: bool = False, source: Path | None = None
) -> Taken:
    """Copies every tensor of a model that fits into ``detector``, except the rows of classes
    (``transfer.take_class_rows`` takes those once the detector has its classes).

    Args:
        model: a file, or what ``donor`` read from it.
        trunk_only: only backbone and neck; the head is not changed.
        source: the file for messages, if ``model`` is not a file.

    Raises:
        CiodError: the file cannot be read, or its backbone differs.
    """
    if isinstance(model, Path) and detector.settings["name"].startswith("mmdet:"):
        from ciod.detectors.files import mmdet_files

        return mmdet_files.start_from(detector, _in_mmdet(model), model, trunk_only=trunk_only)  # type: ignore[arg-type]
    other = donor(model) if isinstance(model, Path) else model
    return start_from(detector, other, source or str(model), trunk_only=trunk_only)


def _in_mmdet(path: Path) -> dict[str, Tensor]:
    """Tensors under MMDetection's names, from a checkpoint of MMDetection or of the YOLOX project, or a ciod model."""
    from ciod.detectors.files import mmdet_files

    if path.suffix == ".safetensors":
        return mmdet_files.state_of(load(path))
    state = tensors_of(read_checkpoint(path))
    return state if any(k.startswith("bbox_head.") for k in state) else foreign.to_mmdet(foreign.rename(state))

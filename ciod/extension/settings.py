"""Settings of ``ciod extend``: what can be chosen, and the sentences about what cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ciod.config import outputs
from ciod.config.checks import (
    data_folder,
    device,
    folder,
    folder_of_data,
    method_of,
    model_folder,
    patience,
    trackers,
)
from ciod.config.marks import NO_RESULT
from ciod.config.reader import Table, nest, unreported
from ciod.config.settings import Allowed, Effort, Evaluation, Positive, Section, Seed, Share, Size, Trackers, Train
from ciod.core.errors import CiodError, ConfigError, did_you_mean
from ciod.data.augment import Augment
from ciod.data.scenarios import subsets


class Extend(Section):
    """Everything that determines an extension. What is None is chosen by ``effort`` from data and machine."""

    model: str
    """A ciod model, or a checkpoint of YOLOX, GFL, MMDetection (``mmdet:CONFIG,CHECKPOINT``) or transformers
    (``hf:FOLDER``)."""
    data: str
    """Folder with the new images and boxes: COCO, VOC or YOLO. Classes are matched by name."""
    out: Annotated[str, NO_RESULT]
    """Run folder; the extended model becomes ``out/model.safetensors``."""
    detector: Annotated[str | None, NO_RESULT] = None
    """For a model of a detector of your own, ``FILE.py:CLASS`` (docs/adding-a-detector.md)."""
    method: dict[str, Any] = Field(default_factory=lambda: {"name": "auto"})
    """``auto``, or any of ``ciod list methods``; its settings are ``method.NAME=VALUE``."""
    effort: Effort = "normal"
    """How much work is worth it: sizes epochs, batch and resolution."""
    names: list[str] | None = None
    """Names for a checkpoint that does not carry its own."""
    input: list[str] | None = None
    """For an ONNX file: the input format, if the file does not state it (``0..255,bgr``)."""
    old_outputs: str = "auto"
    """For an ONNX file: the name of the layout of its outputs, or ``none``."""
    taps: str | None = None
    """For an ONNX file: the tensors that the branch reads, per stride (``8:a,b 16:c,d 32:e``)."""
    nms: bool = False
    """For an ONNX file: adds an output with all classes, old and new, after non-maximum suppression."""
    outputs: Literal["separate", "joined"] = "separate"
    """For an ONNX file: ``joined`` also writes ``out/joined.onnx``, whose one output is as YOLOv8's files have it."""
    views: Annotated[int, Field(ge=0, le=1000)] | None = None
    """For a branch of a dense detector: number of augmented views per image whose maps are kept in the temporary
    folder, so that they are computed once and used four times; 0: every epoch has new views, which takes longer and
    teaches more. None: 0, and for an ONNX file on a CPU six, or as many as the free space allows."""
    keep: list[str] | None = None
    """Only these old classes stay."""
    drop: list[str] = Field(default_factory=list)
    """These old classes go."""
    rename: dict[str, str] = Field(default_factory=dict)
    """name → name, of the model or of the folder."""
    new: list[str] = Field(default_factory=list)
    """Names of the folder that are new classes although the model has a similar one."""
    split: dict[str, list[str]] = Field(default_factory=dict)
    """A known class → the folder's classes that are kinds of it: ``split='{animal: [cat, dog]}'`` (docs/extend.md)."""
    pool: str | None = None
    """Folder of unlabelled images: agreement and false alarms are measured on them, methods that distil learn from it,
    and a branch learns that none of its objects is there."""
    negatives: bool = True
    """Whether a branch is trained on the pool and on the training pictures of ``old_data`` as pictures without new
    objects; false: they show some."""
    old_data: str | None = None
    """Data of the old classes: retention is measured as AP on its validation pictures. Its training pictures, where it
    has some, teach a branch what is none of its objects."""
    known: str | None = None
    """Corrected labels of some of the new images (docs/labelling.md): a data set, a YOLO folder of labels, or an export
    of Label Studio. They replace the folder's, and are taken as complete: old objects, too, are learnt from them."""
    min_retention: Share | None = None
    """Below this share the model is not written; the best trade-off is written beside, and the exit code is 3."""
    holdout: Annotated[float, Field(gt=0, lt=0.6)] = 0.15
    """Share of the images held out for validation where the folder has no validation split."""
    subset: str | None = None
    """A smoke test: only a part of the images, a share (``1%``, at least 16) or a number (``200``); every class keeps
    one. Epochs stay, so the steps shrink in proportion."""
    epochs: Positive | None = None
    """None: as ``effort`` chooses."""
    batch: Positive | None = None
    """Images per step, over all processes; None: as ``effort`` chooses."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate; None: that of the method and batch."""
    size: Size | None = None
    """Side of the input in pixels; None: what the model was made for."""
    train: Train = Train()
    augment: Augment = Augment()
    eval: Evaluation = Evaluation()
    log: Annotated[Trackers, NO_RESULT] = Field(default_factory=list)
    """Trackers that follow the extension: ``log=tensorboard,wandb`` (docs/trackers.md)."""
    seed: Seed = 0
    """Seed of new weights, order of images and augmentation."""
    device: Annotated[str, NO_RESULT] = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``."""
    resume: Annotated[Literal["auto", "never"], NO_RESULT] = "auto"
    """``auto``: resume where an extension in ``out`` stopped. ``never``: refuse a folder that has one."""
    allow: Annotated[Allowed, NO_RESULT] = Field(default_factory=list)
    """What may differ from the extension that is resumed: ``allow=data,code``. Without it a difference is refused."""

    @field_validator("subset", mode="before")
    @classmethod
    def _amount(cls, value: object) -> object:
        return subsets.checked(value)


SHORT = {
    leaf: f"{section}.{leaf}"
    for section, model in (("eval", Evaluation), ("augment", Augment), ("train", Train))
    for leaf in model.model_fields
    if leaf not in Extend.model_fields
}
TABLE = Table(Extend, {**SHORT, "method": "method.name"}, default_method="auto")


def load(content: Mapping[str, Any], problems: Sequence[str] = ()) -> Extend:
    """Validated settings from flat ``key: value`` pairs (``train.clip``, ``clip`` and ``method.score`` are keys).

    Args:
        problems: already known problems, to be reported with the others.

    Raises:
        ConfigError: every problem at once, before any image is read.
    """
    from ciod.detectors import own

    flat, more = TABLE.settings(content)
    problems = [*problems, *more]
    tree = nest({k: v for k, v in flat.items() if v is not None})
    problems += unreported(TABLE.problems(tree), problems)
    problems += model_folder("out", tree.get("out") or None)
    problems += _split(tree)
    problems += [*_method(tree.get("method") or {}), *own.problems(tree.get("detector"))]
    problems += [*folder_of_data(tree.get("data")), *folder("pool", tree.get("pool"))]
    problems += [*folder_of_data(tree.get("old_data"), "old_data"), *device(tree.get("device"))]
    problems += [*trackers(tree.get("log")), *patience(tree)]
    if not model_folder("out", tree.get("out")):
        folders = {key: data_folder(tree.get(key)) for key in ("data", "old_data", "pool")}
        problems += outputs.run_folder(tree.get("out"), folders, {"model": tree.get("model")})
    if problems:
        raise ConfigError(problems)
    return Extend.model_validate(tree)


def _split(tree: Mapping[str, Any]) -> list[str]:
    """Problems of ``split`` beside other settings."""
    name = str((tree.get("method") or {}).get("name", "auto")) if isinstance(tree.get("method"), dict) else "auto"
    if not tree.get("split"):
        return []
    problems = []
    if name != "auto":
        problems.append(f"split: a class becomes several by a branch that only names; leave method={name} out.")
    if tree.get("known") is not None:
        problems.append("split: known= corrects labels of an ordinary extension; correct those of the folder instead.")
    return problems


def _method(given: Any) -> list[str]:
    """Problems of the method's name and settings."""
    from ciod import methods

    if not isinstance(given, dict):
        return []
    settings = dict(given)
    name = str(settings.pop("name", "auto"))
    if name == "auto":
        return [f"method.{k}: method=auto takes no settings; name a method." for k in settings]
    if name == "joint":
        return ["method: joint training needs the old images, which extending does without; use ciod train."]
    if ".py" not in name and name not in methods.available():
        fitting = ["auto", *(m for m in methods.available() if m != "joint")]
        return [f"method: there is no method '{name}'; {did_you_mean(name, fitting)}"]
    try:
        cls = methods.find(name)
    except CiodError as e:
        return [str(e)]
    return method_of(cls, settings)[1]

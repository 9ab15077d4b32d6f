"""Protocol: the switches that define what a task may see, and the sentences that describe them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ciod.core.limits import LARGEST_SEED
from ciod.data.scenarios import subsets

Split = str | list[int] | list[list[str]]
Rule = Literal["any-new", "only-new", "disjoint", "loco"]


class Protocol(BaseModel):
    """The switches that define what a task may see. They are printed with every result."""

    model_config = ConfigDict(extra="forbid")

    name: str = ""
    """Name of the scenario, in reports."""
    description: str = ""
    """A short description."""
    data: str | None = None
    """Data folder of the scenario; ``data=`` of a run overrides it. ``shapes`` draws the built-in scenes."""
    split: Split = "all"
    """How classes are assigned to tasks: ``40+40``, ``15+1x5`` (15, then five times 1), ``20x4``, or lists of names."""
    order: str | list[str] = "alphabetical"
    """Class order before the split: ``alphabetical``, ``dataset`` (COCO: by category id), ``seed:N``, or names."""
    reverse: bool = False
    """The groups of the split arrive in reverse: ``40+40`` reversed is last40+first40 (ilYOLOX)."""
    images: Rule | Annotated[list[str], Field(min_length=1)] = "any-new"
    """Training images of a task. ``any-new``: images with any box of a new class; ``only-new``: with boxes of new
    classes only; ``disjoint`` (CL-DETR): each image in one task, assigned at random in proportion to the classes;
    ``loco``: each image in one of the tasks whose classes it shows, with classes grouped so that few images have
    classes of several tasks. Or one file per task that lists its images."""
    boxes: Literal["new", "seen", "all"] = "new"
    """Which boxes of these images are shown. ``new`` hides old objects, as in practice."""
    eval_images: Literal["all", "seen"] = "all"
    """Test images: all, or only those with a box of a seen class (ilYOLOX)."""
    open_world: bool = False
    """Also measure detections on objects of later tasks, which are unknown: U-Recall, A-OSE and WI."""
    difficult: Literal["keep", "drop"] = "keep"
    """VOC's difficult boxes in training. Evaluation always ignores them."""
    joint: bool = False
    """All classes in one task: the upper bound."""
    shots: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Few-shot: from the second task on, only so many images (chosen by ``image_seed``) that every class of it has
    this number of boxes. The first task and joint training have all images."""
    subset: str | None = None
    """A smoke test: only a part of the training images of each task and of the test images, a share (``1%``, at least
    16 images) or a number (``200``); every class keeps an image. Epochs stay, so the steps shrink in proportion."""
    image_seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 123
    """Seed of ``images: disjoint`` and ``loco``, and of ``shots``."""
    train_split: str = "train"
    """The split of the data that is trained on; VOC: trainval."""
    test_split: str = "val"
    """The split that is tested on (``eval.split`` overrides it); VOC: test."""
    folds: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Cross-validation: all images of ``train_split`` and ``test_split`` are cut into this many folds, of which
    ``fold`` is tested and the others are trained on. None: the splits are used as they are."""
    fold: Annotated[int, Field(ge=1, le=1000)] | None = None
    """The fold that is tested, from 1."""
    group: str | None = None
    """Images that belong together, such as frames of a video, are never divided between training and test: those in
    whose file names this regular expression finds the same text (in its brackets, if it has any)."""
    fold_by: Literal["spread", "order"] | None = None
    """How groups become folds. ``spread`` (None): each fold gets its share of the boxes of every class. ``order``: a
    fold is a run of groups in the order of their names, for photographs with consecutive numbers."""
    guard: Annotated[int, Field(ge=0, le=1000)] | None = None
    """``fold_by=order``: this many images on each side of the tested ones are neither tested nor trained on."""
    metric: Literal["coco", "voc07", "voc", "lvis"] = "coco"
    """``coco``: AP at IoU 0.50:0.95. ``voc07``: 11-point AP at IoU 0.5. ``voc``: area AP at IoU 0.5 (VOC 2010 on).
    ``lvis``: LVIS's AP, where only the classes that are known in an image count, and APr, APc and APf."""

    @field_validator("split", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        """``split=6`` is parsed as a number and means a first task of six classes."""
        if isinstance(value, list) and not any(isinstance(v, (list, int)) for v in value):
            what = "names no task" if not value else "must be a list of tasks, each a list of its classes"
            raise ValueError(f"{what}, such as [[cat, dog], [bird]]")
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("subset", mode="before")
    @classmethod
    def _amount(cls, value: object) -> object:
        return subsets.checked(value)

    @property
    def grouped(self) -> bool:
        """The split names the classes of each task."""
        return isinstance(self.split, list) and bool(self.split) and all(isinstance(g, list) for g in self.split)

    @property
    def lists(self) -> list[str]:
        """The file of each task that lists its images; empty without lists."""
        return self.images if isinstance(self.images, list) else []

    def sentences(self) -> list[str]:
        """The protocol as sentences, for reports."""
        order = self.order if isinstance(self.order, str) else "given by a list"
        order = "given by the groups" if self.grouped else order
        sentences = [
            f"Class order: {order}{', groups in reverse' if self.reverse else ''}.",
            f"A task trains on the images of its list that show its classes ({', '.join(map(_name, self.lists))})."
            if self.lists
            else {
                "any-new": "A task trains on every image with at least one box of its new classes; an image can be "
                "used again in a later task.",
                "only-new": "A task trains on the images whose boxes are all of its new classes.",
                "disjoint": f"Every training image belongs to one task only (assigned at random, seed "
                f"{self.image_seed}).",
                "loco": "Classes are grouped so that few images show several groups, and each such image is given to "
                f"one of its tasks (at random, seed {self.image_seed}); no image is used twice.",
            }[str(self.images)],
            {
                "new": "Only boxes of the new classes are shown; old and future objects are unlabelled.",
                "seen": "Boxes of old and new classes are shown (not old-data-free).",
                "all": "All boxes are shown, future classes included.",
            }[self.boxes],
            {
                "all": "All test images are evaluated.",
                "seen": "Only test images with a box of a seen class are evaluated.",
            }[self.eval_images],
        ]
        if self.joint:
            joint = "Joint training: all classes in one task, with all their boxes (upper bound)."
            sentences = [joint, sentences[0], sentences[-1]]
        if self.shots and not self.joint:
            sentences.append(
                f"Few-shot: from the second task on, images are chosen (seed {self.image_seed}) until every class of "
                f"the task has {self.shots} boxes; all boxes of its classes in them are shown. Joint training has all."
            )
        if self.subset:
            sentences.append(subsets.sentence(self.subset))
        if self.difficult == "drop":
            sentences.append("Difficult boxes are not used for training.")
        if self.folds:
            by_order = self.fold_by == "order"
            how = "neighbours in the order of file names" if by_order else "each with its share of every class"
            alike = f"; images with equal '{self.group}' in their names are in the same fold" if self.group else ""
            sentences.append(
                f"Cross-validation: training and test images together are cut into {self.folds} folds ({how}), of "
                f"which one is tested{alike}."
            )
        if self.open_world:
            sentences.append(
                "Open world: objects of later tasks are unknown. U-Recall is the share of them that the model detects "
                "as some known class; detections on known objects do not count. There is no class for unknown objects."
            )
        return [*sentences, METRIC_SENTENCES[self.metric]]


def _name(path: str) -> str:
    return Path(path).name


METRIC_SENTENCES = {
    "coco": "Metric: COCO AP, the mean over IoU 0.50:0.95 at 101 recall points, and AP50.",
    "voc07": "Metric: VOC07, 11-point AP at IoU 0.5; difficult boxes are ignored. AP and AP50 are COCO's.",
    "voc": "Metric: VOC, AP as area under the precision envelope at IoU 0.5 (VOC 2010 on); difficult boxes are "
    "ignored. AP and AP50 are COCO's.",
    "lvis": "Metric: LVIS AP, in which only classes count that are known in an image, with APr, APc and APf of rare, "
    "common and frequent classes.",
}

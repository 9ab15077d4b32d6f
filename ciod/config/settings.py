"""Run and its sections: every setting of a training run, its default and what is allowed. ``config`` reads them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ciod import methods
from ciod.config.marks import LATER_TASKS, NO_RESULT
from ciod.core.limits import LARGEST, LARGEST_SEED, MANY
from ciod.data.augment import Augment
from ciod.data.scenarios.protocol import Protocol

Positive = Annotated[int, Field(ge=1, le=MANY)]
Rate = Annotated[float, Field(gt=0)]
Size = Annotated[int, Field(ge=32, le=LARGEST, multiple_of=32)]
"""Side of the input in pixels."""
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]

Share = Annotated[float, Field(ge=0, le=1)]


Effort = Literal["quick", "normal", "thorough"]
Allowed = list[Literal["data", "code", "settings"]]
"""What may differ from what is resumed."""
Trackers = list[Literal["tensorboard", "wandb", "mlflow", "trackio"]]
"""Where losses and results are also sent."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class DetectorSettings(Section):
    """Which detector, and what it starts from."""

    name: str = "yolox-nano"
    """See ``ciod list detectors``; ``mmdet:CONFIG``, a config of MMDetection (docs/mmdetection.md); ``hf:FOLDER``, a
    checkpoint of transformers (docs/query-detectors.md); or ``FILE.py:CLASS``, your own (docs/adding-a-detector.md)."""
    size: Size | None = None
    """Side of the (square) batch image in pixels; None: the detector's own (416 for nano and tiny, else 640)."""
    head: Literal["grow", "full"] = "grow"
    """``grow``: classes get their rows when they arrive. ``full``: all rows from the start (the paper's way)."""
    weights: str | None = None
    """A model file to start from: a ciod model, or an official, MMDetection or torchvision checkpoint. Every tensor
    that fits is loaded, and the rows of the first task's classes whose names the file has."""
    weights_from: Literal["all", "trunk"] = "all"
    """``trunk``: only backbone and neck are taken from ``weights``, the head is new. For studies in which the head
    must not know any class; the trunk still knows what the file was trained on."""
    backbone_weights: str | None = None
    """For ResNets: ``imagenet`` (the default; random with a warning if it cannot be downloaded), a path to a
    torchvision state dict, or ``random``. For MobileNetV1: a path, or ``random``."""


class Train(Section):
    """The schedule of one task; it restarts at every task.

    What ``training.effort`` chooses has here the value that it has where nothing is chosen.
    """

    epochs: Positive | list[Positive] = 30
    """Epochs of each task; a list gives every task its own."""
    steps: Positive | list[Positive] | None = None
    """Steps of each task instead of epochs, rounded up to whole epochs; a list gives every task its own."""
    joint_epochs: Annotated[Positive | None, LATER_TASKS] = None
    """Epochs of joint training; None: the same recipe as the longest task, as in ilYOLOX and ERD, or, if ``effort``
    chooses the epochs, its choice for all classes together. The sum of all tasks' epochs makes the upper bound
    higher."""
    best: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep the weights of the epoch with the highest AP of the task's classes on this share of its training images,
    which are not trained on; None: those of the last epoch."""
    patience: Positive | None = None
    """With ``best``: end a task after so many epochs without a higher AP; None: train all epochs."""
    batch: Positive = 16
    """Images per step, over all processes."""
    accumulate: Positive = 1
    """Parts of a process's batch that are computed one after the other, for batches larger than memory: gradients are
    those of the whole batch, at the price of a second forward pass of all parts except the last."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """AdamW or SGD."""
    lr: Rate = 2e-3
    """Learning rate after the warm-up, for the whole batch."""
    lr_later: Annotated[Rate | None, LATER_TASKS] = None
    """Learning rate from the second task on; None: the same."""
    trunk_lr: Annotated[float, Field(ge=0)] = 1.0
    """Learning rate of backbone and neck as a factor of ``lr``: a pretrained trunk needs a smaller one.
    0: they are frozen, including their statistics, which makes a step much cheaper."""
    backbone_lr: Annotated[float, Field(ge=0)] | None = None
    """The same factor for the backbone only, for ImageNet weights below a new neck; None: that of ``trunk_lr``. 0: it
    is frozen."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """SGD with Nesterov momentum, as YOLOX; the paper has plain momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay of weights; of biases and normalisation only with ``decay_norms``."""
    decay_norms: bool = False
    """Weight decay on biases and normalisation too (the paper does)."""
    schedule: Literal["cosine", "step"] = "cosine"
    """How the learning rate falls: along a cosine, or by 10 at each of the ``milestones``."""
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = [0.67, 0.92]
    """``step``: fractions of the task at which lr falls by 10 (the paper: epochs 8 and 11 of 12)."""
    warmup: Annotated[int, Field(ge=0)] = 200
    """Steps of linear warm-up, at most ``warmup_share`` of the task."""
    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Largest part of a task that is warm-up (1: the paper's, where a small task may be all warm-up)."""
    clip: Rate | None = 10.0
    """Largest gradient norm; None: no clipping."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.998
    """Decay of the averaged weights that are evaluated and passed to the next task; 0: off."""
    norm: Literal["auto", "train", "eval"] = "auto"
    """Batch normalisation: ``train`` updates statistics, ``eval`` keeps them; ``auto``: train in the first task."""
    sync_norm: bool = False
    """Batch normalisation in train mode takes its statistics over all processes, not over each one's own images."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision of the forward passes; losses are always float32."""
    teacher: Annotated[Literal["exact", "folded", "bf16", "fp16"], LATER_TASKS] = "folded"
    """How the teacher is computed: as it was trained; with its batch normalisation folded into the convolutions, which
    changes outputs by rounding (about 1e-6) only; or folded and in lower precision, which is much cheaper if the
    machine supports it and changes losses by up to about a percent."""
    share_frozen: Annotated[bool, LATER_TASKS] = True
    """Frozen layers that are bit-equal in student and teacher (stem and first stage of a ResNet with weights, all of a
    frozen trunk) are computed once per step: the teacher reuses their outputs for the student."""
    teacher_stream: Annotated[bool, LATER_TASKS] = False
    """On a GPU: the teacher runs on a separate CUDA stream, in parallel to the student. Needs a little more memory."""
    compile: bool = False
    """``torch.compile`` of student and teacher: every task begins with a minute or more of compiling. Needs a C++
    compiler on a CPU, Triton on a GPU."""
    channels_last: bool = True
    """Memory layout of the weights: faster convolutions, the same results except for rounding."""
    keep_freed: Annotated[bool, NO_RESULT] = False
    """On a CPU with GNU's C library: memory that a step frees is kept for the next one. Faster, with up to a quarter
    more memory; results are bit-equal."""
    workers: Annotated[Annotated[int, Field(ge=0)] | None, NO_RESULT] = None
    """Loader processes; None: by the machine (0 without a GPU)."""
    picture_cache: Annotated[Literal["auto", "off", "disk"], NO_RESULT] = "auto"
    """Decoded training pictures. ``auto``: kept in memory if there are no loader processes and all fit in 1 GiB.
    ``disk``: kept in a file of the temporary folder that the loader processes share. ``off``: decoded each time."""
    presize: bool = False
    """Training pictures more than twice as large as the largest zoom shows are made smaller when they are read: JPEGs
    of a camera are then decoded several times as fast and small enough to be kept. Test pictures are not."""
    log_every: Annotated[Positive, NO_RESULT] = 10
    """Steps between readings of the losses: the only times when a run waits for the device."""
    save_every: Annotated[Annotated[int, Field(ge=0)], NO_RESULT] = 0
    """Steps between saved states inside an epoch; 0: only at its end."""
    save_minutes: Annotated[Annotated[float, Field(gt=0)] | None, NO_RESULT] = 10.0
    """Longest time between saved states; None: no such limit."""
    eval_every: Annotated[Annotated[int, Field(ge=0)], NO_RESULT] = 0
    """Epochs between evaluations inside a task; 0: only at its end."""


class Evaluation(Section):
    """How a model is scored."""

    split: str | None = None
    """Which split of the data is the test set; None: the scenario's ``test_split``."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Test on this share of the training images instead (for tuning: never tune on what you report on)."""
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Detections below this are not scored."""
    nms_iou: Annotated[float, Field(ge=0, le=1)] = 0.65
    """IoU above which the weaker of two boxes of one class is suppressed."""
    max_detections: Positive = 100
    """COCO's maxDets: this number of detections per class and image count, the best first (VOC has no such limit)."""
    multi_label: bool | None = None
    """Each class above the threshold is a detection of a position (as GFL, RetinaNet and FCOS are evaluated), not only
    the best (as YOLOX is evaluated, and ``predict`` works); None: as is usual for the detector."""
    batch: Positive = 16
    """Images per step of the evaluation."""


class MemorySettings(Section):
    """Exemplars of finished tasks."""

    size: Annotated[float, Field(ge=0)] = 0
    """Images to keep; below 1 the share of all images seen. 0: no memory."""
    per: Literal["run", "class"] = "run"
    """``class``: ``size`` counts for every class seen so far."""
    select: Literal["random", "herding", "calibrated", "ocdm"] = "random"
    """Which images: at random; near the class means of the neck's features; with the share of boxes per class in all
    data (CL-DETR); with as equal numbers of images per class as possible (OCDM)."""
    batches: Literal["share", "balanced", "merged"] = "share"
    """``share``: a fixed share of every batch comes from the memory. ``balanced``: the share that old classes have of
    all classes. ``merged``: the exemplars join the task's images, each once per epoch."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """``batches=share``: the share of every batch."""
    labels: Literal["masked", "completed", "as_is", "none"] = "masked"
    """An exemplar has boxes of the classes of its own task only. ``masked``: other classes are not trained on it.
    ``completed``: after each task the model adds boxes of the missing classes. ``as_is``: everything without a box is
    background. ``none``: used without labels, for methods with a teacher."""
    score: Annotated[float, Field(ge=0, le=1)] = 0.4
    """``labels=completed``: lowest score of a box that the model adds."""


class PoolSettings(Section):
    """Unlabelled images for methods with a teacher."""

    folder: str | None = None
    """Folder of unlabelled pictures, including its subfolders; ``pool=FOLDER`` for short."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of every batch that comes from the pool, from the second task on."""


class Run(Section):
    """Everything that determines a training run."""

    data: str | None = None
    """Folder in COCO, VOC or YOLO format, or ``shapes`` for the built-in scenes."""
    scenario: str | None = None
    """A scenario of the package or a YAML file; its fields can be overridden: split, order, images, …"""
    protocol: Protocol = Protocol()
    detector: DetectorSettings = DetectorSettings()
    method: Annotated[dict[str, Any], LATER_TASKS] = {"name": methods.DEFAULT}
    """One of ``ciod list methods``, or ``FILE.py:CLASS``; its own settings are ``method.NAME=VALUE``. ``auto`` (used
    if no method is named): ``feature_replay`` on detectors whose prediction layers can answer stored features, else
    ``pseudo_label``."""
    train: Train = Train()
    augment: Augment = Augment()
    eval: Evaluation = Evaluation()
    memory: Annotated[MemorySettings, LATER_TASKS] = MemorySettings()
    pool: Annotated[PoolSettings, LATER_TASKS] = PoolSettings()
    upper_bound: Annotated[str | list[str] | None, NO_RESULT] = None
    """Folder of a finished joint run of the same scenario; gives gaps and Ω. With more than two tasks, Ω needs a list:
    one joint run for each class prefix (``ciod compare`` trains them)."""
    first: Annotated[str | None, NO_RESULT] = None
    """Run folder whose first task is reused instead of trained: it is the same for every method, so a comparison needs
    it only once. All settings except the method and those of later tasks must be equal."""
    effort: Annotated[Effort, NO_RESULT] = "normal"
    """Amount of training: chooses steps, batch, learning rates, averaging and augmentation from data, start and
    machine, unless they are set by hand. The choices are printed and belong to the run's settings."""
    out: Annotated[str, NO_RESULT] = "runs/latest"
    """Run folder."""
    log: Annotated[Trackers, NO_RESULT] = []
    """Trackers that record the run: ``log=tensorboard,wandb`` (docs/trackers.md)."""
    seed: Seed = 0
    """Seed of initial weights, order of images and augmentation."""
    device: Annotated[str, NO_RESULT] = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``."""
    resume: Annotated[Literal["auto", "never"], NO_RESULT] = "auto"
    """``auto``: resume where a run in ``out`` stopped. ``never``: refuse a folder that has one."""
    allow: Annotated[Allowed, NO_RESULT] = []
    """What may differ from the run that is resumed: ``allow=data,code``. Without it a difference is refused."""

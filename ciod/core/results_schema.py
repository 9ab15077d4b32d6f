"""What a run writes: results.json, and the state it is resumed from; and compare.json of a comparison. The field names
are those of the files.

``report/results_file.py`` reads results.json of any version and age, and has the same fields; a test compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


Group = dict[str, "float | None"]  # metric → AP as a fraction; None: not known


class _Scenario(TypedDict):
    name: str
    classes: list[str]
    split: list[int]
    joint: bool
    metric: str
    data: str
    protocol: list[str]


class ScenarioEntry(_Scenario, total=False):
    """``scenario``: the protocol of the run. An extension has only the entries that every run has."""

    order: str | list[str]
    images: str | list[str]
    boxes: str
    eval_images: str
    reverse: bool
    difficult: str
    image_seed: int | None
    shots: int | None
    subset: str | None  # of a smoke test
    folds: int | None
    fold: int | None
    group: str | None
    max_detections: int


class DetectorEntry(TypedDict):
    name: str
    head: str


class MethodEntry(TypedDict):
    name: str
    settings: dict[str, Any]
    distillation_terms: list[str]  # names of the losses that distil


class _Task(TypedDict):
    index: int
    new_classes: list[str]
    old_classes: list[str]
    future_boxes: int
    test_images: int
    old: Group | None
    new: Group | None
    all: Group | None


class TaskEntry(_Task, total=False):
    """One of ``tasks``; it has fewer entries if this run did not train it, as the first task of an extension."""

    repeated_classes: list[str]  # those of ``old_classes`` that the task teaches again
    train_images: int
    train_boxes: int
    hidden_boxes: int
    memory_images: int
    pool_images: int
    peak_memory_mb: float
    steps: int
    epochs: int
    kept: dict[str, Any] | None  # with train.best: which epoch, of how many planned, the AP of each, and why
    seconds: float
    warnings: list[str]
    open_world: dict[str, Any]  # unknown_recall, open_set_error, wilderness_impact, unknown_boxes


class _Results(TypedDict):
    format: int
    scenario: ScenarioEntry
    detector: DetectorEntry
    method: MethodEntry
    seed: int
    tasks: list[TaskEntry]
    ap: dict[str, list[Group]]  # metric → per task, class → AP
    continual: dict[str, dict[str, Any]]  # metric → measure → value
    warnings: list[str]


class ResultsFile(_Results, total=False):
    """``results.json``."""

    upper_bounds: list[Group | None] | None  # per task, COCO's six APs of joint training
    extension: dict[str, Any]  # only of ``ciod extend``


class ExtensionResults(_Results):
    """``results.json`` of ``ciod extend``."""

    extension: dict[str, Any]


class ComparedMethod(TypedDict, total=False):
    """One of ``methods`` of compare.json."""

    label: str
    name: str
    settings: dict[str, Any]
    finished_seeds: int
    joint: bool
    mean: dict[str, float | None]  # column → mean over the seeds
    std: dict[str, float | None]


class ComparedRun(TypedDict):
    """One of ``runs`` of compare.json."""

    label: str
    seed: int
    folder: str  # relative to that of the comparison
    status: str  # finished, failed
    error: str | None
    key: str


class ComparisonFile(TypedDict):
    """``compare.json``."""

    format: int
    command: str
    scenario: dict[str, Any]
    seeds: list[int]
    blocks: list[dict[str, Any]]
    upper: str
    methods: list[ComparedMethod]
    runs: list[ComparedRun]
    by_seed: list[dict[str, Any]]
    against: str | None
    gate: float | None
    margin: float | None
    equal_steps: bool
    remarks: list[str]
    bases: list[tuple[str, list[str]]]
    shared: list[dict[str, Any]]  # first tasks and joint models that runs share
    warnings: list[str]
    commit: str | None
    versions: dict[str, str]
    machine: str
    differences: list[dict[str, Any]]
    confusion: dict[str, dict[str, Any]]


class Identity(TypedDict, total=False):
    """Fingerprints of everything that a run depends on."""

    data: dict[str, Any]  # per split
    model: dict[str, str]  # of the model file that is extended
    code: dict[str, Any]


class WatchState(TypedDict):
    """What is known about the losses of a task so far."""

    first: float | None  # sum of losses at the first reading
    epoch: int
    largest: dict[str, float]  # |loss| in this epoch, of the distillation terms
    sentences: list[str]
    said: list[str]


class AverageState(TypedDict):
    """The averaged weights."""

    steps: int
    state: dict[str, Tensor]


class _FitState(TypedDict):
    """Inside a task, after ``done`` of its steps."""

    done: int
    epoch: int
    steps: int  # per epoch
    window: list[list[Any]]  # steps whose losses are not read yet: step, epoch, losses, norm, names
    watch: WatchState
    detector: dict[str, Tensor]
    optimizer: dict[str, Any]
    ema: AverageState | None
    scaler: dict[str, Any]
    method: dict[str, Any]
    broken: list[str]  # images that could not be read


class FitState(_FitState, total=False):
    """Inside a task, after ``done`` of its steps."""

    keeper: dict[str, Any]  # of the best epoch so far; only with train.best


class TaskState(TypedDict):
    """What ``train_task`` is resumed from."""

    fit: FitState
    random: list[dict[str, Any]]  # per rank, the states of all generators
    seconds: float  # of training so far


class _State(TypedDict):
    format: int
    command: str  # of ciod
    identity: Identity
    task: int  # how many are finished
    seconds: float  # of training in the next one
    settings: dict[str, Any]  # those that change results, flat
    warnings: list[str]


class _RunState(_State):
    results: ResultsFile


class RunState(_RunState, total=False):
    """What ``ciod train`` is resumed from: inside a task with ``fit`` and ``random``, after one with ``method``, inside
    the training of an interim model with all of them and ``interim``."""

    memory: dict[str, Any]
    method: dict[str, Any]
    fit: FitState
    random: list[dict[str, Any]]
    interim: bool


class _ExtensionState(_State):
    plan: dict[str, Any]


class ExtensionState(_ExtensionState, total=False):
    """What ``ciod extend`` is resumed from: in training with ``fit`` and ``random``, finished with ``not_kept``.

    Its first task is the original model.
    """

    fit: FitState
    random: list[dict[str, Any]]
    not_kept: str | None  # why there is no model

"""The schema of ``results.json``: a file is validated once when it is read, so later code need not check it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ciod.core.errors import CiodError
from ciod.core.reading import read_object

NAME = "results.json"
FORMAT = 1

Value = Annotated[float, Field(allow_inf_nan=False)] | None  # values that are not finite are written as null
Count = Annotated[int, Field(ge=-(2**63), lt=2**63)] | None  # JSON may have numbers that no float can hold
Names = Annotated[list[str], Field(max_length=100_000)] | None
Group = dict[str, Value] | None


class _Loose(BaseModel):
    """Keys may be missing or null, and there may be others; those listed here must have the right type."""

    model_config = ConfigDict(extra="allow", strict=True)


class Scenario(_Loose):
    name: str | None = None
    classes: Names = None
    split: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = None
    joint: bool | None = None
    reverse: bool | None = None
    order: str | list[str] | None = None
    images: str | list[str] | None = None
    boxes: str | None = None
    eval_images: str | None = None
    difficult: str | None = None
    metric: str | None = None
    max_detections: Count = None
    image_seed: Count = None
    shots: Count = None
    subset: str | None = None
    folds: Count = None
    fold: Count = None
    group: str | None = None
    data: str | None = None
    protocol: list[str] | None = None


class Kept(_Loose):
    """Which epoch ``train.best`` chose."""

    epoch: Annotated[int, Field(ge=1, lt=2**31)]
    planned: Annotated[int, Field(ge=1, lt=2**31)]
    why: str


class Task(_Loose):
    index: Count = None
    new_classes: Names = None
    old_classes: Names = None
    repeated_classes: Names = None
    old: Group = None
    new: Group = None
    all: Group = None
    seconds: Value = None
    peak_memory_mb: Value = None
    train_images: Count = None
    train_boxes: Count = None
    hidden_boxes: Count = None
    future_boxes: Count = None
    memory_images: Count = None
    pool_images: Count = None
    test_images: Count = None
    steps: Count = None
    epochs: Count = None
    warnings: list[str] | None = None
    open_world: dict[str, Value] | None = None
    kept: Kept | None = None


class Detector(_Loose):
    name: str | None = None
    head: str | None = None


class Method(_Loose):
    name: str | None = None
    settings: dict[str, Any] | None = None
    distillation_terms: Names = None


class Row(_Loose):
    name: str = Field(alias="class")
    before: Value
    after: Value
    kept: Value


class Retention(_Loose):
    kind: str
    value: Value
    rows: list[Row]
    images: int


class Found(_Loose):
    name: str = Field(alias="class")
    boxes: int
    images: int
    doubtful: int
    threshold: float


class AllFound(_Loose):
    total: int
    classes: list[Found]


class Plan(_Loose):
    why: list[str]


class Step(_Loose):
    share: Value
    kept: Value
    learnt: Value


class AlarmSource(_Loose):
    source: str
    images: int
    classes: dict[str, Value]


class FalseAlarms(_Loose):
    score: float
    allowed: float
    measured: bool
    sources: list[AlarmSource]
    thresholds: dict[str, float]
    together: dict[str, Value] | None


class Confused(_Loose):
    name: str = Field(alias="class")
    objects: int
    found: int
    taken: dict[str, int]
    beside: dict[str, int] | None = None


class Sides(_Loose):
    AP: Annotated[list[Value], Field(min_length=2, max_length=2)]
    AP50: Annotated[list[Value], Field(min_length=2, max_length=2)]


class Further(_Loose):
    name: str = Field(alias="class")
    new: Sides
    old: Sides


class Unchanged(_Loose):
    images: int
    identical: int
    boxes: int
    listed: int


class Extension(_Loose):
    """Content that only ``ciod extend`` writes."""

    retention: Retention
    found: AllFound
    plan: Plan
    cost: str
    tradeoff: list[Step] | None = None
    false_alarms: FalseAlarms | None = None
    confusion: list[Confused] | None = None
    unchanged: Unchanged | None = None
    further: list[Further] | None = None


class File(_Loose):
    scenario: Scenario | None = None
    detector: Detector | None = None
    method: Method | None = None
    tasks: Annotated[list[Task], Field(max_length=10_000)] | None = None
    ap: dict[str, list[dict[str, Value] | None] | None] | None = None
    continual: dict[str, dict[str, Value] | None] | None = None
    warnings: list[str] | None = None
    seed: Count = None
    upper_bounds: Any = None
    extension: Extension | None = None


class _FinishedScenario(_Loose):
    classes: Annotated[list[str], Field(min_length=1, max_length=100_000)]


class _FinishedTask(_Loose):
    new_classes: Annotated[list[str], Field(max_length=100_000)]
    all: dict[str, Value]


class Finished(_Loose):
    """The content of a run after its first task, which other runs can use."""

    scenario: _FinishedScenario
    tasks: Annotated[list[_FinishedTask], Field(min_length=1, max_length=10_000)]
    ap: dict[str, Annotated[list[dict[str, Value]], Field(min_length=1)]]
    continual: dict[str, dict[str, Value] | None]
    warnings: list[str]


def problem(content: Any, needs: type[BaseModel] | None = None) -> str | None:
    """The problem of the content, or None.

    Args:
        needs: what it must also have.
    """
    try:
        for model in (File, needs or File):
            model.model_validate(content)
    except ValidationError as e:
        first = e.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return None


def read(path: Path, needs: type[BaseModel] | None = None) -> dict[str, Any]:
    """The content of a ``results.json``, of a run that may be unfinished.

    Args:
        needs: what it must also have; ``Finished`` for runs that other runs use.

    Raises:
        CiodError: it is missing, not JSON, has another format or has no results; says where.
    """
    found = read_object(path)
    if found.get("format", FORMAT) != FORMAT:
        raise CiodError(f"{path} has a format that this version of ciod does not read; it reads {FORMAT}.")
    if wrong := problem(found, needs):
        raise CiodError(f"{path} does not contain the results of a run: {wrong}.")
    return found

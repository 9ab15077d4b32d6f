"""What each command prints with ``--json``: one object per command. docs/scripts.md has the same tables.

Every object also has ``command`` and ``exit_code``; that of a failed command has ``error`` and ``problems`` instead.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ciod.core.files import exists
from ciod.core.reading import read_object

if TYPE_CHECKING:
    from ciod.contract import Report
    from ciod.evaluation.detect import Scored
    from ciod.exporters.onnx_file import Exported
    from ciod.inference.job import Job


class Failed(TypedDict):
    """A command that ended with an error."""

    error: str  # as on standard error
    problems: list[str]  # the same, one per problem


class Train(TypedDict):
    """``ciod train`` and ``ciod report``."""

    out: str  # the run folder
    models: list[str]  # one per finished task, in order
    report: str  # the page
    verdict: str  # the result in one or two sentences
    results: dict[str, Any]  # the content of results.json


class TrainPlan(TypedDict):
    """``ciod train … --dry-run``."""

    tasks: list[dict[str, Any]]  # classes, epochs, lr, images, boxes, hidden, test_images, steps, warmup, changes
    why: list[str]  # why effort= chooses what it chooses
    missing: list[str]  # what must be there before it can run


class Extend(TypedDict):
    """``ciod extend``."""

    out: str  # the run folder
    model: str  # the extended model
    report: str  # the page
    results: dict[str, Any]  # the content of results.json


class ExtendPlan(TypedDict):
    """``ciod extend … --dry-run``."""

    out: str
    new: list[str]  # classes that the model will learn
    taught: list[str]  # classes of the folder that the model knows
    old: list[str]  # classes of the model that stay
    method: str
    images: int  # to train on
    boxes: int
    test_images: int  # to measure on
    epochs: int
    steps: int
    batch: int
    lr: float
    size: int  # side of the input in pixels
    why: list[str]  # why effort= chooses what it chooses


class Compare(TypedDict):
    """``ciod compare``, and a part of it (``--only``)."""

    out: str  # the folder of the comparison
    runs: list[dict[str, Any]]  # label, status (done or failed), and error of a failed one
    results: dict[str, Any]  # the content of compare.json; {} of a part


class ComparePlan(TypedDict):
    """``ciod compare … --dry-run``."""

    out: str
    runs: list[dict[str, Any]]  # name, folder, state: finished, started or "to train"


class Check(TypedDict):
    """``ciod check``."""

    model: str
    lines: list[str]  # how the file is understood, one sentence per line; of FILE.py:CLASS what is printed
    checks: list[dict[str, Any]]  # of FILE.py:CLASS: name, state (kept, broken, not checked) and sentences; else []


class Eval(TypedDict):
    """``ciod eval``. AP as a fraction; null: there is no object to find."""

    overall: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    images: int
    not_in_model: list[str]  # classes of the data that were left out
    not_in_data: list[str]  # classes of the model that were left out
    unreadable: list[str]  # files, scored as empty
    problems: list[str]  # of the data
    report: str | None  # the page, with out=


class Predict(TypedDict):
    """``ciod predict``."""

    out: str
    files: int  # how many could be read
    images: list[dict[str, Any]]  # the content of predictions.json
    videos: list[str]  # files with one line of JSON per frame


class Export(TypedDict):
    """``ciod export … onnx=``."""

    file: str
    opset: int
    bytes: int
    verified: bool  # compared with the model
    score_difference: float | None  # the largest
    box_difference: float | None  # the largest, in pixels
    detections: int | None  # compared ones, with nms=true


class ExportMMDet(TypedDict):
    """``ciod export … mmdet=``."""

    config: str
    checkpoint: str


class ExportHF(TypedDict):
    """``ciod export … hf=``."""

    folder: str
    notes: list[str]  # what whoever loads the folder must know


class Push(TypedDict):
    """``ciod push``."""

    repo: str
    url: str


class Demo(TypedDict):
    """``ciod demo``."""

    report: str
    runs: dict[str, str]  # method → run folder


class Data(TypedDict):
    """``ciod data``."""

    name: str
    out: str | None  # None: nothing was asked to be fetched


class List(TypedDict, total=False):
    """``ciod list``: ``rows`` of a topic with a table, and what belongs to the topic."""

    rows: list[dict[str, str]]  # one per row, by the names of the columns
    file: str  # of a model: the file, and the four below
    kind: str  # ciod, onnx or checkpoint
    detector: dict[str, Any]
    classes: list[str] | None  # also of a data set and of a scenario; null: not named
    lineage: list[dict[str, Any]]  # how the model learnt its classes
    method: str  # of a method: its name, the paper and how to cite it
    paper: str
    bibtex: str
    scenario: str  # of a scenario: its name, and what it says of itself
    protocol: list[str]
    lines: list[str]  # of environment
    data: str  # of a data set: its folder, and the four below
    format: str
    splits: dict[str, Any]
    unusable: dict[str, str]
    notes: list[str]


def of_run(folder: Path) -> dict[str, Any]:
    """A run folder: ``Train``."""
    from ciod.report import extended
    from ciod.report.page import read_results
    from ciod.report.summary import verdict

    models = sorted(folder.glob("task-*/model.safetensors"), key=lambda p: int(p.parent.name[5:]))
    content = read_results(folder)
    answer = Train(
        out=str(folder),
        models=[str(p) for p in models],
        report=str(folder / "report.html"),
        verdict=(extended.verdict if content.get("extension") else verdict)(content),
        results=content,
    )
    return {**answer}


def of_extension(folder: Path) -> dict[str, Any]:
    """The run folder of an extension: ``Extend``."""
    from ciod.extension.write import written

    content, page = read_object(folder / "results.json"), str(folder / "report.html")
    return {**Extend(out=str(folder), model=str(written(folder)), report=page, results=content)}


def of_check(report: Report) -> dict[str, Any]:
    """The checks of a class of the user's: ``Check``."""
    answer = Check(model=report.name, lines=report.lines(), checks=report.content())
    return {**answer, "exit_code": int(report.broken)}


def of_scores(scored: Scored, report: Path | None) -> dict[str, Any]:
    """An evaluation: ``Eval``."""
    answer = Eval(
        overall=scored.table.overall,
        per_class=scored.table.per_class,
        images=scored.images,
        not_in_model=list(scored.unknown_to_model),
        not_in_data=list(scored.absent_from_data),
        unreadable=scored.broken,
        problems=scored.problems,
        report=str(report) if report else None,
    )
    return {**answer}


def of_predictions(job: Job, done: int) -> dict[str, Any]:
    """What was detected: ``Predict``."""
    from ciod.core.reading import read_json
    from ciod.inference.target import LISTED

    listed = job.out / LISTED
    videos = [str(p) for f in job.films if exists(p := job.out / f"{job.target.stems[f]}.jsonl")]
    images = read_json(listed) if job.pictures and exists(listed) else []
    return {**Predict(out=str(job.out), files=done, images=images, videos=videos)}


def of_export(done: Exported) -> dict[str, Any]:
    """An ONNX file: ``Export``."""
    found = asdict(done)
    answer = Export(
        file=str(done.path),
        opset=done.opset,
        bytes=done.path.stat().st_size,
        verified=done.verified,
        score_difference=found["score_difference"],
        box_difference=found["box_difference"],
        detections=done.detections,
    )
    return {**answer}

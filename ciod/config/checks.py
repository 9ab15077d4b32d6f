"""Checks across settings: names, files, and whether method, detector and data are compatible."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciod.config import outputs
from ciod.config.settings import DetectorSettings, MemorySettings, PoolSettings, Run, Train
from ciod.core.errors import CiodError, ConfigError, did_you_mean
from ciod.core.files import exists, expanded, is_file, is_folder, is_loop, is_model, near_path
from ciod.core.user_code import UserCodeError, user_errors, where
from ciod.core.validation_messages import problems_of
from ciod.data.scenarios import folds, lists
from ciod.data.scenarios.protocol import Protocol
from ciod.trackers import absent as absent_trackers

if TYPE_CHECKING:
    from ciod.methods.base.method import Method


def section(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Settings of a section; {} if it is missing or has another type, which validation reports."""
    found = tree.get(name)
    return dict(found) if isinstance(found, Mapping) else {}


def method(tree: dict[str, Any]) -> list[str]:
    """Names, and whether method and detector are compatible."""
    from ciod import detectors, methods

    problems = []
    detector = section(tree, "detector").get("name", DetectorSettings().name)
    settings = section(tree, "method")
    name = settings.pop("name", methods.DEFAULT)
    offered, complaints = _offered(str(detector))
    problems += complaints
    try:
        cls = methods.find(str(name))
    except CiodError as e:
        return [*problems, str(e)]
    with user_errors(str(name)):
        method, complaints = method_of(cls, settings)
        problems += complaints
        needs, exact = (cls.needs, False) if method is None else (method.requires(), method.exact_teacher)
    if not isinstance(needs, (frozenset, set)):
        raise UserCodeError(f"{where(cls, 'requires')} returned {needs!r}; return a frozenset of traits.")
    kind = section(tree, "train").get("teacher", Train().teacher)
    if exact and kind != "exact":
        problems.append(f"train.teacher: these settings of {name} need train.teacher=exact, not {kind}.")
    lacking = needs - offered if offered is not None else frozenset()
    if lacking:
        able = _one_a_family(detectors.offering(needs))
        problems.append(
            f"method: {name} needs a detector with {', '.join(sorted(lacking))}, which {detector} does not have"
            + (f"; {', '.join(able)} would do." if able else ", nor any other.")
            + (_not_aligned(offered) if "dense" in lacking and offered else "")
        )
    return problems


def _not_aligned(offered: frozenset[str]) -> str:
    """Why positions of this detector cannot be compared; "": they can."""
    from ciod import detectors

    if "query" in offered:
        return f" {detectors.NOT_ALIGNED}"
    return f" {detectors.OTHER_REGIONS}" if "rois" in offered else ""


def method_of(cls: type[Method], settings: dict[str, Any]) -> tuple[Method | None, list[str]]:
    """A method with the valid ones of ``settings`` (None if it cannot be made), and all problems.

    Raises:
        UserCodeError: its ``check`` returned no list of messages.
    """
    found = problems_of(cls, settings, where="method")
    wrong = {line.partition(":")[0].removeprefix("method.") for line in found}
    sound = {k: v for k, v in settings.items() if k not in wrong}
    if problems_of(cls, sound):  # a method from a file may need a setting
        return None, found
    method = cls.model_validate(sound)
    more = method.check()
    if not isinstance(more, (list, tuple)) or not all(isinstance(line, str) for line in more):
        kind = "None" if more is None else f"a {type(more).__name__}"
        raise UserCodeError(f"{where(cls, 'check')} returned {kind}; return a list of messages, empty for none.")
    return method, [*found, *more]


def _offered(detector: str) -> tuple[frozenset[str] | None, list[str]]:
    """Traits of a detector; or None and the problem of its name."""
    from ciod import detectors

    if detectors.is_own(detector):
        try:
            return frozenset(detectors.traits(detector)), []
        except CiodError as e:
            return None, [str(e)]
    if not detector.startswith(("mmdet:", detectors.HF)) and detector not in detectors.available():
        return None, [f"detector.name: no detector '{detector}'; {did_you_mean(detector, detectors.available())}"]
    if extra := detectors.lacking(detector):
        needed = " and ".join(detectors.PACKAGES[extra])
        return None, [f"detector.name: {detector} needs {needed}: pip install 'ciod[{extra}]'"]
    try:
        return detectors.traits(detector), []
    except CiodError as e:
        return None, [f"detector.name: {e}"]


def _one_a_family(names: Sequence[str]) -> list[str]:
    """The first of each run of names with the same beginning: yolox-pico for all of YOLOX."""
    return list({name.split("-")[0]: name for name in reversed(names)}.values())[::-1]


def training(tree: dict[str, Any]) -> list[str]:
    """Missing parts of the machine, and settings of ``train`` that exclude each other."""
    given = section(tree, "train")
    if problems_of(Train, given):
        return []
    train, problems = Train.model_validate(given), []
    if "epochs" in given and given.get("steps") is not None:
        problems.append("train.steps: the epochs are given too (train.epochs); write one of the two.")
    problems += patience(tree)
    if "batch" in given and train.accumulate > train.batch:
        problems.append(f"train.accumulate={train.accumulate} is larger than the batch ({train.batch}).")
    if train.accumulate > 1 and train.sync_norm and train.norm != "eval":
        problems.append(
            "train.sync_norm takes the statistics of a whole batch, which train.accumulate computes in parts; use one "
            "of the two, or train.norm=eval."
        )
    if train.compile and not str(tree.get("device", "auto")).startswith("cuda"):
        import torch

        on_cpu = tree.get("device") == "cpu" or not torch.cuda.is_available()
        if on_cpu and lacks_compiler():
            problems.append("train.compile needs a C++ compiler (g++ or clang++) on a CPU, but none is found.")
    return problems


def patience(tree: dict[str, Any]) -> list[str]:
    """``train.patience`` without pictures to measure on."""
    given = section(tree, "train")
    if given.get("patience") is None or given.get("best") is not None:
        return []
    return ["train.patience: there are no held-out pictures to measure on; write best=0.1 to hold a tenth out, too."]


def lacks_compiler() -> bool:
    """Whether a CPU has no C++ compiler for ``torch.compile``."""
    names = (os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl")
    return not any(shutil.which(n) for n in names if n)


def extra(tree: dict[str, Any]) -> list[str]:
    """Checks memory and pool against the method, the detector and each other."""
    from ciod import methods

    given, pool = section(tree, "memory"), section(tree, "pool")
    if problems_of(MemorySettings, given) or problems_of(PoolSettings, pool):
        return []
    memory, pool = MemorySettings.model_validate(given), PoolSettings.model_validate(pool)
    name = str(section(tree, "method").get("name", methods.DEFAULT))
    try:
        method = methods.find(name)
    except CiodError:
        return []
    problems = []
    unlabelled = [
        k for k, on in (("pool", pool.folder), ("memory.labels=none", memory.labels == "none" and memory.size)) if on
    ]
    if unlabelled and not method.uses_teacher and name != "joint":  # which has no later task to use them in
        problems.append(
            f"{unlabelled[0]}: {name} has no teacher and learns nothing from images without labels; choose a method "
            "that distils or labels (distill_pool, pseudo_label, ilyolox, …)."
        )
    if method.needs_unlabelled and not unlabelled:
        problems.append(
            f"method: {name} needs images without labels; write pool=FOLDER, or memory=N memory.labels=none."
        )
    if pool.folder and memory.size and memory.batches == "share" and memory.share + pool.share >= 1:
        problems.append(
            f"pool.share={pool.share} and memory.share={memory.share} leave no room in a batch for the task's own "
            "images."
        )
    problems += folder("pool.folder", pool.folder)
    detector = section(tree, "detector").get("name", DetectorSettings().name)
    herds = memory.size and memory.select == "herding"
    offered = _offered(str(detector))[0] if herds else None
    if offered is not None and "features" not in offered:
        problems.append(f"memory.select=herding needs a detector with features, which {detector} does not have.")
    if section(tree, "train").get("batch") == 1 and (memory.size or pool.folder) and memory.batches != "merged":
        problems.append("train.batch=1 has no room for images of memory or pool beside the task's own.")
    return problems


def model_folder(key: str, value: object) -> list[str]:
    """Problems of a folder for models: their file format (safetensors) accepts only UTF-8 paths."""
    if value == "":
        return target(key, value)
    try:
        if b"\0" in str(value).encode():
            return [f"{key}: no file can be called {value!r}."]
        return [f"{key}: {value} is a link that leads to itself."] if is_loop(str(value)) else []
    except UnicodeEncodeError:
        return [f"{key}: should be a path of UTF-8 text, which model files need (got {value!r})"]


def target(key: str, value: object) -> list[str]:
    """Problems of a file or folder to write."""
    if value == "":
        return [f"{key}: should be a path; write {key}=PATH, or leave it out."]
    if key in _FILES and value is not None and is_folder(str(value)):
        return [f"{_FILES[key]}: {value} cannot be written: it is a folder. Give the name of a file."]
    return []


_FILES = {"coco": "coco", "json_file": "json", "onnx": "onnx"}
"""Settings that name a file to write, and how they are typed."""


def device(wanted: object) -> list[str]:
    """Checks that the machine has it; a run checks again, because its processes may have others."""
    from ciod.core.distributed import pick_device

    try:
        pick_device("auto" if wanted is None else str(wanted))
    except CiodError as e:
        return [str(e)]
    return []


def files(tree: dict[str, Any]) -> list[str]:
    problems = model_folder("out", tree.get("out"))
    detector = section(tree, "detector")
    if not problems:
        data = _folder(tree)
        folders = {"data": None if data == "shapes" else data, "pool": section(tree, "pool").get("folder")}
        out = tree.get("out", Run.model_fields["out"].default)
        problems += outputs.run_folder(out, folders, {"weights": detector.get("weights")})
    for key in ("weights", "backbone_weights"):
        value = detector.get(key)
        if value and value not in ("imagenet", "random") and not is_file(str(value)):
            problems.append(f"detector.{key}: there is no file {value}{near_path(Path(str(value)), is_model)}")
    first = tree.get("first")
    if first and not is_file(Path(str(first)) / "task-1" / "model.safetensors"):
        problems.append(f"first: {first} has no finished first task (task-1/model.safetensors).")
    given = tree.get("upper_bound") or []
    for bound in given if isinstance(given, (list, tuple)) else [given]:
        if not is_file(Path(str(bound)) / "results.json"):
            problems.append(f"upper_bound: {bound} is not a finished run; it has no results.json.")
    return problems


def _folder(tree: dict[str, Any]) -> str | None:
    return data_folder(tree.get("data") or section(tree, "protocol").get("data"))


def absent_data(tree: dict[str, Any]) -> list[str]:
    data = _folder(tree)
    if data is None or data == "shapes" or exists(data):
        return []
    variable = re.fullmatch(r"\$\{(\w+)\}", data)
    if variable:
        return [
            f"data: the environment variable {variable[1]}, which names the data set's folder, is not set; set it, or "
            "write data=FOLDER (docs/protocols.md has the layout)."
        ]
    return folder_of_data(data)


def folder_of_data(value: object, key: str = "data") -> list[str]:
    """Checks that a data set exists: a folder, or a file that names one."""
    path = None if value is None else data_folder(str(value))
    if path is None or exists(path):
        return []
    from ciod.data import formats

    return [f"{key}: there is no folder {path}{near_path(Path(path), formats.is_data_set)}"]


def folder(key: str, value: object) -> list[str]:
    """Checks that a folder of pictures exists."""
    path = None if value is None else expanded(str(value))
    if path is None or is_folder(path):
        return []
    from ciod.data import folders

    return [f"{key}: there is no folder {value}{near_path(path, folders.has_pictures)}"]


def known_classes(given: str | None) -> tuple[str, ...] | None:
    """Class names of a data set that may be missing: those of the shapes, and of scenarios of COCO and VOC."""
    from ciod.data import names
    from ciod.data.shapes.scenes import CLASSES

    return {"shapes": CLASSES, "${COCO}": names.COCO, "${VOC}": names.VOC}.get(given or "")


def data(tree: dict[str, Any]) -> list[str]:
    """Checks that the class names of split and order are in the data."""
    from ciod.data import formats
    from ciod.data.scenarios.scenario import groups_of

    data, protocol = _folder(tree), section(tree, "protocol")
    if data is None:
        return ["data: no data set is given; write data=FOLDER (COCO, VOC or YOLO format), or scenario=NAME."]
    if data == "shapes" and formats.is_data_set(Path(data)):
        return [
            "data: shapes is the built-in data set, but a folder of this name is here too. Write data=./shapes for the "
            "folder; for the built-in scenes run the command elsewhere."
        ]
    if problems_of(Protocol, protocol):
        return []
    if problems := folds.problems(Protocol.model_validate(protocol)):
        return problems
    try:
        if data == "shapes" or not exists(data):
            names = known_classes(data if data == "shapes" else protocol.get("data"))
        else:
            names = formats.class_names(data)
        if names:
            made = Protocol.model_validate(protocol)
            groups = groups_of(made, names)
            return lists.problems(made.lists, len(groups)) if made.lists else []
    except ConfigError as e:
        return e.problems
    except CiodError as e:
        return [f"data: {e}"]
    return []


def data_folder(data: str | None) -> str | None:
    """``data`` with ``~`` and ``${VARIABLES}`` replaced, unless something of exactly that name exists.

    ``shapes`` is the built-in data set; a folder of that name is ``./shapes``.
    """
    if data is None:
        return None
    path = str(Path(data)) if exists(str(data)) else str(expanded(os.path.expandvars(str(data))))
    return os.path.join(os.curdir, path) if path == "shapes" != str(data) else path  # noqa: PTH118 (Path drops the dot)


def trackers(given: Any) -> list[str]:
    """Trackers whose packages are not installed."""
    return absent_trackers([given] if isinstance(given, str) else [n for n in given or () if isinstance(n, str)])

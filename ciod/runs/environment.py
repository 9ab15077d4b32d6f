"""What a run records of its settings, versions and machine, and what it derives from the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from ciod.config.marks import LATER_TASKS, NO_RESULT, marked
from ciod.config.settings import Run
from ciod.core.run_log import METRICS, atomic_write, read_metrics
from ciod.core.version import __version__
from ciod.data.scenarios import lists

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ciod.core.distributed import World


def fingerprint(settings: BaseModel) -> dict[str, Any]:
    """Everything that determines a run, flat and JSON-ready: resuming with other values is refused."""
    flat: dict[str, Any] = {}
    free = marked(type(settings), NO_RESULT)

    def walk(tree: dict[str, Any], prefix: str) -> None:
        for k, v in tree.items():
            key = f"{prefix}{k}"
            if key in free:
                continue
            if isinstance(v, dict):
                walk(v, f"{key}.")
            else:
                flat[key] = list(v) if isinstance(v, tuple) else v

    walk(settings.model_dump(), "")
    if isinstance(images := flat.get("protocol.images"), list):  # lists of images: their content counts
        flat["protocol.images"] = lists.digests(images)
    return flat


def first_task(settings: dict[str, Any]) -> dict[str, Any]:
    """The part of a fingerprint that the first task depends on: nothing of method, memory, pool and later tasks."""
    later = marked(Run, LATER_TASKS)
    kept = {k: v for k, v in settings.items() if k not in later and k.partition(".")[0] not in later}
    epochs = kept.get("train.epochs")
    kept.pop("train.steps", None)  # the epochs follow from them
    return {**kept, "train.epochs": epochs[0] if isinstance(epochs, list) else epochs}


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """A description of the differences between two fingerprints."""
    keys = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))

    def shown(settings: dict[str, Any], key: str) -> str:
        return repr(settings[key]) if key in settings else "not given"

    changes = [f"{k} was {shown(theirs, k)}, is {shown(mine, k)}" for k in keys[:4]]
    return "; ".join(changes) + ("; …" if len(keys) > 4 else "")


def plain(value: Any) -> Any:
    """Tuples → lists, so that a state file holds only values that load without code."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def workers(wanted: int | None, world: World) -> int:
    """Loader processes: on a CPU the network needs every core, on a GPU decoding must keep up."""
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if world.device.type == "cpu" else max(1, min(8, cores // world.size))


def versions(optional: bool = False) -> dict[str, str]:
    """Name → version, or "not installed", of Python, ciod and its packages; with ``optional`` also of its extras."""
    names = ["torch", "torchvision", "numpy", "pillow", "faster-coco-eval", "safetensors"]
    if optional:
        names += ["onnx", "onnxruntime", "av", "onedl-mmcv", "onedl-mmdetection"]
    found = {"python": platform.python_version(), "ciod": __version__}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """Commit of the source tree ciod runs from, with ``+`` if it has changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def describe() -> str:
    """Processor, cores, and GPU if there is one."""
    processor = platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}, {platform.system()}"


def peak_memory_mb() -> float:
    """Peak memory of the GPU if there is one, else of the process (which never falls)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # preferred, because a child inherits its parent's ru_maxrss
        line = next(x for x in status.read_text(encoding="utf-8").splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def write_settings(out: Path, settings: Run, command: str, chosen: Sequence[str] = ()) -> None:
    """``run.yaml``: resolved settings, the reasons for the chosen ones, and the environment."""
    content = {
        "command": command or " ".join(["ciod", *sys.argv[1:]]),
        "seed": settings.seed,
        "commit": commit(),
        "machine": describe(),
        "versions": versions(),
        **settings.model_dump(mode="json"),
        **({"chosen": list(chosen)} if chosen else {}),
    }
    atomic_write(out / "run.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def trim_log(out: Path, task: int, fit: Mapping[str, Any] | None) -> None:
    """Drops logged lines of steps that will be repeated: those after the saved state (``fit``: its training part)."""

    def known(line: dict[str, Any]) -> bool:
        if line.get("task", 0) != task or fit is None:
            return line.get("task", 0) < task
        if "step" in line:
            return line["step"] <= fit["done"]
        # an evaluation after the last finished epoch is repeated if the state was written just before it
        whole = fit["done"] // fit["steps"]
        return line.get("epoch", whole) < (whole if fit["done"] % fit["steps"] else whole - 1)

    kept = [m for m in read_metrics(out) if known(m)]
    atomic_write(out / METRICS, "".join(json.dumps(m, ensure_ascii=False) + "\n" for m in kept))

"""What a run needs to go on after a crash: ``last/state.pt``, written beside, synced, renamed."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ciod.errors import CiodError


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values only, so that it loads without running code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    beside.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The saved state, or None when there is none.

    Raises:
        CiodError: the file is torn.
    """
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # zip, pickle, and runtime errors: the file cannot be used, whatever the reason
        raise CiodError(
            f"{path} cannot be read ({type(e).__name__}: {str(e).splitlines()[0]}). Delete it to start the last "
            "unfinished task again from the finished ones."
        ) from e


def random_state() -> dict[str, Any]:
    """Generators of Python, NumPy (as torch holds it) and torch, CPU and GPU."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 (third-party code may use the global one)
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            *(int(r) for r in rest[:2]),
            float(rest[2]),
        ],
        "python": [version, list(numbers), gauss],
    }


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))

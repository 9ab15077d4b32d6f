"""Whether a saved state has what resuming reads from it. The checksum shows that it is unchanged, not who wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NEEDED: dict[str, type | tuple[type, ...]] = {
    "identity": dict, "identity.data": dict, "identity.code": dict, "task": int, "seconds": (int, float),
    "settings": dict, "warnings": list,
}  # fmt: skip
_OF_COMMAND: dict[str, dict[str, type | tuple[type, ...]]] = {
    "train": {"results": dict, "results.tasks": list, "results.ap": dict},
    "extend": {"plan": dict},
}
_POSSIBLE: dict[str, type | tuple[type, ...]] = {"chosen": dict, "memory": dict, "effort": str, "fit": dict}
_OF_FIT: dict[str, type | tuple[type, ...]] = {
    "fit.done": int, "fit.method": dict, "fit.detector": dict, "fit.optimizer": dict, "random": list,
}  # fmt: skip


def fault(state: Mapping[str, Any], command: str) -> str | None:
    """A description of the first entry that is missing or has another type; None if there is none."""
    needed = {**_NEEDED, **_OF_COMMAND.get(command, {}), **{k: v for k, v in _POSSIBLE.items() if k in state}}
    if "fit" in state:
        needed |= _OF_FIT
    for key, kind in needed.items():
        found = _entry(state, key)
        if not isinstance(found, kind) or isinstance(found, bool):
            return f"its entry '{key}' is {'missing' if found is None else f'of type {type(found).__name__}'}"
    least = {"task": state["task"], "fit.done": _entry(state, "fit.done") or 0}
    return next((f"its entry '{k}' is {v}" for k, v in least.items() if v < 0), None)


def _entry(state: Any, key: str) -> Any:
    for part in key.split("."):
        state = state.get(part) if isinstance(state, Mapping) else None
    return state

"""Methods by name. Every file in this folder is a method; ``path/to/file.py:Class`` loads one from anywhere."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from ciod.core.errors import CiodError, did_you_mean
from ciod.core.user_code import class_of, split

if TYPE_CHECKING:
    from ciod.methods.base.method import Method

DEFAULT = "feature_replay"  # of method=auto, which is used if no method is named, on most detectors
_PARTS = {"base"}  # packages in this folder that are not methods
# Old import paths, for method files that were written for ciod 0.1.
_BEFORE = {
    "ciod.types": "ciod.core.types",
    "ciod.boxes": "ciod.core.boxes",
    "ciod.losses": "ciod.core.losses",
    "ciod.errors": "ciod.core.errors",
    "ciod.data.scenario": "ciod.data.scenarios.scenario",
    "ciod.methods.method": "ciod.methods.base.method",
    "ciod.methods.distillation": "ciod.methods.base.distillation",
    "ciod.methods.parameters": "ciod.methods.base.parameters",
    "ciod.methods.selection": "ciod.methods.base.selection",
}


def available() -> list[str]:
    """Names that ``find`` accepts; ``joint`` is fine-tuning on all classes at once."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _PARTS)


def auto(traits: Collection[str]) -> str:
    """The method of ``method=auto`` in a run, by the traits of its detector (docs/methods/feature_replay.md)."""
    return "feature_replay" if "head_inputs" in traits else "pseudo_label"


def find(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        CiodError: no method has that name, or the file or class does not exist.
    """
    from ciod.methods.base.method import Method

    if split(name)[0]:
        return _from_file(name)
    if name not in available():
        raise CiodError(f"method: there is no method '{name}'; {did_you_mean(name, available())}")
    module = importlib.import_module(f"{__name__}.{name}")
    return next(
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Method) and v.__module__ == module.__name__
    )


def make(settings: Mapping[str, Any]) -> Method:
    """A method from the section ``method`` of checked settings: its name and its own settings.

    Raises:
        CiodError: see ``find``.
    """
    given = dict(settings)
    return find(str(given.pop("name", DEFAULT))).model_validate(given)


def _from_file(name: str) -> type[Method]:
    from ciod.methods.base.method import Method

    for before, now in _BEFORE.items():
        sys.modules.setdefault(before, importlib.import_module(now))
    found = class_of(*split(name), Method, kind="method")
    importlib.import_module("ciod.methods.base.calls").check_calls(found)
    importlib.import_module("ciod.methods.base.declared").check_declared(found)
    return found

"""What a detector of the user returns: a wrong type is reported with function, file and line. Otherwise it would end in
an error somewhere in ciod."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ciod.core.types import Detections, Matches, Outputs
from ciod.core.user_code import UserCodeError, overrides, where
from ciod.detectors.base import Detector


def guard(cls: type[Detector]) -> None:
    """Makes the functions that the user's class replaces check what they return, in each call; nothing waits for the
    device."""
    for name, check in _CHECKS.items():
        if callable(function := overrides(cls, name)):
            setattr(cls, name, _checked(function, name, check))


def _checked(function: Callable[..., Any], name: str, check: Callable[[Any, tuple[Any, ...]], str]) -> Any:
    @functools.wraps(function)
    def run(self: Detector, *args: Any, **kwargs: Any) -> Any:
        value = function(self, *args, **kwargs)
        if wrong := check(value, args):
            raise UserCodeError(f"{where(type(self), name)} {wrong}")
        return value

    return run


def _outputs(value: Any, args: tuple[Any, ...]) -> str:
    return "" if isinstance(value, Outputs) else f"returned {_a(value)}; return Outputs."


def _matches(value: Any, args: tuple[Any, ...]) -> str:
    return "" if isinstance(value, Matches) else f"returned {_a(value)}; return Matches."


def _losses(value: Any, args: tuple[Any, ...]) -> str:
    if not isinstance(value, Mapping):
        return f'returned {_a(value, "")}; return {{"cls": …, "box": …}}.'
    if not value:
        return 'returned {}; return {"cls": …, "box": …}.'
    for name, loss in value.items():
        if not isinstance(name, str) or not isinstance(loss, Tensor) or loss.ndim:
            found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else _a(loss)
            return (
                f"returned {found}: '{name}' is not a scalar tensor; take the sum or mean, without .item() or float()."
            )
    learns = torch.is_grad_enabled() and any(isinstance(a, Outputs) and a.logits.requires_grad for a in args)
    if learns and not any(loss.requires_grad for loss in value.values()):
        return "returned no loss with a gradient: they are detached (.detach(), torch.no_grad(), .data)."
    return ""


def _detections(value: Any, args: tuple[Any, ...]) -> str:
    if not isinstance(value, list) or not all(isinstance(d, Detections) for d in value):
        return f"returned {_a(value)}; return a list with the ciod.Detections of each picture."
    return ""


def _modules(value: Any, args: tuple[Any, ...]) -> str:
    if not isinstance(value, (list, tuple)) or not all(isinstance(m, nn.Module) for m in value):
        return f"returned {_a(value)}; return a list of modules."
    return ""


def _a(value: object, article: str = "a ") -> str:
    return "None" if value is None else f"{article}{type(value).__name__}"


_CHECKS: dict[str, Callable[[Any, tuple[Any, ...]], str]] = {
    "forward": _outputs,
    "respond": _outputs,
    "match": _matches,
    "loss": _losses,
    "losses": _losses,
    "decode": _detections,
    "trunk": _modules,
}

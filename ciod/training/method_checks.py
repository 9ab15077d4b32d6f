"""Checks of a method's returns: wrong returns, forgotten calls and states that cannot be saved are reported before an
epoch is lost.

The structure of the losses is checked in every step, which costs nothing; checks that wait for the device run once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ciod.core.user_code import UserCodeError, is_users, overrides, where
from ciod.methods.base.calls import CALLS, check_calls
from ciod.methods.base.method import Method
from ciod.training.watch import NotFinite

if TYPE_CHECKING:
    from ciod.core.types import Batch

_WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "masked_select")
_UNDIFFERENTIABLE = ("backward through the graph a second time", "modified by an inplace operation")
_OURS = str(Path(__file__).resolve().parents[1])
_TORCH = str(Path(torch.__file__).parent)


class MethodChecks:
    """Checks the calls between the loop and a method during one task.

    Args:
        looks: find code that waits for the device in the first step (impossible with a compiled student).
    """

    def __init__(self, method: Method, task: int, *, looks: bool = True):
        self.method, self.task, self.looks = method, task, looks
        self.users = is_users(type(method))
        self.names: tuple[str, ...] | None = None  # of the losses; None before the first step
        self.warnings: list[str] = []
        detector = getattr(method, "_detector", None)  # none if it was not attached, which is reported below
        if detector is not None and overrides(type(detector), "grow"):
            self._grown(where(type(detector), "grow"), "super().grow(names)")
        if self.users:
            self._before()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The method's losses of a batch.

        Raises:
            UserCodeError: they are not a dict of scalar tensors, or none of them has a gradient.
            NotFinite: one is NaN or infinite in the first step of a task, before any weight has changed.
        """
        first = self.names is None
        if first and self.users and self.looks:
            with waiting() as lines:
                losses = self.method.loss(batch)
            self._warn_of_waits(lines)
        else:
            losses = self.method.loss(batch)
        if problem := self._problem(losses):
            raise UserCodeError(f"{self._at('loss')} {problem}")
        if first:
            self.names = tuple(losses)
            if self.users:
                self._first(losses)
            elif is_users(family := type(self.method.detector)):
                self._finite(losses, where(family, "loss"))
        return losses

    def backward(self, loss: Tensor) -> None:
        """Gradients of the scaled sum of the losses.

        Raises:
            UserCodeError: the user's losses cannot be differentiated: they were already, or a tensor was overwritten.
        """
        try:
            loss.backward()
        except RuntimeError as error:
            if not self.users or not any(fault in str(error) for fault in _UNDIFFERENTIABLE):
                raise
            raise UserCodeError(
                f"{self._at('loss')} gives losses that cannot be differentiated; ciod calls backward() itself, so do "
                "not call it in the method, and do not change tensors in place that a loss depends on. PyTorch: "
                f"{str(error).partition('. ')[0][:200]}."
            ) from error

    def after_backward(self) -> None:
        """After the first step's backward: checks that weights have gradients, and that the method's state can be
        saved.

        Raises:
            UserCodeError: one of these is not the case.
        """
        if not self.users or self._looked:
            return
        self._looked = True
        if not any(p.grad is not None for p in self.method.detector.parameters()):
            raise UserCodeError(
                f"{self._at('loss')} gives losses that depend on no weight of the detector: compute them from "
                "self.student(batch.images)."
            )
        self._check_state()

    _looked = False

    # The losses ---------------------------------------------------------------------------------------------------

    def _problem(self, losses: Any) -> str | None:
        if losses is None:
            return "returned None; end it with return losses."
        if isinstance(losses, Tensor):
            return 'returned one tensor; return a dict: {"name": tensor}.'
        if not isinstance(losses, Mapping):
            return f'returned {_a(losses)}; return a dict of scalar tensors: {{"name": tensor}}.'
        if not losses:
            return "returned no loss: the dict is empty."
        for name, value in losses.items():
            if not isinstance(name, str):
                return f"returned a loss with the key {name!r}, which is not text."
            if not isinstance(value, Tensor):
                return f"returned '{name}' as {_a(value)}; it must stay a tensor (no .item() or float())."
            if value.ndim:
                return (
                    f"returned '{name}' of shape {list(value.shape)}; take its sum or mean, so that it is one number."
                )
            if not value.dtype.is_floating_point:
                return f"returned '{name}' of type {value.dtype}; it must be a float."
        if self.names is not None and tuple(losses) != self.names:
            return (
                f"returned the losses {', '.join(losses)}, but the first step had {', '.join(self.names)}; the names "
                "must be the same in every step of a task. Return 0 * another loss for an empty one."
            )
        return None

    def _first(self, losses: Mapping[str, Tensor]) -> None:
        if not any(v.requires_grad for v in losses.values()):
            raise UserCodeError(
                f"{self._at('loss')} returned no loss with a gradient: they are detached (.detach(), torch.no_grad(), "
                ".data), or not computed from self.student(batch.images)."
            )
        declared = self.method.distillation_terms
        if self.method.old and declared and not declared & losses.keys():
            self.warnings.append(
                f"{self._at('loss')} returned the losses {', '.join(losses)}, but distillation_terms names "
                f"{', '.join(sorted(declared))}: the run cannot check distillation. Write the names of the losses "
                "that hold the student near its teacher."
            )
        self._finite(losses, self._at("loss"))

    def _finite(self, losses: Mapping[str, Tensor], at: str) -> None:
        """Raises NotFinite for the losses of the first step, before any weight has changed."""
        finite = torch.stack([v.detach().float() for v in losses.values()]).isfinite().tolist()
        bad = [name for name, good in zip(losses, finite, strict=True) if not good]
        if bad:
            raise NotFinite(
                f"{at} returned {', '.join(f'{n} = {float(losses[n].detach())}' for n in bad)} in the "
                f"first step of task {self.task + 1}, before any weight has changed: the cause is its computation, not "
                "the learning rate (a division by 0, the mean of nothing, log(0)?)."
            )

    def _warn_of_waits(self, lines: dict[tuple[str, int], str]) -> None:
        if not lines:
            return
        at = [f"{Path(file).name}, line {line} ({what})" for (file, line), what in lines.items()]
        self.warnings.append(
            f"{self._at('loss')} waits for the device in every step: {'; '.join(at[:4])}{'; …' if at[4:] else ''}. "
            "On a GPU this slows training down; keep numbers as tensors, and select with torch.where."
        )

    # Before the first step ----------------------------------------------------------------------------------------

    def _before(self) -> None:
        method, cls = self.method, type(self.method)
        check_calls(cls)
        if getattr(method, "_student", None) is None or getattr(method, "_detector", None) is None:
            raise UserCodeError(f"{self._at('attach')} does not call super().attach(student, detector, teacher).")
        task = method._task
        if task is None or task.index != self.task:
            raise UserCodeError(
                f"{self._at('begin_task')} does not call super().begin_task(task), so the method does not know which "
                "classes are old; make it its first line."
            )
        self._grown(self._at("grow"), "super().grow(detector, names, taught)")
        fresh = method.fresh()
        if not isinstance(fresh, (list, tuple)) or not all(isinstance(m, nn.Module) for m in fresh):
            raise UserCodeError(f"{self._at('fresh')} returned {_a(fresh)}; return a list of modules.")
        if not any(overrides(cls, name) for name in (*CALLS, "student", "teach", "channels", "taught", "spared")):
            self.warnings.append(
                f"{where(cls)} overrides nothing of ciod.Method, so it is plain fine-tuning; put its losses into a "
                "function called loss."
            )
        self._check_state()

    def _grown(self, at: str, call: str) -> None:
        """Raises UserCodeError if the detector lacks a class of the task, which ``at`` had to add."""
        task = self.method._task
        lacking = [n for n in task.new_classes if n not in self.method.detector.class_names] if task else []
        if lacking:
            raise UserCodeError(f"{at} did not add {', '.join(lacking[:4])} to the detector; call {call} in it.")

    def _check_state(self) -> None:
        """Checks that the method's state can be saved and restored."""
        cls = type(self.method)
        if not overrides(cls, "state") and not overrides(cls, "load_state"):
            return
        kept = self.method.state()
        if not isinstance(kept, dict):
            raise UserCodeError(f"{self._at('state')} returned {_a(kept)}; return a dict of tensors and plain values.")
        if bad := _not_plain(kept):
            raise UserCodeError(
                f"{self._at('state')} returned {bad[0]}: {_a(bad[1])}, which a state file cannot hold; return tensors, "
                "numbers, text, and lists and dicts of them."
            )
        written = io.BytesIO()
        torch.save(kept, written)
        written.seek(0)
        saved = torch.load(written, map_location=self.method.detector.device, weights_only=True)
        other = self.method.model_copy()
        other.load_state(saved)
        lost = _differs(kept, other.state())
        if not overrides(cls, "load_state") and cls.load_state is Method.load_state and kept:
            lost = f"[{next(iter(kept))!r}]"
        if lost:
            raise UserCodeError(
                f"{self._at('load_state')} does not restore {lost}, which state() returned: a resumed run would "
                "continue without it."
            )

    def _at(self, name: str) -> str:
        """The method, function, file and line."""
        return where(type(self.method), name)


def _a(value: object) -> str:
    """The type of a value, with an article."""
    if value is None:
        return "None"
    name = "NumPy array" if isinstance(value, np.ndarray) else type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _not_plain(value: Any, place: str = "") -> tuple[str, object] | None:
    """Place and value of the first entry that a file without code cannot hold."""
    if isinstance(value, dict):
        parts: Any = [(f"{place}[{k!r}]", v) for k, v in value.items()]
        bad = next(((place or "a dict", k) for k in value if not isinstance(k, (str, int, float))), None)
        if bad:
            return bad
    elif isinstance(value, (list, tuple)):
        parts = [(f"{place}[{i}]", v) for i, v in enumerate(value)]
    elif value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, Tensor):
        return None
    else:
        return place or "the state", value
    return next((bad for p, v in parts if (bad := _not_plain(v, p))), None)


def _differs(one: Any, other: Any, place: str = "") -> str | None:
    """The first place where two states differ; None if they are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        for k in {**one, **other}:
            if k not in one or k not in other:
                return f"{place}[{k!r}]"
            if found := _differs(one[k], other[k], f"{place}[{k!r}]"):
                return found
        return None
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return place or "everything"
        return next((d for i, (a, b) in enumerate(zip(one, other)) if (d := _differs(a, b, f"{place}[{i}]"))), None)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.shape == other.shape and torch.equal(one.cpu(), other.cpu().to(one.dtype))
        return None if same or bool(one.isnan().any()) else place
    return None if one == other or one != one else place or "everything"


class _Waiting(TorchFunctionMode):
    """Notes the lines of the user's code that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[tuple[str, int], str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        masks = name == "__getitem__" and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in _indices(args))
        if (name in _WAITS or masks) and (at := _users_line()):
            self.lines.setdefault(at, "a mask as an index" if masks else _word(name))
        return func(*args, **(kwargs or {}))


def _indices(args: Any) -> tuple[Any, ...]:
    index = args[1] if len(args) > 1 else ()
    return index if isinstance(index, tuple) else (index,)


def _word(name: str) -> str:
    return f"{name.strip('_')}(…)" if name.startswith("__") else f".{name}()"


def _users_line() -> tuple[str, int] | None:
    """File and line of the caller, if it is neither torch nor ciod."""
    frame = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith(_TORCH)):
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename.startswith(_OURS):
        return None
    return frame.f_code.co_filename, frame.f_lineno


@contextmanager
def waiting() -> Iterator[dict[tuple[str, int], str]]:
    """Notes the lines of the user's code that wait for the device: (file, line) → what waits."""
    with _Waiting() as mode:
        yield mode.lines

"""Checks of the losses whenever they are read, and the warnings and errors about them."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ciod.core.errors import CiodError
from ciod.training.hooks import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.utils.data import DataLoader

    from ciod.core.results_schema import WatchState

EXPLODED = 10.0  # times the sum of losses of the task's first reading


class NotFinite(CiodError):
    """A loss, a gradient or a weight became NaN or infinite."""


@dataclass
class Watch:
    """Watches the losses of one task. ``sentences`` are the warnings so far.

    Args:
        distils: names of the losses that distil.
        warn: called with each warning as soon as it arises.
    """

    task: int
    distils: frozenset[str] = frozenset()
    warn: Callable[[str], None] | None = None
    first: float | None = None  # sum of losses at the first reading
    epoch: int = 0
    largest: dict[str, float] = field(default_factory=dict)  # |loss| in this epoch, of the distillation terms
    sentences: list[str] = field(default_factory=list)
    _said: set[str] = field(default_factory=set)

    def read(self, rows: Sequence[Row], values: Tensor) -> None:
        """``values``: [rows, losses] on the CPU, finite."""
        total = float(values.sum(1).mean())
        if self.first is None:
            self.first = total
        elif total > EXPLODED * max(abs(self.first), 1e-3):
            self._warn(
                f"The losses of task {self.task + 1} exploded: their sum was {self.first:.3g} at the beginning and "
                f"{total:.3g} at step {rows[-1].step + 1}. A lower train.lr usually helps.",
                about="exploded",
            )
        names = list(rows[0].losses)
        for row, numbers in zip(rows, values.tolist(), strict=True):
            if row.epoch != self.epoch:
                self.end_epoch()
                self.epoch = row.epoch
            for name, value in zip(names, numbers, strict=True):
                if name in self.distils:
                    self.largest[name] = max(self.largest.get(name, 0.0), abs(value))

    def end_epoch(self) -> None:
        """Warns about conditions that held for a complete epoch."""
        silent = [n for n, v in self.largest.items() if v == 0]
        if silent and len(silent) == len(self.largest):
            self._warn(
                f"The teacher taught nothing in epoch {self.epoch + 1} of task {self.task + 1}: {', '.join(silent)} "
                "was 0 at every step, so the old classes are not preserved. It may find no old object in these images, "
                "or the method's thresholds may be too high.",
                about="nothing",
            )
        elif silent:
            self._warn(
                f"{', '.join(silent)} was 0 at every step of epoch {self.epoch + 1} of task {self.task + 1}.",
                about="silent",
            )
        self.largest = {}

    def _warn(self, sentence: str, *, about: str) -> None:
        """Once per task and kind."""
        if about not in self._said:
            self._said.add(about)
            self.sentences.append(sentence)
            if self.warn is not None:
                self.warn(sentence)

    def state(self) -> WatchState:
        return {
            "first": self.first,
            "epoch": self.epoch,
            "largest": dict(self.largest),
            "sentences": list(self.sentences),
            "said": sorted(self._said),
        }

    def load_state(self, state: WatchState) -> None:
        self.first, self.epoch, self.largest = state["first"], state["epoch"], dict(state["largest"])
        self.sentences, self._said = list(state["sentences"]), set(state["said"])


def first_bad(values: Tensor, norms: Tensor) -> int | None:
    """The first row where a loss ([rows, losses]) or the gradient's norm ([rows]) is not finite."""
    bad = ~values.isfinite().all(1) | ~norms.isfinite()
    return int(bad.int().argmax()) if bool(bad.any()) else None


def not_finite(row: Row, values: Tensor, norm: float, task: int, model: nn.Module) -> NotFinite:
    """The error about a step: which loss or which layers, at which step and on which images."""
    bad = [n for n, v in zip(row.losses, values, strict=True) if not v.isfinite()]
    if bad:
        what = f"{', '.join(bad)} became {float(values[list(row.losses).index(bad[0])])}"
    else:
        layers = bad_layers(model)
        where = f" (layers {', '.join(layers[:4])}{', …' if len(layers) > 4 else ''})" if layers else ""
        what = f"The gradient became {norm}{where} while every loss was finite"
    return NotFinite(
        f"{what} in task {task + 1}, step {row.step + 1}, images {', '.join(row.names[:4])}. A lower train.lr, "
        "a smaller train.clip or train.amp=off usually helps; the last saved checkpoint is intact."
    )


def bad_layers(model: nn.Module) -> list[str]:
    """Parameters and statistics that are not finite, or whose gradient is not."""
    found = []
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        grad = tensor.grad if isinstance(tensor, nn.Parameter) else None
        if not bool(tensor.isfinite().all()) or (grad is not None and not bool(grad.isfinite().all())):
            found.append(name)
    return found


def check_weights(model: nn.Module, task: int, step: int) -> None:
    """Called before a state is written: broken weights must not replace an intact checkpoint.

    Raises:
        NotFinite: names the layers.
    """
    floats = [t for t in model.state_dict().values() if t.dtype.is_floating_point and t.numel()]
    norms = torch.stack(torch._foreach_norm(floats, torch.inf))
    if not bool(norms.isfinite().all()):
        layers = [k for k, t in model.state_dict().items() if not bool(t.isfinite().all())]
        raise NotFinite(
            f"The weights of {', '.join(layers[:4])}{', …' if len(layers) > 4 else ''} became NaN or infinite by step "
            f"{step} of task {task + 1}. A lower train.lr, a smaller train.clip or train.amp=off usually helps; the "
            "last saved checkpoint is intact."
        )


def keep_batch(loader: DataLoader, row: Row, steps: int, folder: Path, losses: dict[str, float]) -> Path | None:
    """Makes the batch of a step again (it is a function of seed, task, epoch and image) and writes it for inspection:
    ``bad-batch.pt`` with tensors and ``bad-batch.png`` to look at. None if that fails: the error matters more."""
    from torchvision.utils import make_grid

    from ciod.core.files import atomic_write
    from ciod.data.images import save_image

    sampler: Any = loader.batch_sampler
    try:
        sampler.epoch, sampler.skip = row.epoch, row.step - row.epoch * steps
        batch: Any = loader.collate_fn([loader.dataset[i] for i in next(iter(sampler))])
        content = {
            "images": batch.images,
            "boxes": batch.targets.boxes,
            "labels": batch.targets.labels,
            "valid": batch.targets.valid,
            "names": batch.names,
            "step": row.step + 1,
            "epoch": row.epoch,
            "losses": losses,
        }
        written = io.BytesIO()  # a disk error inside torch's writer would end Python
        torch.save(content, written)
        atomic_write(folder / "bad-batch.pt", written.getvalue())
        grid = make_grid(batch.images.to(torch.uint8), nrow=4)
        save_image(folder / "bad-batch.png", grid.permute(1, 2, 0).numpy())
    except Exception:  # no failure here may hide why the run stops
        return None
    return folder / "bad-batch.pt"

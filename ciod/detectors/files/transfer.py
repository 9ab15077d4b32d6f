"""Starting from another model: every tensor that fits is taken, class rows by the class's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ciod.core.errors import CiodError
from ciod.core.text_lists import alike
from ciod.detectors.base import Detector


@dataclass(frozen=True)
class Taken:
    """Numbers of tensors per part that a detector took from a checkpoint, and that it did not."""

    taken: dict[str, int]
    """Part (``backbone``, ``neck``, ``head.reg`` …) → tensors taken."""
    left: dict[str, int]
    """Part → tensors that keep their random values: missing in the checkpoint, or with another shape."""

    @property
    def total(self) -> int:
        return sum(self.taken.values())

    def sentence(self, source: str) -> str:
        """One line for the terminal and the log."""
        line = f"weights: {self.total} tensors from {source} ({_listed(self.taken)})"
        return line + (f"; new: {_listed(self.left)}" if self.left else "")


def _listed(parts: dict[str, int]) -> str:
    return ", ".join(f"{part} {count}" for part, count in parts.items()) or "none"


def part_of(key: str) -> str:
    """``backbone.stem.conv.weight`` → ``backbone``; ``head.reg.0.bias`` → ``head.reg``."""
    first, *rest = key.split(".")
    return f"{first}.{rest[0]}" if first in ("head", "bbox_head") and len(rest) > 1 else first


def counted(own: Sequence[str], taken: Sequence[str]) -> Taken:
    """Numbers of tensors per part. Counters of batch normalisation are not weights and are not counted."""
    own = [k for k in own if "num_batches" not in k]
    chosen = set(taken)
    return Taken(
        dict(Counter(part_of(k) for k in own if k in chosen)),
        dict(Counter(part_of(k) for k in own if k not in chosen)),
    )


def start_from(detector: Detector, donor: Detector, source: str | Path, *, trunk_only: bool = False) -> Taken:
    """Copies every tensor of ``donor`` that fits into ``detector``: backbone, neck and, from a detector of the same
    family, its head except the class layers (see ``take_class_rows``).

    A backbone is taken completely or not at all, and so is a neck. Detectors of different families share trunks.

    Args:
        detector: changed in place; may have any number of classes.
        source: file of ``donor``, for messages.
        trunk_only: do not change the head.

    Raises:
        CiodError: the backbones differ.
    """
    chosen: dict[str, Tensor] = {}
    names = {id(m): n for n, m in detector.named_modules()}
    for i, (theirs, own) in enumerate(zip(donor.trunk(), detector.trunk(), strict=False)):
        state, wanted = theirs.state_dict(), own.state_dict()
        if all(k in state and state[k].shape == v.shape for k, v in wanted.items() if "num_batches" not in k):
            chosen |= {f"{names[id(own)]}.{k}": state[k] for k in wanted if k in state}
        elif i == 0:
            raise CiodError(
                f"{source} is a {donor.settings['name']}, but detector.name is {detector.settings['name']}: their "
                "backbones differ."
            )
    own_state = detector.state_dict()
    if not trunk_only and type(donor) is type(detector):
        trunk = tuple(f"{names[id(m)]}." for m in detector.trunk())
        rows = {r.name for r in [*detector.class_layers(), *donor.class_layers()]}
        chosen |= {
            k: v
            for k, v in donor.state_dict().items()
            if not k.startswith(trunk) and k not in rows and k in own_state and own_state[k].shape == v.shape
        }
    detector.load_state_dict(chosen, strict=False)
    return counted(list(own_state), list(chosen))


@torch.no_grad()
def take_class_rows(detector: Detector, donor: Detector) -> dict[str, str]:
    """Copies the rows of classes that both have, in every class layer, if the layers have equal widths.

    Classes meet by name; a name that the donor lacks takes the rows of the only one that differs in case, spacing or
    plural: ``pottedplant`` those of ``potted plant``. A class that the donor has on a branch has no row of the same
    layer and is not taken.

    Returns:
        Name of each class that was taken, in the detector's order → its name in the donor.
    """
    if type(donor) is not type(detector):
        return {}
    known = same_classes(detector.class_names, donor.class_names)
    theirs: dict[tuple[str, str, str], Tensor] = {}
    for rows in donor.class_layers():
        for i, row in enumerate(rows.tensor):
            theirs[(*_layer(rows.name), donor.class_names[rows.first + i])] = row
    found: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
    for rows in detector.class_layers():
        for i, row in enumerate(rows.tensor):
            name = detector.class_names[rows.first + i]
            other = theirs.get((*_layer(rows.name), known[name])) if name in known else None
            fits = other is not None and other.shape == row.shape
            found.setdefault(name, []).append((row, other if fits else None))
    taken = {}
    for name, pairs in found.items():
        fitting = [(row, other) for row, other in pairs if other is not None]
        if len(fitting) == len(pairs):  # a class is taken on all levels or not at all
            for row, other in fitting:
                row.copy_(other)
            taken[name] = known[name]
    return taken


def same_classes(names: Sequence[str], donor: Sequence[str]) -> dict[str, str]:
    """Each of ``names`` that the donor knows → the donor's name: the same, or the only one that is merely written
    otherwise and that no other of ``names`` has."""
    free = [d for d in donor if d not in names and not d.startswith("\0")]  # names that are only numbers
    near = {n: [d for d in free if alike(n, d)] for n in names}
    wanted = Counter(d for n in names if n not in donor for d in near[n])
    found = {n: n if n in donor else near[n][0] for n in names if n in donor or len(near[n]) == 1}
    return {n: d for n, d in found.items() if n == d or wanted[d] == 1}


def _layer(name: str) -> tuple[str, str]:
    """``head.cls.0.blocks.1.bias`` → its layer and ``bias``: blocks only show how the rows were added."""
    layer, _, leaf = name.rpartition(".")
    return layer.partition(".blocks.")[0], leaf

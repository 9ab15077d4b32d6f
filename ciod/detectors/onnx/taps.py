"""Which maps of a foreign graph a branch should read. Only data flow and shapes decide, never names.

A level (stride 8, 16, 32) has up to three kinds of maps: an early one, of the backbone, before anything was upsampled;
a late one, from which all of the level's predictions are made; and towers, the inputs of the layers that predict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ciod.core.errors import CiodError, ConfigError, did_you_mean
from ciod.detectors.onnx.graph import Flow

STRIDES = (8, 16, 32)
_ATTENTION = {"Softmax", "Attention", "MultiHeadAttention"}
_TO_TOKENS = {"Reshape", "Flatten", "Transpose"}
SMALLEST = 3  # minimum cells per side of a map


@dataclass(frozen=True)
class Tap:
    """One map that is read."""

    name: str
    channels: int
    channels_last: bool = False


@dataclass(frozen=True)
class Level:
    """The maps of one stride; at least one is there."""

    stride: int
    early: Tap | None
    late: Tap | None
    towers: tuple[Tap, ...] = ()

    @property
    def taps(self) -> list[Tap]:
        return [t for t in (self.early, self.late, *self.towers) if t is not None]

    @property
    def words(self) -> str:
        """What is read: channels of the backbone's map, of the neck's, of all towers together."""
        channels = [t.channels for t in (self.early, self.late) if t is not None]
        towers = sum(t.channels for t in self.towers)
        return " + ".join(map(str, [*channels, towers] if towers else channels))


@dataclass(frozen=True)
class Map:
    """A tensor as a map: ``stride`` pixels per cell."""

    stride: int
    channels: int
    channels_last: bool


def as_map(shape: Sequence[int], batch: int, size: int) -> Map | None:
    """The map of a tensor with this shape, for square pictures of ``size`` pixels; None: it is not a map."""
    if len(shape) != 4 or shape[0] != batch:
        return None
    for last in (False, True):
        height, width, channels = shape[1:] if last else (*shape[2:], shape[1])
        if height != width or height < SMALLEST:
            continue
        for stride in (1, 2, 4, 8, 16, 32, 64, 128):
            if height == -(-size // stride):
                return Map(stride, channels, last)
    return None


def find(flow: Flow, path: Path) -> list[Level]:
    """The levels of a graph that a branch can read, finest first.

    Raises:
        CiodError: fewer than two strides have maps, and none has one that a transformer has worked on.
    """
    search = _Search(flow)
    early, late, levels = search.early(), search.late(), []
    for stride in STRIDES:
        near, far = early.get(stride), late.get(stride, (None, []))
        neck, towers = far
        neck = None if neck == near else neck
        level = Level(
            stride,
            search.tap(near),
            search.tap(neck),
            tuple(t for t in map(search.tap, dict.fromkeys(towers)) if t is not None and t.name not in (near, neck)),
        )
        if level.taps:
            levels.append(level)
    if len(levels) >= 2 or any(t.name in search.attended() for v in levels for t in v.taps):
        return levels
    if search.tokens():
        raise CiodError(
            f"{path}: its maps are token sequences (a plain vision transformer): ciod cannot read those yet; "
            "taps='8:… 16:… 32:…' names tensors by hand."
        )
    raise CiodError(
        f"{path}: this is a classifier or segmenter: no output looks like boxes, and no two of the strides 8, 16 "
        "and 32 have maps. If it is a detector, taps='8:… 16:… 32:…' names the maps by hand."
    )


class _Search:
    """The rule; ``maps`` are all tensors that are maps, in order."""

    def __init__(self, flow: Flow):
        self.flow = flow
        found = {t: as_map(flow.shapes[t], flow.batch, flow.size) for t in flow.order if t in flow.shapes}
        attention = self._attention()
        self.maps = {t: m for t, m in found.items() if m is not None and t not in attention}

    def _attention(self) -> set[str]:
        """Products of two tensors that both depend on the images, and tensors of the same shape made of them: a table
        of 100 × 100 queries is not a map of stride 8 at 800 pixels."""
        found: set[str] = set()
        for tensor in self.flow.order[1:]:
            parents, shape = self.flow.parents[tensor], self.flow.shapes.get(tensor)
            product = self.flow.maker[tensor].op_type in ("MatMul", "Einsum") and len(parents) > 1
            if product or any(p in found and self.flow.shapes.get(p) == shape for p in parents):
                found.add(tensor)
        return found

    def tap(self, tensor: str | None) -> Tap | None:
        if tensor is None:
            return None
        return Tap(tensor, self.maps[tensor].channels, self.maps[tensor].channels_last)

    def of(self, tensor: str, stride: int) -> bool:
        return tensor in self.maps and self.maps[tensor].stride == stride

    def upwards(self, tensor: str | None, stride: int) -> str | None:
        """The nearest of a tensor and its dominators that is a map of this stride."""
        return next((t for t in self.flow.chain(tensor) if self.of(t, stride)), None)

    def attended(self) -> set[str]:
        """Tensors that a transformer has worked on. A map of these is a projector's (RF-DETR), not the patches of a
        plain vision transformer, and one stride is enough."""
        found: set[str] = set()
        for tensor in self.flow.order[1:]:
            if self.flow.maker[tensor].op_type in _ATTENTION or any(p in found for p in self.flow.parents[tensor]):
                found.add(tensor)
        return found

    def tokens(self) -> bool:
        """Whether a transformer works on a sequence: a softmax over positions that follows a matrix product."""
        return any(n.op_type in _ATTENTION for n in self.flow.maker.values())

    # The late maps and the towers -------------------------------------------------------------------------------------

    @cached_property
    def strides_below(self) -> dict[str, frozenset[int]]:
        """For each tensor the strides of the maps that depend on it."""
        found: dict[str, frozenset[int]] = {}
        for tensor in reversed(self.flow.order):
            below: set[int] = set()
            for child in self.flow.children[tensor]:
                below |= found[child]
                if child in self.maps:
                    below.add(self.maps[child].stride)
            found[tensor] = frozenset(below)
        return found

    def late(self) -> dict[int, tuple[str | None, list[str]]]:
        """By stride: the map from which all predictions are made, and the inputs of the predicting layers."""
        found = {}
        for stride in STRIDES:
            region = [t for t in self.maps if self.of(t, stride) and self.strides_below[t] <= {stride}]
            predictions = self._last_weighted(region)
            if not predictions:
                if (read := self._read_as_tokens(stride)) is not None:
                    found[stride] = read, []
                continue
            common = self.flow.common(predictions)
            if common in predictions:
                common = self.flow.above[common]
            inputs = [self.upwards(self.flow.above[p], stride) for p in predictions]
            found[stride] = self.upwards(common, stride), [t for t in inputs if t is not None]
        return found

    def _read_as_tokens(self, stride: int) -> str | None:
        """The neck's map of a stride that a decoder takes as a sequence, without a layer between (D-FINE)."""
        back, leaving = set(), []  # tensors from which a path leads to a map of this stride
        for tensor in reversed(self.flow.order):
            children = self.flow.children[tensor]
            own = self.of(tensor, stride)
            away = (c for c in children if c not in self.maps and c not in back)
            if own and tensor not in self.fresh and any(self.flow.maker[c].op_type in _TO_TOKENS for c in away):
                leaving.append(tensor)
            if own or any(c in back for c in children):
                back.add(tensor)
        near = self.upwards(self.flow.common(reversed(leaving)), stride)
        return None if near in self.fresh else near

    def _last_weighted(self, region: Sequence[str]) -> list[str]:
        """The layers with weights below which the region has no other."""
        members, followed, last = set(region), set(), []
        for tensor in reversed(region):
            below = any(c in followed for c in self.flow.children[tensor] if c in members)
            weighted = self.flow.weighted(tensor)
            if weighted and not below:
                last.append(tensor)
            if weighted or below:
                followed.add(tensor)
        return last[::-1]

    # The early maps ---------------------------------------------------------------------------------------------------

    @cached_property
    def fresh(self) -> dict[str, int]:
        """Maps without upsampling on any path to them, with their strides, in order."""
        coarsest: dict[str, int] = {}
        upsampled: set[str] = set()
        for tensor in self.flow.order:
            parents = self.flow.parents[tensor]
            before = max((coarsest[p] for p in parents), default=1)
            own = self.maps[tensor].stride if tensor in self.maps else before
            coarsest[tensor] = max(own, before)
            if own < before or any(p in upsampled for p in parents):
                upsampled.add(tensor)
        return {t: m.stride for t, m in self.maps.items() if t not in upsampled}

    def early(self) -> dict[int, str]:
        """By stride: the backbone's map."""
        deepest = max((s for s in self.fresh.values() if s in STRIDES), default=0)
        found = {}
        for stride in STRIDES:
            if stride < deepest:
                deeper = [t for t, s in self.fresh.items() if s == 2 * stride]
                chosen = next(self._trunk(self.flow.common(deeper), stride), None)
            else:
                chosen = self._widest(self._trunk(self._leaving(stride), stride))
            if chosen is not None:
                found[stride] = chosen
        return found

    def _trunk(self, tensor: str | None, stride: int) -> Iterator[str]:
        """The dominators of a tensor that are fresh maps of this stride, the nearest first."""
        return (t for t in self.flow.chain(tensor) if self.fresh.get(t) == stride)

    def _leaving(self, stride: int) -> str | None:
        """The tensor through which all paths leave the backbone's maps of this stride, to a neck or to predictions."""
        back, leaving = set(), []  # tensors from which a path leads (back) to such a map
        for tensor in reversed(self.flow.order):
            children = self.flow.children[tensor]
            own = self.fresh.get(tensor) == stride
            if own and (not children or any(self.fresh.get(c) != stride and c not in back for c in children)):
                leaving.append(tensor)
            if own or any(c in back for c in children):
                back.add(tensor)
        return self.flow.common(reversed(leaving))

    def _widest(self, trunk: Iterator[str]) -> str | None:
        """The map of most channels, the last of equal ones; concatenations are wide but add no information."""
        chosen = None
        for tensor in trunk:
            if self.flow.maker[tensor].op_type == "Concat":
                continue
            if chosen is None or self.maps[tensor].channels > self.maps[chosen].channels:
                chosen = tensor
        return chosen


# By hand --------------------------------------------------------------------------------------------------------------


def by_hand(text: str, flow: Flow) -> list[Level]:
    """``8:a,b 16:c,d,e 32:f``: for each stride the backbone's map, the neck's, those of towers; ``-`` leaves one out.

    Raises:
        ConfigError: text that cannot be read, missing tensors, or maps of another stride.
    """
    problems, given = [], []
    for part in text.split():
        number, colon, names = part.partition(":")
        stride = int(number) if number.isdigit() else 0
        if not colon or stride not in STRIDES:
            problems.append(f"taps: {part!r} is not of the form 8:tensor,tensor; strides are 8, 16 and 32.")
            continue
        given.append((stride, [None if n == "-" else n for n in names.split(",") if n]))
    return of_names(given, flow, problems)


def to_names(levels: Sequence[Level]) -> list[tuple[int, list[str | None]]]:
    """Levels as input of ``of_names``: per stride the names of the early map, the late one, the towers."""
    return [(v.stride, [t and t.name for t in (v.early, v.late, *v.towers)]) for v in levels]


def of_names(
    named: Sequence[tuple[int, Sequence[str | None]]], flow: Flow, problems: Sequence[str] = ()
) -> list[Level]:
    """Levels from names of tensors.

    Args:
        named: per stride the names of the backbone's map, the neck's, those of towers; None leaves one out.
        problems: known problems, reported together with the others.

    Raises:
        ConfigError: missing tensors, or maps of another stride.
    """
    search, problems, levels = _Search(flow), [*problems], []
    for stride, given in named:
        for name in (n for n in given if n is not None and not search.of(n, stride)):
            if name in flow.shapes:
                problems.append(
                    f"taps: {name} is {list(flow.shapes[name])}, not a map of stride {stride} at {flow.size} px."
                )
            else:
                problems.append(f"taps: the graph has no tensor '{name}'; {did_you_mean(name, search.maps)}")
        if not problems:
            taps = [search.tap(n) for n in [*given, None, None]]
            levels.append(Level(stride, taps[0], taps[1], tuple(t for t in taps[2:] if t is not None)))
    levels = sorted((v for v in levels if v.taps), key=lambda v: v.stride)
    if not problems and (len(levels) < 1 or len({v.stride for v in levels}) < len(levels)):
        problems.append("taps: name each stride once, and at least one tensor.")
    if problems:
        raise ConfigError(problems)
    return levels


# Outputs that move ----------------------------------------------------------------------------------------------------


def moved_up(level: Level, name: str, flow: Flow) -> Level:
    """The level with the tap ``name`` replaced by its next dominator that is a map of that stride, or without it."""
    search = _Search(flow)
    near = search.tap(search.upwards(flow.above[name], level.stride))
    taken = {t.name for t in level.taps}
    near = None if near is None or near.name in taken else near

    def other(tap: Tap | None) -> Tap | None:
        return near if tap is not None and tap.name == name else tap

    towers = tuple(t for t in map(other, level.towers) if t is not None)
    return replace(level, early=other(level.early), late=other(level.late), towers=towers)


def names_of(levels: Sequence[Level]) -> list[str]:
    """Every tensor that is read, without repetition, finest level first."""
    return list(dict.fromkeys(t.name for level in levels for t in level.taps))

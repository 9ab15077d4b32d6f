"""What can be recognised in a foreign file: maps that a branch reads, old outputs, how pictures are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ciod.core.errors import CiodError, ConfigError, did_you_mean
from ciod.core.plural import counted
from ciod.data import names as known
from ciod.detectors.base import Input
from ciod.detectors.onnx import file as f
from ciod.detectors.onnx import graph, layouts, pictures, taps, written
from ciod.detectors.onnx.file import OnnxFile
from ciod.detectors.onnx.graph import Flow
from ciod.detectors.onnx.layout import Arrays, Facts, Layout
from ciod.detectors.onnx.taps import Level
from ciod.detectors.onnx.written import Opened

PROBES = 4
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """What the user says about a file; None: it is in its metadata, or is detected."""

    input: Any = None
    names: Sequence[str] | None = None
    size: int | None = None
    old_outputs: str = "auto"
    taps: str | Sequence[tuple[int, Sequence[str | None]]] | None = None
    """As text, or the result of ``taps.to_names``."""


@dataclass
class Recognised:
    """A file with everything that was recognised in it.

    ``names`` belong to the labels of the outputs; None if the layout of the outputs is unknown. ``given_names`` are
    those of the file or the user, which may include a background. ``notes`` are sentences to read before training.
    """

    source: OnnxFile
    flow: Flow
    levels: list[Level]
    layout: Layout | None
    names: tuple[str, ...] | None
    given_names: tuple[str, ...] | None
    input: Input
    input_from: str
    notes: list[str]

    def lines(self) -> list[str]:
        """What was recognised, with the reasons."""
        s = self.source
        maker = f", from {s.made_by}" if s.made_by else ""
        nodes = len(s.content.graph.node)
        reads = "; ".join(
            f"{'stride ' * (not i)}{v.stride}: {v.words}{' channels' * (not i)}" for i, v in enumerate(self.levels)
        )
        kinds = {"backbone": any(v.early for v in self.levels), "neck": any(v.late for v in self.levels)}
        kinds["towers"] = any(v.towers for v in self.levels)
        kept = ", ".join(k for k, there in kinds.items() if there)
        return [
            f"graph: {nodes} nodes, opset {s.opset}{maker}; input {s.picture.words}",
            f"reads: {reads} ({kept}; {len(taps.names_of(self.levels))} tensors)",
            f"old outputs: {self._outputs()}",
            f"input: {pictures.words(self.input)}, {self.input.size} px (from {self.input_from})",
            *self.notes,
        ]

    def _outputs(self) -> str:
        shapes = ", ".join(f"{n} {list(self.flow.shapes.get(n, ()))}" for n in self.source.outputs)
        if self.layout is None:
            return f"not understood ({shapes}); new classes can still be added"
        shown = "" if not self.names else f"; {', '.join(self.names[:3])}{', …' if len(self.names) > 3 else ''}"
        return f"{shapes}: {self.layout.words}{shown}"


def recognise(path: Path, asked: Asked, images: np.ndarray | None = None) -> Recognised:
    """Reads a file and inspects it with a few runs of its graph.

    Args:
        images: [n, 3, size, size] float32 RGB 0..255 on which the outputs are inspected (default: noise).

    Raises:
        CiodError: the file cannot be read or does not fit.
        ConfigError: every setting that is impossible.
    """
    opened = written.open_file(path)
    found = of_source(opened.base, resolved(opened, asked), images)
    if opened.written is not None:
        count = len(opened.written.parts) - 1
        classes = {c for p in opened.written.parts[1:] for c in p.columns if c >= 0}
        names = ", ".join(opened.written.class_names[c] for c in sorted(classes)[:8])
        found.notes.append(f"extended by ciod {count} time{'s' * (count > 1)}: {names}{', …' * (len(classes) > 8)}")
    return found


def resolved(opened: Opened, asked: Asked) -> Asked:
    """What a file of ciod says; for other files, what the user says.

    Raises:
        ConfigError: the user sets what the file already says.
    """
    if opened.written is None:
        return asked
    given = [k for k in ("input", "names", "taps") if getattr(asked, k) is not None]
    given += ["size"] * (asked.size not in (None, opened.written.asked.size))
    given += ["old_outputs"] * (asked.old_outputs != "auto")
    if given:
        raise ConfigError([f"{k}: {opened.whole.path.name} was written by ciod and has it already." for k in given])
    return Asked(**opened.written.asked.model_dump())


def of_source(source: OnnxFile, asked: Asked, images: np.ndarray | None = None) -> Recognised:
    """Like ``recognise``, for a file that was read."""
    path = source.path
    size, given, names = _settings(source, asked)
    flow = Flow(source, size)
    if asked.taps is None:
        levels = taps.find(flow, path)
    elif isinstance(asked.taps, str):
        levels = taps.by_hand(asked.taps, flow)
    else:
        levels = taps.of_names(asked.taps, flow)
    network_input, said_by = pictures.choose(source, given, size)
    images = 255 * graph.probe(source, size, PROBES) if images is None else images
    outputs, levels, notes = steady(source, flow, levels, prepared(images, network_input))
    facts = Facts(size, None if names is None else len(names))
    layout = layouts.recognise(outputs, facts, asked.old_outputs)
    if layout is None and asked.old_outputs not in ("auto", "none"):
        shapes = ", ".join(str(list(a.shape)) for a in outputs[0])
        raise ConfigError(
            [
                f"old_outputs: {asked.old_outputs} does not fit {path.name}, whose outputs have the shapes {shapes}; "
                "leave it out, and ciod check says what they are taken for."
            ]
        )
    notes += _notes(source)
    return Recognised(source, flow, levels, layout, _named(path, layout, names), names, network_input, said_by, notes)


def prepared(images: np.ndarray, network_input: Input) -> np.ndarray:
    """[n, 3, H, W] RGB 0..255 → the input of the graph, float32."""
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (network_input.mean, network_input.std))
    ready = (images.astype(np.float32) - mean) / std
    return ready[:, ::-1] if network_input.bgr else ready


def _settings(source: OnnxFile, asked: Asked) -> tuple[int, Any, tuple[str, ...] | None]:
    """Size, input and names, checked; every problem at once."""
    problems: list[str] = []

    def tried(what: Callable[[], T]) -> T | None:
        try:
            return what()
        except ConfigError as error:
            problems.extend(error.problems)
        return None

    size = tried(lambda: pictures.size_of(source, asked.size))
    names = tried(lambda: pictures.names_of(source, asked.names))
    if asked.input is not None:
        tried(lambda: pictures.parse(asked.input))
    if asked.old_outputs not in layouts.names():
        problems.append(
            f"old_outputs: there is no layout '{asked.old_outputs}'; {did_you_mean(asked.old_outputs, layouts.names())}"
        )
    if problems or size is None:
        raise ConfigError(problems)
    return size, asked.input, names


def steady(
    source: OnnxFile, flow: Flow, levels: list[Level], ready: np.ndarray
) -> tuple[list[Arrays], list[Level], list[str]]:
    """The outputs per picture; the levels, where taps that would change an output are replaced; and notes.

    A tensor that becomes an output can no longer be fused with its neighbours, and then the last digits may move.
    """
    batch = source.picture.batch or 1
    feeds = [source.feed(ready[i : i + batch]) for i in range(0, len(ready) - batch + 1, batch)]
    session = f.start(source.path, source.data)
    before = [f.run(source.path, session, source.outputs, feed) for feed in feeds]

    def moves(names: Sequence[str]) -> bool:
        other = f.start(source.path, source.exposing(names))
        after = [f.run(source.path, other, source.outputs, feed) for feed in feeds]
        return not all(equal(a, b) for x, y in zip(before, after) for a, b in zip(x, y))

    notes: list[str] = []
    for _ in range(8):
        if not moves(taps.names_of(levels)):
            break
        guilty = [n for n in taps.names_of(levels) if moves([n])]
        if not guilty:
            break
        notes.append(f"reading {', '.join(guilty)} would change the old outputs, so an earlier map is read")
        for name in guilty:
            levels = [taps.moved_up(v, name, flow) if name in [t.name for t in v.taps] else v for v in levels]
        levels = [v for v in levels if v.taps]
    per_picture = [picture for outputs in before for picture in layouts.per_picture(outputs, batch)]
    return per_picture, levels, notes


def equal(a: Any, b: Any) -> bool:
    same = np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else None
    return bool(np.array_equal(a, b)) if same is None else same


def _named(path: Path, layout: Layout | None, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Names of the classes of the old outputs.

    Raises:
        CiodError: there are no names, or another number of them.
    """
    if layout is None:
        return None
    if layout.classes is None:
        if names is None:
            raise CiodError(f"{path} has no class names; give names= in the order of the labels.")
        return names
    if names is None and layout.classes == len(known.COCO):
        return tuple(known.COCO)
    if names is None:
        raise CiodError(f"{path} has {counted(layout.classes, 'class')} without names; give them: names=a,b,c.")
    real = tuple(n for n in names if n not in pictures.NO_CLASS) if len(names) != layout.classes else names
    if len(real) != layout.classes:
        raise CiodError(
            f"{path} has {counted(layout.classes, 'class')} without names, but names= gives {len(names)}. If its "
            "outputs mean something else, old_outputs=none extends it without them."
        )
    return real


def _notes(source: OnnxFile) -> list[str]:
    found = []
    if source.quantised:
        found.append(
            f"{source.path.name} is quantised to int8: new classes will be less exact (a float32 file is better)."
        )
    task = source.metadata.get("task", "detect")
    if task not in ("detect", "") and "stride" in source.metadata:
        found.append(f"the task of {source.path.name} is {task[:40]}: new classes get only boxes.")
    rights = [f"{k} {source.metadata[k][:200]}" for k in ("license", "author") if source.metadata.get(k)]
    if rights:
        found.append(f"the file states: {', '.join(rights)}; that still applies to it.")
    return found

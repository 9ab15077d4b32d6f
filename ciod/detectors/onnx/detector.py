"""A detector of any framework as an ONNX file. Its graph is not changed; new classes get branches that read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ciod.core import losses as L
from ciod.core.errors import CiodError
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.assigners.sim_ota import sim_ota
from ciod.detectors.base import Detector
from ciod.detectors.layers import branch as br
from ciod.detectors.layers.arbiter import Arbiter
from ciod.detectors.layers.class_layers import ClassConv, ClassRows
from ciod.detectors.layers.maps_branch import Channels, MapsBranch, width_of
from ciod.detectors.layers.modules import Layers
from ciod.detectors.layers.refiner import Refiner, corrected
from ciod.detectors.onnx import arbiter_text, graph, recognise, second_stage, written
from ciod.detectors.onnx.layout import Arrays
from ciod.detectors.onnx.pictures import NO_CLASS
from ciod.detectors.onnx.recognise import Asked, Recognised
from ciod.detectors.onnx.session import Runner, on_gpu
from ciod.detectors.onnx.written import Opened
from ciod.detectors.packing import Packs, Shape
from ciod.detectors.yolox import YOLOX, assemble, loss_of

STRIDES = (8, 16, 32)
POINTS = 5  # per side of a box, for the second stage: fewer than in a model of ciod, because each operator adds time
CORRECTED = 50  # positions that it corrects


@dataclass(frozen=True)
class Source:
    """The file of a detector and what was recognised in it. Copies of a detector share it, because it never changes."""

    opened: Opened
    found: Recognised
    runner: Runner

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        return self


def load(path: Path, asked: Asked | None = None, *, arbiter: bool = True) -> OnnxDetector:
    """A detector from an ONNX file, in eval mode.

    Args:
        asked: what the user says about the file.
        arbiter: False: scores of branches are not changed.

    Raises:
        CiodError: it cannot be read or does not fit, or the user must say something that the file does not.
    """
    opened = written.open_file(path)
    asked = recognise.resolved(opened, asked or Asked())
    detector = OnnxDetector(opened, recognise.of_source(opened.base, asked))
    if detector.arbiter is not None:
        detector.arbiter.on = arbiter
    return detector


class OnnxDetector(Detector, Packs):
    """See the module. Images go through onnxruntime; only branches are weights of PyTorch.

    Attributes:
        parts: the class of each column, -1 if it was dropped, per part of the outputs: the original detector, branches
            in the file, branches in training.
    """

    traits = frozenset({"dense", "objectness", "branches"})
    box_weight = YOLOX.box_weight
    branches: Layers[MapsBranch]
    channel_of: Tensor  # [parts, C]: see branch.table_of

    def __init__(self, opened: Opened, found: Recognised):
        record = opened.written
        real = [n for n in found.names or () if n not in NO_CLASS]
        names = real if record is None else record.class_names
        settings: dict[str, Any] = {"name": "onnx", "file": opened.whole.path.name, "size": found.input.size}
        super().__init__(names, settings, found.input)
        outputs = [*opened.base.outputs]
        place = {n: i for i, n in enumerate(real)}
        self.parts: list[list[int]] = [[place.get(n, -1) for n in found.names or ()]]
        if record is not None:
            outputs += [n for p in record.parts[1:] for n in (p.boxes, p.scores)]
            if len(record.parts[0].columns) != len(self.parts[0]):
                raise CiodError(
                    f"{opened.whole.path} is damaged: its classes are not those of its outputs. Use another copy of "
                    "it, or extend its detector again."
                )
            self.parts = [list(p.columns) for p in record.parts]
            self.lineage = list(record.lineage)
        else:
            self.lineage = [{"from": opened.whole.path.name, "classes": list(self.class_names)}]
        self.source = Source(opened, found, Runner(opened.whole, outputs, found.levels))
        taps = self.source.runner.taps
        self.channels = tuple(
            Channels(v.stride, _width(v.early), _width(v.late), tuple(t.channels for t in v.towers))
            for v in found.levels
        )
        self.order = [[[t.name for t in taps].index(t.name) for t in v.taps] for v in found.levels]
        self.branches = Layers()
        self.statistics: list[tuple[Tensor, Tensor]] | None = None  # measured mean and deviation of each map
        self._index_parts()
        if record is not None and record.arbiter is not None:
            arbiter_text.decode(self, record.arbiter, opened.whole.path)
        self.eval()

    @property
    def width(self) -> int:
        """The width from which those of a branch are derived."""
        return width_of(self.channels)

    def trunk(self) -> list[nn.Module]:
        return []

    # Forward ------------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Outputs:
        """In train mode only the positions of the newest branch: nothing else of the graph is computed."""
        if self.training and len(self.branches):
            maps = self.unpacked(images) if images.ndim == 2 else self.maps(images)
            return self.of_branch(len(self.branches) - 1, maps)
        ready = self.normalise(images).cpu().numpy()
        runner, maps = self.source.runner, []
        judged = self.arbiter is not None and not self.training
        if len(self.branches) or judged:
            pictures, arrays = runner.both(ready)
            maps = self.tensors(arrays)
        else:
            pictures = runner.outputs(ready)
        parts = [self._base(pictures), *self._written(pictures)]
        parts += [self.of_branch(i, maps) for i in range(len(self.branches))]
        if judged:
            parts[0] = replace(parts[0], maps=[maps[level[0]] for level in self.order])
        return parts[0] if len(parts) == 1 else br.append(parts)

    def scores(self, outputs: Outputs) -> Tensor:
        """[B, P, C]; with an arbiter, those of branches are multiplied by the probability that the branch is right."""
        scores = outputs.scores()
        if self.arbiter is None or not self.arbiter.on or not outputs.maps or len(outputs.parts) < 2:
            return scores
        branches = [self.kept(k) for k in range(1, len(self.parts))]
        return self.arbiter.weigh(scores, outputs.boxes, outputs.maps, branches, first=outputs.parts[0])

    def kept(self, part: int) -> list[int]:
        """The classes of a part that were not dropped."""
        return [c for c in self.parts[part] if c >= 0]

    @property
    def positions(self) -> int:
        """Number of positions of one branch."""
        sides = [-(-self.input.size // v.stride) for v in self.source.found.levels]
        return sum(side * side for side in sides)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps that branches read, for images as in ``forward``; nothing else of the graph is computed."""
        ready = self.normalise(images)
        if on_gpu(self.device):
            return self.source.runner.bound(ready)
        return self.tensors(self.source.runner.maps(ready.cpu().numpy()))

    def tensors(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """Channels last, which is faster for the convolutions of a branch."""
        layout = torch.channels_last
        return [torch.from_numpy(a).to(self.device, memory_format=layout) for a in arrays]

    def branch_maps(self, images: Tensor) -> list[Tensor]:
        return self.maps(images.to(self.device))

    @property
    def at_once(self) -> int:
        """As many as the graph takes."""
        return self.source.opened.whole.picture.batch or 1

    def map_shapes(self) -> list[Shape]:
        runner = self.source.runner
        sides = [-(-self.input.size // runner.strides[t.name]) for t in runner.taps]
        return [(side, side, t.channels) for side, t in zip(sides, runner.taps, strict=True)]

    def of_branch(self, i: int, maps: Sequence[Tensor]) -> Outputs:
        """Outputs of a branch in training, from the maps that it reads."""
        branch = self.branches[i]
        made = assemble(*branch([[maps[t] for t in level] for level in self.order]), strides=branch.strides)
        made = corrected(branch.refiner, made, maps[self.order[0][0]], training=self.training)
        return br.scatter_classes(made, self.channel_of[len(self.parts) - len(self.branches) + i])

    def _base(self, pictures: Sequence[Arrays]) -> Outputs:
        """Outputs of the original detector; without positions if its layout is unknown."""
        found, count = self.source.found, len(self.source.opened.base.outputs)
        decoded = [(np.zeros((0, 4), np.float32), np.zeros((0, 0), np.float32))] * len(pictures)
        if found.layout is not None:
            decoded = [found.layout.decode(picture[:count]) for picture in pictures]
        return br.scatter_classes(self._outputs(decoded), self.channel_of[0])

    def _written(self, pictures: Sequence[Arrays]) -> Iterator[Outputs]:
        """Outputs of the branches that are in the file."""
        first = len(self.source.opened.base.outputs)
        for k in range(1, len(self.parts) - len(self.branches)):
            i = first + 2 * (k - 1)
            decoded = [(picture[i], picture[i + 1]) for picture in pictures]
            if any(b.shape != (len(s), 4) or s.shape[1:] != (len(self.parts[k]),) for b, s in decoded):
                raise CiodError(
                    f"{self.source.opened.whole.path} is damaged: outputs of a branch have another shape. Use another "
                    "copy of it, or extend its detector again."
                )
            yield br.scatter_classes(self._outputs(decoded), self.channel_of[k])

    def _outputs(self, decoded: Sequence[tuple[np.ndarray, np.ndarray]]) -> Outputs:
        """Boxes and scores per picture → Outputs; shorter lists are filled up with scores of 0, which
        rows without a valid box get too."""
        most, columns = max(len(b) for b, _ in decoded), decoded[0][1].shape[1]
        boxes = np.zeros((len(decoded), most, 4), np.float32)
        scores = np.zeros((len(decoded), most, columns), np.float32)
        for i, (b, s) in enumerate(decoded):
            kept = np.isfinite(b).all(1, keepdims=True) & (b[:, 2:] >= b[:, :2]).all(1, keepdims=True)
            boxes[i, : len(b)], scores[i, : len(s)] = np.where(kept, b, 0), np.where(kept, s, 0)
        probability = torch.from_numpy(scores)
        logits = torch.logit(probability.clamp(1e-12, 1 - 6e-8)).masked_fill(probability <= 0, -torch.inf)
        device = self.device
        return Outputs(
            logits.to(device),
            torch.from_numpy(boxes).to(device),
            torch.zeros(most, 2, device=device),
            torch.ones(most, device=device),
            torch.full((len(decoded), most), -br.OFF, device=device),  # probability 1: the score is the class's
            levels=(most,),
        )

    # Training -----------------------------------------------------------------------------------------------------

    def losses(
        self, outputs: Outputs, targets: Targets, matches: Matches, supervision: L.Supervision
    ) -> dict[str, Tensor]:
        """YOLOX's losses, and that of the second stage of the newest branch."""
        refiner = self.branches[-1].refiner if len(self.branches) else None
        return loss_of(outputs, targets, matches, supervision, self.box_weight, refiner, self.channel_of[-1])

    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        """SimOTA on the newest branch, because nothing else is trained."""
        newest = self.newest(outputs)
        found, before = sim_ota(newest, targets), outputs.logits.shape[1] - newest.logits.shape[1]
        if not before:
            return found
        positive = torch.cat([found.positive.new_zeros(len(found.positive), before), found.positive], 1)
        return replace(found, position=found.position + before, positive=positive)

    def newest(self, outputs: Outputs) -> Outputs:
        """The positions of the branch added last, which are the last ones."""
        return br.last(outputs, len(self.channels))

    @torch.no_grad()
    def observe(self, images: Tensor) -> None:
        """Measures mean and deviation of every map on pictures; branches added later standardise with them.

        Args:
            images: [n, 3, size, size] RGB 0..255; a few dozen.
        """
        sums: list[list[Tensor]] = []
        for image in images.split(8):
            maps = self.maps(image)
            rows = [m.double().transpose(0, 1).flatten(1) for m in maps]
            counts = [torch.full_like(r[:, 0], r.shape[1]) for r in rows]
            sums.append([torch.stack([r.sum(1), r.square().sum(1), c]) for r, c in zip(rows, counts, strict=True)])
        self.statistics = []
        for of_map in zip(*sums, strict=True):
            total, squares, count = torch.stack(of_map).sum(0)
            mean = total / count
            deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
            self.statistics.append((mean.float(), deviation.float()))

    # Classes ------------------------------------------------------------------------------------------------------

    def add_arbiter(self, rows: int | None = None) -> Arbiter:
        """An arbiter between the branches, without statistics yet. See ``Detector.add_arbiter``."""
        nothing = 0 if rows is None else rows - self.num_classes
        channels = [v.taken[0] for v in self.channels]
        strides = [v.stride for v in self.channels]
        self.arbiter = Arbiter(channels, strides, self.num_classes, nothing).to(self.device)
        return self.arbiter

    def grow(self, names: Sequence[str]) -> None:
        """Adds classes on a separate branch: nothing else can grow."""
        if names:
            self.add_branch(names)

    def add_branch(
        self, names: Sequence[str], *, taught: Sequence[str] = (), inner: Sequence[int] | None = None
    ) -> MapsBranch:
        """Adds classes on a branch: old outputs stay bit-identical. See ``YOLOX.add_branch``.

        Args:
            inner: channels of its bottleneck at strides 8, 16 and 32.
        """
        self._check_new(names)
        columns = br.columns_of(self.class_names, names, taught)
        widths: dict[int, int] = dict(zip(STRIDES, inner if inner is not None else br.default_widths(self.width)))
        rows = br.row_blocks(len(columns), len(names)) if len(columns) > 1 else ()
        inner_widths = [widths[v.stride] for v in self.channels]
        added = MapsBranch(self.channels, columns, len(names), inner_widths, self._second_stage(rows))
        if self.statistics is None:
            noise = torch.from_numpy(255 * graph.probe(self.source.opened.base, self.input.size, 2))
            self.observe(noise)
        assert self.statistics is not None
        for level, order in zip(added.levels, self.order, strict=True):
            for standard, t in zip(level.standards, order, strict=True):
                standard.measured(*self.statistics[t])
        self.branches.append(added.to(self.device).train(self.training))
        self.class_names = (*self.class_names, *names)
        self.parts.append(columns)
        if self.arbiter is not None:
            self.arbiter.grow(len(names))
        self.growth.append(
            {"branch": len(names), "taught": [*taught], "inner": list(inner or br.default_widths(self.width))}
        )
        self._index_parts()
        return added

    @property
    def second_stage(self) -> bool:
        """Whether a new branch gets a second stage, whose operators older graphs do not have."""
        return self.source.opened.whole.opset >= second_stage.OLDEST

    def _second_stage(self, rows: Sequence[int]) -> Refiner | None:
        """That of a new branch; None: the graph is too old for its operators.

        Args:
            rows: sizes of the blocks of class rows.
        """
        if not self.second_stage:
            return None
        finest = self.channels[0]
        return Refiner(finest.taken[0], finest.stride, blocks=rows, side=POINTS, candidates=CORRECTED)

    def class_modules(self) -> dict[str, ClassConv]:
        """Empty: the classes of a branch are fixed."""
        return {}

    def class_layers(self) -> Iterator[ClassRows]:
        for b, branch in enumerate(self.branches):
            for i, level in enumerate(branch.levels):
                for rows in level.cls.rows(f"branches.{b}.levels.{i}.cls"):
                    yield ClassRows(rows.name, rows.tensor, branch.columns[rows.first])
            if branch.refiner is not None:
                for rows in branch.refiner.cls.rows(f"branches.{b}.refiner.cls"):
                    yield ClassRows(rows.name, rows.tensor, branch.columns[rows.first])

    def _select(self, kept: list[int]) -> None:
        """Dropped classes are hidden; the graph is not changed."""
        place = {old: new for new, old in enumerate(kept)}
        self.parts = [[place.get(c, -1) for c in columns] for columns in self.parts]
        self.growth = [{"rows": len(kept)}]
        if self.arbiter is not None:
            self.arbiter.select(kept)
        self._index_parts(len(kept))

    def _index_parts(self, classes: int | None = None) -> None:
        count = self.num_classes if classes is None else classes
        table = torch.zeros(len(self.parts), count, dtype=torch.long)
        for row, columns in zip(table, self.parts, strict=True):
            row.fill_(len(columns))
            for i, c in enumerate(columns):
                if c >= 0:
                    row[c] = i
        self.register_buffer("channel_of", table.to(self.device), persistent=False)


def _width(tap: Any) -> int:
    return 0 if tap is None else tap.channels

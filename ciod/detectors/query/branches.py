"""Branches of query detectors: new classes found by queries of their own, while every old detection keeps its bits.

A branch is a second, smaller head on the frozen encoder: queries, decoder and box layers start as copies of the
detector's, class layers are its own. Its queries and those of the detector do not attend to each other, so nothing that
the detector computed before changes (as the queries of tasks in DyQ-DETR, arXiv 2407.21687, which train together).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ciod.core import boxes as bx
from ciod.core.errors import CiodError
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.layers import branch as br
from ciod.detectors.layers.class_layers import ClassConv, ClassRows
from ciod.detectors.layers.modules import Layers
from ciod.detectors.parted import Parted
from ciod.detectors.query.detector import QueryDetector

LEAST, SHARE = 20, 3  # queries of a branch: a third of the detector's, and at least 20
SAME = 0.65  # IoU above which two parts mean the same object, for classes that both know


class Head(nn.Module):
    """Parts of a network of ``transformers`` that find the answers, under their names, with its configuration."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config


def head_of(network: Any, parts: Sequence[str], queries: int) -> Any:
    """Copies of these parts of a network, for so many queries."""
    config = deepcopy(network.config)
    config.num_queries = queries
    head = Head(config)
    for name in parts:
        setattr(head, name, deepcopy(getattr(network, name)))
    return head


class QueryBranch(nn.Module):
    """A head of the classes ``columns``, of which only the last ``new`` are new.

    Args:
        head: from ``QueryBranches.copy_head``; its class layers are replaced.
    """

    def __init__(self, head: nn.Module, columns: Sequence[int], new: int):
        super().__init__()
        self.columns, self.head = list(columns), head
        rows = br.row_blocks(len(self.columns), new)
        for name, layer in list(head.named_modules()):
            if isinstance(layer, ClassConv):
                above, _, leaf = name.rpartition(".")
                own = type(layer)(layer.channels, 0)
                for n in rows:
                    own.grow(n)
                setattr(head.get_submodule(above), leaf, own)

    @property
    def queries(self) -> int:
        """How many it asks."""
        head: Any = self.head
        return head.config.num_queries

    def class_modules(self) -> Iterator[tuple[str, ClassConv]]:
        """Its class layers by name."""
        for name, layer in self.named_modules():
            if isinstance(layer, ClassConv):
                yield name, layer

    def select(self, place: Mapping[int, int]) -> bool:
        """Keeps the classes in ``place`` (old number → new). False: none is left."""
        rows = [i for i, c in enumerate(self.columns) if c in place]
        self.columns = [place[self.columns[i]] for i in rows]
        for _, layer in self.class_modules():
            layer.select(rows)
        return bool(rows)


class QueryBranches(QueryDetector, Parted):
    """A query detector that can get branches. Subclasses implement ``ask`` and ``copy_head``, return ``answered`` from
    ``forward``, and call ``start_parts`` when they have their network.

    The outputs of a branch are matched and trained as those of the detector. In train mode a detector with branches
    computes the newest one alone, and its other parts stay in eval mode; in eval mode there are the answers of all
    parts, those of the detector itself first.
    """

    traits = QueryDetector.traits | {"branches"}
    branches_only = True
    branches: Layers[QueryBranch]  # type: ignore[assignment]

    @abstractmethod
    def ask(self, images: Tensor, maps: Sequence[Tensor], head: Any) -> Outputs:
        """The sets of queries of a head.

        Args:
            images: [B, 3, H, W], only for their shape.
            maps: [B, F, h, w] per level of the encoder, finest first.
            head: the detector's network, or that of a branch.
        """

    @abstractmethod
    def copy_head(self, queries: int) -> nn.Module:
        """The parts of the network that ``ask`` needs, for so many queries."""

    def answered(self, images: Tensor, maps: Sequence[Tensor]) -> Outputs:
        """What ``forward`` returns, from the maps of the encoder. Arguments: see ``ask``."""
        if not len(self.branches):
            return self.ask(images, maps, self.network)
        if self.training:
            return br.scatter_classes(self.ask(images, maps, self.branches[-1].head), self.channel_of[-1])
        heads = [self.network, *(b.head for b in self.branches)]
        parts = [
            br.scatter_classes(self.ask(images, maps, head).answer(), row)
            for head, row in zip(heads, self.channel_of, strict=True)
        ]
        sizes = tuple(p.logits.shape[1] for p in parts)
        return replace(
            parts[0],
            logits=torch.cat([p.logits for p in parts], 1),
            boxes=torch.cat([p.boxes for p in parts], 1),
            answers=sum(sizes),
            parts=sizes,
            maps=[] if self.arbiter is None else list(maps),
            distribution=None,
            refs=None,
        )

    def newest(self, outputs: Outputs) -> Outputs:
        """The queries of the branch added last; in train mode there are no others."""
        if not outputs.parts:
            return outputs
        n = outputs.parts[-1]
        return replace(outputs, logits=outputs.logits[:, -n:], boxes=outputs.boxes[:, -n:], answers=n, parts=())

    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        """See ``QueryDetector``; with branches, of ``newest`` and with the targets of its classes."""
        return super().match(outputs, br.only(targets, self.owned[-1]) if len(self.branches) else targets)

    def train(self, mode: bool = True) -> QueryBranches:
        """As for any module; with branches, all but the newest stay in eval mode."""
        several = len(self.branches) > 0
        super().train(mode and not several)
        if mode and several:
            self.training = True
            self.branches[-1].train()
        return self

    def scores(self, outputs: Outputs) -> Tensor:
        """[B, P, C]; see ``Parted``. Where two parts know a class and find the same object, the better box has it."""
        scores = super().scores(outputs)
        shared = [c for c in range(self.num_classes) if sum(c in p for p in self.parts) > 1]
        if not shared or not outputs.parts:
            return scores
        part = torch.cat([scores.new_full((n,), i) for i, n in enumerate(outputs.parts)])
        rival = (bx.pairwise_iou(outputs.boxes, outputs.boxes) > SAME) & (part[:, None] != part)
        kept = [~(rival & (own[:, :, None] < own[:, None])).any(2) for own in (scores[..., c] for c in shared)]
        every = torch.stack([*kept, kept[0] | ~kept[0]], 2).to(scores.dtype)
        column = [shared.index(c) if c in shared else len(shared) for c in range(self.num_classes)]
        return scores * every.index_select(2, torch.tensor(column, device=scores.device))

    # Classes ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def judged_maps(self) -> tuple[Sequence[int], Sequence[int]]:
        """Those of the encoder."""
        training, size = self.training, self.input.size
        maps = self.eval()(self.mean.new_zeros(1, 3, size, size)).features
        self.train(training)
        return [m.shape[1] for m in maps], [size // m.shape[3] for m in maps]

    def add_branch(
        self, names: Sequence[str], *, taught: Sequence[str] = (), inner: Sequence[int] | None = None
    ) -> QueryBranch:
        """Adds classes with queries of their own: all existing outputs stay bit-identical.

        Args:
            names: new classes.
            taught: known classes that the branch also predicts; of two boxes on an object the better counts.
            inner: one number, the queries of the branch; None: as many as other branches have, or a third of the
                detector's.

        Raises:
            CiodError: a new name is already known, a taught one is not, there are no classes, or ``inner`` is not
                possible.
        """
        self._check_new(names)
        columns = br.columns_of(self.class_names, names, taught)
        most = self.width
        as_others = self.branches[0].queries if len(self.branches) else min(most, max(LEAST, most // SHARE))
        queries = as_others if inner is None else inner[0] if len(inner) == 1 else 0
        if not 1 <= queries <= most or (len(self.branches) and queries != as_others):
            raise CiodError(
                f"method.inner: a branch of {self.settings['name']} has queries and no bottlenecks; leave inner out."
            )
        added = QueryBranch(self.copy_head(queries), columns, len(names))
        self._append(added, names, {"branch": len(names), "taught": [*taught], "inner": [queries]})
        return added

    def class_layers(self) -> Iterator[ClassRows]:
        for rows in super().class_layers():
            yield ClassRows(rows.name, rows.tensor, self.parts[0][rows.first])
        for b, branch in enumerate(self.branches):
            for name, layer in branch.class_modules():
                for rows in layer.rows(f"branches.{b}.{name}"):
                    yield ClassRows(rows.name, rows.tensor, branch.columns[rows.first])

"""Feature replay: pseudo-labels, and stored feature vectors of old objects that the prediction layers answer again.

Pseudo-labels hold the old classes only where the new images show old objects. Stored vectors need none: they are what
the prediction layers of the head read at an object, twice 64 numbers on YOLOX-nano. No image is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
import torch.distributed as dist
from pydantic import Field, PrivateAttr
from torch import Tensor
from torch.nn import functional as F

from ciod.core import losses as L
from ciod.core.types import Batch, Outputs
from ciod.detectors.head_inputs import HeadInputs, has_head_inputs
from ciod.methods.pseudo_label import PseudoLabel

if TYPE_CHECKING:
    from ciod.data.scenarios.scenario import Task

Weight = Annotated[float, Field(ge=0)]
FLOOR = 0.01  # weight of a place where the teacher sees nothing; where it sees an old object, its score is added
STAYS = 0.98  # share of the statistics of the drift that stays in each step


@dataclass
class Vectors:
    """The inputs of the head at n stored positions, and its outputs there."""

    cls: Tensor  # [n, F, k, k] float16: a window of the class tower
    box: Tensor  # [n, F, k, k] float16: of the box tower
    level: Tensor  # [n] int64
    label: Tensor  # [n] int64: class of the object
    prob: Tensor  # [n, A, C] float16: class probabilities of the A anchors of the cell
    obj: Tensor  # [n, A] float16: objectness, if the detector has it, else 0

    def at(self, rows: Tensor) -> Vectors:
        return Vectors(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to(self, device: torch.device) -> Vectors:
        return Vectors(*(getattr(self, f.name).to(device) for f in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Vectors]) -> Vectors:
        """All of them; classes that a part did not have yet are 0 in its answers."""
        most = max(p.prob.shape[2] for p in parts)
        wide = [replace(p, prob=F.pad(p.prob, (0, most - p.prob.shape[2]))) for p in parts]
        return cls(*(torch.cat([getattr(p, f.name) for p in wide]) for f in fields(cls)))


class FeatureReplay(PseudoLabel):
    """Pseudo-labels + replay of stored feature vectors of old objects + a tie of the features to the teacher's."""

    needs: ClassVar[frozenset[str]] = frozenset({"dense", "head_inputs"})
    distillation_terms: ClassVar[frozenset[str]] = frozenset({"replay_cls", "replay_obj", "tie"})

    weight: Weight = 1.0
    """Weight of the replay terms; 0: no replay."""
    tie: Weight = 1.0
    """Weight of the feature tie; 0: no tie."""
    vectors: Annotated[int, Field(ge=1)] = 64
    """Stored vectors per class."""
    source_images: Annotated[int, Field(ge=1)] = 4000
    """The vectors come from at most this number of the task's training images, evenly spaced in its list."""
    ridge: Annotated[float, Field(gt=0)] | None = 0.1
    """Strength with which the estimated drift of the features is pulled towards zero; None: no drift correction."""

    _store: Vectors | None = PrivateAttr(default=None)
    _live: list[tuple[int, Vectors]] = PrivateAttr(default_factory=list)  # per level, on the device
    _moments: list[Tensor] = PrivateAttr(default_factory=list)  # [2, F + 1, 2F + 1] per level; the two towers

    @property
    def _head(self) -> HeadInputs:
        assert has_head_inputs(self.detector)  # because of ``needs``
        return self.detector

    # Task -----------------------------------------------------------------------------------------------------------

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self._moments = []
        self._spread()

    def _spread(self) -> None:
        """The stored vectors per level, in float32 on the device."""
        self._live = []
        if self._store is None or not self.weight:
            return
        store = self._store.to(self.detector.device)
        for level in store.level.unique().tolist():
            part = store.at(store.level == level)
            floats = {f: getattr(part, f).float() for f in ("cls", "box", "prob", "obj")}
            self._live.append((level, replace(part, **floats)))

    # Step -----------------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        if self.teacher is None:
            return super().loss(batch)
        outputs = self.student(batch.images)
        knowledge = self.teach(batch)
        losses = self.supervised(outputs, knowledge, batch)
        with torch.autocast(batch.images.device.type, enabled=False):
            return losses | self.held(outputs, knowledge)

    def held(self, outputs: Outputs, knowledge: Outputs) -> dict[str, Tensor]:
        """The terms beside those of ``pseudo_label``, in float32."""
        seen, losses = self._seen(knowledge), {}
        if self.tie:
            losses["tie"] = self.tie * self.tied(outputs, knowledge, seen)
        if self._live:
            if self.ridge is not None:
                self._follow(outputs, knowledge, seen)
            losses |= self.replayed()
        return losses

    def _seen(self, knowledge: Outputs) -> list[Tensor]:
        """[B, h × w] per level: the teacher's best score of an old class, of all anchors."""
        best = knowledge.scores()[..., : self.old].amax(2)
        each = best.split(knowledge.levels, 1)[: len(knowledge.towers)]  # without branches
        maps = zip(each, knowledge.towers, strict=True)
        return [s.view(len(s), m.shape[2] * m.shape[3], -1).amax(2) for s, m in maps]

    def tied(self, outputs: Outputs, knowledge: Outputs, seen: list[Tensor]) -> Tensor:
        """Σ w ‖f − f_T‖² ÷ Σ w ‖f_T‖² over places and both towers; w is the teacher's score + ``FLOOR``."""
        error, size = [], []
        for mine, theirs in ((outputs.towers, knowledge.towers), (outputs.box_towers, knowledge.box_towers)):
            for s, t, w in zip(mine, theirs, seen, strict=True):
                w = w + FLOOR
                error.append((w * (s.float() - t.float()).square().sum(1).flatten(1)).sum())
                size.append((w * t.float().square().sum(1).flatten(1)).sum())
        return torch.stack(error).sum() / L.normaliser(torch.stack(size).sum(), 1e-6)

    @torch.no_grad()
    def _follow(self, outputs: Outputs, knowledge: Outputs, seen: list[Tensor]) -> None:
        """Adds this step to the moments of (teacher's feature, 1) with itself and with the student's change."""
        now = []
        for i, w in enumerate(seen):
            pairs = ((outputs.towers, knowledge.towers), (outputs.box_towers, knowledge.box_towers))
            now.append(torch.stack([_moments(s[i], t[i], w + FLOOR) for s, t in pairs]))
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            flat = torch.cat([m.flatten() for m in now])
            dist.all_reduce(flat)
            now = [f.view_as(m) for f, m in zip(flat.split([m.numel() for m in now]), now, strict=True)]
        old = self._moments or [torch.zeros_like(m) for m in now]
        self._moments = [STAYS * a.to(b) + b for a, b in zip(old, now, strict=True)]

    def _moved(self, level: int, part: Vectors) -> tuple[Tensor, Tensor]:
        """The windows of both towers where the student's features are now."""
        if self.ridge is None or not self._moments:
            return part.cls, part.box
        maps = drift(self._moments[level], self.ridge)
        return shift(part.cls, maps[0]), shift(part.box, maps[1])

    def replayed(self) -> dict[str, Tensor]:
        """``replay_cls``: KL of the class probabilities that were stored, 0 for new classes; summed over anchors and
        classes, mean over the vectors. ``replay_obj``: the same of the objectness, mean over the vectors."""
        cls, obj, count = [], [], 0
        for level, part in self._live:
            logits, sure = self._head.answer_at(level, *self._moved(level, part))
            logits = logits.float()
            target = F.pad(part.prob, (0, logits.shape[2] - part.prob.shape[2]))
            cls.append((L.bce(logits, target) - L.entropy(target)).sum())
            if sure is not None:
                obj.append((L.bce(sure.float(), part.obj) - L.entropy(part.obj)).sum())
            count += len(part.label)
        losses = {"replay_cls": self.weight * torch.stack(cls).sum() / count}
        if obj:
            losses["replay_obj"] = self.weight * torch.stack(obj).sum() / count
        return losses

    # After the task -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Moves the stored vectors to where the features are now, and adds those of this task's objects."""
        if self._store is not None and self._live and self.ridge is not None and self._moments:
            moved = []
            for level, part in self._live:
                cls, box = self._moved(level, part)
                moved.append(replace(part, cls=cls.half(), box=box.half(), prob=part.prob.half(), obj=part.obj.half()))
            self._store = Vectors.joined(moved)
        found = self.gather(task)
        if found is not None:
            before = self._store
            if before is not None:
                before = before.to(found.level.device)
                found = Vectors.joined([before.at(~torch.isin(before.label, found.label.unique())), found])
            self._store = found
        self._moments, self._live = [], []

    def gather(self, task: Task) -> Vectors | None:
        """Vectors at positions that match an object, at most ``vectors`` per class, drawn at random; in eval mode, from
        images without augmentation. None: nothing matched."""
        from ciod.data.loader import batches, eval_loader

        detector, random = self._head, torch.Generator().manual_seed(task.index)
        training = {m: m.training for m in detector.modules()}
        detector.eval()
        rows = range(0, len(task.train), max(1, len(task.train) // self.source_images))[: self.source_images]
        given = detector.input
        how = {"batch": 8, "workers": 0, "pin": False, "rows": rows, "place": given.place}
        kept: Vectors | None = None
        key = torch.zeros(0)
        for batch in batches(eval_loader(task.train, given.size, given.fill, **how)):
            if batch.broken:
                continue
            batch = batch.to(detector.device)
            fresh = self._matched(detector, batch)
            if fresh is None:
                continue
            key = torch.cat([key, torch.rand(len(fresh.label), generator=random)])
            kept = fresh if kept is None else Vectors.joined([kept, fresh])
            rows_kept = best_per_class(kept.label.cpu(), key, self.vectors)
            kept, key = kept.at(rows_kept.to(kept.label.device)), key[rows_kept]
        for m, was in training.items():
            m.training = was
        return kept

    def _matched(self, detector: HeadInputs, batch: Batch) -> Vectors | None:
        outputs = detector(batch.images)
        matches = detector.match(outputs, batch.targets)
        image, slot = torch.nonzero(matches.valid, as_tuple=True)
        position = matches.position[image, slot]
        label = batch.targets.labels[image, matches.target[image, slot]]
        found, first = [], 0
        own_levels = outputs.levels[: len(outputs.towers)]  # without branches
        for level, (cls, box, n) in enumerate(zip(outputs.towers, outputs.box_towers, own_levels, strict=True)):
            own = (position >= first) & (position < first + n)
            height, width = cls.shape[2:]
            cell = (position[own] - first) // (n // (height * width))
            where = (image[own], cell // width, cell % width)
            windows = [window(m.float(), *where, detector.window) for m in (cls, box)]
            logits, sure = detector.answer_at(level, *windows)
            obj = logits.new_zeros(logits.shape[:2]) if sure is None else sure.sigmoid()
            found.append(
                Vectors(
                    cls=windows[0].half(),
                    box=windows[1].half(),
                    level=torch.full_like(cell, level),
                    label=label[own],
                    prob=logits.sigmoid().half(),
                    obj=obj.half(),
                )
            )
            first += n
        joined = Vectors.joined(found)
        return joined if len(joined.label) else None

    def state(self) -> dict[str, Any]:
        if self._store is None:
            return {}
        return {"vectors": {f.name: getattr(self._store, f.name) for f in fields(Vectors)}, "moments": [*self._moments]}

    def load_state(self, state: dict[str, Any]) -> None:
        given = state.get("vectors")
        self._store = None if given is None else Vectors(**given)
        self._moments = [m.to(self.detector.device) for m in state.get("moments", [])]
        if self._task is not None and self.teacher is not None:
            self._spread()


def _moments(mine: Tensor, theirs: Tensor, weight: Tensor) -> Tensor:
    """[F + 1, 2F + 1]: Σ w x xᵀ and Σ w x (s − t)ᵀ with x = (t, 1), of maps [B, F, h, w] and weights [B, h × w]."""
    s, t = (m.float().flatten(2).transpose(1, 2).flatten(0, 1) for m in (mine, theirs))
    x = F.pad(t, (0, 1), value=1.0)
    return (x * weight.flatten()[:, None]).T @ torch.cat([x, s - t], 1)


def drift(moments: Tensor, ridge: float) -> Tensor:
    """[2, F + 1, F]: the change of a feature as a linear function of (feature, 1), by ridge regression; 0 where nothing
    was seen."""
    n = moments.shape[1]
    a, b = moments[..., :n], moments[..., n:]
    scale = a.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    eye = torch.eye(n, device=a.device)
    return torch.linalg.solve_ex(a / scale[:, None, None] + ridge * eye, b / scale[:, None, None]).result


def shift(windows: Tensor, change: Tensor) -> Tensor:
    """[n, F, k, k] + the change that ``drift`` estimates at each cell."""
    return windows + torch.einsum("nfyx,fg->ngyx", windows, change[:-1]) + change[-1][:, None, None]


def window(m: Tensor, image: Tensor, y: Tensor, x: Tensor, k: int) -> Tensor:
    """[n, F, k, k] around the cells of a map [B, F, h, w]; 0 outside."""
    r = k // 2
    m = F.pad(m, (r, r, r, r))
    step = torch.arange(k, device=m.device)
    rows, columns = y[:, None, None] + step[:, None], x[:, None, None] + step
    return m.permute(0, 2, 3, 1)[image[:, None, None], rows, columns].permute(0, 3, 1, 2)


def best_per_class(label: Tensor, key: Tensor, most: int) -> Tensor:
    """Rows of the ``most`` largest keys of each class, ascending."""
    order = key.argsort(descending=True, stable=True)
    order = order[label[order].argsort(stable=True)]
    same = label[order]
    start = torch.searchsorted(same, same, right=False)
    rank = torch.arange(len(order)) - start
    return order[rank < most].sort().values

"""Exemplar memory: images of finished tasks that later tasks use again, with any method.

A memory consists of row numbers of the training data, so a saved state rebuilds it bit for bit
(docs/memory-and-pools.md).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ciod.config.settings import MemorySettings
from ciod.core.boxes import iou_table
from ciod.core.errors import CiodError
from ciod.data.index import Index
from ciod.memory import rules

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ciod.core.types import Batch
    from ciod.data.scenarios.scenario import Scenario
    from ciod.detectors.base import Detector

SAME = 0.7  # IoU from which a box detected later is the same as an existing one


@dataclass
class Memory:
    """The exemplars of finished tasks.

    Args:
        scenario: rows refer to its training data; labels are in order of arrival.
    """

    settings: MemorySettings
    scenario: Scenario
    seed: int
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [k], in order of choice
    known: np.ndarray = field(init=False)  # [k, C] bool: classes labelled in each
    found: dict[str, np.ndarray] = field(init=False)  # boxes added by the model: row [m], boxes [m, 4], labels [m]
    images_seen: int = 0

    def __post_init__(self) -> None:
        self.known = np.zeros((0, len(self.scenario.classes)), bool)
        self.found = {
            "row": np.zeros(0, np.int64),
            "boxes": np.zeros((0, 4), np.float32),
            "labels": np.zeros(0, np.int64),
        }

    def __len__(self) -> int:
        return len(self.rows)

    # Before a task ---------------------------------------------------------------------------------------------

    def index(self) -> tuple[Index, np.ndarray]:
        """The exemplars in ascending order of row with their known boxes, and known [k, C]."""
        order = np.argsort(self.rows)
        index = self._drawn(self.rows[order], self.known[order])
        return index, self.known[order]

    def _drawn(self, rows: np.ndarray, known: np.ndarray) -> Index:
        """Images ``rows`` (ascending) with the real boxes of their known classes and those added by the model."""
        index = self.scenario.train.select(rows)
        real = known[index.image, index.labels] & self.scenario.usable(index)
        index = index.select(boxes=real)
        mine = np.isin(self.found["row"], rows)
        if not mine.any():
            return index
        image = np.searchsorted(rows, self.found["row"][mine])
        return index.with_boxes(image, self.found["boxes"][mine], self.found["labels"][mine])

    # After a task -------------------------------------------------------------------------------------------------

    def update(self, task: int, detector: Detector) -> None:
        """Chooses exemplars from the old ones and the images of a finished task, with the ``detector`` after it."""
        new = self.scenario.rows(task)
        shown = self.scenario.shown(task)
        candidates = np.concatenate([self.rows, np.setdiff1d(new, self.rows)])  # exemplars first, in their order
        known = np.concatenate([self.known, np.zeros((len(candidates) - len(self), self.known.shape[1]), bool)])
        known[np.isin(candidates, new)] |= shown
        seen = self.scenario.seen(task)
        size = self.settings.size if self.settings.size >= 1 else self.settings.size * (self.images_seen + len(new))
        k = min(
            len(candidates), round(size * (seen if self.settings.per == "class" and self.settings.size >= 1 else 1))
        )
        rng = np.random.default_rng([self.seed, task, 77])
        chosen = self._choose(candidates, known, len(self), k, seen, rng, detector, task)
        self.rows, self.known = candidates[chosen], known[chosen]
        self.images_seen += len(new)
        keep = np.isin(self.found["row"], self.rows)
        self.found = {name: v[keep] for name, v in self.found.items()}
        if self.settings.labels == "completed" and len(self):
            self._complete(seen, detector)

    def _choose(
        self,
        candidates: np.ndarray,
        known: np.ndarray,
        kept: int,
        k: int,
        seen: int,
        rng: np.random.Generator,
        detector: Detector,
        task: int,
    ) -> np.ndarray:
        """Positions in ``candidates``, of which the first ``kept`` are already exemplars."""
        rule = self.settings.select
        if rule == "random" and self.settings.per == "run":
            # Every image seen so far is equally likely, although only a part of the old ones is still available.
            fresh = len(candidates) - kept
            old = min(kept, round(k * self.images_seen / max(1, self.images_seen + fresh)))
            old = max(old, k - fresh)
            return np.concatenate([rng.permutation(kept)[:old], kept + rng.permutation(fresh)[: k - old]])
        boxes = self._counts(candidates, known)
        if rule == "ocdm":
            return rules.ocdm(boxes > 0, k, rng)
        if rule == "calibrated":
            wanted = np.sum([self._shown(i) for i in range(task + 1)], axis=0)
            return rules.calibrated(boxes, wanted, k)
        queues: list[Any] = []
        features = self._features(candidates, known, kept, detector) if rule == "herding" else {}
        for c in range(seen):
            members = np.flatnonzero(boxes[:, c] > 0)
            if rule == "random":
                queues.append(rng.permutation(members))
            elif c in self.scenario.new(task):
                own = np.array([features[int(m), c] for m in members])
                queues.append(members[rules.herding(own, 2 * k // max(1, seen) + 10)] if len(members) else [])
            else:
                queues.append(members)  # exemplars in the order of the previous herding
        return rules.in_turn(queues, k)

    def _counts(self, candidates: np.ndarray, known: np.ndarray) -> np.ndarray:
        """[N, C] boxes of each known class in each candidate."""
        order = np.argsort(candidates)
        index = self._drawn(candidates[order], known[order])
        counts = np.zeros(known.shape, np.int64)
        np.add.at(counts, (order[index.image], index.labels), 1)
        return counts

    def _shown(self, task: int) -> np.ndarray:
        """[C] numbers of boxes shown in the images of a task."""
        index = self.scenario.train.select(self.scenario.rows(task))
        seen = self.scenario.shown(task)[index.labels] & self.scenario.usable(index)
        return np.bincount(index.labels[seen], minlength=self.known.shape[1])

    @torch.no_grad()
    def _features(
        self, candidates: np.ndarray, known: np.ndarray, kept: int, detector: Detector
    ) -> dict[tuple[int, int], np.ndarray]:
        """(candidate, class) → unit vector: the mean over the class's boxes of the neck's features inside the box."""
        import torchvision

        order = np.argsort(candidates)
        index = self._drawn(candidates[order], known[order])
        found: dict[tuple[int, int], np.ndarray] = {}
        detector.eval()
        for batch in _loaded(index, detector):
            batch = batch.to(detector.device)
            targets = batch.targets
            levels = detector(batch.images).features
            image, n = targets.valid.nonzero(as_tuple=True)
            rois = torch.cat([image[:, None].float(), targets.boxes[image, n]], 1)
            pooled = [
                torchvision.ops.roi_align(f.float(), rois, 1, f.shape[-1] / batch.images.shape[-1]).flatten(1)
                for f in levels
            ]
            unit = torch.nn.functional.normalize(torch.cat(pooled, 1), dim=1).cpu().numpy()
            place = order[batch.index.numpy()[image.cpu().numpy()]]
            labels = targets.labels[image, n].cpu().numpy()
            for key in set(zip(place.tolist(), labels.tolist(), strict=True)):
                mine = (place == key[0]) & (labels == key[1])
                found[key] = unit[mine].mean(0)
        return found

    def _complete(self, seen: int, detector: Detector) -> None:
        """The model labels the seen classes that an exemplar lacks; it then counts as labelled for all of them."""
        from ciod.core.types import in_original

        index, known = self.index()
        rows = np.sort(self.rows)
        lacking = np.flatnonzero(~known[:, :seen].all(1))
        detector.eval()
        more: dict[str, list[Any]] = {"row": [], "boxes": [], "labels": []}
        part = index.select(lacking)
        for batch in _loaded(part, detector):
            with torch.no_grad():
                outputs = detector(batch.images.to(detector.device))
            for i, d in enumerate(detector.decode(outputs, score_threshold=self.settings.score)):
                at = int(batch.index[i])
                assert batch.frames is not None
                d = in_original(d, batch.frames[i].tolist(), *(int(v) for v in part.sizes[at]))
                there = part.boxes[part.of_image(at)]
                missing = ~known[lacking[at]][d.labels] & (d.labels < seen) & (_largest_iou(d.boxes, there) < SAME)
                more["row"].append(np.full(missing.sum(), rows[lacking[at]]))
                more["boxes"].append(d.boxes[missing])
                more["labels"].append(d.labels[missing])
        self.found = {
            name: np.concatenate([v, *more[name]]).astype(v.dtype) if more[name] else v
            for name, v in self.found.items()
        }
        self.known[:, :seen] = True

    # Saved state ------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Fingerprint of the training data: file names, boxes and labels."""
        train = self.scenario.train
        digest = hashlib.sha256("\n".join(f.name for f in train.files).encode())
        for column in (train.image, train.boxes, train.labels):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def state(self) -> dict[str, Any]:
        """Rows, known classes and added boxes, with the seed and a fingerprint of the training data."""
        return {
            "rows": torch.from_numpy(self.rows),
            "known": torch.from_numpy(self.known),
            "found": {name: torch.from_numpy(v) for name, v in self.found.items()},
            "images_seen": self.images_seen,
            "seed": self.seed,
            "data": self.fingerprint(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises CiodError if the rows do not refer to this training data."""
        if state["data"] != self.fingerprint():
            raise CiodError(
                f"memory: the training images or boxes of {self.scenario.train.source} differ from those of the "
                "saved exemplars. Restore the old data, or choose another out=."
            )
        self.rows, self.known = state["rows"].numpy(), state["known"].numpy()
        self.found = {name: v.numpy() for name, v in state["found"].items()}
        self.images_seen = state["images_seen"]


def _loaded(index: Index, detector: Detector) -> Iterable[Batch]:
    """The images of ``index`` as the detector takes them."""
    from ciod.data.loader import eval_loader

    given = detector.input
    return eval_loader(index, given.size, given.fill, batch=8, workers=0, pin=False, place=given.place)


def _largest_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[n]: the largest overlap of each box with one of ``others``."""
    return iou_table(boxes, others).max(1, initial=0)

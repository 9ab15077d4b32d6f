"""python -m benchmarks.held_backbone FIRST ROW… --run "data=… split=…"

Quick trials of methods in a second task: the backbone is frozen, and its maps of all images (without augmentation, and
flipped) are computed once for all rows, so a row costs a third of a run. Prints the AP50 of old and new classes, of the
old ones where new ones cannot be found (what is lost is then not confusion with new classes), and the relative change
of the class tower's features at old objects of the first task's images, per level.

FIRST is the folder of a run whose first task is finished, a ROW is a method with settings: feature_replay,tie=0. It is
for choosing settings on development data; the numbers are not those of ``ciod train``, which trains the backbone, too.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ciod
from ciod import methods
from ciod.config import load as config
from ciod.core.types import Batch, Detections, Outputs, Targets, in_original
from ciod.data.index import Index
from ciod.data.loader import batches, eval_loader
from ciod.data.scenarios.scenario import Scenario
from ciod.detectors.staged import StagedDetector
from ciod.evaluation.ap import coco_ap
from ciod.methods.feature_replay import FeatureReplay
from ciod.runs.start import open_data
from ciod.training.optim import EMA


class Kept:
    """The backbone's maps of some images, and their boxes."""

    def __init__(self, base: StagedDetector, index: Index, *, flipped: bool = False):
        self.batches: list[Batch] = []
        maps: list[list[Tensor]] = []
        given = base.input
        how: dict[str, Any] = {"batch": 16, "workers": 0, "pin": False, "place": given.place}
        with torch.no_grad():
            for batch in batches(eval_loader(index, given.size, given.fill, **how)):
                for b in (batch, mirrored(batch)) if flipped else (batch,):
                    maps.append([m.half() for m in base.extract(b.images)[0]])
                    self.batches.append(replace(b, images=torch.zeros(0)))
        self.maps = [torch.cat(level) for level in zip(*maps, strict=True)]
        self.blank = torch.zeros(1, 3, given.size, given.size)

    def outputs(self, detector: StagedDetector, rows: Tensor) -> Outputs:
        maps = [m[rows].float() for m in self.maps]
        return detector.respond(self.blank, maps, detector.neck(maps))

    def batch(self, rows: Tensor) -> Batch:
        """The boxes of these images; the place of the pixels has the numbers of the images."""
        boxes, labels = [], []
        starts = torch.tensor([0, *(len(b.names) for b in self.batches)]).cumsum(0)
        for row in rows.tolist():
            i = int(torch.searchsorted(starts, row, right=True)) - 1
            t = self.batches[i].targets
            valid = t.valid[row - starts[i]]
            boxes.append(t.boxes[row - starts[i]][valid])
            labels.append(t.labels[row - starts[i]][valid])
        n = len(rows)
        return Batch(rows, Targets.pad(boxes, labels), [""] * n, torch.zeros(n, 2), torch.ones(n), rows)

    def __len__(self) -> int:
        return len(self.maps[0])


def mirrored(batch: Batch) -> Batch:
    boxes, width = batch.targets.boxes.clone(), batch.images.shape[3]
    boxes[..., 0], boxes[..., 2] = width - batch.targets.boxes[..., 2], width - batch.targets.boxes[..., 0]
    return replace(batch, images=batch.images.flip(3), targets=replace(batch.targets, boxes=boxes))


@torch.no_grad()
def score(detector: StagedDetector, test: Kept, index: Index, old: int, *, alone: bool = False) -> dict[str, float]:
    """AP50 of old and new classes in %; ``alone``: of old ones, where new ones cannot be found."""
    found: list[Detections] = []
    classes = torch.arange(detector.num_classes) < old if alone else None
    first = 0
    for b in test.batches:
        rows = torch.arange(first, first + len(b.names))
        first += len(rows)
        decoded = detector.decode(test.outputs(detector, rows), classes=classes, multi_label=detector.multi_label)
        assert b.frames is not None
        found += [in_original(d, f, *s) for d, f, s in zip(decoded, b.frames.tolist(), b.sizes.tolist(), strict=True)]
    table, names = coco_ap(found, index), index.class_names
    groups = {"old alone": names[:old]} if alone else {"old": names[:old], "new": names[old:], "all": names}
    return {k: round(100 * (table.mean(v, "AP50") or 0), 1) for k, v in groups.items() if v}


class Trials:
    """Rows on the same maps."""

    def __init__(self, first: Path, words: str, steps: int, lr: float):
        settings = config.load(None, [*words.split(), "device=cpu"])
        self.tasks = list(Scenario(settings.protocol, *open_data(settings)))[:2]
        base: Any = ciod.load(first / "task-1" / "model.safetensors")
        self.base: StagedDetector = base.eval()
        self.steps, self.lr = steps, lr
        self.state: dict[int, dict[str, Any]] = {}  # number of vectors → what feature_replay stores
        self.new = Kept(self.base, self.tasks[1].train, flipped=True)
        self.test = Kept(self.base, self.tasks[1].test)
        self.before = Kept(self.base, self.tasks[0].train.select(np.arange(0, len(self.tasks[0].train), 4)))

    def row(self, text: str) -> dict[str, Any]:
        name, *pairs = text.split(",")
        given = {k: json.loads(v) for k, v in (p.split("=", 1) for p in pairs)}
        method = methods.find(name).model_validate(given)
        detector = copy.deepcopy(self.base)
        teacher: Any = self.base.frozen()
        teaches: Any = Teaches(teacher, self.new)
        if isinstance(method, FeatureReplay):
            method.attach(detector, detector, None)
            if method.vectors not in self.state:
                method.end_task(self.tasks[0])
                self.state[method.vectors] = method.state()
            method.load_state(self.state[method.vectors])
        torch.manual_seed(0)
        method.grow(detector, self.tasks[1].new_classes)
        detector.eval()
        detector.backbone.requires_grad_(False)
        method.attach(lambda rows: self.new.outputs(detector, rows), detector, teaches)
        method.begin_task(self.tasks[1])
        milliseconds = self.train(method, detector)
        old, test = len(self.tasks[0].new_classes), self.tasks[1].test
        result: dict[str, Any] = {"row": text, **score(detector, self.test, test, old)}
        result |= score(detector, self.test, test, old, alone=True)
        return result | {"change": self.change(detector, teacher, old), "ms of a core per step": round(milliseconds)}

    def train(self, method: Any, detector: StagedDetector) -> float:
        """AdamW, warm-up, cosine, averaged weights, as in a run."""
        params = [p for p in detector.parameters() if p.requires_grad]
        optimizer, ema = torch.optim.AdamW(params, lr=self.lr, weight_decay=5e-4, fused=True), EMA(detector, 0.998)
        random, order = torch.Generator().manual_seed(1), torch.zeros(0, dtype=torch.long)
        began = time.process_time()
        for step in range(self.steps):
            if len(order) < 8:
                order = torch.randperm(len(self.new), generator=random)
            rows, order = order[:8], order[8:]
            cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            optimizer.param_groups[0]["lr"] = self.lr * min(1, (step + 1) / 30) * cosine
            losses = method.loss(self.new.batch(rows))
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            nn.utils.clip_grad_norm_(params, 10.0)
            optimizer.step()
            ema.update(detector)
        ema.copy_to(detector)
        return 1000 * (time.process_time() - began) / self.steps

    @torch.no_grad()
    def change(self, detector: StagedDetector, teacher: StagedDetector, old: int) -> list[float]:
        """Per level Σ s ‖f − f_T‖² ÷ Σ s ‖f_T‖², s the teacher's best score."""
        rows = torch.arange(len(self.before))
        now, then = self.before.outputs(detector, rows), self.before.outputs(teacher, rows)
        found = []
        best = then.scores()[..., :old].amax(2).split(then.levels, 1)
        for a, b, s in zip(now.towers, then.towers, best, strict=True):
            s = s.view(len(s), a.shape[2] * a.shape[3], -1).amax(2)
            gap, size = ((s * m.flatten(2).square().sum(1)).sum() for m in (a - b, b))
            found.append(round(float(gap / size), 2))
        return found


class Teaches:
    """The teacher on kept maps."""

    def __init__(self, detector: StagedDetector, kept: Kept):
        self.detector, self.kept, self.class_names = detector, kept, detector.class_names

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Outputs:
        return self.kept.outputs(self.detector, rows)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("first", type=Path)
    parse.add_argument("rows", nargs="+")
    parse.add_argument("--run", required=True, help="settings of FIRST that its tasks depend on")
    parse.add_argument("--steps", type=int, default=300)
    parse.add_argument("--lr", type=float, default=1e-3)
    args = parse.parse_args()
    torch.set_num_threads(1)
    trials = Trials(args.first, args.run, args.steps, args.lr)
    first = score(trials.base, trials.test, trials.tasks[1].test, trials.base.num_classes)
    print(json.dumps({"row": "after the first task", "old": first["old"]}), flush=True)
    for row in args.rows:
        print(json.dumps(trials.row(row)), flush=True)


if __name__ == "__main__":
    main()

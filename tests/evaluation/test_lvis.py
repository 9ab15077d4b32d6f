"""LVIS's AP: by hand, and against the package lvis on random annotations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ciod.core.errors import CiodError
from ciod.core.types import Detections
from ciod.data import formats
from ciod.evaluation.lvis import lvis_ap
from tests.fixed import index_of

NAMES = ("ant", "bee", "cow", "dog", "eel", "fox")
FREQUENCY = "rrccff"


def write(folder, annotations, images: int, absent=None, partial=None):
    """A folder in LVIS's format; images of 200 pixels."""
    (folder / "val").mkdir(parents=True)
    listed = []
    for i in range(1, images + 1):
        Image.new("L", (200, 200)).save(folder / "val" / f"{i:06}.png")
        listed.append({"id": i, "coco_url": f"http://images.example/val/{i:06}.png", "height": 200, "width": 200,
                       "neg_category_ids": (absent or {}).get(i, []),
                       "not_exhaustive_category_ids": (partial or {}).get(i, [])})  # fmt: skip
    categories = [{"id": 10 * c, "name": n, "frequency": f, "synset": n, "image_count": 1}
                  for c, (n, f) in enumerate(zip(NAMES, FREQUENCY, strict=True), 1)]  # fmt: skip
    rows = [
        {"id": k, "image_id": i, "category_id": c, "bbox": box, "area": area, "segmentation": []}
        for k, (i, c, box, area) in enumerate(annotations, 1)
    ]
    path = folder / "val.json"
    path.write_text(json.dumps({"images": listed, "annotations": rows, "categories": categories}))
    return path


def found(rows) -> Detections:
    """(category id, xywh box, score)."""
    boxes = np.array([b for _, b, _ in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([c // 10 - 1 for c, _, _ in rows], np.int64)
    return Detections(boxes.astype(np.float32), np.array([s for *_, s in rows], np.float32), labels, NAMES)


def test_by_hand(tmp_path):
    """One ant in image 1. False ants count only where the class is listed as absent, and not where it is partial."""
    box, away = [10, 10, 40, 40], [120, 120, 40, 40]
    annotations = [(1, 10, box, 1600), (2, 10, box, 1600)]
    write(tmp_path, annotations, 4, absent={3: [10]}, partial={2: [10]})
    truth = formats.read(tmp_path, "val", check="files")
    assert truth.federated is not None and truth.federated.frequency == tuple(FREQUENCY)
    right, wrong = (10, box, 0.5), (10, away, 0.9)

    def ap(*places) -> float | None:
        """AP with both ants found, and a stronger false one in each of these images (from 1)."""
        seen = [found([wrong] * (i in places) + [right] * (i < 3)) for i in range(1, 5)]
        return lvis_ap(seen, truth).per_class["ant"]["AP"]

    assert ap() == pytest.approx(1)
    assert ap(4) == pytest.approx(1)  # not known there
    assert ap(2) == pytest.approx(1)  # not all ants of image 2 have a box
    assert ap(1) == pytest.approx(2 / 3) == ap(3)
    assert ap(1, 2, 3, 4) == pytest.approx(2 / 4)
    table = lvis_ap([found([right] if i < 3 else []) for i in range(1, 5)], truth)
    assert table.overall["APr"] == pytest.approx(1) and table.overall["APc"] is None is table.per_class["bee"]["AP"]
    assert table.overall["APm"] == pytest.approx(1) and table.overall["APs"] is None


def test_three_hundred_detections_of_an_image_count(tmp_path):
    write(tmp_path, [(1, 10, [10, 10, 40, 40], 1600)], 1)
    truth = formats.read(tmp_path, "val", check="files")
    others = [(60, [100, 100, 10, 10], 0.9)] * 300
    for n, ap in ((299, 1.0), (300, 0.0)):
        seen = [found([*others[:n], (10, [10, 10, 40, 40], 0.5)])]
        assert lvis_ap(seen, truth).per_class["ant"]["AP"] == pytest.approx(ap)
        assert lvis_ap(seen, truth, max_detections=301).per_class["ant"]["AP"] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_package_lvis(tmp_path, seed, monkeypatch):
    from lvis import LVIS, LVISEval, LVISResults

    monkeypatch.setattr(np, "float", float, raising=False)  # the package was written for NumPy 1
    rng = np.random.default_rng(seed)
    annotations, absent, partial, results = [], {}, {}, []

    def box(near=None):
        if near is not None:
            x, y, w, h = (int(v) + int(rng.integers(-9, 10)) for v in near)
            return [max(0, x), max(0, y), max(4, w), max(4, h)]
        w, h = rng.integers(8, 110, 2)
        return [int(rng.integers(0, 200 - w)), int(rng.integers(0, 200 - h)), int(w), int(h)]

    for i in range(1, 21):
        shown = rng.choice(6, rng.integers(1, 4), replace=False) + 1
        for c in shown:
            for _ in range(rng.integers(1, 4)):
                b = box()
                annotations.append((i, int(10 * c), b, int(b[2] * b[3] * rng.uniform(0.3, 1))))
        absent[i] = [10 * c for c in range(1, 7) if c not in shown and rng.random() < 0.5]
        partial[i] = [int(10 * c) for c in shown if rng.random() < 0.3]
        mine = [(c, b) for j, c, b, _ in annotations if j == i]
        for c, b in mine:
            for _ in range(rng.integers(0, 4)):
                other = c if rng.random() < 0.8 else int(10 * rng.integers(1, 7))
                results.append((i, other, box(b), float(np.float32(rng.random()))))
        for _ in range(25):
            results.append((i, int(10 * rng.integers(1, 7)), box(), float(np.float32(rng.random() * 0.7))))
    path = write(tmp_path, annotations, 20, absent, partial)
    given = LVIS(str(path))
    listed = [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in results]
    reference = LVISEval(given, LVISResults(given, listed, max_dets=30), "bbox")
    reference.run()
    truth = formats.read(tmp_path, "val", check="files")
    seen = [found([r[1:] for r in results if r[0] == truth.ids_of(i)[0]]) for i in range(len(truth))]
    table = lvis_ap(seen, truth, max_detections=30)
    wanted = {k: reference.results[k] for k in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")}
    assert {k: -1 if (v := table.overall[k]) is None else v for k in wanted} == pytest.approx(wanted, abs=1e-6)
    assert 0.05 < wanted["AP"] < 0.95 and wanted["APr"] > 0
    some = ["cow", "ant"]  # of a task that has seen two classes
    part = lvis_ap(seen, truth, classes=some, max_detections=30)
    assert [part.per_class[n] for n in some] == [table.per_class[n] for n in some]
    assert part.overall["APc"] == pytest.approx(table.per_class["cow"]["AP"]) and part.overall["APf"] is None


def test_what_the_index_keeps_of_the_annotations(tmp_path):
    box = [10, 10, 40, 40]
    write(tmp_path, [(1, 10, box, 5), (2, 20, box, 5)], 3, absent={1: [20, 30], 3: [10]}, partial={2: [20]})
    index = formats.read(tmp_path, "val", check="files")
    part = index.select(np.array([1, 2])).relabel(("bee", "ant", "gnu"))
    assert part.federated is not None
    assert part.federated.absent.tolist() == [[1, 1]] and part.federated.partial.tolist() == [[0, 0]]
    assert part.federated.frequency == ("r", "r", "")


def test_other_data_is_refused():
    data = index_of([(0, "ant")], NAMES, 1)
    with pytest.raises(CiodError, match=r"metric: lvis needs annotations of LVIS, whose images have neg_category_ids"):
        lvis_ap([found([])], data)
    with pytest.raises(ValueError, match="0 detections for 1 images; give one Detections per image"):
        lvis_ap([], data)


def test_eval_and_train_with_lvis(tmp_path):
    """The settings reach the metric: 300 detections unless set, APr in the table, no pictures.npz."""
    import ciod
    from ciod import detectors
    from ciod.config.settings import Evaluation
    from ciod.evaluation import pictures
    from ciod.evaluation.detect import limit_of

    assert limit_of(Evaluation(), "lvis") == 300 and limit_of(Evaluation(), "coco") == 100
    assert limit_of(Evaluation(max_detections=100), "lvis") == 100
    write(tmp_path, [(1, 10, [10, 10, 40, 40], 1600)], 2)
    detector = detectors.build(NAMES, name="yolox-pico", size=64)
    scored = ciod.evaluate(detector, tmp_path, metric="lvis", device="cpu")
    assert {"APr", "APc", "APf"} < set(scored.table.overall) and scored.confusion is None
    as_coco = ciod.evaluate(detector, tmp_path, device="cpu").problems[-1]
    assert as_coco.endswith("metric=coco counts detections of the unlabelled objects as false. Write metric=lvis.")
    assert not any("metric=" in line for line in scored.problems)
    truth = formats.read(tmp_path, "val")
    assert pictures.of([found([])] * 2, truth, NAMES) is None
    pictures.write(tmp_path / "out", None)
    assert not (tmp_path / "out").exists()

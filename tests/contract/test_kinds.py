"""``ciod check`` of a subclass with regions, or with groups of queries: as it is, and with one thing broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciod.contract import detector as checks
from ciod.contract import report
from ciod.contract.material import Subject

RCNN = "from ciod.detectors.rcnn.detector import FasterRCNN\n\n\nclass Mine(FasterRCNN):\n    pass\n"
GROUPS = (
    'from ciod.detectors.query.lw_detr import LWDETR, PICO\n\n\nclass Mine(LWDETR):\n    variants = {"small": PICO}\n'
)
FORWARD = "\n    def forward(self, images):\n        out = super().forward(images)\n        {}\n        return out\n"


def found(folder: Path, check: str, source: str) -> list[str]:
    """The problems that a check reports; a reason to skip it is reported too."""
    if "lw_detr" in source:
        pytest.importorskip("transformers", reason="transformers is absent: pip install 'ciod[detr]'")
        pytest.importorskip("scipy", reason="scipy is absent: pip install 'ciod[detr]'")
    (folder / "mine.py").write_text(source, encoding="utf-8")
    name = f"{folder / 'mine.py'}:Mine"
    try:
        return report.sentences_of(checks.CHECKS[check], Subject(name), name, "detector")
    except report.NotChecked as e:
        return [f"not checked: {e}"]


@pytest.mark.parametrize("check", ["classes", "growth", "prior", "channels", "incomplete"])
def test_a_subclass_with_regions_keeps_it(check, tmp_path):
    whole = ["not checked: in a softmax with background, a class that is masked counts as background"]
    assert found(tmp_path, check, RCNN) == (whole if check == "channels" else [])


@pytest.mark.parametrize("check", ["modes", "classes"])
def test_a_subclass_with_groups_of_queries_keeps_it(check, tmp_path):
    assert found(tmp_path, check, GROUPS) == []


@pytest.mark.parametrize(
    ("check", "source", "line", "sentence"),
    [
        ("growth", RCNN, "out.class_deltas = out.class_deltas + self.num_classes", "class_deltas change when classes"),
        ("growth", RCNN, "out.background = out.background + self.num_classes", "background change when classes"),
        ("prior", RCNN, "out.logits = out.logits + 5", "new classes start at probabilities of"),
        ("classes", RCNN, "out.logits = out.logits + out.logits.sum(2, keepdim=True)", "moves the logits of the"),
        ("modes", GROUPS, "out.boxes = out.boxes + self.training", "boxes differ between train and eval mode"),
        ("modes", GROUPS, "out.logits = out.logits[:, self.training:]", "logits differ between train and eval mode"),
    ],
)
def test_what_breaks_is_seen(check, source, line, sentence, tmp_path):
    problems = found(tmp_path, check, source.replace("    pass\n", "") + FORWARD.format(line))
    assert any(sentence in s for s in problems), problems

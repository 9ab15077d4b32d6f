"""On real photographs: an extended model gives its old outputs bit for bit, and its exported file gives them too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ciod.data import formats
from ciod.data.loader import eval_loader
from ciod.detectors.files.weights import load
from ciod.exporters.onnx_file import export

CARDS = ("ace", "jack", "king", "nine", "queen", "ten")
PHOTOGRAPHS = 200


@pytest.mark.slow
def test_old_outputs_on_photographs(tmp_path, datasets, weights):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    path = weights / "yolox_nano_coco.pth"
    before, after = load(path), load(path)
    torch.manual_seed(0)
    after.add_branch(CARDS)
    for m in after.branches.modules():
        if isinstance(m, torch.nn.BatchNorm2d):  # as if it had been trained
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
    done = export(after, tmp_path / "after.onnx")
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    photographs = formats.read(str(datasets / "coco671"), "val").select(np.arange(PHOTOGRAPHS))
    loader = eval_loader(photographs, before.input.size, before.input.fill, batch=20, workers=0, pin=False)
    seen, detections, positions = 0, 0, 3549
    for batch in loader:
        with torch.no_grad():
            old, new = before(batch.images), after(batch.images)
        assert torch.equal(new.logits[:, :positions, :80], old.logits)
        assert torch.equal(new.boxes[:, :positions], old.boxes)
        assert torch.equal(new.objectness[:, :positions], old.objectness)
        boxes, scores = session.run(None, {"images": batch.images.float().numpy()})
        np.testing.assert_allclose(scores[:, :positions, :80], old.scores().numpy(), atol=1e-4)
        np.testing.assert_allclose(boxes[:, :positions], old.boxes.numpy(), atol=1e-4 * before.input.size, rtol=0)
        seen += len(batch.images)
        detections += int((old.scores() > 0.3).sum())
    assert seen == PHOTOGRAPHS and detections > PHOTOGRAPHS, "the photographs show what the model knows"

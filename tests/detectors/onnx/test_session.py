"""Maps of a foreign graph: as arrays, as bound tensors of PyTorch, and packed in half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ciod.core.errors import CiodError
from ciod.detectors.onnx import file, session
from ciod.detectors.onnx.detector import load
from ciod.detectors.onnx.graph import probe
from ciod.detectors.onnx.recognise import Asked
from tests.detectors.onnx.graphs import SIZE, Net, TensorProto, helper, small

NAMES = ("cat", "dog", "cow")


def opened(path):
    return load(path, Asked(input="0..1,rgb", names=NAMES))


def images(detector, count: int = 3) -> torch.Tensor:
    return torch.from_numpy(255 * probe(detector.source.opened.base, SIZE, count))[:count]


@pytest.mark.parametrize("given", [{}, {"last": True}, {"batch": 2}, {"batch": "n", "side": "s"}])
def test_bound_tensors_have_the_same_maps(tmp_path, given):
    """As on a GPU, here with the memory of the CPU."""
    detector = opened(small(**given).save(tmp_path / "m.onnx"))
    ready = detector.normalise(images(detector))
    runner = detector.source.runner
    arrays, bound = runner.maps(ready.numpy()), runner.bound(ready)
    assert len(arrays) == len(bound) == len(runner.taps) > 6
    for a, b in zip(arrays, bound):
        assert b.dtype == torch.float32 and np.array_equal(a, b.numpy())


def test_bound_pictures_of_whole_numbers(tmp_path):
    net = small()
    net.input = helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 3, SIZE, SIZE])
    net.nodes.insert(0, helper.make_node("Cast", ["y"], ["x"], to=TensorProto.FLOAT))
    detector = load(net.save(tmp_path / "m.onnx"), Asked(input="0..255,rgb", names=NAMES))
    ready = detector.normalise(images(detector, 1))
    for a, b in zip(detector.source.runner.maps(ready.numpy()), detector.source.runner.bound(ready)):
        assert np.array_equal(a, b.numpy())


def test_a_bound_run_that_fails_says_why(tmp_path):
    detector = opened(small().save(tmp_path / "m.onnx"))
    ready = detector.normalise(images(detector, 1))
    with pytest.raises(CiodError, match=r"onnxruntime cannot run .*m\.onnx"):
        detector.source.runner.bound(ready[:, :, :64, :64])


def test_a_gpu_is_used_where_onnxruntime_can(tmp_path, monkeypatch):
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert not session.on_gpu(gpu)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert session.on_gpu(gpu) and not session.on_gpu(torch.device("cpu"))
    asked = []
    monkeypatch.setattr(ort, "InferenceSession", lambda content, options, providers: asked.append(providers))
    file.start(tmp_path, b"", gpu=1)
    assert asked == [[("CUDAExecutionProvider", {"device_id": 1, "use_tf32": 0}), "CPUExecutionProvider"]]
    detector = opened_on(monkeypatch, tmp_path)
    assert detector.maps(images(detector, 1)) == "bound"


def opened_on(monkeypatch, tmp_path):
    """A detector that seems to have a GPU."""
    monkeypatch.undo()
    detector = opened(small().save(tmp_path / "m.onnx"))
    monkeypatch.setattr("ciod.detectors.onnx.detector.on_gpu", lambda device: True)
    monkeypatch.setattr(session.Runner, "bound", lambda self, ready: "bound")
    return detector


def test_packed_maps_come_back_in_half_precision(tmp_path):
    detector = opened(small(last=True).save(tmp_path / "m.onnx"))
    x = images(detector)
    rows = detector.packed(x)
    assert rows.dtype == torch.float16 and rows.shape == (3, detector.packed_width)
    for a, b in zip(detector.maps(x), detector.unpacked(rows), strict=True):
        assert torch.equal(a.half().float(), b)


def test_a_branch_reads_packed_maps(tmp_path):
    """In train mode rows of maps stand for images; values beyond half precision are cut off, not infinite."""
    net = Net()
    weight = net.const(np.array(1e6, np.float32))
    net.first = net.node("Mul", ["x", weight], 3)
    maps = net.fpn(net.backbone(), 8)
    net.rows(net.head(maps, 3, towers=1))
    huge = opened(net.save(tmp_path / "huge.onnx"))
    assert huge.packed(images(huge)).isfinite().all()
    detector = opened(small().save(tmp_path / "m.onnx"))
    detector.grow(["eel"])
    detector.train()
    x = images(detector)
    torch.testing.assert_close(detector(detector.packed(x)).boxes, detector(x).boxes, atol=0.1, rtol=0.01)

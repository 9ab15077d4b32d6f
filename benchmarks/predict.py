"""python -m benchmarks.predict --weights yolox_nano.pth --pictures photographs/

Images per second of processor time, from files to detections: the detector as it was loaded, the copy that ``ciod
predict`` makes of it, and the detector's ONNX file in ONNX Runtime (from files to raw outputs). They take turns in one
process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import ciod
from benchmarks import timing
from ciod import detectors
from ciod.data.augment import put
from ciod.data.images import as_array
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.base import Detector
from ciod.detectors.inference import stream
from ciod.inference.images import files
from ciod.inference.quick import quick


def largest_differences(detector: Detector, fast: Detector, pictures: list[Path]) -> tuple[float, float]:
    """Of scores, and of boxes in pixels, over the raw outputs of all pictures."""
    spec, scores, boxes = detector.input, 0.0, 0.0
    for path in pictures:
        image = put(as_array(path), spec.size, spec.fill, spec.place)[0][None]
        with torch.no_grad():
            a, b = detector(image), fast(image)
        scores = max(scores, float((a.logits.sigmoid() - b.logits.sigmoid()).abs().max()))
        boxes = max(boxes, float((a.boxes - b.boxes).abs().max()))
    return scores, boxes


def main() -> None:
    given = timing.parser(
        __doc__, weights="", pictures="", detector="yolox-nano", size=416, images=32, batch=8, rounds=3
    ).parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        where = given.pictures or str(write_shapes(Path(folder) / "scenes", train=given.images, val=1, size=128))
        pictures = files(where)[: given.images]
        detector = ciod.load(given.weights) if given.weights else new(given.detector, given.size)
        detector.eval()
        fast = quick(detector)
        onnx = graph(detector, pictures, Path(folder) / "model.onnx")
        ways = {
            "as loaded": lambda: list(stream(detector, pictures, batch=given.batch)),
            "ciod predict": lambda: list(stream(fast, pictures, batch=given.batch)),
            "ONNX Runtime": onnx,
        }
        took = timing.medians(timing.interleaved(ways, rounds=given.rounds))
        scores, pixels = largest_differences(detector, fast, pictures[:8])
    rates = {name: len(pictures) / seconds for name, seconds in took.items()}
    lines = [f"  {n:14s} {r:6.1f} images per second   × {r / rates['as loaded']:.2f}" for n, r in rates.items()]
    lines.append(f"largest difference: {scores:.1e} of a score, {pixels:.1e} pixels of a box")
    timing.tell(lines, {"images_per_second": rates, "score": scores, "pixels": pixels}, given.json)


def new(name: str, size: int) -> Detector:
    torch.manual_seed(0)
    return detectors.build(["a", "b", "c"], name=name, size=size)


def graph(detector: Detector, pictures: list[Path], file: Path) -> Callable[[], None]:
    """A function that runs the detector's ONNX file on the pictures, one by one."""
    import onnxruntime

    ciod.export(detector, file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options)
    name, spec = session.get_inputs()[0].name, detector.input

    def run() -> None:
        for path in pictures:
            image = put(as_array(path), spec.size, spec.fill, spec.place)[0]
            session.run(None, {name: image.numpy()[None].astype(np.float32)})

    return run


if __name__ == "__main__":
    main()

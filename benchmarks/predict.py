"""python -m benchmarks.predict --weights yolox_nano.pth --pictures photographs/

Images per second of processor time, from files to detections: the detector as it was loaded, the copies that ``ciod
predict`` makes of it (``engine=torch`` and ``engine=onnx``), and the detector's ONNX file in ONNX Runtime (from files
to raw outputs, without detections). They take turns in one process. Also the seconds that it takes to make each copy.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import ciod
from benchmarks import timing
from ciod import detectors
from ciod.core.types import Detections
from ciod.data.augment import put
from ciod.data.images import as_array
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.base import Detector
from ciod.detectors.inference import stream
from ciod.inference.images import files
from ciod.inference.quick import Engine, quick

ENGINES: tuple[Engine, ...] = ("torch", "onnx")


def largest_differences(one: list[Detections], other: list[Detections]) -> tuple[float, float, int]:
    """The largest differences of scores, and of boxes in pixels, over detections in the order of their scores; and the
    number of pictures whose detections differ in number or classes."""
    scores, boxes, others = 0.0, 0.0, 0
    for a, b in zip(one, other, strict=True):
        if a.labels.tolist() != b.labels.tolist():
            others += 1
        elif len(a):
            scores = max(scores, float(np.abs(a.scores - b.scores).max()))
            boxes = max(boxes, float(np.abs(a.boxes - b.boxes).max()))
    return scores, boxes, others


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
        made, seconds = {"as loaded": detector}, {"as loaded": 0.0}
        for engine in ENGINES:
            began = time.process_time()
            made[f"engine={engine}"] = quick(detector, engine)
            seconds[f"engine={engine}"] = time.process_time() - began
        ways: dict[str, Callable[[], object]] = {n: found_by(d, pictures, given.batch) for n, d in made.items()}
        ways["ONNX file"] = graph(detector, pictures, Path(folder) / "model.onnx")
        took = timing.medians(timing.interleaved(ways, rounds=given.rounds))
        found = {n: found_by(d, pictures, given.batch)() for n, d in made.items()}
    rates = {name: len(pictures) / value for name, value in took.items()}
    lines, gaps = [], {n: largest_differences(found["as loaded"], f) for n, f in found.items()}
    for name, rate in rates.items():
        ratios = f"× {rate / rates['as loaded']:.2f} as loaded, × {rate / rates['ONNX file']:.2f} of the ONNX file"
        lines.append(f"  {name:14s} {rate:6.1f} images per second   {ratios}")
    for name in list(found)[1:]:
        score, pixels, others = gaps[name]
        lines.append(
            f"  {name:14s} made in {seconds[name]:.2f} s; largest difference of a detection: {score:.1e} of its score, "
            f"{pixels:.1e} pixels of its box; other detections in {others} of {len(pictures)} pictures"
        )
    timing.tell(lines, {"images_per_second": rates, "made_in": seconds, "differences": gaps}, given.json)


def found_by(detector: Detector, pictures: list[Path], batch: int) -> Callable[[], list[Detections]]:
    def run() -> list[Detections]:
        return [d for _, _, d in stream(detector, pictures, batch=batch) if isinstance(d, Detections)]

    return run


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

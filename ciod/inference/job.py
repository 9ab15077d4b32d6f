"""The outputs of ``ciod predict``: images and videos with boxes, predictions.json, JSON per frame, COCO results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciod.core.errors import CiodError, DataError
from ciod.core.files import explained, named, nfc
from ciod.core.plural import counted
from ciod.core.run_log import atomic_write, write_json
from ciod.core.types import Detections
from ciod.data.images import as_array, read_header, read_image, save_image
from ciod.data.index import Problems
from ciod.detectors.inference import stream
from ciod.inference.images import VIDEOS, files
from ciod.inference.quick import FEW, Engine, quick
from ciod.inference.target import LISTED, Target
from ciod.inference.video import Video, VideoWriter, need_av
from ciod.report.draw import draw_boxes

if TYPE_CHECKING:
    from ciod.data.index import Index
    from ciod.detectors.base import Detector

SHOWN = 0.3  # default minimum score of boxes that are drawn and listed
COCO_SCORE, COCO_DETECTIONS = (
    0.001,
    1000,
)  # average precision also needs boxes with low scores; COCO limits them per class


@dataclass
class Job:
    """One call of ``ciod predict``.

    Raises:
        CiodError: no input, an output that would overwrite a file, or videos without PyAV.
    """

    detector: Detector
    places: Sequence[str]
    out: Path
    score: float | None = None
    nms_iou: float | None = None
    max_detections: int | None = None
    classes: Sequence[str] | None = None
    batch: int = 8
    engine: Engine = "auto"
    finest: bool = False
    draw: bool = True
    overwrite: bool = False
    coco: Path | None = None
    data: Index | None = None
    say: Callable[[str], None] = print
    complain: Callable[[str], None] = print

    def __post_init__(self) -> None:
        named(self.out)
        self.paths: list[Path] = []
        if self.places:
            passed = Problems()
            self.paths = files(self.places, videos=True, without=self.out, problems=passed)
            for line in passed.lines():
                self.complain(line)
        elif self.data is not None:
            self.paths = list(self.data.files)
        for line in self.data.problems.lines() if self.data is not None else ():
            self.complain(f"data: {line}")
        self.films = [p for p in self.paths if p.suffix.lower() in VIDEOS]
        self.pictures = [p for p in self.paths if p.suffix.lower() not in VIDEOS]
        if self.films:
            need_av()
        if self.coco is not None and not self.pictures:
            raise CiodError("coco: COCO results are of pictures; there are only videos here.")
        self.rows = self._rows()
        self.numbers = {p: i for i, p in enumerate(self.pictures, 1)}
        if self.draw:
            same = [p for p in self.paths if p.parent.resolve() == self.out.resolve()]
            if same:
                raise CiodError(f"out: {self.out} holds {same[0].name} itself; drawn pictures would overwrite it.")
        self.target = Target(
            self.out, self.pictures, self.films, draw=self.draw, coco=self.coco, overwrite=self.overwrite
        )
        if self.films or len(self.pictures) >= FEW or self.engine == "onnx":
            self.detector = quick(self.detector, self.engine, None if self.films else len(self.pictures))
        for_coco = self.coco is not None
        self.shown = SHOWN if self.score is None else self.score
        self.decoding: dict[str, Any] = {
            "batch": self.batch,
            "classes": self.classes,
            "finest": self.finest,
            "nms_iou": self.nms_iou,
            "score_threshold": COCO_SCORE if for_coco and self.score is None else self.shown,
            "max_detections": self.max_detections or (COCO_DETECTIONS if for_coco else 100),
        }

    def run(self) -> int:
        """Writes everything and returns the number of files that could be read.

        Raises:
            CiodError: no file could be read, and nothing was written; or the output cannot be written.
        """
        with explained(self.out):
            new = not self.out.exists()
            self.out.mkdir(parents=True, exist_ok=True)
            done = self._pictures() if self.pictures else 0
            done += sum(self._film(path) for path in self.films)
            self.target.end()
            if new and not done:
                self.out.rmdir()  # empty if no file could be read
        if not done:
            raise CiodError("None of the files could be read.")
        return done

    def _pictures(self) -> int:
        listed, results = [], []
        for path, picture, found in stream(self.detector, self.pictures, read=self._read, **self.decoding):
            if isinstance(found, DataError) or picture is None:
                self.complain(f"{path}: cannot be read, left out: {found}")
                continue
            if self.coco is not None:
                results += self._coco(path, found)
            found = found.above(self.shown)
            line: dict[str, Any] = {"image": str(path), "detections": found.to_list()}
            if self.draw:
                line["drawn"] = self.target.drawn[path]
                self.target.begin(line["drawn"])
                save_image(self.out / line["drawn"], draw_boxes(picture, found))
            listed.append(line)
            self.say(f"{path}: {summary_of(found)}")
        if not listed:
            return 0
        self.target.finish({line["drawn"] for line in listed if self.draw})
        self.target.begin(LISTED)
        write_json(self.out / LISTED, listed)
        if self.coco is not None:
            atomic_write(self.coco, json.dumps(results))
        return len(listed)

    def _film(self, path: Path) -> bool:
        """Draws one video and writes one line of JSON per frame; a damaged video is kept up to the damage."""
        name = self.target.stems[path]
        lines: list[str] = []
        total: Counter[str] = Counter()
        writer = None
        kept = False
        try:
            video = Video(path)
            if self.draw:
                self.target.begin(f"{name}.mp4")
            writer = VideoWriter(self.out / f"{name}.mp4", video.rate) if self.draw else None
            times: list[float] = []
            trouble: list[DataError] = []
            shown = _until_it_breaks(video, times, trouble)
            for i, (_, picture, found) in enumerate(stream(self.detector, shown, **self.decoding)):
                if isinstance(found, DataError) or picture is None:
                    continue
                found = found.above(self.shown)
                total.update(found.class_names[y] for y in found.labels)
                line = {"frame": i, "seconds": round(times[i], 3), "detections": found.to_list()}
                lines.append(json.dumps(line, ensure_ascii=False))
                if writer is not None:
                    writer.write(times[i], draw_boxes(picture, found, at_least=1))
            for error in trouble:
                self.complain(str(error))
            kept = bool(lines)
        except DataError as error:
            self.complain(str(error))
        finally:
            if writer is not None:
                writer.close(keep=kept)
        if kept:
            self.target.begin(f"{name}.jsonl")
            atomic_write(self.out / f"{name}.jsonl", "\n".join(lines) + "\n")
            seen = ", ".join(f"{n} {c}" for c, n in total.most_common()) or "nothing"
            self.say(f"{path}: {counted(len(lines), 'frame')}: {seen}")
        return kept

    def _rows(self) -> dict[Path, int]:
        """The row of each image in the data set, by path, else by file name and size; empty without a data set."""
        if self.data is None:
            return {}
        by_path = {p.resolve(): i for i, p in enumerate(self.data.files)}
        names = [nfc(p.name) for p in self.data.files]
        often = Counter(names)
        by_name = {name: i for i, name in enumerate(names) if often[name] == 1}
        rows: dict[Path, int] = {}
        strange: list[Path] = []
        for path in self.pictures:
            row = by_path.get(path.resolve())
            if row is None and (other := by_name.get(nfc(path.name))) is not None and self._same_size(path, other):
                row = other
            if row is None:
                strange.append(path)
            else:
                rows[path] = row
        if self.coco is None:
            return rows
        if strange:
            more = f" (of {len(strange)} such pictures)" if len(strange) > 1 else ""
            raise CiodError(
                f"coco: {strange[0]}{more} is not in {self.data.source}; leave data= out, or name its own pictures."
            )
        twice = [p for p, n in Counter(rows.values()).items() if n > 1]
        if twice:
            same = [str(p) for p, row in rows.items() if row == twice[0]]
            raise CiodError(f"coco: {' and '.join(same[:3])} are one picture of {self.data.source}; name it once.")
        return rows

    def _same_size(self, path: Path, row: int) -> bool:
        assert self.data is not None
        try:
            return tuple(self.data.sizes[row].tolist()) in read_header(path)[:2]
        except DataError:
            return True  # reported when it is read

    def _read(self, path: Path) -> np.ndarray:
        """The size of an image in the data set's pixels: with or without EXIF rotation."""
        row = self.rows.get(path)
        if self.data is None or row is None:
            return as_array(path)
        height, width = self.data.sizes[row].tolist()
        return read_image(path, (height, width), stored=self.data.is_stored(row))

    def _coco(self, path: Path, found: Detections) -> list[dict[str, Any]]:
        """Results with the ids and pixels of the data set's annotations; without a data set, ids count from 1."""
        names = self.detector.class_names
        if self.data is None:
            return coco_results(found, self.numbers[path], list(range(1, len(names) + 1)))
        row, known = self.rows[path], {n: self.data.category_id(c) for c, n in enumerate(self.data.class_names)}
        found = replace(found, boxes=found.boxes * np.tile(self.data.written_scale(row), 2).astype(np.float32))
        categories = [known.get(n) for n in names]
        return [line for i in self.data.ids_of(row) for line in coco_results(found, i, categories)]


def open_job(
    model: str,
    places: Sequence[str],
    *,
    out: str = "predictions",
    coco: str | None = None,
    data: str | None = None,
    split: str = "val",
    size: int | None = None,
    names: Sequence[str] | None = None,
    input: Sequence[str] | None = None,
    arbiter: bool = True,
    detector: str | None = None,
    device: str = "auto",
    **more: Any,
) -> Job:
    """A ``Job`` from the settings of ``ciod predict``.

    Args:
        more: arguments of ``Job``.

    Raises:
        CiodError: as ``Job``, and a model or data that cannot be read.
    """
    from ciod.config.load import data_folder
    from ciod.core.distributed import pick_device
    from ciod.data import formats
    from ciod.detectors.files.weights import open_detector

    opened = open_detector(model, size, names, input, arbiter, detector=detector)
    opened.to(pick_device(device))
    index = None if data is None else formats.read(data_folder(data) or data, split)
    return Job(opened, places, Path(out), coco=Path(coco) if coco else None, data=index, **more)


def coco_results(found: Detections, image_id: Any, categories: Sequence[Any]) -> list[dict[str, Any]]:
    """COCO's results format: image_id, category_id, bbox [x, y, width, height], score.

    Args:
        categories: by label; None: the data set does not have the class.
    """
    sides = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1)
    return [
        {
            "image_id": image_id,
            "category_id": categories[y],
            "bbox": [round(float(v), 2) for v in box],
            "score": round(float(s), 5),
        }
        for box, s, y in zip(sides, found.scores, found.labels, strict=True)
        if categories[y] is not None
    ]


def summary_of(found: Detections) -> str:
    """ "2 cat, 1 dog", or "nothing"."""
    count = Counter(int(y) for y in found.labels)
    return ", ".join(f"{count[y]} {found.class_names[y]}" for y in sorted(count)) or "nothing"


def _until_it_breaks(video: Video, times: list[float], trouble: list[DataError]) -> Iterator[np.ndarray]:
    """The frames of a video; their times, and the error that ended it early, are appended to the lists."""
    try:
        for seconds, picture in video:
            times.append(seconds)
            yield picture
    except DataError as error:
        trouble.append(error)

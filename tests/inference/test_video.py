"""A small clip written, read, and looked at by a detector."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import ciod
from ciod.core.errors import CiodError, DataError
from ciod.core.files import WriteError
from ciod.detectors.base import Detector
from ciod.inference.job import Job
from ciod.inference.video import Video, VideoWriter
from tests.faults.disk import Tmpfs
from tests.inference.networks import settled

av = pytest.importorskip("av", reason="PyAV is absent: pip install 'ciod[video]'")

FRAMES, SIZE = 12, (48, 64)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Twelve frames at 25 a second, from black to light grey."""
    path = tmp_path_factory.mktemp("clip") / "a clip.mp4"
    writer = VideoWriter(path, 25)
    for i in range(FRAMES):
        writer.write(i / 25, np.full((*SIZE, 3), 20 * i, np.uint8))
    writer.close()
    assert [p.name for p in path.parent.iterdir()] == ["a clip.mp4"]
    return path


@pytest.fixture(scope="module")
def model() -> Detector:
    return settled()


def test_what_is_written_is_read(clip):
    video = Video(clip)
    assert video.rate == pytest.approx(25, rel=0.01)
    read = list(video)
    assert [t for t, _ in read] == pytest.approx([i / 25 for i in range(FRAMES)], abs=1e-3)
    assert all(p.shape == (*SIZE, 3) and p.dtype == np.uint8 for _, p in read)
    assert [p.mean() for _, p in read] == pytest.approx([20 * i for i in range(FRAMES)], abs=6)  # lossy
    assert len(list(ciod.frames(clip))) == FRAMES


def test_uneven_times_and_odd_sides_survive(tmp_path):
    times = [0.0, 0.04, 0.5, 0.52, 2.0]
    writer = VideoWriter(tmp_path / "v.mp4", 30000 / 1001)
    for t in times:
        writer.write(t, np.zeros((33, 47, 3), np.uint8))
    writer.close()
    read = list(Video(tmp_path / "v.mp4"))
    assert [t for t, _ in read] == pytest.approx(times, abs=1e-3) and read[0][1].shape == (32, 46, 3)


def test_a_video_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match=r"v\.mp4 cannot be written: "):
        VideoWriter(tmp_path / "file" / "v.mp4", 25).write(0.0, np.zeros((32, 32, 3), np.uint8))


def test_a_video_does_not_replace_a_folder_of_its_name(tmp_path):
    writer = VideoWriter(tmp_path / "v.mp4", 25)
    writer.write(0.0, np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "v.mp4" / "inside").mkdir(parents=True)
    with pytest.raises(WriteError, match=r"v\.mp4 cannot be written: "):
        writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_a_video_without_a_frame(tmp_path):
    """A recording that was started but never got a frame."""
    with av.open(str(tmp_path / "v.avi"), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        file.start_encoding()
    with pytest.raises(DataError, match=r"v\.avi has no frame that can be read; it may be damaged"):
        list(Video(tmp_path / "v.avi"))


def test_a_video_without_any_stream(tmp_path):
    """An .mp4 that holds a table of contents and nothing else."""
    (tmp_path / "v.mp4").write_bytes(b"\0\0\0\x14ftypisom\0\0\2\0isom" + b"\0\0\0\x08moov")
    with pytest.raises(DataError, match=r"v\.mp4 has no pictures\."):
        Video(tmp_path / "v.mp4")


def test_a_full_disk_is_reported(tmp_path):
    try:
        disk = Tmpfs(tmp_path / "disk")
    except PermissionError as e:
        pytest.skip(f"no tmpfs can be mounted here: {e}")
    try:
        writer = VideoWriter(disk.folder / "v.mp4", 25)
        writer.write(0.0, np.zeros((32, 32, 3), np.uint8))
        disk.fill()
        with pytest.raises(WriteError, match=r"v\.mp4 cannot be written: no space is left \(0 MB are free\)\. What"):
            for i in range(1, 200):
                writer.write(i / 25, np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8))
            writer.close()
        writer.close(keep=False)
        assert [p.name for p in disk.folder.iterdir()] == ["filler"]
    finally:
        disk.close()


def test_a_detector_on_a_video(clip, model, tmp_path):
    printed: list[str] = []
    done = Job(model, [str(clip)], tmp_path, score=0.0, max_detections=3, batch=5, say=printed.append).run()
    assert done == 1 and printed[0].startswith(f"{clip}: {FRAMES} frames: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a clip.jsonl", "a clip.mp4"]
    lines = [json.loads(line) for line in (tmp_path / "a clip.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(FRAMES))
    assert lines[5]["seconds"] == pytest.approx(0.2, abs=2e-3)
    alone = model.predict(list(ciod.frames(clip))[5], score_threshold=0.0, max_detections=3)
    assert [d["class"] for d in lines[5]["detections"]] == [d["class"] for d in alone.to_list()]
    drawn = [p for _, p in Video(tmp_path / "a clip.mp4")]
    assert len(drawn) == FRAMES and drawn[0].shape == (*SIZE, 3)
    assert drawn[0].max() > 60, "the first frame was black; boxes are drawn on it"


def test_a_broken_video_keeps_the_frames_before_the_damage(clip, model, tmp_path):
    whole = clip.read_bytes()
    # Fragmented so that the head of the file is readable without its tail.
    with av.open(str(clip)) as source, av.open(
        str(tmp_path / "f.mp4"), "w", options={"movflags": "frag_every_frame+empty_moov"}
    ) as target:  # fmt: skip
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    cut = (tmp_path / "f.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(cut[: len(cut) * 3 // 4])
    (tmp_path / "damaged.mp4").write_bytes(whole[:100])
    complaints: list[str] = []
    places = [str(tmp_path / n) for n in ("cut.mp4", "damaged.mp4")]
    done = Job(model, places, tmp_path / "out", draw=False, say=lambda _: None, complain=complaints.append).run()
    assert done == 1 and any("damaged.mp4 is not a video" in c for c in complaints)
    assert 1 < len((tmp_path / "out" / "cut.jsonl").read_text().splitlines()) < FRAMES


def test_a_turned_video_is_turned(clip, monkeypatch):
    """As telephones write them: the pixels lie on their side, and the file says by how much."""

    class Frame:
        time = 0.0
        rotation = -90

        def to_ndarray(self, format):
            picture = np.zeros((4, 6, 3), np.uint8)
            picture[0, 0] = 255  # the top left corner comes to the top right when turned clockwise
            return picture

    class File:
        streams = av.open(str(clip)).streams

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def decode(self, video):
            return iter([Frame()])

    video = Video(clip)
    monkeypatch.setattr(av, "open", lambda *_: File())
    ((_, picture),) = video
    assert picture.shape == (6, 4, 3) and picture[0, 3].tolist() == [255] * 3


def test_without_pyav(clip, model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CiodError, match=r"pip install 'ciod\[video\]'"):
        Job(model, [str(clip)], tmp_path)
    with pytest.raises(CiodError, match=r"pip install 'ciod\[video\]'"):
        next(ciod.frames(clip))


def test_sound_without_pictures_is_not_a_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(DataError, match="only sound"):
        Video(tmp_path / "sound.mp4")


def test_a_video_that_breaks_off(clip, monkeypatch):
    video = Video(clip)

    class Torn:
        def __enter__(self):
            raise OSError("the end came early")

        def __exit__(self, *_):
            """Nothing is open."""

    monkeypatch.setattr(av, "open", lambda _: Torn())
    with pytest.raises(DataError, match=r"a clip\.mp4 breaks off after 0 frames: "):
        list(video)

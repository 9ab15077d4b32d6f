"""Reading and writing videos with PyAV (FFmpeg; an extra: ``pip install 'ciod[video]'``)."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ciod.core.errors import CiodError, DataError
from ciod.core.files import WriteError, temporary, why
from ciod.core.plural import counted
from ciod.core.reading import check_regular

# Time base of written videos: the durations of frames at 24, 25, 30, 50, 60 and 29.97 frames per second are multiples
# of it, and MPEG-4 does not allow a finer one than 1/65535.
_TICK = Fraction(1, 60000)
_CODECS = ("libx264", "h264", "mpeg4")  # the first available one is used; mpeg4 is part of every FFmpeg


def need_av() -> Any:
    """PyAV.

    Raises:
        CiodError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise CiodError("Videos need PyAV, which is not installed: pip install 'ciod[video]'") from error
    return av


class Video:
    """A video file: iterating yields (seconds, frame [H, W, 3] uint8 RGB), rotated as in a player.

    Raises:
        CiodError: PyAV is not installed.
        DataError: the file is not a video. While iterating: it is damaged; the frames before have been yielded.
    """

    def __init__(self, path: str | Path):
        av = need_av()
        self.path = Path(path)
        check_regular(self.path)
        try:
            with av.open(str(self.path)) as file:
                streams = file.streams.video
                if not streams:
                    raise DataError(f"{self.path} has no pictures{', only sound' if file.streams.audio else ''}.")
                self.rate = float(streams[0].average_rate or streams[0].guessed_rate or 25)  # frames per second
                self.frames = int(streams[0].frames or 0)  # 0: the file does not state it
        except (av.FFmpegError, OSError, ValueError) as error:
            raise DataError(f"{self.path} is not a video that FFmpeg can read: {_reason(error)}.") from error

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        av = need_av()
        count = 0
        try:
            with av.open(str(self.path)) as file:
                file.streams.video[0].thread_type = "AUTO"
                for frame in file.decode(video=0):
                    seconds = count / self.rate if frame.time is None else frame.time
                    picture = frame.to_ndarray(format="rgb24")
                    quarters = round(frame.rotation / 90)  # counter-clockwise, as rot90 counts
                    yield seconds, np.ascontiguousarray(np.rot90(picture, quarters))
                    count += 1
        except (need_av().FFmpegError, OSError, ValueError) as error:
            raise DataError(f"{self.path} breaks off after {counted(count, 'frame')}: {_reason(error)}.") from error
        if not count:
            raise DataError(f"{self.path} has no frame that can be read; it may be damaged. Try to convert it to MP4.")


def frames(path: str | Path) -> Iterator[np.ndarray]:
    """Yields the frames of a video: [H, W, 3] uint8 RGB, as input for ``Detector.predict``.

    Raises:
        CiodError: PyAV is not installed, or the file is not a video or is damaged.
    """
    return (picture for _, picture in Video(path))


class VideoWriter:
    """Writes frames as an MP4 (H.264 if PyAV has it, else MPEG-4) without sound; the file appears when it is complete.

    Args:
        path: ends with .mp4.
        rate: frames per second, as a hint; each frame keeps its given time.

    Raises:
        WriteError: the file cannot be written.
    """

    def __init__(self, path: Path, rate: float):
        self.path, self.rate = path, rate
        self.beside = temporary(path, path.suffix)
        self._file: Any = None
        self._stream: Any = None
        self._last = -1

    def write(self, seconds: float, picture: np.ndarray) -> None:
        """Adds one frame [H, W, 3] uint8; all have the size of the first. Odd sides are cropped by one pixel."""
        av = need_av()
        try:
            if self._file is None:
                self._file = self._begin(av, picture)
            height, width = self._stream.height, self._stream.width
            if picture.shape[0] < height or picture.shape[1] < width:
                return  # a stream that changes its size: rare, and no player supports it
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            self._last = max(self._last + 1, round(seconds / _TICK))  # times must increase
            frame.pts, frame.time_base = self._last, _TICK
            self._file.mux(self._stream.encode(frame.reformat(format="yuv420p")))
        except (need_av().FFmpegError, OSError, ValueError) as error:
            raise WriteError(why(self.path, error)) from error

    def _begin(self, av: Any, picture: np.ndarray) -> Any:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = av.open(str(self.beside), "w", format="mp4")
        codec = next(c for c in _CODECS if c in av.codecs_available)
        self._stream = file.add_stream(codec, rate=Fraction(self.rate).limit_denominator(1001))
        self._stream.height, self._stream.width = (max(2, n // 2 * 2) for n in picture.shape[:2])
        self._stream.pix_fmt = "yuv420p"  # supported by every player and browser
        self._stream.codec_context.time_base = _TICK
        return file

    def close(self, *, keep: bool = True) -> None:
        """Gives the file its final name; without ``keep``, or without a frame, it is removed."""
        try:
            if self._file is not None:
                if keep:
                    self._file.mux(self._stream.encode(None))
                self._file.close()
                if keep:
                    self.beside.replace(self.path)
        except (need_av().FFmpegError, OSError, ValueError) as error:
            raise WriteError(why(self.path, error)) from error
        finally:
            self.beside.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

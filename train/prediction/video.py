"""Videos and webcams, frame by frame and upright, and videos of pictures; through PyAV, FFmpeg's libraries."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ...common.files import atomic_file
from ...common.packages import optional_package
from ...common.text import counted

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"),
    *(".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp"),
)
"""Of the files that are taken for videos."""

# the first that FFmpeg was built with. H.264 plays everywhere
_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "20", "preset": "veryfast"},
    "libopenh264": {"b": "4000000"},
    "mpeg4": {"qscale": "3", "b": "4000000"},
}
# MPEG-4's largest number of parts of a second is 65535
_MPEG4_TIME = Fraction(1, 60000)


class BadVideoError(ValueError):
    """A video, or the rest of it, that cannot be read, in one sentence."""


@dataclass(frozen=True)
class VideoFrame:
    """A frame of a video."""

    pixels: np.ndarray
    """(H, W, 3) uint8, RGB, upright."""
    number: int
    """From 0."""
    time: Fraction
    """Seconds since the first frame."""


def video_package() -> Any:
    """PyAV. Raises ImportError where it is not installed."""
    av = optional_package("av", "videos and webcams need", "'msdeform[video]'")
    # its decoders' messages would stand between the lines of a progress bar
    av.logging.set_level(av.logging.PANIC)
    return av


class Video:
    """The first video stream of an open file or camera."""

    def __init__(self, container: Any, name: str) -> None:
        if not container.streams.video:
            raise BadVideoError(f"{name} holds no video, or ends before it says where")
        self.name = name
        self._container = container
        self._stream = container.streams.video[0]
        self._stream.thread_type = "AUTO"
        rate = self._stream.guessed_rate or self._stream.average_rate
        self.rate = Fraction(rate) if rate else Fraction(25)
        """Frames a second, where it is constant."""

    @property
    def length(self) -> int | None:
        """The number of frames that the file says it has, or that fit into its time; None where it says neither."""
        if self._stream.frames:
            return int(self._stream.frames)
        seconds = self._seconds()
        return None if seconds is None else round(seconds * self.rate)

    def frames(self, every: int = 1) -> Iterator[VideoFrame]:
        """Each `every`-th frame, the first one included.

        Raises BadVideoError when all that can be read was yielded, if that is not all that there should be.
        """
        errors: list[str] = []
        number, first, time = 0, None, Fraction(0)
        base = self._stream.time_base or 1 / self.rate
        for frame in self._decoded(errors):
            # raw streams have no times
            pts = round(number / self.rate / base) if frame.pts is None else frame.pts
            first = pts if first is None else first
            time = max((pts - first) * base, time)
            if number % every == 0:
                # FFmpeg's angle turns the stored frame counterclockwise, as rot90 does
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                yield VideoFrame(np.ascontiguousarray(pixels), number, time)
            number += 1
        seconds = self._seconds()
        # a file of one stream: its length is the video's
        missing = len(self._container.streams) == 1 and seconds is not None and number < 0.9 * seconds * self.rate - 1
        if missing and seconds is not None and time < 0.9 * seconds - Fraction(1, 2):
            errors.append(f"it ends after {float(time):.1f} of {float(seconds):.1f} seconds")
        if errors:
            more = f", and {counted(len(errors) - 1, 'more error')}" if errors[1:] else ""
            raise BadVideoError(f"{self.name} is damaged: {errors[0]}{more}; {counted(number, 'frame')} could be read")
        if not number:
            raise BadVideoError(f"{self.name} holds no frame")

    def _decoded(self, errors: list[str]) -> Iterator[Any]:
        """All frames that can be decoded; what goes wrong becomes a sentence in ``errors``."""
        av = video_package()
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                errors.append(_reason(error))
                return
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                errors.append(_reason(error))
                continue
            yield from frames

    def _seconds(self) -> Fraction | None:
        if self._stream.duration is not None:
            return Fraction(self._stream.duration * self._stream.time_base)
        duration = self._container.duration  # of the longest stream, in microseconds
        return None if duration is None else Fraction(duration, 1_000_000)


@contextmanager
def open_video(source: Path | int) -> Iterator[Video]:
    """A video file, or the webcam of a number.

    Raises:
        BadVideoError: it cannot be opened, or holds no video.
        ImportError: PyAV is not installed.
    """
    av = video_package()
    name = f"webcam {source}" if isinstance(source, int) else f"video {source}"
    try:
        container = _open_camera(av, source) if isinstance(source, int) else av.open(str(source))
    except (av.error.FFmpegError, AttributeError, IndexError, ValueError, OSError) as error:
        raise BadVideoError(f"{name} cannot be opened: {_reason(error)}") from error
    with container:
        yield Video(container, name)


def _open_camera(av: Any, number: int) -> Any:
    if sys.platform == "darwin":
        return av.open(str(number), format="avfoundation")
    if sys.platform == "win32":
        # known there by name; one that is not there is an IndexError
        cameras = [device for device in av.enumerate_input_devices("dshow") if "video" in device.media_types]
        return av.open(f"video={cameras[number].description}", format="dshow")
    return av.open(f"/dev/video{number}", format="v4l2")


def _reason(error: Exception) -> str:
    """What FFmpeg says, without its number and the function that said it."""
    return (getattr(error, "strerror", None) or str(error)).strip().rstrip(".").lower()


class VideoWriter:
    """An MP4 of pictures, of the first one's size, or one pixel more where that is odd, as encoders ask for.

    Whatever ends the writing, `close` leaves a file that plays, of the pictures until then; and none without any.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._path, self._rate = path, rate
        self._container: Any = None
        self._last = -1

    def write(self, picture: np.ndarray, time: Fraction) -> None:
        """Adds a picture (H, W, 3) uint8, shown from this time on, in seconds."""
        av = video_package()
        height, width = picture.shape[:2]
        if self._container is None:
            self._open(av, height + height % 2, width + width % 2)
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        # no two at the same time
        self._last = max(self._last + 1, round(time / self._base))
        frame.pts, frame.time_base = self._last, self._base
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._container is None:
            return
        with self._files:
            self._container.mux(self._stream.encode())
            self._container.close()
        self._container = None

    def _open(self, av: Any, height: int, width: int) -> None:
        name = next(name for name in _ENCODERS if name in av.codecs_available)
        with ExitStack() as files:  # nothing stays behind where it cannot be opened
            container = av.open(files.enter_context(atomic_file(self._path)), "w", format="mp4")
            self._stream = container.add_stream(name, rate=self._rate, options=_ENCODERS[name])
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            self._base = _MPEG4_TIME if name == "mpeg4" else Fraction(1, 90000)
            self._stream.codec_context.time_base = self._base
            self._container, self._files = container, files.pop_all()

"""Videos: read frame by frame and upright, written with as many, and told in a sentence where they are damaged."""

import struct
import sys
import weakref
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdeform.train.prediction import video as module
from msdeform.train.prediction.video import BadVideoError, VideoWriter, open_video, video_package

av = pytest.importorskip("av", reason="needs the extra `video`")


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Grey, lighter from frame to frame, its upper left quarter white."""
    pixels = np.full((height, width, 3), 40 + 2 * (number % 60), np.uint8)
    pixels[: height // 2, : width // 2] = 255
    return pixels


def make_video(
    path: Path, frames: int = 10, times: list[Fraction] | None = None, size: tuple[int, int] = (48, 64)
) -> None:
    writer = VideoWriter(path, Fraction(25))
    for number in range(frames):
        writer.write(picture(number, *size), times[number] if times else Fraction(number, 25))
    writer.close()


def make_with(path: Path, frames: int, codec: str, **options: str) -> None:
    """A video of another container and codec."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read(path: Path, every: int = 1) -> list[Any]:
    with open_video(path) as video:
        return list(video.frames(every))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx"), ("a.mov", "mpeg4")]
)
def test_containers_are_read(tmp_path: Path, name: str, codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"FFmpeg was built without {codec}")
    make_with(tmp_path / name, 12, codec)
    with open_video(tmp_path / name) as video:
        assert (video.length, video.rate) == (12, 25)
        frames = list(video.frames())
    assert [frame.number for frame in frames] == list(range(12))
    assert [float(frame.time) for frame in frames] == pytest.approx([number / 25 for number in range(12)], abs=2e-3)
    assert frames[3].pixels.shape == (48, 64, 3)
    assert abs(frames[3].pixels[10, 10].astype(int) - 255).max() < 12
    assert abs(frames[3].pixels[40, 50].astype(int) - 46).max() < 12


def test_times_of_frames_are_kept_also_where_they_vary(tmp_path: Path) -> None:
    times = [Fraction(number * number, 100) for number in range(12)]
    make_video(tmp_path / "a.mp4", 12, times)
    assert [frame.time for frame in read(tmp_path / "a.mp4")] == times
    assert [frame.number for frame in read(tmp_path / "a.mp4", 5)] == [0, 5, 10]
    assert [frame.time for frame in read(tmp_path / "a.mp4", 5)] == times[::5]


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_odd_sizes_get_a_pixel_more(tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENCODERS", {encoder: module._ENCODERS[encoder]})
    if encoder not in av.codecs_available:
        pytest.skip(f"FFmpeg was built without {encoder}")
    make_video(tmp_path / "a.mp4", 8, size=(49, 63))
    frames = read(tmp_path / "a.mp4")
    assert [frame.pixels.shape for frame in frames] == [(50, 64, 3)] * 8
    assert [float(frame.time) for frame in frames] == pytest.approx([number / 25 for number in range(8)], abs=1e-4)


def test_a_video_on_its_side_is_brought_upright(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    make_video(path, 3)
    content = bytearray(path.read_bytes())
    # the display matrix of the track, 36 bytes before its width and height: a quarter clockwise, as phones write it
    matrix = content.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", content, matrix) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, matrix, 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(content)
    [first, *_] = read(path)
    assert first.pixels.shape == (64, 48, 3)
    # what was at the upper left is at the upper right
    assert first.pixels[10, 40].min() > 240
    assert first.pixels[10, 10].max() < 80


def sentence_of(path: Path) -> tuple[int, str]:
    """Frames that were read before the error, and its sentence."""
    count = 0
    try:
        with open_video(path) as video:
            for _ in video.frames():
                count += 1
    except BadVideoError as error:
        return count, str(error)
    pytest.fail(f"{path} was read as if it were whole")


def test_damaged_videos_are_told_in_a_sentence_and_what_can_be_read_is(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    make_with(whole, 50, "libx264", movflags="faststart")
    content = whole.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 3 // 4])
    count, sentence = sentence_of(tmp_path / "cut.mp4")
    assert 0 < count < 50
    assert sentence.startswith(f"video {tmp_path / 'cut.mp4'} is damaged: ")
    assert sentence.endswith(f"; {count} frames could be read")
    make_with(tmp_path / "whole.mkv", 50, "libx264")
    content = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])  # which the container does not notice
    count, sentence = sentence_of(tmp_path / "cut.mkv")
    assert 0 < count < 50
    assert f"is damaged: it ends after {(count - 1) / 25:.1f} of 2.0 seconds; {count} frames" in sentence


def test_a_damaged_frame_costs_no_more_than_what_depends_on_it(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    make_with(path, 40, "mjpeg")
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    place, size = places[20]
    content[place : place + size] = bytes(size)
    path.write_bytes(content)
    count, sentence = sentence_of(path)
    assert count == 39
    assert "; 39 frames could be read" in sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot be opened: invalid data found when processing input"),
        (b"no video at all" * 99, "cannot be opened: invalid data found when processing input"),
    ],
)
def test_what_is_no_video_is_told(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert sentence_of(path) == (0, f"video {path} {sentence}")


def test_a_file_without_its_end_or_without_pictures_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    make_video(path)
    path.write_bytes(path.read_bytes()[:-300])  # the table of its frames comes last
    assert sentence_of(path)[0] == 0
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert sentence_of(tmp_path / "sound.mp4")[1].startswith(f"video {tmp_path / 'sound.mp4'} holds no video")


def test_a_webcam_that_is_not_there_is_told() -> None:
    with pytest.raises(BadVideoError, match="^webcam 73 cannot be opened: "), open_video(73):
        pass


def test_frames_are_let_go(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 60)
    held: list[Any] = []
    most = 0
    with open_video(tmp_path / "a.mp4") as video:
        for frame in video.frames():
            held.append(weakref.ref(frame.pixels))
            most = max(most, sum(one() is not None for one in held))
    assert len(held) == 60
    assert most <= 2


def test_nothing_is_written_without_a_frame_and_a_file_that_plays_whatever_ends_it(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25))
    writer.close()
    assert list(tmp_path.iterdir()) == []
    for number in range(5):
        writer.write(picture(number), Fraction(0))  # all at the same time
    assert not (tmp_path / "a.mp4").exists()
    writer.close()
    writer.close()
    assert len(read(tmp_path / "a.mp4")) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENCODERS", {"libx264": {"preset": "no such"}})
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25))
    with pytest.raises(av.error.FFmpegError):
        writer.write(picture(0), Fraction(0))
    with pytest.raises(av.error.FFmpegError):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_without_pyav_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        ImportError, match=r"^videos and webcams need the package av, .* pip install 'msdeform\[video\]'$"
    ):
        video_package()

"""``msdeform predict`` on videos, webcams and folders of everything: frames in and out, files whole, memory flat."""

import csv
import json
import shutil
import weakref
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msdeform import cli
from msdeform.train.commands import predict as command
from msdeform.train.commands.options import PredictOptions
from msdeform.train.commands.predict import predict
from msdeform.train.config.options import TrainOptions
from msdeform.train.engine.checkpoint import save_checkpoint
from msdeform.train.engine.state import Training
from msdeform.train.prediction import sources
from msdeform.train.prediction.pictures import WAITING
from msdeform.train.prediction.sources import every_frame
from msdeform.train.prediction.video import VideoWriter, open_video

pytest.importorskip("av", reason="needs the extra `video`")


@pytest.fixture
def checkpoint(options: TrainOptions, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, Training(options).state())
    return path


def make_video(path: Path, frames: int, seed: int = 0, rate: int = 25) -> Path:
    draw = np.random.default_rng(seed)
    still = draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    writer = VideoWriter(path, Fraction(rate))
    for number in range(frames):
        writer.write(np.roll(still, number, axis=1), Fraction(number, rate))
    writer.close()
    return path


def frames_of(path: Path) -> list[Any]:
    with open_video(path) as video:
        return list(video.frames())


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def settings(checkpoint: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {"checkpoint": checkpoint, "out": out, "device": "cpu", "progress": False, "image_size": 64, **more}


def test_300_frames_in_are_300_frames_out_and_few_are_held(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_video(tmp_path / "clip.mp4", 300)
    held: list[Any] = []
    most = 0

    def watched(*words: Any, **named: Any) -> Any:
        nonlocal most
        for frame in every_frame(*words, **named):
            held.append(weakref.ref(frame.pixels))
            most = max(most, sum(one() is not None for one in held))
            yield frame
            del frame

    monkeypatch.setattr(command, "every_frame", watched)
    out = tmp_path / "out"
    done = predict(PredictOptions((clip,), 0.2, **settings(checkpoint, out, batch_size=8, top_k=3)))
    assert done.images == len(held) == 300
    assert most <= 8 + 2 + WAITING + 1  # a batch, those between, and the pictures that are not yet drawn
    written = frames_of(out / "clip.mp4")
    assert [frame.number for frame in written] == list(range(300))
    assert [frame.time for frame in written] == [Fraction(number, 25) for number in range(300)]
    assert written[0].pixels.shape == (48, 64, 3)
    images = read(out / "images.json")
    assert [(one["frame"], one["time"]) for one in images["images"]] == [(n, n / 25) for n in range(300)]
    assert [one["id"] for one in images["images"]] == list(range(1, 301))
    assert images["images"][12]["file_name"] == "clip.mp4/000012.jpg"
    assert (images["complete"], images["unreadable"]) == (True, [])
    assert sorted(path.name for path in out.iterdir()) == ["clip.mp4", "images.json", "predictions.json"]


def test_a_folder_of_everything_fills_its_batches(
    checkpoint: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out"
    shutil.copytree(shapes / "val2017", folder / "stills")
    make_video(folder / "a.mp4", 7)
    make_video(folder / "b" / "a.mkv.mp4", 4, seed=1)
    (folder / "broken.mov").write_bytes(b"nothing")
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    sizes: list[int] = []
    load = command.load_trained

    def watched(*words: Any) -> Any:
        trained = load(*words)
        trained.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        return trained

    monkeypatch.setattr(command, "load_trained", watched)
    words = ["predict", str(folder), "--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
    words += ["--no-progress", "--every", "3", "--batch-size", "4", "--format", "coco", "yolo", "voc", "csv"]
    assert cli.main([*words, "--confidence", "0", "--top-k", "2", "--image-size", "64"]) == 1
    stills = sorted(path.stem for path in (folder / "stills").iterdir())
    images = read(out / "images.json")
    assert sizes == [4, 4, 2]  # 5 images, frames 0, 3, 6 of one video and 0, 3 of the other
    assert [one["file_name"] for one in images["unreadable"]] == ["broken.mov"]
    names = [one["file_name"] for one in images["images"]]
    assert names[0] == "a.mp4/000000.jpg"
    assert len(set(names)) == len({one["id"] for one in images["images"]}) == 10
    assert len(frames_of(out / "a.mp4")) == 3
    assert [frame.time for frame in frames_of(out / "b" / "a.mkv.mp4")] == [0, Fraction(3, 25)]
    assert (out / "a.jpg").is_file()
    found = read(out / "predictions.json")
    assert len(found) == 20
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [row["category_name"] for row in rows] == [one["category_name"] for one in found]
    assert [float(row["score"]) for row in rows] == pytest.approx([one["score"] for one in found], rel=1e-5)
    assert [(row["file_name"], row["frame"]) for row in rows if row["frame"]][::2] == [
        *(("a.mp4", str(number)) for number in (0, 3, 6)),
        *(("b/a.mkv.mp4", str(number)) for number in (0, 3)),
    ]
    labels = sorted(path.relative_to(out / "labels").as_posix() for path in (out / "labels").rglob("*.txt"))
    assert labels == sorted(
        [
            "a.txt",
            *(f"a.mp4/{number:06d}.txt" for number in (0, 3, 6)),
            *(f"b/a.mkv.mp4/{number:06d}.txt" for number in (0, 3)),
            *(f"stills/{stem}.txt" for stem in stills),
        ]
    )
    assert len(list((out / "annotations").rglob("*.xml"))) == 10


def test_a_damaged_video_is_read_as_far_as_it_goes(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import av

    clip, out = tmp_path / "clip.mkv", tmp_path / "out"
    with (
        av.open(str(make_video(tmp_path / "clip.mp4", 40))) as whole,
        av.open(str(clip), "w") as copy,
    ):
        stream = copy.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])
    words = ["predict", str(clip), "--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
    assert cli.main([*words, "--no-progress", "--image-size", "64", "--format", "csv"]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 2
    assert f"  video {clip} is damaged: " in said.err
    count = int(said.err.split("; ")[-1].split()[0])
    assert 0 < count < 40
    assert len(frames_of(out / "clip.mp4")) == len(read(out / "images.json")["images"]) == count
    assert "videos, predictions.csv and images.json in" in said.out


def test_tracks_are_of_videos(checkpoint: Path, shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^track: expected a video or a webcam, got images only$"):
        predict(PredictOptions((shapes / "val2017",), **settings(checkpoint, tmp_path / "out", track=True)))
    assert not (tmp_path / "out").exists()


def test_numbers_of_tracks_are_in_all_results(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, out = make_video(tmp_path / "clip.mp4", 3), tmp_path / "out"

    class Numbers:
        def __init__(self, confidence: float) -> None:
            assert confidence == 0.0

        def __call__(self, frame: Any, everything: Any) -> list[int | None]:
            return [frame.number, None]

    monkeypatch.setattr(command, "Tracks", Numbers)
    more = {"track": True, "top_k": 2, "format": ("coco", "csv")}
    predict(PredictOptions((clip,), 0.0, **settings(checkpoint, out, **more)))
    numbers = [number for frame in range(3) for number in (frame, None)]
    assert [one["track_id"] for one in read(out / "predictions.json")] == numbers
    rows = csv.DictReader((out / "predictions.csv").open())
    assert [row["track_id"] for row in rows] == ["" if number is None else str(number) for number in numbers]


def test_no_video_and_no_pictures(checkpoint: Path, shapes: Path, tmp_path: Path) -> None:
    clip, out = make_video(tmp_path / "clip.mp4", 3), tmp_path / "out"
    more = {"pictures": False, "video": False, "confidence": 0.0}
    done = predict(PredictOptions((clip, shapes / "val2017"), **settings(checkpoint, out, **more)))
    assert done.images == 3 + 4
    assert sorted(path.name for path in out.iterdir()) == ["images.json", "predictions.json"]
    assert done.written == ["predictions.json", "images.json"]


def stopping(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after so many frames."""

    def some(*words: Any, **named: Any) -> Any:
        for number, frame in enumerate(every_frame(*words, **named)):
            if number == frames:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(command, "every_frame", some)


def test_a_stopped_video_plays_and_says_that_it_is_not_all(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, out = make_video(tmp_path / "clip.mp4", 20), tmp_path / "out"
    stopping(6, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        predict(PredictOptions((clip,), **settings(checkpoint, out)))
    assert len(frames_of(out / "clip.mp4")) == 6
    assert read(out / "images.json")["complete"] is False
    assert not list(out.glob(".*"))


def test_a_webcam_ends_with_ctrl_c(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = make_video(tmp_path / "clip.mp4", 20), tmp_path / "out"
    opened: list[Any] = []

    @contextmanager
    def camera(place: Any) -> Any:
        opened.append(place)
        with open_video(clip) as video:
            yield video

    monkeypatch.setattr(sources, "open_video", camera)
    stopping(6, monkeypatch)
    words = ["predict", "--webcam", "0", "--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
    assert cli.main([*words, "--no-progress", "--image-size", "64"]) == 0
    assert opened == [0]
    assert len(frames_of(out / "webcam0.mp4")) == 6
    images = read(out / "images.json")
    assert images["complete"] is True
    assert images["images"][5]["file_name"] == "webcam0/000005.jpg"
    assert "videos, predictions.json and images.json in" in capsys.readouterr().out


def test_images_smaller_than_a_tile_are_told_and_the_rest_is_done(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    for name, size in (("small.png", (40, 30)), ("wide.png", (130, 50))):
        Image.new("RGB", size).save(folder / name)
    words = ["predict", str(folder), "--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
    words += ["--no-progress", "--image-size", "64", "--tiles", "64"]
    assert cli.main([*words, "--flip", "--overlap", "0.1"]) == 1
    sentence = f"tiles: expected at most the longest side of image {folder / 'small.png'}, which is 40 wide and 30 high"
    assert f"{sentence}, got 64" in capsys.readouterr().err
    assert [one["file_name"] for one in read(out / "images.json")["images"]] == ["wide.png"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a.jpg", "--confidence", "1.5"], "--confidence: expected a number from 0 to 1, got 1.5"),
        (["a.jpg", "--tiles", "0"], "--tiles: expected at least 1, got 0"),
        (["a.jpg", "--overlap", "0.95"], "--overlap: expected a share from 0 to 0.9, got 0.95"),
        (["a.jpg", "--format", "pascal"], "--format: expected coco, yolo, voc or csv, got 'pascal'"),
        ([], "expected at least one image, video or folder, or --webcam N, got none"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    words: list[str],
    sentence: str,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    Path("a.jpg").touch()
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", *words, "--checkpoint", str(checkpoint)])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err

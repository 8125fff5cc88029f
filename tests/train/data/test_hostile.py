"""Data sets of others: sizes, depths and names that are no data's are told, and nothing is written outside."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msdeform.cli import main
from msdeform.train.data.annotations import Category, _read_json
from tests.fuzz.fuzzing import is_a_sentence
from tests.models.weights.test_hostile import bounded_memory

ESCAPES = "c\x1b]0;title\x07\n<script>alert(1)</script>"


def made(folder: Path, names: list[str], category: str = "cat", height: int = 9) -> Path:
    """A COCO data set of small images of these names, as the annotations call them, without writing any image."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [{"id": number, "file_name": name, "width": 40, "height": 30} for number, name in enumerate(names, 1)]
    boxes = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": [4, 4, 9, height]}
        for number in range(1, len(names) + 1)
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": category}]}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)


def ended(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as stopped:
        return int(stopped.code or 0)


@pytest.mark.parametrize("kind", ["gigabytes of zeros", "fifo", "device", "nested", "empty"])
def test_no_annotation_file_takes_any_time_or_memory(kind: str, tmp_path: Path) -> None:
    path, begun = tmp_path / "instances.json", time.monotonic()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "gigabytes of zeros":
        with open(path, "wb") as file:
            file.truncate(2**40)
    else:
        path.write_text({"nested": '{"images":' * 10_000, "empty": ""}[kind])
    with bounded_memory(), pytest.raises((ValueError, FileNotFoundError)) as caught:
        _read_json(path)
    assert is_a_sentence(caught.value), caught.value
    assert time.monotonic() - begun < 20


LAUGHS = "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
DATA_YAML = {
    "python": "!!python/object/apply:os.system ['touch MARKER']",
    "python in a value": "train: !!python/object/new:os.system ['touch MARKER']\nval: b\nnames: [a]",
    "module": "train: !!python/module:evil\nval: b\nnames: [a]",
    "nested": "names: " + "[" * 10_000,
    "laughs": f"a: &a [x, x]\n{LAUGHS}names: *i\ntrain: images\nval: images",
    "not a mapping": "- 1",
    "bytes": "\x00\x01",
}


@pytest.mark.parametrize("kind", DATA_YAML)
def test_a_data_yaml_runs_nothing_and_does_not_grow(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "data" / "images" / "a.png")
    (tmp_path / "data" / "data.yaml").write_text(DATA_YAML[kind].replace("MARKER", str(tmp_path / "marker")))
    with bounded_memory():
        assert ended(["data", "check", str(tmp_path / "data"), "--strict"]) in (1, 2)
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert all(len(line) < 2000 for line in (told.out + told.err).splitlines())
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["python", "nested", "laughs"])
def test_settings_in_yaml_run_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(DATA_YAML[name].replace("MARKER", str(tmp_path / "marker")))
    with bounded_memory():
        assert ended(["train", "--config", str(tmp_path / "a.yaml"), "--data", str(tmp_path)]) in (1, 2)
    assert len(capsys.readouterr().err.strip().splitlines()[-1]) < 2000
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_converted_data_stays_in_its_folder(to: str, tmp_path: Path) -> None:
    """Names are read as they stand, also those that lead out of the folder; what is written has names of its own."""
    names = ["../outside/a.png", str(tmp_path / "outside" / "b.png"), "linked.png"]
    data = made(tmp_path / "data", names)
    draw(tmp_path / "outside" / "a.png")
    shutil.copy(tmp_path / "outside" / "a.png", tmp_path / "outside" / "b.png")
    (data / "linked.png").symlink_to(tmp_path / "outside" / "a.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    out = tmp_path / "out"
    assert ended(["data", "convert", str(data), "--to", to, "--out", str(out)]) == 0
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before.keys()
    assert len([path for path in written if path.suffix == ".png"]) == 3
    assert all(path.resolve().is_relative_to(out) for path in written)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_image_that_is_no_file_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, begun = made(tmp_path / "data", ["a.png", "pipe.png", "zero.png"]), time.monotonic()
    draw(data / "a.png")
    os.mkfifo(data / "pipe.png")
    (data / "zero.png").symlink_to("/dev/zero")
    ended(["data", "check", str(data), "--json", str(tmp_path / "found.json"), "--out", str(tmp_path / "a.png")])
    found = json.loads((tmp_path / "found.json").read_text())
    told = " ".join(map(str, found["findings"]))
    assert "pipe.png" in told
    assert "zero.png" in told
    assert "Traceback" not in capsys.readouterr().err
    assert time.monotonic() - begun < 60


def test_names_are_shown_and_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = made(tmp_path / "data", ["a.png", "broken.png"], ESCAPES, height=300)  # reaches out of the image
    odd = made(tmp_path / "odd", ["a\x1b[2J\nb.png"])
    draw(data / "a.png")
    (data / "broken.png").write_bytes(b"x")
    assert ended(["data", "check", str(data), "--out", str(tmp_path / "check.png")]) == 0
    assert ended(["data", "check", str(odd), "--out", str(tmp_path / "odd.png")]) == 0
    told: Any = capsys.readouterr()
    assert r"expected the path of a file, got 'a\x1b[2J\nb.png'" in told.out
    assert all(line.isprintable() for line in (told.out + told.err).splitlines())
    assert Category(1, ESCAPES).name == r"c\x1b]0;title\x07\n<script>alert(1)</script>"

"""The demo from end to end, small: what it promises to leave behind, and that it can be repeated."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from msdeform.cli import COMMANDS, main
from msdeform.train.commands.demo import DemoOptions, demo
from msdeform.train.evaluation.coco_metrics import METRICS
from msdeform.train.monitor.run_log import read_log


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    small = "--train-images 16 --val-images 4 --epochs 1 --size 64 --model deformable_detr_tiny --device cpu"
    return [*small.split(), "--attn-backend", "reference", "--out", str(tmp_path / "demo")]


def test_the_demo_leaves_all_that_it_names(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *flags]) == 0
    out = tmp_path / "demo"
    printed = capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics.keys() == set(METRICS)
    assert f"AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f} on 4 held-out images" in printed
    for name in ("predictions.png", "curves.png"):
        assert str(out / name) in printed
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
    [run] = out.glob("training-*")
    assert str(run) in printed
    assert list(run.glob("checkpoint-*.pt"))
    # what it says to try can be typed as it stands
    lines = [line.partition(": ")[2] for line in printed.splitlines() if line.startswith(("try: ", "and: "))]
    assert len(lines) == 2
    for line in lines:
        program, *words = shlex.split(line)
        assert shutil.which(program)
        COMMANDS[words[0]].read(words[1:], program)


def test_the_same_seed_gives_the_same_numbers_on_the_same_data(tmp_path: Path) -> None:
    settings = {"train_images": 16, "val_images": 4, "epochs": 1, "size": 64, "model": "deformable_detr_tiny"}
    runs = []
    for name in ("first", "second"):
        demo(DemoOptions(out=tmp_path / name, attn_backend="reference", device="cpu", **settings))
        [log] = (tmp_path / name).glob("training-*/log.jsonl")
        runs.append([event["loss"] for event in read_log(log) if event["event"] == "step"])
    assert runs[0]
    assert runs[0] == runs[1]

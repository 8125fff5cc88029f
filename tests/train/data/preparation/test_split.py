"""One set of images divided: with its share of every class, and the same whenever it is asked for."""

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdeform.cli import main
from msdeform.train.config.options import Source, TrainOptions
from msdeform.train.data.layouts import HeldOut
from msdeform.train.data.loader import validation_data
from msdeform.train.data.preparation.split import keep_part, validation_rows
from msdeform.train.engine.run import train


@pytest.fixture
def content() -> dict[str, Any]:
    """100 images: a common class in 80, one in 20, a rare one in 5, and one in a single image; 10 without boxes."""
    rng = np.random.default_rng(0)
    of_class = {1: rng.permutation(90)[:80], 2: rng.permutation(90)[:20], 3: rng.permutation(90)[:5], 4: [7]}
    return {
        "images": [{"id": row + 1, "file_name": f"{row:03d}.jpg"} for row in range(100)],
        "categories": [{"id": label, "name": str(label)} for label in of_class],
        "annotations": [
            {"image_id": int(row) + 1, "category_id": label} for label, rows in of_class.items() for row in rows
        ],
    }


def ids(content: dict[str, Any]) -> set[int]:
    return {image["id"] for image in content["images"]}


def test_every_image_is_in_one_part_and_every_class_has_its_share(content: dict[str, Any]) -> None:
    held_out = HeldOut(0.2, seed=3)
    train, val = keep_part(content, "train", held_out), keep_part(content, "val", held_out)
    assert ids(train) | ids(val) == ids(content)
    assert not ids(train) & ids(val)
    assert len(ids(val)) == pytest.approx(20, abs=2)
    counts = {
        label: len({one["image_id"] for one in val["annotations"] if one["category_id"] == label})
        for label in (1, 2, 3, 4)
    }
    assert counts[1] == pytest.approx(16, abs=1)
    assert (counts[2], counts[3], counts[4]) == (4, 1, 0)
    assert {one["image_id"] for one in val["annotations"]} <= ids(val)
    assert len(train["annotations"]) + len(val["annotations"]) == len(content["annotations"])
    assert train["categories"] == val["categories"] == content["categories"]


def test_the_order_of_a_file_and_the_ids_of_its_images_change_nothing(content: dict[str, Any]) -> None:
    shuffled = copy.deepcopy(content)
    for image in shuffled["images"]:
        image["id"] += 1000
    for one in shuffled["annotations"]:
        one["image_id"] += 1000
    random.Random(0).shuffle(shuffled["images"])
    random.Random(1).shuffle(shuffled["annotations"])
    held_out = HeldOut(0.3, seed=1)
    names = [{image["file_name"] for image in keep_part(one, "val", held_out)["images"]} for one in (content, shuffled)]
    assert names[0] == names[1]
    others = {image["file_name"] for image in keep_part(content, "val", HeldOut(0.3, seed=2))["images"]}
    assert names[0] != others


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 100)])
def test_all_or_none_can_be_held_out(content: dict[str, Any], share: float, count: int) -> None:
    assert len(keep_part(content, "val", HeldOut(share))["images"]) == count


def test_images_without_boxes_are_divided_too() -> None:
    assert validation_rows(50, [], [], HeldOut(0.2)).sum() == 10


def test_what_is_wrong_stays_to_be_told(content: dict[str, Any]) -> None:
    wrong = [None, {"image_id": 1}, {"image_id": [3]}, {"image_id": 5000, "category_id": 1}]
    content["annotations"] += wrong
    for split in ("train", "val"):
        assert wrong[-1] in keep_part(content, split, HeldOut(0.2))["annotations"]


def test_an_evaluation_of_a_run_takes_its_split(
    options: TrainOptions,
    changed: Callable[..., TrainOptions],
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(shapes / "train2017", tmp_path / "photos")
    shutil.copy(shapes / "annotations" / "instances_train2017.json", tmp_path / "photos" / "annotations.json")
    run = train(changed(data=tmp_path / "photos", val_share=0.4, split_seed=5, max_steps=1))
    assert "val_share: 0.4" in (run / "config.yaml").read_text()
    words = ["--checkpoint", str(run), "--device", "cpu", "--workers", "0", "--no-progress"]
    sets = {}
    for name, more in (("same", []), ("other", ["--val-share", "0.4", "--split-seed", "6"])):
        out = tmp_path / f"{name}.json"
        assert main(["eval", "--data", str(tmp_path / "photos"), *words, *more, "--out", str(out)]) == 0
        sets[name] = {one["image_id"] for one in json.loads(out.read_text())}
    assert f"data: COCO in {tmp_path / 'photos'}: 3 validation images with " in capsys.readouterr().out
    source = Source(data=tmp_path / "photos", val_share=0.4, split_seed=5)
    assert sets["same"] == set(validation_data(source, options.input, None).image_ids) != sets["other"]

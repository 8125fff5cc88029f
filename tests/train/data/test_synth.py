"""The synthetic data: what the files say is what was drawn."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from msdeform.train.data.synthetic import synth
from msdeform.train.data.synthetic.options import SynthOptions
from msdeform.train.data.synthetic.shapes import CLASSES, coverage, place
from msdeform.train.data.synthetic.synth import (
    MAX_OBJECTS,
    MIN_EXTENT,
    annotate,
    make_dataset,
    make_scene,
)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_the_same_seed_gives_the_same_files_and_another_seed_others(shapes: Path, tmp_path: Path) -> None:
    settings = {"train": 8, "val": 4, "size": 64, "classes": 3, "progress": False}
    make_dataset(SynthOptions(tmp_path / "again", **settings))
    make_dataset(SynthOptions(tmp_path / "other", seed=1, **settings))
    assert digest(tmp_path / "again") == digest(shapes)
    other = digest(tmp_path / "other")
    assert other.keys() == digest(shapes).keys()
    assert not set(other.values()) & set(digest(shapes).values())


def test_a_larger_set_starts_with_the_smaller_one(shapes: Path, tmp_path: Path) -> None:
    make_dataset(SynthOptions(tmp_path / "more", train=10, val=4, size=64, classes=3, progress=False))
    mine, more = digest(shapes), digest(tmp_path / "more")
    assert all(more[name] == mine[name] for name in mine if name.endswith(".jpg"))


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    for workers in (1, 2):
        make_dataset(SynthOptions(tmp_path / str(workers), 100, 1, size=64, workers=workers, progress=False))
    assert digest(tmp_path / "1") == digest(tmp_path / "2")


def test_the_files_are_in_cocos_format(shapes: Path) -> None:
    for split, count in (("train2017", 8), ("val2017", 4)):
        path = shapes / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        assert content.keys() == {"info", "licenses", "images", "annotations", "categories"}
        assert [category["name"] for category in content["categories"]] == list(CLASSES)[:3]
        coco = COCO(str(path))
        assert len(coco.getImgIds()) == count
        for image in coco.loadImgs(coco.getImgIds()):
            with Image.open(shapes / split / image["file_name"]) as file:
                assert file.size == (image["width"], image["height"]) == (64, 64)


@pytest.fixture(scope="module")
def scenes() -> list[synth.Scene]:
    return [make_scene(np.random.default_rng([5, number]), 128, 5) for number in range(60)]


def test_scenes_have_the_promised_variety(scenes: list[synth.Scene]) -> None:
    counts = {len(scene.labels) for scene in scenes}
    assert {1, 2, 9, MAX_OBJECTS} <= counts <= set(range(1, MAX_OBJECTS + 1))
    assert {label for scene in scenes for label in scene.labels} == set(range(5))
    boxes = [note["bbox"] for scene in scenes for note in annotate(scene, 1, 1)]
    extents = np.sqrt([w * h for _, _, w, h in boxes])
    assert extents.max() > 4 * extents.min()
    visible = np.array([fraction for scene in scenes for fraction in scene.visible])
    assert visible.min() >= 0.5
    assert (visible < 0.75).mean() > 0.05  # occlusion happens


def test_annotations_are_of_what_is_visible(scenes: list[synth.Scene]) -> None:
    for scene in scenes[:20]:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": 1, "width": 128, "height": 128}],
            "annotations": annotate(scene, 1, 1),
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)],
        }
        coco.createIndex()
        for annotation, mask in zip(coco.dataset["annotations"], scene.masks, strict=True):
            assert annotation["area"] == mask.sum() >= MIN_EXTENT**2 / 2
            x, y, w, h = (int(number) for number in annotation["bbox"])
            inside = mask[y : y + h, x : x + w]
            assert inside.sum() == mask.sum()
            assert inside.any(0).all() or inside.any(0)[[0, -1]].all()
            assert inside.any(1)[[0, -1]].all()
            drawn = coco.annToMask(annotation).astype(bool)
            assert (drawn == mask).all()
            assert annotation["iscrowd"] == 0


def test_masks_do_not_overlap_and_tell_where_the_shape_is(scenes: list[synth.Scene]) -> None:
    for scene in scenes:
        assert np.sum(scene.masks, axis=0).max() == 1


def test_coverage_measures_the_area_of_a_polygon() -> None:
    for outline in CLASSES.values():
        polygon = place(outline, np.array([40.3, 38.8]), 20.0, 1.4, 17.0)
        x, y = polygon.T
        area = abs((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2
        alpha, window = coverage(polygon, 80, 80)
        assert alpha.sum() == pytest.approx(area, rel=0.03)
        assert np.array(window[0].start) <= y.min()
        assert np.array(window[1].stop) >= x.max()


def test_nothing_is_left_when_it_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synth, "annotate", stop)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(SynthOptions(tmp_path / "data", train=2, val=2, size=64, progress=False))
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_folder_is_left_alone(shapes: Path) -> None:
    before = digest(shapes)
    with pytest.raises(FileExistsError, match="exists already"):
        make_dataset(SynthOptions(shapes, train=2, val=2, size=64, progress=False))
    assert digest(shapes) == before


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("classes", 9, "classes: expected a number from 1 to 8, got 9"),
        ("size", 32, "size: expected at least 64 pixels, got 32"),
        ("train", 0, "train: expected at least 1, got 0"),
        ("seed", -1, "seed: expected at least 0, got -1"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, field: str, value: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SynthOptions(tmp_path, **{field: value})

"""YOLO-format data sets: what is read from them, and what a user is told."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from msdeform.models.inference.images import BadImageError
from msdeform.train.config.options import Input, Loading, Source
from msdeform.train.data.annotations import Annotations, Category
from msdeform.train.data.loader import training_data, validation_data
from msdeform.train.data.yolo import label_file, read_yolo, yolo_line

Make = Callable[..., Path]

# each line nine times as many values as the one above
BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))

read = Annotations.load


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a data set of 40 x 20 images with the given label files (None: no file), and its data.yaml."""

    def write(labels: dict[str, str | None], split: str = "train", **replaced: Any) -> Path:
        for name, text in labels.items():
            image = tmp_path / "images" / split / f"{name}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 20)).save(image)
            if text is not None:
                file = tmp_path / "labels" / split / f"{name}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
        content = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"], **replaced}
        path = tmp_path / "data.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    return write


def test_boxes_polygons_and_images_without_objects(make: Make) -> None:
    path = make(
        {
            "b": "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.5\n",
            "a": "",
            "c": None,
        }
    )
    found = read(path)
    assert [tuple(image) for image in found.images] == [
        (1, "images/train/a.png", 20, 40),
        (2, "images/train/b.png", 20, 40),
        (3, "images/train/c.png", 20, 40),
    ]
    assert found.categories == [Category(0, "cat"), Category(1, "dog")]
    assert found.first.tolist() == [0, 0, 2, 2]
    assert found.labels.tolist() == [1, 0]
    assert found.boxes == pytest.approx(np.array([[15, 5, 25, 15], [4, 4, 12, 12]]))


def test_a_box_rounded_over_the_edge_is_clipped_and_one_without_area_dropped(make: Make) -> None:
    found = read(make({"a": "0 0.5 0.5 1.0000004 1\n1 0.5 0.5 0 0.1"}))
    assert found.boxes.tolist() == [[0, 0, 40, 20]]
    assert found.dropped.degenerate == [1]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1", "line 2: expected 5 columns, class cx cy w h, or a polygon"),
        ("0 .1 .1 .2 .2 .3", "line 1: expected 5 columns, class cx cy w h, or a polygon, class x1 y1 x2 y2 x3 y3 ..."),
        ("2 0.5 0.5 0.1 0.1", "line 1: expected a class from 0 to 1, got 2"),
        ("-1 0.5 0.5 0.1 0.1", "expected a class from 0 to 1, got -1"),
        ("0.5 0.5 0.5 0.1 0.1", "expected a class from 0 to 1, got 0.5"),
        ("0 12 0.5 0.1 0.1", "expected coordinates in parts of the image, from 0 to 1, got 12"),
        ("0 0.5 0.5 0.1 nan", "expected coordinates in parts of the image, from 0 to 1, got nan"),
        ("0 0.5 0.5 0.1 -0.0005", "expected a box, class cx cy w h, got a negative size"),
        ("cat 0.5 0.5 0.1 0.1", "expected numbers, got 'cat 0.5 0.5 0.1 0.1'"),
    ],
)
def test_a_wrong_line_is_named_or_left_out(make: Make, labels: str, sentence: str) -> None:
    path = make({"a": labels, "b": "1 0.5 0.5 0.5 0.5"})
    where = path.parent / "labels" / "train" / "a.txt"
    with pytest.raises(ValueError, match=re.escape(str(where)) + ".*" + re.escape(sentence)):
        read(path)
    found = read(path, bad_data="skip")
    assert len(found.images) == 2
    assert len(found.dropped.wrong) == 1
    assert sentence in found.dropped.wrong[0]
    assert found.dropped.wrong[0].endswith("(image 1)")
    assert found.labels[-1] == 1


@pytest.mark.parametrize(
    ("replaced", "sentence"),
    [
        ({"nc": 3}, "nc is 3, but names has 2 classes"),
        ({"names": {0: "cat", 2: "dog"}}, "names: expected the classes 0 to 1, got [0, 2]"),
        ({"names": ["cat", "cat"]}, "category name 'cat' is given 2 times, expected once"),
        ({"names": None}, "expected the classes under names"),
        ({"names": []}, "names: expected a list of classes, got []"),
        ({"names": ["cat", False]}, "in quotes if it has a colon or is a word such as yes or no, got False"),
        ({"names": [{"sign": "stop"}, "dog"]}, "names: expected the name of each class, in quotes if it has a colon"),
        (
            {"names": {0: "cat", 1: None}},
            "names: expected the name of each class, in quotes if it has a colon or is a word such as yes or no, "
            "got None",
        ),
        ({"kpt_shape": [17]}, "kpt_shape: expected keypoints and numbers of each, [17, 3], got [17]"),
        ({"kpt_shape": "17"}, "kpt_shape: expected keypoints and numbers of each, [17, 3], got '17'"),
        ({"train": None}, "no train: expected a folder of images"),
        ({"train": "images/nowhere"}, "train: expected a folder or a .txt file, and"),
        ({"path": "elsewhere"}, "path: folder elsewhere does not exist"),
        ({"train": "labels/train"}, "train: found no images in labels/train"),
    ],
)
def test_a_wrong_description_is_named(make: Make, replaced: dict[str, Any], sentence: str) -> None:
    path = make({"a": "0 0.5 0.5 0.1 0.1"}, **replaced)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(str(path)) + ".*" + re.escape(sentence)):
        read(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("names: " + "[" * 1000 + "]" * 1000, " is not YAML: it is nested too deeply"),
        ("x: 0b_", " is not YAML: invalid literal"),
        ("x: 2024-13-45", " is not YAML: month must be in 1..12"),
        ("x: !!timestamp y", " is not YAML: "),
        (BOMB, " its aliases unfold to "),
        ('names: [a]\ntrain: "b\\nc"', ": train: expected a folder or a .txt file, and "),
        ('names: [a]\ntrain: b\npath: "c\\x1b"', ": path: folder c\\x1b does not exist"),
    ],
)
def test_a_hostile_description_is_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        training_data(Source(data=path), Input(), Loading(), seed=0)
    assert re.fullmatch(rf"{re.escape(str(path))}[ -~]{{1,500}}", str(caught.value))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("line", ["/", "one\x1b[2J.png"])
def test_a_list_that_names_no_files_is_refused(make: Make, line: str) -> None:
    path = make({"a": ""}, train="all.txt")
    (path.parent / "all.txt").write_text(line)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path.parent / 'all.txt'))}[ -~]+$"):
        read(path)


def test_files_in_another_encoding_are_named(make: Make) -> None:
    path = make({"a": "0 0.5 0.5 0.1 0.1"})
    (path.parent / "a.txt").write_bytes(b"caf\xe9.jpg\n")
    described = path.read_bytes()
    for name, content in (("data.yaml", b"# caf\xe9"), ("a.txt", described.replace(b"images/train", b"a.txt"))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{re.escape(str(path.parent / name))} is not text in UTF-8"):
            read(path)
    path.unlink()
    classes = path.parent / "classes.txt"
    classes.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"classes\.txt is not text in UTF-8"):
        read(classes)


def test_the_mark_that_windows_editors_write_is_passed_over(make: Make) -> None:
    assert len(read(make({"a": "\ufeff0 0.5 0.5 0.1 0.1"})).boxes) == 1


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [cat")
    with pytest.raises(ValueError, match=r"data\.yaml is not YAML"):
        read(tmp_path / "data.yaml")


def test_a_split_can_be_lists_and_several_folders(make: Make, tmp_path: Path) -> None:
    make({"a": "0 0.5 0.5 0.1 0.1"}, split="one")
    make({"b": "1 0.5 0.5 0.1 0.1", "c": None}, split="two")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "some.txt").write_text("./../images/two/b.png\nimages/one/a.png\n")
    listed = make({}, train="lists/some.txt")
    assert [image.name for image in read(listed).images] == ["images/one/a.png", "images/two/b.png"]
    both = make({}, train=["images/one", "../images/two"], names={0: "cat", 1: "dog"}, path=str(tmp_path))
    found = read(both)
    assert [image.name for image in found.images] == ["images/one/a.png", "images/two/b.png", "images/two/c.png"]
    assert found.labels.tolist() == [0, 1]


def test_labels_are_beside_the_last_folder_called_images() -> None:
    assert label_file(Path("/images/set/images/train/a.jpg")) == Path("/images/set/labels/train/a.txt")
    assert label_file(Path("/set/a.jpg")) == Path("/set/a.txt")


def test_numbers_as_names_are_the_ids(make: Make) -> None:
    assert read(make({"000139": "", "7": ""})).images.ids.tolist() == [139, 7]
    assert read(make({"x": ""})).images.ids.tolist() == [1, 2, 3]


def test_keypoints_are_not_taken_for_polygons(make: Make) -> None:
    path = make({"a": "0 0.5 0.5 0.5 0.5 0.9 0.9 2 0.8 0.8 2"}, kpt_shape=[2, 3])
    assert read(path).boxes.tolist() == [[10, 5, 30, 15]]
    with pytest.raises(ValueError, match="line 1: expected 8 columns, a box and its keypoints, got 11"):
        read(make({}, kpt_shape=[1, 3]))


def test_boxes_are_those_of_the_upright_image(make: Make, tmp_path: Path) -> None:
    path = make({"a": "0 0.5 0.25 0.5 0.25"})
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "train" / "a.png", exif=exif)
    data = training_data(Source(data=path), Input(augment="none"), Loading(), seed=0)
    assert tuple(data.annotations.images[0])[2:] == (40, 20)
    assert data.annotations.boxes.tolist() == [[5, 5, 15, 15]]
    assert data.pixels(0).shape == (3, 40, 20)


def test_an_image_that_cannot_be_read_ends_the_run_or_is_left_out(make: Make, tmp_path: Path) -> None:
    path = make({"a": "0 0.5 0.5 0.1 0.1", "b": "1 0.5 0.5 0.5 0.5"})
    (tmp_path / "images" / "train" / "a.png").write_text("no picture")
    with pytest.raises(BadImageError, match=r"a\.png cannot be decoded"):
        read(path)
    found = read(path, bad_data="skip")
    assert found.images.ids.tolist() == [2]
    assert found.labels.tolist() == [1]
    assert len(found.dropped.images) == 1
    assert found.dropped.images[0].endswith("(image 1)")


def test_the_ground_truth_is_that_of_the_boxes(make: Make) -> None:
    truth = read(make({"a": "1 0.5 0.5 0.25 0.5", "b": ""})).ground_truth()
    assert truth["categories"] == [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    assert [image["id"] for image in truth["images"]] == [1, 2]
    assert truth["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [15, 5, 10, 10], "area": 100, "iscrowd": 0}
    ]


def test_classes_must_be_those_of_the_model(make: Make) -> None:
    path = make({"a": "1 0.5 0.5 0.25 0.5"})
    assert read(path, [Category(0, "cat"), Category(1, "dog")]).labels.tolist() == [1]
    with pytest.raises(ValueError, match="category 0 is 'cat' here, but 'cow' in what the model is trained on"):
        read(path, [Category(0, "cow")])


def test_both_formats_of_the_same_data_are_the_same_to_training(shapes: Path, make: Make, tmp_path: Path) -> None:
    coco = Annotations.load(shapes / "annotations" / "instances_train2017.json")
    labels = {}
    for row, image in enumerate(coco.images):
        lines = []
        mine = slice(coco.first[row], coco.first[row + 1])
        for label, box in zip(coco.labels[mine], coco.boxes[mine], strict=True):
            x0, y0, x1, y1 = (box / 64).tolist()
            lines.append(f"{label} {(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}")
        labels[Path(image.name).stem] = "\n".join(lines)
    make(labels)
    names = [category.name for category in coco.categories]
    make({}, names=names)
    for image in coco.images:
        (tmp_path / "images" / "train" / Path(image.name).with_suffix(".png").name).unlink()
        (tmp_path / "images" / "train" / Path(image.name).name).symlink_to(shapes / "train2017" / image.name)
    options = Input(image_size=64)
    theirs = training_data(Source(data=shapes), options, Loading(), seed=1)
    for source in (Source(data=tmp_path), Source(data=tmp_path / "data.yaml")):
        ours = training_data(source, options, Loading(), seed=1)
        for index in range(len(theirs)):
            (image, target), (other, expected) = ours[index], theirs[index]
            assert image.equal(other)
            assert target["labels"].tolist() == expected["labels"].tolist()
            assert target["boxes"].numpy() == pytest.approx(expected["boxes"].numpy(), abs=1e-5)


def test_what_data_stands_for_is_told(make: Make, tmp_path: Path) -> None:
    make({"a": "0 0.5 0.5 0.5 0.5"})
    (tmp_path / "hyp.yaml").write_text("lr0: 0.1")
    assert Source(data=tmp_path).split("val")[1] == tmp_path / "data.yaml"  # and not hyp.yaml
    with pytest.raises(ValueError, match=r"data\.yaml is a YOLO data set: name both --val-images DIR"):
        Source(data=tmp_path, val_images=tmp_path).split("val")
    with pytest.raises(ValueError, match=r"data: expected a COCO-format folder or a YOLO data.yaml, got the file"):
        Source(data=tmp_path / "images" / "train" / "a.png").split("train")
    (tmp_path / "data.yaml").rename(tmp_path / "mine.yaml")
    with pytest.raises(ValueError, match=r"found hyp\.yaml, mine\.yaml; name the one that is meant"):
        Source(data=tmp_path).split("train")
    (tmp_path / "hyp.yaml").unlink()
    assert Source(data=tmp_path).split("train") == (tmp_path, tmp_path / "mine.yaml")
    with pytest.raises(FileNotFoundError, match=r"mine\.yaml: val: expected a folder"):
        validation_data(Source(data=tmp_path), Input(), None)


def test_without_labels_there_is_nothing_to_train_on(make: Make) -> None:
    path = make({"a": None, "b": ""})
    with pytest.raises(ValueError, match="no annotated images: none of 2 images of train has a box; labels are expec"):
        training_data(Source(data=path), Input(), Loading(), seed=0)


def test_corners_are_refused_or_told(make: Make) -> None:
    corners = "0 0.4 0.4 0.6 0.6\n1 0.8 0.8 0.95 0.95\n"
    path = make({"a": corners, "b": corners})
    sentence = "50% of the boxes leave their image when read so, and none as x1 y1 x2 y2: are they corners?"
    with pytest.raises(ValueError, match=f"data.yaml: labels of train are .* {sentence}".replace("?", r"\?")):
        read(path)
    assert sentence in read(path, bad_data="skip").dropped.sentences()[-1]
    # sizes over the edge alone are no sign of corners
    read(make({"a": "0 0.9 0.9 0.5 0.5\n0 0.1 0.1 0.5 0.5\n"}))


def test_lines_are_read_back_as_the_boxes_were(make: Make) -> None:
    corners = np.round(np.random.default_rng(0).uniform(0, 10, (200, 4)), 2)
    corners[:, 2:] = np.round(corners[:, :2] + corners[:, 2:] + 0.01, 2)
    path = make({"a": "\n".join(yolo_line(1, box, (20, 40)) for box in [*corners.tolist(), [0, 0, 40, 20]])})
    content, _, _ = read_yolo(path, "train")
    read = np.array([one["bbox"] for one in content["annotations"]])
    wanted = np.round(np.column_stack([corners[:, :2], corners[:, 2:] - corners[:, :2]]), 2)
    assert read.tolist() == [*wanted.tolist(), [0, 0, 40, 20]]
    assert yolo_line(0, (10, 5, 30, 15), (20, 40), score=0.875) == "0 0.5 0.5 0.5 0.5 0.875"

"""Data sets in the formats of COCO, YOLO and Pascal VOC: right ones, and those whose files were damaged.

A right one must be read, and its boxes must be those that were written. Of a damaged one, whatever is read must hold
together, and what is left out must be told in lines that a terminal can show.
"""

import copy
import functools
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from msdeform.common import parallel
from msdeform.train.data.annotations import Annotations, BadData
from msdeform.train.data.dataset import CocoDetection, data_line
from msdeform.train.data.layouts import Format
from msdeform.train.data.preparation.check import check as check_data
from msdeform.train.data.preparation.options import CheckOptions
from tests.fuzz.choices import Choices, made_of, mutated
from tests.fuzz.fuzzing import Kind, Outcome, is_one_line, refused

SIZES = {"one": (8, 6), "two": (5, 4)}  # width and height of the two images, which no input changes
CLASSES = ("cat", "dog", "Zebra, striped", "número", "3", "yes", "猫", "a b")
# of the folder of each format: where its images are, its annotations, and all files that an input may hold
FILES: dict[Format, tuple[str, str, tuple[str, ...]]] = {
    "coco": ("images", "instances.json", ("instances.json",)),
    "yolo": (
        "images/train",
        "data.yaml",
        ("data.yaml", "labels/train/one.txt", "labels/train/two.txt", "labels/train/three.txt", "train.txt"),
    ),
    "voc": (
        "JPEGImages",
        "ImageSets/Main/train.txt",
        ("ImageSets/Main/train.txt", "Annotations/one.xml", "Annotations/two.xml", "labelmap.txt"),
    ),
}
DEEP, LONG, TALL = "@deep@", "@long@", "@tall@"  # what json cannot write: 900 and 100,000 lists, 6,000 digits
ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 0.5, 1e308, -1e-320, 2**31, 2**53, 2**63, 2**70, 1e30, float("nan"), float("inf")),
    *("", " ", "1", "nan", "x", "\x1b[31mred", "a\nb", "\x00", "\u2028", "\u202e", "\ud800", "🦓", "x" * 5000),
    *("../../one.png", "/", ".", "one.png", "images/one.png", "\u0085", "%s %n {0} {path}", "\\", "<b>"),
    *([], {}, [[]], [1, 2, 3, 4], {"id": 1}, [None] * 4, ["1"] * 4, DEEP, LONG, TALL),
)
NUMBERS = ("0", "-0", "1e400", "nan", "inf", "-1", "0.5", "1_0", "0x10", "１", "2", "", "1e-320", "9" * 20)
LINES = (
    *("0 0.5 0.5 0.1 0.1", "0 .5 .5 .2", "0 0.1 0.1 0.4 0.1 0.2 0.4", "0 0 0 0 0", "0 0.5 0.5 0.1 0.1 0.9", "# none"),
    *("0 nan 0.5 0.1 0.1", "9 0.5 0.5 0.1 0.1", "0.5 0.5 0.5 0.1 0.1", "-1 0.5 0.5 0.1 0.1", "0 5 5 1 1", "\x1b[2J"),
    *("0 0.5 0.5 -0.1 0.1", "0 " + "0.5 " * 3000, "one 1 2 3 4", "\t0\t0.5\t0.5\t0.1\t0.1\t", "0,0.5,0.5,0.1,0.1"),
)
YAML_LINES = (
    *("names: 3", "names: {0: cat, 2: dog}", "names: [a, a]", "names: {a: b}", "names: [yes, no]", "nc: 7", "path: /"),
    *("names: [[a], {b: c}]", 'names: ["\\e[31m"]', "train: [images/train, images/train]", "train: {a: 1}", "train: 3"),
    *("train: train.txt", "train: nowhere", "kpt_shape: [1, 2]", "kpt_shape: [-1, 2.5]", "kpt_shape: x", "path: [1]"),
    *("a: &a [x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b, *b]\nnames: [*c, *c, *c]", "x: 3"),
    *(
        "names: !!python/name:os.system",
        "x: 2024-13-45",
        "x: 0b_",
        "? [a]\n: b",
        "names: " + "[" * 400,
        "x: !!binary '='",
        "names: null",
        "- 1",
        "%TAG",
    ),
    *("x: 1:99:99", "names: &n [*n]", 'train: "\\0"', 'train: "a\\nb"', "train: .", "names: [2024-01-01, ~]", "\t"),
)
XML_PARTS = (
    '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]>',
    '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>',
    *("&b;", "&#0;", "&#27;", "<object/>", "<object><name>cat</name></object>", "<!-- x -->", "<![CDATA[cat]]>", "<a>"),
    *("<?xml version='1.0' encoding='nowhere'?>", "<?xml version='1.0' encoding='utf-16'?>", "\x1b", "&#10;"),
    "&#x2028;",
    "<object><object><object>" * 3000,
    "<object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>nan</xmax><ymax>2</ymax></bndbox></object>",
)


@dataclass
class DataSet:
    """The files of a data set, and how it is read."""

    format: Format
    files: dict[str, bytes]
    boxes: list[list[float]] | None
    """xyxy in pixels, of the images in their order; None where something was damaged."""
    bad_data: BadData
    way: Literal["load", "check"]


def make(choices: Choices) -> DataSet:
    format_ = choices.one_of(("coco", "yolo", "voc"))
    classes = [CLASSES[(choices.below(8) + number * 3) % 8] for number in range(choices.between(1, 3))]
    classes = list(dict.fromkeys(classes))
    boxes: dict[str, list[tuple[int, list[int]]]] = {name: [] for name in SIZES}
    for name, (width, height) in SIZES.items():
        for _ in range(choices.between(1, 2)):
            x, y = choices.between(0, width - 2), choices.between(0, height - 2)
            box = [x, y, choices.between(2, width - x), choices.between(2, height - y)]
            boxes[name].append((choices.below(len(classes)), box))
    written = [[x, y, x + w, y + h] for name in SIZES for _, (x, y, w, h) in boxes[name]]
    damages = choices.one_of((0, 1, 1, 2, 3))
    files = WRITERS[format_](classes, boxes, choices, damages)
    for _ in range(damages):
        name = choices.one_of(tuple(files))
        how = choices.below(8)
        if how in (0, 1):
            files[name] = mutated(files[name], choices, choices.between(1, 3))
        elif how == 2:
            files[name] = choices.one_of(ENCODINGS)(files[name].decode(errors="replace"))
        elif how == 3 and choices.chance(2):
            del files[name]
            if not files:
                break
    way: Literal["load", "check"] = "check" if choices.chance(12) else "load"
    return DataSet(format_, files, None if damages else written, choices.one_of(("fatal", "skip")), way)


ENCODINGS = (
    lambda text: text.encode("utf-8-sig"),
    lambda text: text.replace("\n", "\r\n").encode(),
    lambda text: text.encode("utf-16"),
    lambda text: text.encode("latin-1", errors="replace") + b"\xff",
    lambda text: b"",
    lambda text: text.encode() + b"\0" * 100,
    lambda text: (text + "\n").encode() * 3,
)


def coco(classes: list[str], boxes: dict[str, Any], choices: Choices, damages: int) -> dict[str, bytes]:
    content: dict[str, Any] = {
        "info": {},
        "images": [
            {"id": 7 + number, "file_name": f"{name}.png", "width": width, "height": height}
            for number, (name, (width, height)) in enumerate(SIZES.items())
        ],
        "annotations": [
            {"image_id": 7 + number, "category_id": 3 + label, "bbox": box, "iscrowd": 0, "area": box[2] * box[3]}
            for number, name in enumerate(SIZES)
            for label, box in boxes[name]
        ],
        "categories": [{"id": 3 + number, "name": name} for number, name in enumerate(classes)],
    }
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number
    for _ in range(damages):
        if not isinstance(content, dict):
            break
        content = changed_within(content, choices)
    text = json.dumps(content, ensure_ascii=choices.chance(2))
    deep = {DEEP: "[" * 900 + "]" * 900, LONG: "[" * 100_000 + "]" * 100_000, TALL: "9" * 6000}
    text = re.sub(f'"({DEEP}|{LONG}|{TALL})"', lambda found: deep[found[1]], text)
    return {"instances.json": text.encode(errors="surrogatepass")}


def changed_within(content: Any, choices: Choices) -> Any:
    """JSON's content with a value, somewhere, replaced by an odd one, removed or repeated."""
    if not isinstance(content, dict | list) or not content or choices.chance(6):
        return copy.deepcopy(choices.one_of(ODD))
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key, how = choices.one_of(keys), choices.below(12)
    if how == 0:
        del content[key]
    elif how == 1 and isinstance(content, list):
        content.append(content[key])
    else:
        content[key] = changed_within(content[key], choices)
    return content


def yolo(classes: list[str], boxes: dict[str, Any], choices: Choices, damages: int) -> dict[str, bytes]:
    described = [f"names: {json.dumps(classes, ensure_ascii=False)}", "train: images/train", "val: images/train"]
    files = {}
    for name, (width, height) in SIZES.items():
        lines = [
            f"{label} {(x + w / 2) / width!r} {(y + h / 2) / height!r} {w / width!r} {h / height!r}"
            for label, (x, y, w, h) in boxes[name]
        ]
        for _ in range(damages):
            how = choices.below(6)
            if how == 0:
                lines.append(choices.one_of(LINES))
            elif how == 1:
                words = lines[-1].split(" ")
                words[choices.below(len(words))] = choices.one_of(NUMBERS)
                lines[-1] = " ".join(words)
        files[f"labels/train/{name}.txt"] = "\n".join(lines)
    if damages and choices.chance(3):
        described.insert(choices.below(4), choices.one_of(YAML_LINES))
    if damages and choices.chance(3):
        described[0] = choices.one_of(YAML_LINES)
    if damages and choices.chance(6):
        files["labels/train/three.txt"] = "0 0.5 0.5 0.1 0.1"
    if damages and choices.chance(4):
        described[1] = "train: train.txt"
        listed = ("images/train/one.png", "./images/train/one.png", "three.png", "/", "\x1b.png", "../one.png", "~")
        files["train.txt"] = "\n".join(choices.one_of(listed) for _ in range(choices.below(4)))
    files["data.yaml"] = "\n".join(described)
    return {name: text.encode(errors="surrogatepass") for name, text in files.items()}


def voc(classes: list[str], boxes: dict[str, Any], choices: Choices, damages: int) -> dict[str, bytes]:
    names = ["one", "two"]
    files = {}
    for name, (width, height) in SIZES.items():
        numbers = {"width": str(width), "height": str(height)}
        parts = [f"<size>{''.join(f'<{tag}>{number}</{tag}>' for tag, number in numbers.items())}</size>"]
        for label, (x, y, w, h) in boxes[name]:
            corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
            box = "".join(f"<{tag}>{number}</{tag}>" for tag, number in corners.items())
            parts.append(f"<object><name>{escape(classes[label])}</name><bndbox>{box}</bndbox></object>")
        for _ in range(damages):
            how, at = choices.below(5), choices.below(len(parts))
            if how == 0:
                parts.insert(at, choices.one_of(XML_PARTS))
            elif how == 1:
                place = re.search(r">(\d+)<", parts[at])
                if place is not None:
                    parts[at] = parts[at].replace(place[0], f">{choices.one_of(NUMBERS)}<", choices.between(1, 2))
            elif how == 2:
                parts[at] = parts[at].replace("<name>", f"<name>{choices.one_of(XML_PARTS)}")
        text = f"<annotation>{''.join(parts)}</annotation>"
        if damages and choices.chance(2):
            text = choices.one_of(XML_PARTS) + text
        files[f"Annotations/{name}.xml"] = text
    if damages and choices.chance(4):
        names.append(choices.one_of(("one", "three", "one 1", "\x1b", "../one", "two -1", "x" * 300, "two\x0btwo")))
    files["ImageSets/Main/train.txt"] = "\n".join(names)
    if damages and choices.chance(6):
        files["labelmap.txt"] = "\n".join(choices.one_of(("cat:::", "# x", "a", "\x1b[31m:::", ":::", "background:::")))
    return {name: text.encode(errors="surrogatepass") for name, text in files.items()}


WRITERS = {"coco": coco, "yolo": yolo, "voc": voc}


@functools.cache
def folder_of(format_: Format) -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    """A folder with the images, and what removes it at the end."""
    kept = tempfile.TemporaryDirectory(prefix="msdeform-fuzz-", dir=MEMORY if MEMORY.is_dir() else None)
    folder = Path(kept.name)
    for name in FILES[format_][2]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    images = folder / FILES[format_][0]
    images.mkdir(parents=True, exist_ok=True)
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        Image.new("RGB", (width, height), (number, 2, 3)).save(images / f"{name}.png")
    return folder, kept


MEMORY = Path("/dev/shm")


class Inline:
    """An executor without threads, which a busy machine makes wait longer than it takes to read two images."""

    def __init__(self, workers: int) -> None:
        pass

    def map(self, do: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(do, items)

    def shutdown(self, *, cancel_futures: bool) -> None:
        pass


@mock.patch.object(parallel, "ThreadPoolExecutor", Inline)
def check(data: DataSet) -> Outcome:
    folder, _ = folder_of(data.format)
    images, annotations, names = FILES[data.format]
    for name in names:
        if name in data.files:
            (folder / name).write_bytes(data.files[name])
        else:
            (folder / name).unlink(missing_ok=True)
    if data.way == "check":
        return check_whole(data, folder)
    try:
        read = Annotations.load(folder / annotations, bad_data=data.bad_data, progress=False)
        root = folder if data.format == "yolo" else folder / images
        kept = CocoDetection(root, read, lambda image, target: (image, target), bad_data=data.bad_data, progress=False)
        samples = [kept[number] for number in range(len(kept))]
    except (ValueError, OSError) as error:
        return refused(error, why=data.boxes is None, names=(str(folder.parent),))
    holds_together(read)
    for line in (*kept.sentences(), *read.dropped.wrong, *read.dropped.images, data_line(folder, kept)):
        assert is_one_line(line), repr(line)
    for image, target in samples:
        assert len(target["boxes"]) == len(target["labels"])
        assert image.shape[1:] == target["size"]
    if data.boxes is not None:
        np.testing.assert_allclose(read.boxes, data.boxes, atol=1e-4)
    return "answered"


def check_whole(data: DataSet, folder: Path) -> Outcome:
    """The same by what `msdeform data check` does."""
    try:
        parts, findings = check_data(CheckOptions(data=folder, progress=False))
    except (ValueError, OSError) as error:
        return refused(error, why=data.boxes is None, names=(str(folder.parent),))
    for finding in findings:
        assert is_one_line(finding.line()), finding
        json.dumps(finding.as_json())
    assert data.boxes is None or "train" in parts or "all" in parts
    return "answered" if parts else "refused"


def holds_together(read: Annotations) -> None:
    """Raises unless what was read can be trained on: boxes with area inside their images, labels that there are."""
    assert np.isfinite(read.boxes).all()
    assert np.isfinite(read.truth[:, :6]).all()
    row = np.repeat(np.arange(len(read.images)), np.diff(read.first))
    limits = np.stack([read.images.widths, read.images.heights] * 2, 1)[row]
    assert (read.boxes >= 0).all()
    assert (read.boxes <= limits).all()
    assert (read.boxes[:, 2:] > read.boxes[:, :2]).all()
    assert len(read.labels) == len(read.boxes) == read.first[-1]
    assert ((read.labels >= 0) & (read.labels < len(read.categories))).all()
    for image in read.images:
        assert is_one_line(image.name), image
    json.dumps(read.ground_truth(), allow_nan=False)


KIND = Kind("annotations of COCO, YOLO and Pascal VOC", made_of(make, 96), check)

"""How data sets are laid out in a folder, as the tools that export them, and people, leave it. Imports no PyTorch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ...common.files import read_text, read_yaml

SplitName = Literal["train", "val"]
Format = Literal["coco", "voc", "yolo"]

FORMATS: dict[str, str] = {"coco": "COCO", "voc": "Pascal VOC", "yolo": "YOLO"}

KNOWN = (
    "COCO (annotations/instances_train2017.json, train2017/), Roboflow's COCO (train/_annotations.coco.json), "
    "CVAT's COCO 1.0 (annotations/instances_Train.json, images/), one COCO file beside its images, "
    "Pascal VOC (ImageSets/Main/train.txt, or an XML file for each image, beside it or in annotations/) "
    "and YOLO (data.yaml, or labels/ and classes.txt)"
)

# COCO's annotation file and folder of images, and what stands for {} in a split; where CVAT's subset has no folder of
# its own, all images are in the one above
COCO_LAYOUTS = (
    ("annotations/instances_{}2017.json", "{}2017"),
    ("{}/_annotations.coco.json", "{}"),
    ("annotations/instances_{}.json", "images/{}"),
)
SUBSETS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "Train", "default"),
    "val": ("val", "valid", "Val", "Validation", "validation"),
}
# in lower case: where images and annotations of one set are, if not side by side
IMAGE_FOLDERS = ("images", "jpegimages", "imgs", "img", "photos", "obj_train_data")
XML_FOLDERS = ("annotations", "labels", "xml", "xmls")
CLASS_FILES = ("classes.txt", "labels/classes.txt", "images/classes.txt", "obj.names")
YAML = (".yaml", ".yml")

Place = tuple[Path, Path]
"""The folder that names of images are relative to, and the annotations: a file, or a folder of XML files."""


class Layout(NamedTuple):
    """What a folder was recognised as."""

    format: Format
    shown_by: str
    """The file or folder that tells."""
    splits: dict[SplitName, Place]
    whole: Place | None
    """All images, where there is no split."""


@dataclass(frozen=True)
class HeldOut:
    """How to divide a set that is not divided in its files."""

    share: float
    """Of the images, for validation; from 0 to 1."""
    seed: int = 0


def find_split(
    data: Path,
    name: SplitName,
    annotations: Path | None = None,
    *,
    data_format: Format | None = None,
    whole: bool = False,
) -> Place:
    """Folder of images, and annotations, of a split.

    Args:
        data: a folder, a YOLO data set's data.yaml or a COCO file.
        name: of the split.
        annotations: instead of those in the folder.
        data_format: the one that counts, where there are several.
        whole: find the one set that there is instead, which is then divided.

    Raises:
        FileNotFoundError: no such folder, or no layout fits.
        ValueError: several fit; this split is not there; with ``whole``, there is a split already.
    """
    if annotations is not None and data.is_dir():
        subsets = SUBSETS[name]
        places = [data / folder.format(subset) for _, folder in COCO_LAYOUTS for subset in subsets]
        images = next((place for place in [*places, data / "images"] if place.is_dir()), places[0])
        return images, annotations
    layout = recognise(data, data_format)
    if whole:
        if layout.whole is None:
            raise ValueError(f"val_share: expected none, as {data} is divided already ({layout.shown_by})")
        return layout.whole
    if name in layout.splits:
        return layout.splits[name]
    hold_out = "--val-share 0.2 holds out a fifth of them for validation"
    if not layout.splits:
        raise ValueError(
            f"data: {data} has one set of images ({FORMATS[layout.format]}, {layout.shown_by}), not divided into "
            f"training and validation: {hold_out}"
        )
    raise ValueError(
        f"data: {data} has no {name} images, only those of {next(iter(layout.splits))}; export both splits, or name "
        f"others with --{name}-images DIR and --{name}-annotations FILE" + (f"; {hold_out}" if name == "val" else "")
    )


def recognise(data: Path, data_format: Format | None = None) -> Layout:
    """What is in a folder, or a file.

    Raises:
        FileNotFoundError: there is none, or no layout fits.
        ValueError: several fit, or what is there cannot be read.
    """
    if data.is_file():
        if data.suffix in YAML:
            return _described_by_yaml(data)
        if data.suffix == ".json":
            return Layout("coco", data.name, {}, (_images_of_json(data), data))
        raise ValueError(f"data: expected a COCO-format folder or a YOLO data.yaml, got the file {data}")
    if not data.is_dir():
        raise FileNotFoundError(f"data directory {data} does not exist")
    finders = {"coco": _find_coco, "voc": _find_voc, "yolo": _find_yolo}
    found = [layout for finder in finders.values() if (layout := finder(data)) is not None]
    if data_format is not None:
        wanted = [layout for layout in found if layout.format == data_format]
        if found and not wanted:
            there = FORMATS[found[0].format]
            raise ValueError(
                f"data_format: expected the format of {data}, which is {there} ({found[0].shown_by}), got {data_format}"
            )
        found = wanted
    if len(found) > 1:
        both = " and ".join(f"{FORMATS[layout.format]} ({layout.shown_by})" for layout in found)
        raise ValueError(
            f"data: {data} holds {both}; name the one that counts with --data-format "
            f"{' or '.join(layout.format for layout in found)}"
        )
    if found:
        return found[0]
    if (data / "annotations.xml").is_file():
        raise ValueError(f"data: {data / 'annotations.xml'} is CVAT's own format; export COCO 1.0 from CVAT instead")
    files = sorted(file for file in data.iterdir() if file.suffix in YAML)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"data: expected one data.yaml in {data}, found {names}; name the one that is meant")
    if files:
        return _described_by_yaml(files[0])
    if any(is_yolo_label(file) for folder in (data, data / "labels") for file in _some(folder, ".txt")):
        raise ValueError(
            f"data: {data} holds YOLO labels, but not the names of their classes: expected classes.txt, a name a line, "
            "or a data.yaml there"
        )
    inside = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in data.iterdir())
    holds = (", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "")) or "nothing"
    raise FileNotFoundError(f"data: expected the layout of {KNOWN}; {data} holds {holds}")


def images_of_xml(folder: Path) -> Path:
    """Where the images are that a folder's XML files describe: among them, in a folder beside it, or above it."""
    inside = {file.stem for file in _some(folder, ".xml", most=20)}
    if any(file.suffix != ".xml" and file.stem in inside for file in folder.iterdir()):
        return folder
    return next(iter(_named(folder.parent, IMAGE_FOLDERS)), folder.parent)


def root_of_classes(file: Path) -> Path:
    """The folder of a YOLO data set without data.yaml, by its file of classes."""
    return file.parent.parent if file.parent.name in ("labels", "images") else file.parent


def is_yolo_label(file: Path) -> bool:
    """Is its first line one of numbers, a class and at least four parts of an image?"""
    with open(file, "rb") as opened:
        words = opened.readline(1000).removeprefix(b"\xef\xbb\xbf").split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return False
    return len(numbers) >= 5 and numbers[0].is_integer() and all(-0.01 <= one <= 1.01 for one in numbers[1:])


def _find_coco(data: Path) -> Layout | None:
    splits: dict[SplitName, Place] = {}
    for name, subsets in SUBSETS.items():
        for file, folder in COCO_LAYOUTS:
            for subset in subsets:
                images, found = data / folder.format(subset), data / file.format(subset)
                if found.is_file():
                    splits.setdefault(name, (images if images.is_dir() or "/" not in folder else images.parent, found))
    if splits:
        only = next(iter(splits.values()))
        return Layout("coco", _within(only[1], data), splits, only if len(splits) == 1 else None)
    files = [file for folder in (data, data / "annotations") for file in _some(folder, ".json", most=100)]
    files = [file for file in files if _is_coco(file)]
    if len(files) > 1:
        names = ", ".join(_within(file, data) for file in files[:4])
        raise ValueError(
            f"data: expected one COCO file in {data}, or one for each split, found {names}; name them with "
            "--train-annotations FILE and --val-annotations FILE, or one with --data FILE"
        )
    if not files:
        return None
    return Layout("coco", _within(files[0], data), {}, (_images_of_json(files[0]), files[0]))


def _find_voc(data: Path) -> Layout | None:
    lists, images = data / "ImageSets" / "Main", data / "JPEGImages"
    splits: dict[SplitName, Place] = {}
    for name, subsets in SUBSETS.items():
        file = next((lists / f"{one}.txt" for one in subsets if (lists / f"{one}.txt").is_file()), None)
        if file is not None:
            splits[name] = (images, file)
    if splits:
        only = next(iter(splits.values()))
        return Layout("voc", _within(only[1], data), splits, only if len(splits) == 1 else None)
    if (lists / "trainval.txt").is_file():
        return Layout("voc", "ImageSets/Main/trainval.txt", {}, (images, lists / "trainval.txt"))
    for name, subsets in SUBSETS.items():
        for subset in subsets:
            if _has_voc(data / subset):
                splits.setdefault(name, (images_of_xml(data / subset), data / subset))
    if splits:
        only = next(iter(splits.values()))
        return Layout("voc", f"{only[1].name}/*.xml", splits, only if len(splits) == 1 else None)
    for folder in (data, *_named(data, XML_FOLDERS)):
        if _has_voc(folder):
            return Layout("voc", _within(folder / "*.xml", data), {}, (images_of_xml(folder), folder))
    return None


def _find_yolo(data: Path) -> Layout | None:
    described = next((data / f"data{suffix}" for suffix in YAML if (data / f"data{suffix}").is_file()), None)
    if described is not None:
        return _described_by_yaml(described)
    classes = next((data / name for name in CLASS_FILES if (data / name).is_file()), None)
    if classes is None:
        return None
    names = {name: next((one for one in s if (data / "images" / one).is_dir()), None) for name, s in SUBSETS.items()}
    if all(names.values()):
        return Layout("yolo", _within(classes, data), {"train": (data, classes), "val": (data, classes)}, None)
    return Layout("yolo", _within(classes, data), {}, (data, classes))


def _described_by_yaml(file: Path) -> Layout:
    place = (file.parent, file)
    try:
        content = read_yaml(read_text(file))
    except ValueError:
        content = None  # told where it is read
    if not isinstance(content, dict) or content.get("val") or content.get("validation"):
        return Layout("yolo", file.name, {"train": place, "val": place}, None)
    return Layout("yolo", file.name, {"train": place}, place)


def _images_of_json(file: Path) -> Path:
    """The folder that a COCO file's names of images are relative to: where the first one is that can be found."""
    try:
        content = json.loads(file.read_bytes())
        names = [str(image["file_name"]) for image in content["images"][:20]]
    except (ValueError, TypeError, KeyError, RecursionError):
        names = []  # told where it is read
    above = file.parent
    roots = [root for root in (above, above.parent) if root.is_dir()]
    folders = [*roots, *(folder for root in roots for folder in _named(root, IMAGE_FOLDERS))]
    folders += [folder / "default" for folder in folders]
    return next((folder for folder in folders for name in names if _is_there(folder / name)), above)


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that is too long for any file
        return False


def _is_coco(file: Path) -> bool:
    content = file.read_bytes()
    return all(key in content for key in (b'"images"', b'"annotations"', b'"categories"'))


def _has_voc(folder: Path) -> bool:
    for file in _some(folder, ".xml"):
        with open(file, "rb") as opened:
            head = opened.read(2000)
        if b"<annotation>" in head or b"<annotation " in head:
            return True
    return False


def _some(folder: Path, suffix: str, most: int = 5) -> Iterator[Path]:
    """The first files of a folder, in the order of their names, with this suffix; none where there is no folder."""
    files = sorted(folder.glob(f"*{suffix}")) if folder.is_dir() else []
    return iter([file for file in files if file.is_file()][:most])


def _named(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The folders in ``folder`` that have one of these names, in whatever case, in the order of the names."""
    inside = {entry.name.lower(): entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    return [inside[name] for name in names if name in inside]


def _within(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()

"""A Pascal VOC data set as the content of a COCO annotation file.

    ImageSets/Main/train.txt   a name a line
    Annotations/NAME.xml       objects with a name, a bndbox and perhaps difficult
    JPEGImages/NAME.jpg

or a folder of XML files, with the images among them or in a folder beside it, as annotation tools leave it.

Corners count from 1 and are inclusive, so (1, 1, 2, 1) is the first two pixels. They may have decimals. Objects
marked difficult become COCO's iscrowd, which training leaves out and evaluation ignores. Categories are those of
labelmap.txt, if there is one, then the sorted names of all files, numbered from 1. Images are numbered in the order of
all files, so that every split has the same.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ...common.files import list_of_names, read_text
from ...common.text import shown
from .layouts import images_of_xml

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".mpo")

LABEL_MAP = "labelmap.txt"

# decimals of a pixel that are kept, so that sums such as 256.61 - 218.62 + 1 give back 38.99
DIGITS = 9


class VocObject(NamedTuple):
    """An object of an image: its class, its box (xyxy in pixels, from 0 to the width and height), and marks."""

    name: str
    xyxy: Sequence[float]
    difficult: bool = False
    score: float | None = None
    """Of a detection. The format knows none; it is written as ``score``, which other readers pass over."""


def voc_annotation(file_name: str, size: tuple[int, int], objects: Iterable[VocObject]) -> bytes:
    """The XML file of an image, whose boxes `read_voc` reads back, to a billionth of a pixel.

    Args:
        file_name: of the image, without its folder.
        size: its height and width in pixels.
        objects: what is in it.
    """
    root = ElementTree.Element("annotation")

    def add(above: ElementTree.Element, tag: str, text: object = None) -> ElementTree.Element:
        one = ElementTree.SubElement(above, tag)
        one.text = None if text is None else str(text)
        return one

    add(root, "filename", file_name)
    of_image = add(root, "size")
    for tag, number in (("width", size[1]), ("height", size[0]), ("depth", 3)):
        add(of_image, tag, number)
    for one in objects:
        element = add(root, "object")
        add(element, "name", one.name)
        add(element, "difficult", int(one.difficult))
        if one.score is not None:
            add(element, "score", f"{one.score:.6g}")
        box = add(element, "bndbox")
        left, top, right, bottom = map(float, one.xyxy)
        for tag, place in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
            add(box, tag, f"{round(place, DIGITS):.{DIGITS}f}".rstrip("0").rstrip("."))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8") + b"\n"


def write_classes(folder: Path, names: Sequence[str]) -> None:
    """Keeps the order of the classes, and those without objects: `labelmap.txt`, as CVAT writes it."""
    text = "".join(f"{name}:::\n" for name in ("# label:color_rgb:parts:actions", *names))
    (folder / LABEL_MAP).write_text(text.replace(":actions:::", ":actions"), encoding="utf-8")


def _read_classes(file: Path) -> list[str]:
    lines = read_text(file).splitlines() if file.is_file() else []
    names = [line.rsplit(":", 3)[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    return [name for name in dict.fromkeys(names) if name and name != "background"]


def read_voc(path: Path, *, skip: bool = False) -> tuple[dict[str, Any], list[str], list[str]]:
    """A split's images, annotations and categories, and a sentence for each object and each image that was left out.

    ``path`` is a list, ``ImageSets/Main/*.txt``, or a folder of XML files, each of which stands for an image then.
    Names are within the folder of images: JPEGImages, or what `layouts.images_of_xml` finds.

    ``skip`` leaves out wrong objects, and images whose annotation is missing or cannot be read. Otherwise raises
    FileNotFoundError or ValueError, with the file.
    """
    if path.is_dir():
        folder, pictures = path, images_of_xml(path)
    else:
        folder, pictures = path.parents[2] / "Annotations", path.parents[2] / "JPEGImages"
    files = {file.stem: file for file in sorted(folder.glob("*.xml"))}
    names = list(files)
    if not path.is_dir():
        # the second word of a line, in lists of one class, says whether the class is there
        names = [line if line in files else line.split()[0] for line in list_of_names(path)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice and not skip:
        raise ValueError(f"{path} lists {twice[0]} more than once")
    names = list(dict.fromkeys(names))
    image_files = _images_by_stem(pictures)
    wrong: list[str] = [f"{path} lists {name} more than once" for name in twice]
    left_out: list[str] = []
    trees: dict[str, ElementTree.Element] = {}
    classes: set[str] = set()
    for name, file in files.items():
        try:
            trees[name] = _parse(file)
        except ValueError as error:
            if not skip:
                raise
            if name in names:
                left_out.append(str(error))
        else:
            classes |= {one.findtext("name", "").strip() for one in trees[name].iter("object")} - {""}
    ordered = _read_classes(folder.parent / LABEL_MAP)
    ordered += sorted(classes - {*ordered})
    image_ids, category_ids = ({name: number for number, name in enumerate(all_, 1)} for all_ in (files, ordered))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name in names:
        if name not in files:
            sentence = f"{folder / name}.xml does not exist, but {path} lists it"
            if not skip:
                raise FileNotFoundError(sentence)
            left_out.append(sentence)
        if name not in trees:
            continue
        file, tree = files[name], trees[name]
        try:
            width, height = (int(_number(file, tree, f"size/{side}")) for side in ("width", "height"))
        except ValueError as error:
            if not skip:
                raise
            left_out.append(str(error))
            continue
        own = (tree.findtext("filename") or "").strip()
        # the data set tells where none is there
        image = image_files.get(name) or (own if own in image_files.values() else f"{name}.jpg")
        images.append({"id": image_ids[name], "file_name": image, "width": width, "height": height})
        for one in tree.iter("object"):
            try:
                box, label = _box(file, one), category_ids[_text(file, one, "name")]
            except ValueError as error:
                if not skip:
                    raise
                wrong.append(f"{error} (image {image_ids[name]})")
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_ids[name],
                    "category_id": label,
                    "bbox": box,
                    "iscrowd": int((one.findtext("difficult") or "0").strip() == "1"),
                }
            )
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}, wrong, left_out


def _images_by_stem(folder: Path) -> dict[str, str]:
    """The name of each image of a folder, by its name without its suffix."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {file.stem: file.name for file in reversed(files) if file.suffix.lower() in SUFFIXES}


def _box(file: Path, one: ElementTree.Element) -> list[float]:
    """xywh in pixels. Corners that are one and the same point, as of a click, have no area."""
    left, top, right, bottom = (_number(file, one, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    if right < left or bottom < top:
        raise ValueError(
            f"{file}: expected xmin <= xmax and ymin <= ymax, got {left:g}, {top:g}, {right:g}, {bottom:g}"
        )
    size = (0, 0) if (left, top) == (right, bottom) else (right - left + 1, bottom - top + 1)
    return [round(number, DIGITS) for number in (left - 1, top - 1, *size)]


def _parse(file: Path) -> ElementTree.Element:
    content = file.read_bytes()
    # entities can grow without bound, and no VOC file has any; UTF-16 has zeros between letters
    letters = content.replace(b"\0", b"")
    if b"<!DOCTYPE" in letters or b"<!ENTITY" in letters:
        raise ValueError(f"{file}: expected no document type or entities in a VOC annotation")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two of its encoding
        raise ValueError(f"{file} is not XML: {shown(error)}") from error


def _text(file: Path, element: ElementTree.Element, tag: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise ValueError(f"{file}: expected {tag} in {element.tag}, found none")
    return text


def _number(file: Path, element: ElementTree.Element, tag: str) -> float:
    text = _text(file, element, tag)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{file}: {tag} is expected to be a number, got {shown(text)!r}")
    return number

"""A Pascal VOC data set as the content of a COCO annotation file.

    ImageSets/Main/train.txt   a name a line
    Annotations/NAME.xml       objects with a name, a bndbox and perhaps difficult
    JPEGImages/NAME.jpg

Corners count from 1 and are inclusive, so (1, 1, 1, 1) is the first pixel. Objects marked difficult become COCO's
iscrowd, which training leaves out and evaluation ignores. Categories are the sorted names of all files, numbered from
1, and images are numbered in the order of all files, so that every split has the same.
"""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG")

SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(path: Path) -> dict[str, Any]:
    """The images, annotations and categories of a split, ``ImageSets/Main/*.txt``; names are within JPEGImages.

    Raises:
        FileNotFoundError: the list, an annotation or an image is not there.
        ValueError: a wrong annotation, with its file.
    """
    root = path.parents[2]
    folder = root / "Annotations"
    # the second word of a line, in lists of one class, says whether the class is there
    names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    all_names = sorted(file.stem for file in folder.glob("*.xml"))
    image_ids = {name: number for number, name in enumerate(all_names, start=1)}
    missing = [name for name in names if name not in image_ids]
    if missing:
        raise FileNotFoundError(f"{folder / missing[0]}.xml does not exist, but {path} lists it")
    files = {name: _parse(folder / f"{name}.xml") for name in all_names}
    classes = sorted(
        {_text(folder / f"{name}.xml", one, "name") for name in files for one in files[name].iter("object")}
    )
    category_ids = {name: number for number, name in enumerate(classes, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name in names:
        file, tree = folder / f"{name}.xml", files[name]
        images.append(
            {
                "id": image_ids[name],
                "file_name": _image_name(root / "JPEGImages", name),
                "width": int(_number(file, tree, "size/width")),
                "height": int(_number(file, tree, "size/height")),
            }
        )
        for one in tree.iter("object"):
            left, top, right, bottom = (
                _number(file, one, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")
            )
            if right < left or bottom < top:
                raise ValueError(
                    f"{file}: expected xmin <= xmax and ymin <= ymax, got {left:g}, {top:g}, {right:g}, {bottom:g}"
                )
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_ids[name],
                    "category_id": category_ids[_text(file, one, "name")],
                    "bbox": [left - 1, top - 1, right - left + 1, bottom - top + 1],
                    "iscrowd": int((one.findtext("difficult") or "0").strip() == "1"),
                }
            )
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _parse(file: Path) -> ElementTree.Element:
    content = file.read_bytes()
    # entities can grow without bound, and no VOC file has any
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise ValueError(f"{file}: expected no document type or entities in a VOC annotation")
    try:
        return ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} is not XML: {error}") from error


def _text(file: Path, element: ElementTree.Element, tag: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise ValueError(f"{file}: expected {tag} in {element.tag}, found none")
    return text


def _number(file: Path, element: ElementTree.Element, tag: str) -> float:
    text = _text(file, element, tag)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{file}: {tag} is expected to be a number, got {text!r}") from None


def _image_name(folder: Path, name: str) -> str:
    for suffix in SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return f"{name}{suffix}"
    return f"{name}.jpg"  # the data set tells that it is missing

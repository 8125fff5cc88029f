"""How data sets are laid out in a folder, as the tools that export them write it; one function for each layout."""

from pathlib import Path
from typing import Literal

SplitName = Literal["train", "val"]
# folder of the images, and annotation file
Files = tuple[Path, Path]

KNOWN = (
    "COCO (annotations/instances_train2017.json, train2017/), Roboflow's COCO (train/_annotations.coco.json), "
    "CVAT's COCO 1.0 (annotations/instances_Train.json, images/), Pascal VOC (ImageSets/Main/train.txt) "
    "and YOLO (data.yaml)"
)


def find_split(data: Path, name: SplitName) -> Files | None:
    """Images and annotations of a split that is not in COCO's own or YOLO's layout; None where no layout fits.

    Raises:
        ValueError: the layout fits, and this split is not there.
    """
    for layout in (roboflow, cvat, voc):
        splits = {split: layout(data, split) for split in ("train", "val")}
        if splits[name] is not None:
            return splits[name]
        there = [split for split, files in splits.items() if files is not None]
        if there:
            raise ValueError(
                f"data: {data} has no {name} images, only those of {there[0]}; export both splits, or name others "
                f"with --{name}-images DIR and --{name}-annotations FILE"
            )
    if (data / "annotations.xml").is_file():
        raise ValueError(f"data: {data / 'annotations.xml'} is CVAT's own format; export COCO 1.0 from CVAT instead")
    return None


def roboflow(data: Path, name: str) -> Files | None:
    """Roboflow's COCO export: images and annotations in one folder for each split."""
    for folder in ("train",) if name == "train" else ("valid", "val"):
        if (file := data / folder / "_annotations.coco.json").is_file():
            return file.parent, file
    return None


def cvat(data: Path, name: str) -> Files | None:
    """CVAT's COCO 1.0 export; a task without subsets is of training."""
    for subset in ("train", "Train", "default") if name == "train" else ("val", "Val", "Validation", "validation"):
        file = data / "annotations" / f"instances_{subset}.json"
        if file.is_file() and (data / "images").is_dir():
            own = data / "images" / subset
            return own if own.is_dir() else data / "images", file
    return None


def voc(data: Path, name: str) -> Files | None:
    """Pascal VOC."""
    file = data / "ImageSets" / "Main" / f"{name}.txt"
    return (data / "JPEGImages", file) if file.is_file() and (data / "Annotations").is_dir() else None


def described(folder: Path) -> str:
    """What is in a folder, for a sentence: its first few entries."""
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in folder.iterdir())
    return (", ".join(names[:8]) + (", ..." if len(names) > 8 else "")) or "nothing"

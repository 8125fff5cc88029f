"""How data sets are laid out in a folder, as the tools that export them write it."""

from pathlib import Path
from typing import Literal

SplitName = Literal["train", "val"]

KNOWN = (
    "COCO (annotations/instances_train2017.json, train2017/), Roboflow's COCO (train/_annotations.coco.json), "
    "CVAT's COCO 1.0 (annotations/instances_Train.json, images/), Pascal VOC (ImageSets/Main/train.txt) "
    "and YOLO (data.yaml)"
)

# annotation file and folder of images in each layout but YOLO's, and what stands for {} in a split; where CVAT's subset
# has no folder of its own, all images are in the one above
LAYOUTS = (
    ("annotations/instances_{}2017.json", "{}2017"),
    ("{}/_annotations.coco.json", "{}"),
    ("annotations/instances_{}.json", "images/{}"),
    ("ImageSets/Main/{}.txt", "JPEGImages"),
)
SUBSETS = {"train": ("train", "Train", "default"), "val": ("val", "valid", "Val", "Validation", "validation")}


def find_split(data: Path, name: SplitName, annotations: Path | None = None) -> tuple[Path, Path]:
    """Folder of images, and annotation file, of a split; ``annotations`` where that is given instead.

    Raises:
        FileNotFoundError: no such folder, or no layout fits.
        ValueError: the layout fits, and this split is not there; several descriptions of a YOLO data set; another file.
    """
    if data.is_file():
        if data.suffix not in (".yaml", ".yml"):
            raise ValueError(f"data: expected a COCO-format folder or a YOLO data.yaml, got the file {data}")
        return data.parent, data
    if not data.is_dir():
        raise FileNotFoundError(f"data directory {data} does not exist")
    splits: dict[str, tuple[Path, Path]] = {}
    for split, subsets in SUBSETS.items():
        for file, folder in LAYOUTS:
            for subset in subsets:
                images, found = data / folder.format(subset), annotations or data / file.format(subset)
                if annotations or found.is_file():
                    splits.setdefault(split, (images if images.is_dir() or "/" not in folder else images.parent, found))
    if name in splits:
        return splits[name]
    if splits:
        raise ValueError(
            f"data: {data} has no {name} images, only those of {next(iter(splits))}; export both splits, or name "
            f"others with --{name}-images DIR and --{name}-annotations FILE"
        )
    if (data / "annotations.xml").is_file():
        raise ValueError(f"data: {data / 'annotations.xml'} is CVAT's own format; export COCO 1.0 from CVAT instead")
    files = sorted(file for file in data.iterdir() if file.suffix in (".yaml", ".yml"))
    named = [file for file in files if file.stem == "data"] or files
    if len(named) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"data: expected one data.yaml in {data}, found {names}; name the one that is meant")
    if not named:
        inside = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in data.iterdir())
        holds = (", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "")) or "nothing"
        raise FileNotFoundError(f"data: expected the layout of {KNOWN}; {data} holds {holds}")
    return data, named[0]

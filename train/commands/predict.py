"""``msdeform predict``: detections in image files, as pictures and in COCO's results format."""

import glob
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ...common.device import choose_device
from ...common.files import write_json
from ...common.progress import progress_bar
from ...common.text import counted
from ...models.inference.detections import Detections, nothing_detected
from ...models.inference.images import SUFFIXES, BadImageError, read_image
from ..engine.checkpoint import Trained, load_trained
from ..evaluation.results import coco_results
from ..visual.boxes import Box, draw_boxes, save_picture
from .options import PredictOptions


def find_images(paths: tuple[Path, ...]) -> list[Path]:
    """The files named, those of patterns such as ``"photos/*.jpg"``, and the images in folders and their subfolders.

    Each comes once, in order.

    Raises:
        FileNotFoundError: a path does not exist, a pattern matches nothing, or a folder holds no image.
        ValueError: no path at all.
    """
    return list(named_images(paths))


def named_images(paths: tuple[Path, ...]) -> dict[Path, str]:
    """The images of `find_images`, each with a name of its own: its path within the folder that was named.

    Where two names would be the same, all are paths from the folder that holds all images. Raises as `find_images`.
    """
    if not paths:
        raise ValueError("images: expected at least one image file or folder, got none")
    names: dict[Path, str] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise FileNotFoundError(f"folder {path} holds no image ({', '.join(SUFFIXES)})")
            for file in inside:
                names.setdefault(file, file.relative_to(path).as_posix())
        elif path.is_file():
            names.setdefault(path, path.name)
        else:
            matched = [Path(file) for file in sorted(glob.glob(str(path), recursive=True)) if Path(file).is_file()]
            if not matched:
                raise FileNotFoundError(f"image {path} does not exist")
            for file in matched:
                names.setdefault(file, file.name)
    if len(set(names.values())) < len(names):
        root = os.path.commonpath([file.absolute().parent for file in names])
        names = {file: Path(os.path.relpath(file.absolute(), root)).as_posix() for file in names}
    return names


def image_ids(files: list[Path]) -> list[int]:
    """COCO's id where every file is named by it (000000000139.jpg), else 1, 2, ..."""
    if all(file.stem.isdecimal() for file in files) and len({int(file.stem) for file in files}) == len(files):
        return [int(file.stem) for file in files]
    return list(range(1, len(files) + 1))


def boxes_of(found: Detections) -> list[Box]:
    """Detections as boxes to draw, the least certain first so that the most certain lies on top."""
    columns = (found.boxes.tolist(), found.labels.tolist(), found.names, found.scores.tolist())
    boxes = [Box(tuple(box), label, f"{name} {score:.2f}") for box, label, name, score in zip(*columns, strict=True)]
    return boxes[::-1]


@dataclass
class Predictions:
    """What came of some images."""

    out: Path
    """Folder of the pictures, predictions.json and images.json."""
    results: list[dict[str, Any]] = field(default_factory=list)
    """COCO results with ``category_name``, ``file_name`` and ``image_size`` (height, width) beside their ids."""
    images: list[dict[str, Any]] = field(default_factory=list)
    """Every image that was read, those without detections too: id, file_name, height, width, detections."""
    unreadable: list[dict[str, str]] = field(default_factory=list)
    """file_name and error of each image that could not be read."""
    best: tuple[float, str] | None = None
    """Score and class of the most certain detection at any confidence."""


def output_folder(options: PredictOptions, trained: Trained) -> Path:
    """--out; else predictions/ in the folder of the checkpoint's run, or here where it is of no run."""
    if options.out is not None:
        return options.out
    folder = options.checkpoint if options.checkpoint.is_dir() else options.checkpoint.parent
    is_run = trained.step is not None and (folder / "config.yaml").is_file()
    return folder / "predictions" if is_run else Path("predictions")


def predict(options: PredictOptions) -> list[dict[str, Any]]:
    """The detections of `predict_files` in COCO's results format."""
    return predict_files(options).results


def predict_files(options: PredictOptions) -> Predictions:
    """Draws and writes what ``model.predict`` finds in every image, upright as viewers show it.

    An image that cannot be read is left out and listed. Both JSON files are written whatever ends the loop, Ctrl-C
    included, with what was done until then. Boxes of a file with an orientation tag are in the pixels of its picture;
    COCO's own annotations ignore that tag.

    Raises:
        FileNotFoundError, ValueError: a path that was named does not exist, or the checkpoint cannot be read.
    """
    names = named_images(options.images)
    trained = load_trained(options.checkpoint, choose_device(options.device), options.attn_backend, options.model)
    if trained.step is None and trained.model.categories is not None:  # converted: a run knows its data's ids
        print(
            "category ids in the JSON are class numbers, from 0: these weights know no data set's ids", file=sys.stderr
        )
    done = Predictions(output_folder(options, trained))
    # pictures of an earlier call may lie in the folder that is searched
    own = done.out.resolve()
    inside = any(own != path.resolve() and own.is_relative_to(path.resolve()) for path in options.images)
    files = [file for file in names if not (inside and file.resolve().is_relative_to(own))]
    if not files:
        raise ValueError(f"images: expected some outside {done.out}, which holds the pictures of predictions")
    repeated = len({Path(names[file]).with_suffix("") for file in files}) < len(files)
    pictures = {
        file: done.out / (f"{names[file]}.jpg" if repeated else Path(names[file]).with_suffix(".jpg")) for file in files
    }
    given = {file.resolve() for file in files}
    for picture in pictures.values():
        if picture.resolve() in given:
            raise ValueError(f"out: expected another folder than {done.out}, where {picture} would be written over")
    try:
        with progress_bar("detecting", len(files), shown=options.progress) as advance:
            for file, image_id in zip(files, image_ids(files), strict=True):
                name = names[file]
                try:
                    image = read_image(file)
                except (BadImageError, OSError) as error:
                    done.unreadable.append({"file_name": name, "error": str(error)})
                else:
                    _detect(trained, options, image, image_id, name, pictures[file], done)
                advance()
    finally:
        write_json(done.out / "predictions.json", done.results)
        categories = [{"id": category.id, "name": category.name} for category in trained.categories]
        write_json(
            done.out / "images.json",
            {"images": done.images, "categories": categories, "unreadable": done.unreadable},
        )
    return done


def _detect(
    trained: Trained,
    options: PredictOptions,
    image: Tensor,
    image_id: int,
    name: str,
    picture: Path,
    done: Predictions,
) -> None:
    """Draws the detections of one image, and adds them to what is done."""
    everything = trained.model.predict(image, confidence=0.0, size=options.image_size)
    if len(everything):
        first = (float(everything.scores[0]), everything.names[0])
        done.best = first if done.best is None else max(done.best, first)
    found = everything.at_least(options.confidence)
    height, width = found.image_size
    results = coco_results(image_id, found, [category.id for category in trained.categories])
    more = {"file_name": name, "image_size": [height, width]}
    save_picture(draw_boxes(Image.fromarray(image.permute(1, 2, 0).numpy()), boxes_of(found)), picture)
    done.results += [
        {**result, "category_name": class_name, **more} for result, class_name in zip(results, found.names, strict=True)
    ]
    done.images.append(
        {"id": image_id, "file_name": name, "height": height, "width": width, "detections": len(results)}
    )


def run(options: PredictOptions) -> int:
    """``msdeform predict``; 1 if an image could not be read."""
    done = predict_files(options)
    count = counted(len(done.results), "detection")
    print(f"{count} of at least {options.confidence}: pictures, predictions.json and images.json in {done.out}")
    if not done.results and done.best is not None:
        score, name = done.best
        lower = math.floor(score * 10) / 10 if score >= 0.1 else math.floor(score * 1000) / 1000
        print(f"{nothing_detected(options.confidence, name, score)}; --confidence {lower:g} shows it")
    if done.unreadable:
        print(f"{counted(len(done.unreadable), 'image')} could not be read:", file=sys.stderr)
        for one in done.unreadable:
            print(f"  {one['error']}", file=sys.stderr)
    return 1 if done.unreadable else 0

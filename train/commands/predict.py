"""``msdeform predict``: detections in image files, as pictures and in COCO's results format."""

import glob
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ...common.device import choose_device
from ...common.files import write_json
from ...common.progress import progress_bar
from ...common.text import counted
from ...models.inference.detections import Confidence, minimum_scores, nothing_detected
from ...models.inference.images import SUFFIXES, BadImageError, read_image
from ..data.yolo import image_ids
from ..engine.checkpoint import load_trained
from ..evaluation.results import coco_results
from ..visual.boxes import Box, draw_boxes, save_picture
from .options import PredictOptions


def named_images(paths: tuple[Path, ...]) -> dict[Path, str]:
    """The files named, those of patterns such as ``"photos/*.jpg"``, and the images in folders and their subfolders.

    Each comes once, in order, with a name of its own: its path within the folder that was named. Where two names would
    be the same, all are paths from the folder that holds all images.

    Raises:
        FileNotFoundError: a path does not exist, a pattern matches nothing, or a folder holds no image.
        ValueError: no path at all.
    """
    if not paths:
        raise ValueError("images: expected at least one image file or folder, got none")
    names: dict[Path, str] = {}
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not found:
                raise FileNotFoundError(f"folder {path} holds no image ({', '.join(SUFFIXES)})")
        else:
            matched = [path] if path.is_file() else map(Path, sorted(glob.glob(str(path), recursive=True)))
            found = [file for file in matched if file.is_file()]
            if not found:
                raise FileNotFoundError(f"image {path} does not exist")
        for file in found:
            names.setdefault(file, file.relative_to(path).as_posix() if path.is_dir() else file.name)
    if len(set(names.values())) < len(names):
        root = os.path.commonpath([file.absolute().parent for file in names])
        names = {file: Path(os.path.relpath(file.absolute(), root)).as_posix() for file in names}
    return names


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
    best: tuple[float, str] = (0.0, "")
    """Score and class of the most certain detection at any confidence; a class of no name where there is none."""
    confidence: Confidence = 0.5
    """What was asked for, or else the checkpoint's for each class, or else 0.5."""
    wanted: float = 0.5
    """The same of the class of `best`."""


def predict(options: PredictOptions) -> Predictions:
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
    folder = options.checkpoint if options.checkpoint.is_dir() else options.checkpoint.parent
    is_run = trained.step is not None and (folder / "config.yaml").is_file()
    out = options.out or (folder / "predictions" if is_run else Path("predictions"))
    thresholds = 0.5 if trained.model.thresholds is None else trained.model.thresholds
    confidence: Confidence = thresholds if options.confidence is None else options.confidence
    done = Predictions(out, confidence=confidence)
    # pictures of an earlier call may lie in the folder that is searched
    own = out.resolve()
    inside = any(own != path.resolve() and own.is_relative_to(path.resolve()) for path in options.images)
    files = [file for file in names if not (inside and file.resolve().is_relative_to(own))]
    if not files:
        raise ValueError(f"images: expected some outside {out}, which holds the pictures of predictions")
    repeated = len({Path(names[file]).with_suffix("") for file in files}) < len(files)
    pictures = [out / (f"{names[file]}.jpg" if repeated else Path(names[file]).with_suffix(".jpg")) for file in files]
    given = {file.resolve() for file in files}
    for picture in pictures:
        if picture.resolve() in given:
            raise ValueError(f"out: expected another folder than {out}, where {picture} would be written over")
    ids = [category.id for category in trained.categories]
    try:
        with progress_bar("detecting", len(files), shown=options.progress) as advance:
            for file, image_id, picture in zip(files, image_ids(files), pictures, strict=True):
                name = names[file]
                try:
                    image = read_image(file)
                except (BadImageError, OSError) as error:
                    done.unreadable.append({"file_name": name, "error": str(error)})
                else:
                    everything = trained.model.predict(image, confidence=0.0, size=options.image_size)
                    if len(everything):
                        best = (float(everything.scores[0]), everything.names[0])
                        if best > done.best:
                            wanted = float(minimum_scores(confidence, everything.labels[:1]))
                            done.best, done.wanted = best, wanted
                    found = everything.at_least(confidence)
                    height, width = found.image_size
                    results = coco_results(image_id, found, ids)
                    done.results += [
                        {**result, "category_name": kind, "file_name": name, "image_size": [height, width]}
                        for result, kind in zip(results, found.names, strict=True)
                    ]
                    image_size = {"height": height, "width": width}
                    done.images.append({"id": image_id, "file_name": name, **image_size, "detections": len(found)})
                    texts = [
                        f"{kind} {score:.2f}" for kind, score in zip(found.names, found.scores.tolist(), strict=True)
                    ]
                    boxes = list(map(Box, map(tuple, found.boxes.tolist()), found.labels.tolist(), texts))
                    # the most certain last, which lies on top
                    drawn = draw_boxes(Image.fromarray(image.permute(1, 2, 0).numpy()), boxes[::-1])
                    save_picture(drawn, picture)
                advance()
    finally:
        write_json(out / "predictions.json", done.results)
        categories = [{"id": category.id, "name": category.name} for category in trained.categories]
        whole = {"images": done.images, "categories": categories, "unreadable": done.unreadable}
        write_json(out / "images.json", whole)
    return done


def _each_class(thresholds: Sequence[float]) -> str:
    low, high = f"{min(thresholds):.2f}", f"{max(thresholds):.2f}"
    return f"the checkpoint's thresholds, {low if low == high else f'{low} to {high}'}"


def run(options: PredictOptions) -> int:
    """``msdeform predict``; 1 if an image could not be read."""
    done = predict(options)
    count = counted(len(done.results), "detection")
    least = done.confidence if isinstance(done.confidence, float) else _each_class(done.confidence)
    print(f"{count} of at least {least}: pictures, predictions.json and images.json in {done.out}")
    score, name = done.best
    if not done.results and name:
        lower = math.floor(score * 10) / 10 if score >= 0.1 else math.floor(score * 1000) / 1000
        print(f"{nothing_detected(done.wanted, name, score)}; --confidence {lower:g} shows it")
    if done.unreadable:
        print(f"{counted(len(done.unreadable), 'image')} could not be read:", file=sys.stderr)
        for one in done.unreadable:
            print(f"  {one['error']}", file=sys.stderr)
    return 1 if done.unreadable else 0

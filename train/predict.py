"""``msdeform predict``: detections in image files, as pictures and in COCO's results format."""

from pathlib import Path
from typing import Any

from PIL import Image

from ..kernels.device import choose_device
from ..models.images import read_image
from ..models.predictor import Detections
from .checkpoint import load_trained
from .commandline import progress_bar
from .drawing import Box, draw_boxes, save_picture
from .files import write_json
from .options import PredictOptions
from .results import coco_results

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def find_images(paths: tuple[Path, ...]) -> list[Path]:
    """The files named, and the images in the folders named, each once, in order.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image.
        ValueError: no path at all.
    """
    if not paths:
        raise ValueError("images: expected at least one image file or folder, got none")
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise FileNotFoundError(f"folder {path} holds no image ({', '.join(SUFFIXES)})")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"image {path} does not exist")
    return list(dict.fromkeys(files))


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


def predict(options: PredictOptions) -> list[dict[str, Any]]:
    """Draws and writes what ``model.predict`` finds in every image, upright as viewers show it.

    Returns:
        COCO results with the data set's own category ids, and the ``file_name`` beside each ``image_id``. Boxes of a
        file with an orientation tag are in the pixels of its picture; COCO's own annotations ignore that tag.

    Raises:
        FileNotFoundError, ValueError: an image, folder or checkpoint is missing or unreadable; nothing is written
            for that image or those after it, and no predictions.json.
    """
    files = find_images(options.images)
    trained = load_trained(options.checkpoint, choose_device(options.device), options.attn_backend, options.model)
    category_ids = [category.id for category in trained.categories]
    results: list[dict[str, Any]] = []
    repeated = len({file.stem for file in files}) < len(files)
    with progress_bar("detecting", len(files), shown=options.progress) as advance:
        for number, (file, image_id) in enumerate(zip(files, image_ids(files), strict=True), start=1):
            image = read_image(file)
            found = trained.model.predict(image, confidence=options.confidence, size=options.image_size)
            plain = {"scores": found.scores, "labels": found.labels, "boxes": found.boxes}
            results += [{**result, "file_name": file.name} for result in coco_results(image_id, plain, category_ids)]
            picture = draw_boxes(Image.fromarray(image.permute(1, 2, 0).numpy()), boxes_of(found))
            name = f"{number:05d}-{file.stem}" if repeated else file.stem
            save_picture(picture, options.out / f"{name}.jpg")
            advance()
    write_json(options.out / "predictions.json", results)
    return results


def run(options: PredictOptions) -> int:
    """``msdeform predict``."""
    results = predict(options)
    print(f"{len(results)} detections of at least {options.confidence}: pictures and predictions.json in {options.out}")
    return 0

"""Data sets that tests of evaluation share."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from msdeform.train.data.annotations import Annotations


def noisy_data(seed: int, images: int = 30) -> tuple[dict[str, Any], np.ndarray]:
    """COCO's content of three classes with boxes of all sizes and crowds, and detections (N, 7) near and far."""
    draw = np.random.default_rng(seed)

    def box() -> list[float]:
        return [*draw.uniform(0, 300, 2), *np.exp(draw.uniform(np.log(8), np.log(200), 2))]

    annotations: list[dict[str, Any]] = []
    rows: list[list[float]] = []
    ids = [7 * number + 3 for number in range(images)]
    for image in ids:
        for _ in range(draw.integers(0, 8)):
            one, category = box(), int(draw.integers(1, 4))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": one,
                    "area": one[2] * one[3],
                    "iscrowd": int(draw.random() < 0.1),
                }
            )
            for _ in range(draw.integers(0, 5)):
                size = np.array(one)[[2, 3, 2, 3]]
                near = np.array(one) + draw.normal(size=4) * draw.choice([0.03, 0.25]) * size
                category_id = category if draw.random() < 0.8 else int(draw.integers(1, 4))
                rows.append([image, *near[:2], *near[2:].clip(1), draw.random(), category_id])
        rows += [[image, *box(), draw.random() / 2, int(draw.integers(1, 4))] for _ in range(5)]
    content = {
        "images": [{"id": image, "file_name": f"{image}.jpg", "width": 600, "height": 600} for image in ids],
        "categories": [{"id": category, "name": f"kind {category}"} for category in (1, 2, 3)],
        "annotations": annotations,
    }
    return content, np.array(rows)


def annotations_of(content: dict[str, Any], folder: Path) -> Annotations:
    """As they are read from a file."""
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return Annotations.load(path)

"""Outlines are those of the annotation file, object by object."""

import json

import numpy as np
from pycocotools import mask as coco_masks

from msdeform.explain.quality.masks import masks_of
from msdeform.train.data.annotations import Annotations

SIZE = (6, 8)


def written(tmp_path, annotations):
    """Annotations of one image with boxes and outlines, read from a file."""
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": number, "image_id": 7, "category_id": 1, "iscrowd": 0, "bbox": box, "area": 1, **outline}
            for number, (box, outline) in enumerate(annotations, start=1)
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return Annotations.load(path)


def test_polygons_and_run_lengths_in_the_order_of_the_boxes(tmp_path) -> None:
    polygon = {"segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]}
    # column by column: 36 pixels that are none, then the last two columns
    lengths = {"segmentation": {"size": list(SIZE), "counts": [36, 12]}}
    found = written(tmp_path, [([1, 1, 4, 3], polygon), ([6, 0, 2, 6], lengths), ([0, 0, 2, 2], {})])
    first, second, none = masks_of(found)(7, found.boxes)
    expected = np.zeros(SIZE, dtype=bool)
    expected[1:4, 1:5] = True
    assert np.array_equal(first, expected)
    expected = np.zeros(SIZE, dtype=bool)
    expected[:, 6:] = True
    assert np.array_equal(second, expected)
    assert none is None


def test_the_outline_goes_with_its_box_though_others_are_left_out(tmp_path) -> None:
    """A box that sticks out of the image is clipped, and is still the same object."""
    polygon = {"segmentation": [[5, 2, 8, 2, 8, 5, 5, 5]]}
    found = written(tmp_path, [([0, 0, 3, 3], {}), ([5, 2, 3.5, 3], polygon)])
    none, mask = masks_of(found)(7, found.boxes)
    assert none is None
    assert mask is not None
    assert mask.sum() == 9
    assert masks_of(found)(8, found.boxes[:1]) == [None], "an image that the file does not have"


def test_what_pycocotools_compresses_is_read_and_what_is_no_outline_is_none(tmp_path) -> None:
    expected = np.zeros(SIZE, dtype=np.uint8, order="F")
    expected[1:4, 1:5] = 1
    small = coco_masks.encode(expected)
    compressed = {"segmentation": {"size": list(SIZE), "counts": small["counts"].decode()}}
    other = coco_masks.encode(np.ones((3, 3), dtype=np.uint8, order="F"))
    wrong = [
        {"size": [3, 3], "counts": other["counts"].decode()},
        [[]],
        [[1, 1, 2, 2]],
        [1, 1, 5, 1, 5, 4],
        {"counts": [3]},
        "polygon",
    ]
    for outline in wrong:
        found = written(tmp_path, [([1, 1, 4, 3], compressed), ([4, 2, 3, 3], {"segmentation": outline})])
        first, second = masks_of(found)(7, found.boxes)
        assert np.array_equal(first, expected.astype(bool))
        assert second is None, outline

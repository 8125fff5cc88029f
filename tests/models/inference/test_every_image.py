"""Images and targets of every kind through every family: prediction, and a training step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from msdeform.models.inference.detections import Detections
from msdeform.models.inference.image_size import Size
from msdeform.models.inference.images import normalise, read_image
from msdeform.models.zoo import create_criterion
from tests.models.tiny import TINY, tiny


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_input(array: np.ndarray) -> Tensor:
    return normalise(torch.from_numpy(array.transpose(2, 0, 1).copy()))


def expected_boxes(model: Any, inputs: list[Tensor], which: int, height: int, width: int) -> list[list[float]]:
    """Boxes that the model gives one of its inputs, each scaled to the image's size; in no order."""
    with torch.no_grad():
        outputs = model.eval()(inputs)
    if "detections" in outputs:
        return [
            [x0 * width, y0 * height, x1 * width, y1 * height]
            for x0, y0, x1, y1 in outputs["detections"][which]["boxes"].tolist()
        ]
    return [
        [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        for x, y, w, h in outputs["pred_boxes"][which].tolist()
    ]


def assert_boxes(found: Detections, expected: list[list[float]]) -> None:
    """Every box found is one of those expected, and every one of those is found."""
    assert len(found) > 0
    apart = (found.boxes[:, None] - torch.tensor(expected)).abs().amax(2)  # (found, expected)
    assert apart.amin(0).max() < 1e-2
    assert apart.amin(1).max() < 1e-2


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize(
    ("sides", "short"), [((32, 32), 32), ((1333, 166), 166), ((64, 512), 32)], ids=["smallest", "longest", "resized"]
)
def test_an_image_of_any_size_has_its_boxes_in_its_pixels(family: str, sides: tuple[int, int], short: int) -> None:
    model = tiny(family)
    array = pixels(*sides)
    found = model.predict(array, size=Size(short, 1333), confidence=0, top_k=1000)
    assert found.image_size == sides
    resized = F.resize(
        torch.from_numpy(array.transpose(2, 0, 1).copy()), [short * side // min(sides) for side in sides]
    )
    assert_boxes(found, expected_boxes(model, [normalise(resized)], 0, *sides))


@pytest.mark.parametrize("family", TINY)
def test_a_batch_of_mixed_sizes_has_each_image_in_its_own_pixels(family: str) -> None:
    model = tiny(family)
    sides = ((32, 32), (64, 32), (32, 128))
    arrays = [pixels(*size, seed=i) for i, size in enumerate(sides)]
    together = model.predict(arrays, size=Size(32, 1333), confidence=0, batch_size=3, top_k=1000)
    for i, (found, size) in enumerate(zip(together, sides, strict=True)):
        assert found.image_size == size
        assert_boxes(found, expected_boxes(model, [as_input(array) for array in arrays], i, *size))


def every_kind(folder: Path) -> tuple[dict[str, Path], dict[str, np.ndarray]]:
    """Files of grey, alpha, 16 bits and a camera on its side; and the plain RGB pixels that each shows."""
    colour, grey = pixels(40, 64), pixels(40, 64)[..., 0]
    wide = grey.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    files = {name: folder / f"{name}.png" for name in ("grey", "alpha", "sixteen", "turned")}
    Image.fromarray(grey).save(files["grey"])
    Image.fromarray(np.dstack([colour, grey])).save(files["alpha"])
    Image.fromarray(wide).save(files["sixteen"])
    # to be turned clockwise
    Image.fromarray(np.rot90(colour).copy()).save(files["turned"], exif=exif)
    grey3 = np.dstack([grey] * 3)
    return files, {"grey": grey3, "alpha": colour, "sixteen": grey3, "turned": colour}


@pytest.mark.parametrize("family", TINY)
def test_a_file_of_any_kind_is_what_it_shows(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    files, shown = every_kind(tmp_path)
    for kind, path in files.items():
        found = model.predict(path, size=64, confidence=0)
        plain = model.predict(shown[kind], size=64, confidence=0)
        assert found.image_size == (40, 64)
        for field in ("boxes", "scores", "labels"):
            assert torch.equal(getattr(found, field), getattr(plain, field)), (kind, field)
    boxes = [model.predict(path, size=64, confidence=0).boxes for path in (files["grey"], files["alpha"])]
    assert boxes[0].shape != boxes[1].shape or not torch.equal(*boxes)


def targets(*counts: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "labels": torch.randint(0, 3, (n,), generator=generator),
            "boxes": torch.rand(n, 4, generator=generator) * 0.4 + 0.2,
        }
        for n in counts
    ]


def step(model: Any, images: list[Tensor], wanted: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Losses after a backward pass."""
    criterion = create_criterion(model)
    losses = criterion(model.train()(images), wanted)
    sum(losses[name] * weight for name, weight in criterion.weight_dict.items()).backward()
    return {name: loss.detach() for name, loss in losses.items()}


def trained(model: Any) -> set[str]:
    """Names of the parameters that got a gradient; all of these must be finite."""
    names = {name for name, p in model.named_parameters() if p.grad is not None}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return names


@pytest.mark.parametrize("family", TINY)
def test_any_number_of_boxes_trains_the_same_parameters(family: str) -> None:
    """None at all, 500, and one more than the ten queries."""
    images = [as_input(pixels(*size)) for size in ((32, 32), (64, 48), (32, 128))]
    model = tiny(family)
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    for counts in ((0, 0, 0), (0, 500, 11)):
        model.zero_grad()
        losses = step(model, images, targets(*counts))
        assert all(loss.isfinite() for loss in losses.values())
        if family != "faster r-cnn":
            assert bool(losses["loss_bbox"]) == (sum(counts) > 0)
            assert losses["loss_ce"] > 0
        assert trained(model) == wanted


@pytest.mark.parametrize("family", [family for family in TINY if family != "faster r-cnn"])
def test_of_more_boxes_than_queries_as_many_as_queries_are_matched(family: str) -> None:
    model = tiny(family)
    criterion = create_criterion(model)
    matched = []
    matcher = criterion.matcher
    # a frozen dataclass: the criterion is given another callable
    criterion.matcher = lambda *arguments: matched.append(matcher(*arguments)) or matched[-1]
    criterion(model([as_input(pixels(96, 64))] * 2), targets(500, 4))
    last = matched[0].layer == matched[0].layer.max()
    assert torch.bincount(matched[0].image[last]).tolist() == [10, 4]
    assert len(set(matched[0].query[last & (matched[0].image == 0)].tolist())) == 10


@pytest.mark.parametrize("family", TINY)
def test_files_of_every_kind_train(family: str, tmp_path: Path) -> None:
    files, _ = every_kind(tmp_path)
    model = tiny(family)
    losses = step(model, [normalise(read_image(path)) for path in files.values()], targets(1, 0, 2, 3))
    assert all(loss.isfinite() for loss in losses.values())
    assert trained(model)

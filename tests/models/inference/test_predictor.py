"""``model.predict``: held against a detector whose answer is known, and run with a real one."""

import re
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn

from msdeform.models.inference.detections import Detections
from msdeform.models.inference.image_size import Size
from msdeform.models.inference.images import normalise
from msdeform.models.inference.post_processing import post_process
from msdeform.models.inference.predictor import Predictor
from msdeform.models.zoo import create_model

LOGITS = (1.0, 3.0, 0.0)  # class 1 is the surest, class 2 has probability 0.5


class Finder(Predictor):
    """Finds what is bright in each of the three channels: one query and one class for each."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=dtype))
        self.frozen = nn.Dropout(0.5)
        self.calls: list[SimpleNamespace] = []
        self.post_processed: list[tuple[list[list[int]], torch.dtype, int]] = []

    def forward(self, images: list[Tensor]) -> dict[str, Tensor]:
        self.calls.append(
            SimpleNamespace(
                shapes=[tuple(image.shape) for image in images],
                dtypes={image.dtype for image in images},
                modes={module.training for module in self.modules()},
                inference=torch.is_inference_mode_enabled(),
            )
        )
        logits = torch.full((len(images), 3, 3), -20.0)
        boxes = torch.full((len(images), 3, 4), 0.5)
        for i, image in enumerate(images):
            height, width = image.shape[1:]
            for channel in range(3):
                ys, xs = torch.nonzero(image[channel] > 0, as_tuple=True)
                if len(xs):
                    x0, x1 = xs.min() / width, (xs.max() + 1) / width
                    y0, y1 = ys.min() / height, (ys.max() + 1) / height
                    boxes[i, channel] = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
                    logits[i, channel, channel] = LOGITS[channel]
        return {"pred_logits": logits, "pred_boxes": boxes}

    def post_process(self, outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100) -> list[Detections]:
        self.post_processed.append((target_sizes.tolist(), target_sizes.dtype, top_k))
        return post_process(outputs, target_sizes, top_k)


def painted(height: int, width: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Black, with each box white in a channel of its own."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for channel, (x0, y0, x1, y1) in enumerate(boxes):
        image[y0:y1, x0:x1, channel] = 255
    return image


def quarter(height: int, width: int) -> tuple[int, int, int, int]:
    """A box somewhere off the middle."""
    return width // 8, height // 4, width // 2, 7 * height // 8


SIDES = [(32, 32), (1333, 640), (427, 1333), (64, 512), (1024, 128), (800, 800), (33, 1333)]


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_boxes_are_in_pixels_of_the_original_whatever_its_size(height: int, width: int) -> None:
    model = Finder()
    found = model.predict(painted(height, width, quarter(height, width)))
    assert found.image_size == (height, width)
    assert model.calls[0].shapes == [(3, *Size().fit(height, width))]
    assert model.post_processed == [([[height, width]], torch.int64, 100)]
    assert found.labels.tolist() == [0]
    # blurred by resizing: half a pixel of the original, and of the resized image
    assert found.boxes[0].tolist() == pytest.approx(quarter(height, width), abs=0.5 + max(1, height / 800, width / 800))


def test_results_are_best_first_with_names_and_as_confident_as_asked() -> None:
    model = Finder()
    image = painted(40, 60, (2, 2, 10, 10), (20, 5, 40, 30), (30, 20, 60, 40))
    found = model.predict(image, size=60)
    assert isinstance(found, Detections)
    assert found.labels.tolist() == [1, 0, 2]
    assert found.scores.tolist() == pytest.approx(torch.tensor([3.0, 1.0, 0.0]).sigmoid().tolist())
    assert found.boxes.round(decimals=3).tolist() == [[20, 5, 40, 30], [2, 2, 10, 10], [30, 20, 60, 40]]
    assert found.names == ["1", "0", "2"]
    assert (len(found), found.boxes.shape, found.labels.dtype) == (3, (3, 4), torch.int64)
    model.categories = ["red", "green", "blue"]
    assert model.predict(image, size=60).names == ["green", "red", "blue"]
    assert model.predict(image, size=60, confidence=0.51).names == ["green", "red"]
    assert len(model.predict(image, size=60, confidence=0)) == 9  # every query with every class
    assert model.predict(image, size=60, top_k=1).names == ["green"]
    assert model.post_processed[-1][2] == 1


def test_nothing_found_is_an_empty_result() -> None:
    for found in (Finder().predict(painted(20, 30), size=32), Finder().predict([painted(20, 30)], size=32)[0]):
        assert len(found) == 0
        assert (found.boxes.shape, found.labels.shape, found.scores.shape) == ((0, 4), (0,), (0,))
        assert found.names == []
        assert found.image_size == (20, 30)
    assert Finder().predict([]) == []


def test_one_image_gives_one_result_and_a_list_a_list(tmp_path: Path) -> None:
    array = painted(40, 60, (4, 8, 20, 24))
    Image.fromarray(array).save(tmp_path / "a.png")
    holders: list[Any] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(array),
        array,
        torch.from_numpy(array).permute(2, 0, 1),
        torch.from_numpy(array).permute(2, 0, 1) / 255,
    ]
    for holder in holders:
        assert Finder().predict(holder, size=60).boxes.round(decimals=3).tolist() == [[4, 8, 20, 24]]
    for many in (holders, tuple(holders), (holder for holder in holders)):
        results = Finder().predict(many, size=60)
        assert isinstance(results, list)
        assert [found.boxes.round(decimals=3).tolist() for found in results] == [[[4, 8, 20, 24]]] * 6


def test_a_box_on_a_turned_file_is_where_it_is_displayed(tmp_path: Path) -> None:
    upright = painted(60, 40, (5, 10, 25, 20))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "turned.png", exif=exif)
    for holder in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        found = Finder().predict(holder, size=60)
        assert found.image_size == (60, 40)
        assert found.boxes.round(decimals=3).tolist() == [[5, 10, 25, 20]]


def test_sizes_may_be_given_in_every_way_and_default_to_the_trained_ones() -> None:
    model, image = Finder(), painted(50, 100)
    for size, shape in ((64, (32, 64)), ((40, 70), (35, 70)), (Size(20, 1000), (20, 40)), (None, (666, 1332))):
        model.predict(image, size=size)
        assert model.calls[-1].shapes == [(3, *shape)]
    model.input_size = Size(96, 96)
    model.predict(image)
    model.predict(image, size=64)
    assert [call.shapes for call in model.calls[-2:]] == [[(3, 48, 96)], [(3, 32, 64)]]


def test_images_are_normalised_and_in_the_models_dtype() -> None:
    class Keeps(Finder):
        def forward(self, images: list[Tensor]) -> dict[str, Tensor]:
            self.kept = images
            return super().forward(images)

    array = painted(30, 40, (3, 3, 20, 20))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = Keeps(dtype)
        model.predict(array, size=40)
        assert model.calls[0].dtypes == {dtype}
        assert torch.equal(model.kept[0], normalise(torch.from_numpy(array).permute(2, 0, 1)).to(dtype))


def test_batches_are_as_large_as_asked_and_read_when_needed() -> None:
    model = Finder()
    read: list[int] = []

    def images() -> Any:
        for number in range(5):
            read.append(len(model.calls))
            yield painted(20 + number, 30, (2, 2, 10, 10))

    results = model.predict(images(), size=(16, 100), batch_size=2)
    assert [len(call.shapes) for call in model.calls] == [2, 2, 1]
    assert read == [0, 0, 1, 1, 2]
    assert [found.image_size for found in results] == [(20 + number, 30) for number in range(5)]
    model.calls.clear()
    model.predict(list(images()))
    assert [len(call.shapes) for call in model.calls] == [1] * 5


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("views", [{}, {"tiles": 24, "flip": True}], ids=["whole", "tiles"])
def test_no_more_than_a_batch_is_held(batch_size: int, views: dict[str, Any]) -> None:
    held: list[Callable[[], Any]] = []
    most = [0, 0]

    def alive() -> int:
        return sum(one() is not None for one in held)

    def images() -> Iterator[Tensor]:
        for _ in range(10):
            most[0] = max(most[0], alive() + 1)
            array = painted(20, 30, (2, 2, 10, 10))
            held.append(weakref.ref(array))
            yield torch.from_numpy(array).permute(2, 0, 1)  # which holds the array as long as its pixels are used
            del array

    results: list[Callable[[], Any]] = []
    for found in Finder().predict_each(images(), size=30, batch_size=batch_size, **views):
        results.append(weakref.ref(found))
        most[1] = max(most[1], sum(one() is not None for one in results))
    assert len(held) == len(results) == 10
    assert most[0] == batch_size if not views else most[0] <= batch_size
    assert most[1] <= max(2, batch_size)
    assert alive() == 0


def test_results_come_one_by_one_and_are_those_of_predict() -> None:
    model = Finder()
    images = [painted(20 + number, 30, (2, 2, 10, 10)) for number in range(5)]
    each = model.predict_each(iter(images), size=30, batch_size=2)
    for found, image, whole in zip(each, images, model.predict(images, size=30), strict=True):
        assert found.image_size == whole.image_size == image.shape[:2]
        assert torch.equal(found.boxes, whole.boxes)
    model.calls.clear()
    each = model.predict_each(iter(images), size=30)
    assert not model.calls
    next(each)
    assert len(model.calls) == 1
    with pytest.raises(TypeError, match=r"^images: expected several, in a list or an iterator, got one ndarray$"):
        model.predict_each(images[0])
    with pytest.raises(ValueError, match=r"^confidence: expected a number from 0 to 1, got 2$"):
        model.predict_each(iter(images), confidence=2)  # before anything is asked for


def test_every_module_is_in_evaluation_mode_and_then_as_it_was() -> None:
    for training in (True, False):
        model = Finder().train(training)
        model.frozen.eval()
        model.predict([painted(20, 30)] * 2, size=32)
        assert [call.modes for call in model.calls] == [{False}] * 2
        assert all(call.inference for call in model.calls)
        assert (model.training, model.frozen.training) == (training, False)
    model.train()
    with pytest.raises(FileNotFoundError):
        model.predict([painted(20, 30), "absent.jpg"], size=32)
    model.forward = lambda images: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        model.predict(painted(20, 30), size=32)
    assert model.training


def test_results_can_be_changed_and_need_no_gradient() -> None:
    found = Finder().predict(painted(20, 30, (2, 2, 10, 10)), size=30)
    assert not found.boxes.requires_grad
    found.boxes.mul_(2)
    found.scores.add_(1)
    assert found.boxes.round(decimals=3).tolist() == [[4, 4, 20, 20]]


@pytest.mark.parametrize(
    ("images", "settings", "error", "sentence"),
    [
        ([], {"confidence": 1.5}, ValueError, "confidence: expected a number from 0 to 1, got 1.5"),
        ([], {"confidence": float("nan")}, ValueError, "confidence: expected a number from 0 to 1, got nan"),
        ([], {"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
        ([], {"top_k": 0}, ValueError, "top_k: expected at least 1, got 0"),
        ([], {"size": 0}, ValueError, "size: expected at least 1 pixel, and (shortest, longest) in this order, got 0"),
        (
            [],
            {"size": (64, 32)},
            ValueError,
            "size: expected at least 1 pixel, and (shortest, longest) in this order, got (64, 32)",
        ),
        (7, {}, TypeError, "images: expected an image (path, PIL image, array, tensor) or a list, got int"),
        ([painted(4, 4), 7], {}, TypeError, "images[1]: expected a path, a PIL image, an array (H, W, 3) or a tensor"),
        (
            [painted(4, 4), painted(4, 4).astype(int)],
            {},
            ValueError,
            "images[1]: expected uint8, uint16, or floats from 0 to 1, got int64",
        ),
        (torch.zeros(3, 4), {}, ValueError, "image: expected a tensor (1, H, W), (3, H, W) or (4, H, W), got (3, 4)"),
        ("absent.jpg", {}, FileNotFoundError, "image absent.jpg does not exist"),
    ],
)
def test_bad_input_is_told_in_a_sentence(
    images: Any, settings: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match="^" + re.escape(sentence)):
        Finder().predict(images, **{"size": 16, **settings})


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match=rf"^image {re.escape(str(path))} cannot be decoded: "):
        Finder().predict([painted(4, 4), path], size=16)


def test_too_few_names_and_scores_that_are_not_numbers_are_told() -> None:
    model = Finder()
    model.categories = ["red"]
    with pytest.raises(ValueError, match=r"^categories: expected a name for every class .* 1 names .* of class 1$"):
        model.predict(painted(20, 30, (0, 0, 4, 4), (5, 5, 9, 9)), size=30)
    model.post_process = lambda outputs, sizes, top_k: [  # type: ignore[method-assign]
        {"scores": torch.tensor([torch.nan]), "labels": torch.tensor([0]), "boxes": torch.zeros(1, 4)}
    ]
    with pytest.raises(RuntimeError, match=r"^images\[0\]: the model's scores are not numbers \(NaN\)"):
        model.predict([painted(20, 30)], size=30)
    with pytest.raises(NotImplementedError, match="Predictor has no post_process"):
        Predictor().post_process({}, torch.zeros(0, 2))


def test_supervision_gets_its_own_type() -> None:
    supervision = pytest.importorskip("supervision", reason="needs the extra `supervision`")
    model = Finder()
    model.categories = ["red", "green", "blue"]
    image = painted(40, 60, (2, 2, 10, 10), (20, 5, 40, 30))
    [found, nothing] = model.predict([image, painted(20, 30)], size=60, as_supervision=True)
    assert isinstance(found, supervision.Detections)
    assert found.xyxy.round(3).tolist() == [[20, 5, 40, 30], [2, 2, 10, 10]]
    assert found.confidence.tolist() == model.predict(image, size=60).scores.tolist()
    assert found.class_id.tolist() == [1, 0]
    assert found["class_name"].tolist() == ["green", "red"]
    assert found[found.confidence > 0.9]["class_name"].tolist() == ["green"]
    assert (len(nothing), nothing.xyxy.shape) == (0, (0, 4))
    assert len(supervision.Detections.merge([found, nothing])) == 2


def test_supervision_is_asked_for_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    model = Finder()
    # None in sys.modules is an import that is refused under that name, as a package that is not there
    with pytest.raises(ImportError, match="not installed: pip install supervision"):
        model.predict(painted(20, 30), as_supervision=True)
    assert model.calls == []


def test_supervision_that_is_broken_says_so_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "supervision.py").write_text("import a_part_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "supervision", raising=False)
    with pytest.raises(ModuleNotFoundError, match="a_part_that_is_missing"):
        Finder().predict(painted(20, 30), as_supervision=True)


def test_supervision_is_given_plain_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = ModuleType("supervision")
    stub.Detections = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", stub)
    found = Finder(torch.bfloat16).predict(painted(20, 30, (2, 2, 10, 10)), size=30).to_supervision()
    assert (found.xyxy.dtype, found.confidence.dtype, found.class_id.dtype) == (np.float32, np.float32, np.int64)
    assert found.data["class_name"].tolist() == ["0"]


class Tiny(Predictor):
    """A real detector, small and untrained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = create_model("deformable_detr_tiny", num_classes=3, attn_backend="reference")

    def forward(self, images: list[Tensor]) -> dict[str, Any]:
        return self.inner(images)

    def post_process(self, outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100) -> list[Detections]:
        return post_process(outputs, target_sizes, top_k)


def same(a: Detections, b: Detections) -> bool:
    return torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) and torch.equal(a.labels, b.labels)


def test_many_of_mixed_sizes_are_as_one_by_one() -> None:
    model = Tiny()
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (*sides, 3), dtype=np.uint8) for sides in ((32, 32), (64, 512), (200, 90))]
    together = model.predict(images, size=96, confidence=0)
    alone = [model.predict(image, size=96, confidence=0) for image in images]
    assert all(map(same, together, alone))
    assert [len(found) for found in together] == [30] * 3
    # padding moves them: why batches of one are the default
    assert not all(map(same, model.predict(images, size=96, confidence=0, batch_size=3), alone))
    torch.testing.assert_close(
        model.predict(images[:1] * 2, size=96, confidence=0, batch_size=2)[1].boxes, alone[0].boxes, rtol=0, atol=1e-3
    )


def test_a_model_trains_on_after_predicting() -> None:
    model = Tiny().train()
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    model.predict(image, size=64)
    outputs = model([normalise(torch.from_numpy(image).permute(2, 0, 1))])
    # nothing that was made in inference mode may be left in the model
    (outputs["pred_logits"].sum() + outputs["pred_boxes"].sum()).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_each_class_has_its_own_minimum_score() -> None:
    model = create_model("deformable_detr_tiny", num_classes=2).eval()
    image = painted(20, 30)
    everything = model.predict(image, confidence=0.0, size=60)
    middle = float(everything.scores[everything.labels == 1].median())
    model.thresholds = [1.0, middle]
    found = model.predict(image, size=60)
    wanted = (everything.labels == 1) & (everything.scores >= middle)
    assert 0 < len(found) == int(wanted.sum())
    assert torch.equal(found.scores, everything.scores[wanted])
    assert torch.equal(found.scores, everything.at_least(model.thresholds).scores)
    assert len(model.predict(image, confidence=0.0, size=60)) == len(everything)  # what is asked for counts


@pytest.mark.parametrize(
    ("confidence", "sentence"),
    [
        ([0.5, 1.5], "confidence: expected a number from 0 to 1, got 1.5"),
        ([0.5, float("nan")], "confidence: expected a number from 0 to 1, got nan"),
        ([0.0], "confidence: expected a number for every class, got 1, and a detection of class"),
    ],
)
def test_wrong_minimum_scores(confidence: list[float], sentence: str) -> None:
    model = create_model("deformable_detr_tiny", num_classes=2).eval()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        model.predict(painted(20, 30), confidence=confidence, size=60)

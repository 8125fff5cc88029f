"""Trained weights as proof: DEIMv2 Atto and Femto, trained on COCO and published as ONNX, in transformers' own model.

Compared on photographs: the ONNX file run by onnxruntime, the same weights in transformers' `Deimv2ForObjectDetection`,
and the same model after `msdeform.accelerate`, which puts our operator in the place of transformers' function.

In float32 the three differ by rounding, which the layers amplify, to 1e-3 in some logits. So probabilities and boxes
are compared closely in float32; logits are in float64, against the ONNX file evaluated in float64.
"""

import copy
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import msdeform
from msdeform.models.inference.images import IMAGENET_MEAN, IMAGENET_STD
from msdeform.models.inference.post_processing import post_process
from msdeform.train.evaluation.coco_metrics import coco_metrics
from msdeform.train.evaluation.results import result_rows

pytest.importorskip("onnx", reason="needs onnx, which reads the published weights")

from tests.integrations.deimv2 import convert
from tests.integrations.deimv2.coco_names import COCO_NAMES
from tests.integrations.deimv2.graph import exact_outputs, onnxruntime_outputs
from tests.integrations.deimv2.repairs import REPAIRS

SIZES = {"atto": 320, "femto": 416}
BACKENDS = ("reference", "cpu")
PHOTOGRAPHS = 4


class Outputs(NamedTuple):
    """Of one model for B photographs."""

    logits: Tensor
    """(B, Q, 80)"""
    boxes: Tensor
    """(B, Q, 4), cxcywh, normalised"""

    def distance(self, other: "Outputs") -> float:
        """The largest difference of a probability or of a box's coordinate, query by query."""
        probabilities = (self.logits.sigmoid() - other.logits.sigmoid()).abs().max()
        return max(probabilities.item(), (self.boxes - other.boxes).abs().max().item())


@pytest.fixture(params=list(SIZES))
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def onnx_file(size: str) -> Path:
    path = Path(__file__).parents[3] / "shared" / "data" / "deimv2" / f"deimv2_hgnetv2_{size}_coco.onnx"
    if not path.is_file():
        pytest.skip(f"the trained weights ../shared/data/deimv2/{path.name} are not on this machine")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime, which runs the published graph")
    pytest.importorskip("transformers.models.deimv2", reason="needs a transformers that has DEIMv2")
    return path


@cache
def annotations(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    return content


@cache
def photographs(folder: Path, size: str, count: int | None) -> Tensor:
    """The first ``count`` images of the validation split, or all, as the models take them: (B, 3, size, size)."""
    processor = convert.image_processor(SIZES[size])
    images = [
        Image.open(folder / "val2017" / image["file_name"]).convert("RGB")
        for image in annotations(folder)["images"][:count]
    ]
    pixels: Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
    return pixels


@torch.no_grad()
def run(model: nn.Module, images: Tensor) -> Outputs:
    """Two images at a time: what one forward pass keeps must not reach the next."""
    parts = [model(pixel_values=pair) for pair in images.split(2)]
    return Outputs(torch.cat([part.logits for part in parts]), torch.cat([part.pred_boxes for part in parts]))


@cache
def loaded(path: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    return convert.load(path, dtype=dtype)


def accelerated(model: nn.Module, backend: str) -> nn.Module:
    """A copy of the model whose three layers compute deformable attention by our operator."""
    copied = copy.deepcopy(model)
    report = msdeform.accelerate(copied, backend)
    assert (report.replaced, report.left) == (3, 0), str(report)
    return copied


@cache
def published_outputs(path: Path, folder: Path, size: str) -> Outputs:
    return Outputs(*onnxruntime_outputs(path, photographs(folder, size, PHOTOGRAPHS)))


def test_transformers_gives_what_onnxruntime_gives(size: str, onnx_file: Path, coco_mini: Path) -> None:
    expected = published_outputs(onnx_file, coco_mini, size)
    found = run(loaded(onnx_file), photographs(coco_mini, size, PHOTOGRAPHS))
    assert expected.logits.sigmoid().amax((1, 2)).min() > 0.5, "something is found on each photograph"
    assert found.distance(expected) < 1e-4
    assert (found.logits - expected.logits).abs().max() < 2e-3


@pytest.mark.parametrize("left_out", list(REPAIRS))
def test_no_repair_can_be_left_out(size: str, left_out: str, onnx_file: Path, coco_mini: Path) -> None:
    found = run(convert.load(onnx_file, without=[left_out]), photographs(coco_mini, size, PHOTOGRAPHS))
    # anchors moved by 2e-4 move boxes by little more
    least = 2e-4 if left_out == "stored anchors" else 1e-2
    assert found.distance(published_outputs(onnx_file, coco_mini, size)) > least


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_accelerated_model_gives_what_it_gave(size: str, backend: str, onnx_file: Path, coco_mini: Path) -> None:
    images = photographs(coco_mini, size, PHOTOGRAPHS)
    theirs = loaded(onnx_file)
    ours = accelerated(theirs, backend)
    assert run(ours, images).distance(run(theirs, images)) < 1e-4
    # in float64 logits too: transformers' RMSNorm, which rounds to float32, hides smaller differences
    images, theirs = images[:2].double(), loaded(onnx_file, torch.float64)
    ours = accelerated(theirs, backend)
    found, expected = run(ours, images), run(theirs, images)
    assert (found.logits - expected.logits).abs().max() < 1e-5
    assert (found.boxes - expected.boxes).abs().max() < 1e-5


def test_transformers_reads_the_folder_that_the_command_writes(
    size: str, onnx_file: Path, coco_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoImageProcessor

    out = tmp_path / size
    monkeypatch.setattr(sys, "argv", ["convert", str(onnx_file), str(out)])
    convert.main()
    images = photographs(coco_mini, size, PHOTOGRAPHS)[:2]
    model: Any = convert.read_folder(out)
    found, expected = run(model, images), run(loaded(onnx_file), images)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.boxes, expected.boxes)
    assert model.config.id2label == dict(enumerate(COCO_NAMES))
    processor = AutoImageProcessor.from_pretrained(out, local_files_only=True)
    first = Image.open(coco_mini / "val2017" / annotations(coco_mini)["images"][0]["file_name"]).convert("RGB")
    assert torch.equal(processor(images=first, return_tensors="pt")["pixel_values"][0], images[0])


def test_the_command_says_what_is_no_such_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onnx import helper, save

    graph = helper.make_graph([], "empty", [], [])
    save(helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="path: expected an ONNX file of DEIMv2, got .*other.onnx, without"):
        convert.write_folder(tmp_path / "other.onnx", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="path: expected an ONNX file of DEIMv2, .*none.onnx does not exist"):
        convert.load(tmp_path / "none.onnx")
    assert not (tmp_path / "out").exists()


def test_labels_are_in_the_order_of_cocos_ids(coco_mini: Path) -> None:
    categories = sorted(annotations(coco_mini)["categories"], key=lambda category: category["id"])
    assert tuple(category["name"] for category in categories) == COCO_NAMES


@pytest.mark.slow
def test_in_float64_transformers_gives_what_the_onnx_file_says(size: str, onnx_file: Path, coco_mini: Path) -> None:
    """What is left is of transformers' RMSNorm, which computes in float32 whatever the model's dtype."""
    images = photographs(coco_mini, size, PHOTOGRAPHS)[:1].double()
    exact = Outputs(*exact_outputs(onnx_file, images))
    found = run(loaded(onnx_file, torch.float64), images)
    assert (found.logits - exact.logits).abs().max() < 1e-4
    assert (found.boxes - exact.boxes).abs().max() < 1e-5
    for left_out in REPAIRS:
        found = run(convert.load(onnx_file, without=[left_out], dtype=torch.float64), images)
        assert (found.logits - exact.logits).abs().max() > 1e-3, left_out
        assert (found.boxes - exact.boxes).abs().max() > 1e-4, left_out


@pytest.mark.slow
def test_average_precision_on_real_images(size: str, onnx_file: Path, coco_mini: Path) -> None:
    """Equal to three digits by all three, over all images of the sample's validation split."""
    images, truth = photographs(coco_mini, size, None), annotations(coco_mini)
    target_sizes = torch.tensor([[image["height"], image["width"]] for image in truth["images"]])
    image_ids = [image["id"] for image in truth["images"]]
    category_ids = sorted(category["id"] for category in truth["categories"])

    def precision(outputs: Outputs) -> float:
        found = post_process({"pred_logits": outputs.logits, "pred_boxes": outputs.boxes}, target_sizes, top_k=300)
        return coco_metrics(truth, result_rows(image_ids, found, category_ids), image_ids)["AP"]

    theirs = loaded(onnx_file)
    ours = {backend: accelerated(theirs, backend) for backend in BACKENDS}
    expected = precision(Outputs(*onnxruntime_outputs(onnx_file, images)))
    assert expected == pytest.approx({"atto": 0.275, "femto": 0.341}[size], abs=2e-3)
    found = {name: precision(run(model, images)) for name, model in {"theirs": theirs, **ours}.items()}
    assert np.allclose(list(found.values()), expected, rtol=0, atol=5e-4), (expected, found)
    # what the documentation of the conversion says of other ways to read the weights
    assert precision(run(convert.load(onnx_file, without=REPAIRS), images)) < 0.04
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    assert precision(run(theirs, (images - mean) / std)) < 0.2

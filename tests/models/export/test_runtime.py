"""An exported file as a detector: it predicts and is evaluated as the model that it was made of."""

import importlib.util
import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from msdeform.cli import main
from msdeform.models.export import formats
from msdeform.models.export.check import like_a_photograph
from msdeform.models.export.export import export
from msdeform.models.export.form import Form
from msdeform.models.export.runtime import Engine, ExportedDetector, FittingSize
from msdeform.models.families.detector import Detector
from msdeform.models.inference.image_size import Size
from msdeform.models.zoo import create_model

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install")


@pytest.fixture(scope="module")
def model() -> Detector:
    torch.manual_seed(0)
    model = create_model("detr_tiny", num_classes=3).eval()
    model.categories, model.input_size, model.thresholds = ["a", "b", "c"], Size(64, 96), [0.1, 0.2, 0.3]
    return model


@pytest.fixture(scope="module")
def files(model: Detector, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of any size, and of one size and two images."""
    folder = tmp_path_factory.mktemp("exported")
    forms = {"any": Form((64, 96)), "one": Form((64, 96), batch=2, dynamic=())}
    for name, form in forms.items():
        export(model, folder / f"{name}.onnx", form, checks=0)
    export(model, folder / "any.pt2", forms["any"], checks=0)
    return {"program": folder / "any.pt2", **{name: folder / f"{name}.onnx" for name in forms}}


def picture(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return (like_a_photograph(size, seed) * 50 + 120).clamp(0, 255).byte()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "pytorch"])
def test_a_file_of_any_size_predicts_what_the_model_does(
    engine: Engine, model: Detector, files: dict[str, Path]
) -> None:
    if engine != "pytorch":
        pytest.importorskip(engine)
    file = files["program" if engine == "pytorch" else "any"]
    detector = ExportedDetector(file, engine=engine, threads=1, trust_code=engine == "pytorch")
    assert (detector.kind, detector.engine, detector.focal) == ("detr_tiny", engine, False)
    images = [picture(size, seed) for seed, size in enumerate([(90, 135), (100, 60), (64, 64)])]
    for batch_size in (1, 3):
        pairs = zip(
            detector.predict(images, confidence=0.0, batch_size=batch_size),
            model.predict(images, confidence=0.0, batch_size=batch_size),
            strict=True,
        )
        for came, wanted in pairs:
            assert came.names == wanted.names
            torch.testing.assert_close(came.boxes, wanted.boxes, rtol=1e-4, atol=1e-2)
            torch.testing.assert_close(came.scores, wanted.scores, rtol=1e-4, atol=1e-5)
    assert detector.predict(images[0]).names == model.predict(images[0]).names  # by the file's thresholds


def test_a_file_of_one_size_pads_and_splits(model: Detector, files: dict[str, Path]) -> None:
    detector = ExportedDetector(files["one"])
    images = [picture((90, 135), seed) for seed in range(3)]
    for came, wanted in zip(
        detector.predict(images, confidence=0.0, batch_size=3), model.predict(images, confidence=0.0), strict=True
    ):
        torch.testing.assert_close(came.scores, wanted.scores, rtol=1e-4, atol=1e-5)
    assert len(detector.predict(picture((300, 40)), confidence=0.0))  # 64 rows at most
    # one that leaves room counts as the model counts it, with that room masked
    small = like_a_photograph((30, 60))
    padded, mask = torch.zeros(1, 3, 64, 96), torch.ones(1, 64, 96, dtype=torch.bool)
    padded[0, :, :30, :60], mask[0, :30, :60] = small, False
    with torch.no_grad():
        outputs = model((padded, mask))
    torch.testing.assert_close(detector([small])["pred_logits"], outputs["pred_logits"], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="images: expected at most 64x96, the one size of .*one.onnx, got 65x96"):
        detector([torch.zeros(3, 65, 96)])


def test_a_size_that_does_not_fit_is_made_smaller() -> None:
    size = FittingSize(Size(64, 96), (64, 96))
    assert size.fit(90, 135) == (64, 96)
    assert size.fit(135, 90) == (64, 42)
    assert size.fit(30, 30) == (64, 64)


def test_what_is_no_such_file_is_told(tmp_path: Path, model: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.onnx does not exist"):
        ExportedDetector(tmp_path / "nowhere.onnx")
    with pytest.raises(ValueError, match="expected a file .onnx for onnxruntime"):
        ExportedDetector(tmp_path / "a.xml", engine="onnxruntime")
    (tmp_path / "a.xml").touch()
    monkeypatch.setattr(formats, "openvino_core", Mock(side_effect=ModuleNotFoundError(name="openvino")))
    with pytest.raises(ValueError, match="a.xml needs openvino, .* pip install openvino"):
        ExportedDetector(tmp_path / "a.xml")
    (tmp_path / "text.pt2").write_text("no archive")
    with pytest.raises(ValueError, match="text.pt2 is no file of msdeform export: File is not a zip file"):
        ExportedDetector(tmp_path / "text.pt2", trust_code=True)
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ValueError, match="text.onnx is no file of msdeform export"):
        ExportedDetector(tmp_path / "text.onnx")
    export(model, tmp_path / "found.onnx", Form((64, 96), dynamic=(), top_k=5), checks=0)
    with pytest.raises(ValueError, match="expected a file of logits and boxes, got boxes, labels, scores of"):
        ExportedDetector(tmp_path / "found.onnx")


def test_eval_and_predict_take_a_file(
    model: Detector, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    assert main(["data", "synth", "--out", str(data), "--train", "2", "--val", "3", "--size", "64"]) == 0
    names = [one["name"] for one in json.loads((data / "annotations/instances_val2017.json").read_text())["categories"]]
    torch.manual_seed(1)
    own = create_model("detr_tiny", num_classes=len(names)).eval()
    own.categories, own.input_size = names, Size(64, 64)
    own.save_pretrained(tmp_path / "model")
    export(own, tmp_path / "own.onnx", Form((64, 64)), checks=0)
    numbers = []
    for checkpoint in ("model", "own.onnx"):
        out = tmp_path / f"{checkpoint}.json"
        words = ["eval", "--checkpoint", str(tmp_path / checkpoint), "--data", str(data), "--out", str(out)]
        assert main([*words, "--no-progress"]) == 0
        numbers.append(json.loads(out.read_text()))
    assert "detr_tiny, onnxruntime on cpu, 3 images" in capsys.readouterr().out
    assert len(numbers[0]) == len(numbers[1]) > 0
    for one, other in zip(*numbers, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
    Image.fromarray(picture((90, 135)).permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    words = ["predict", str(tmp_path / "image.png"), "--checkpoint", str(files["any"]), "--out", str(tmp_path / "out")]
    assert main([*words, "--confidence", "0", "--no-progress"]) == 0
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == len(
        model.predict(tmp_path / "image.png", confidence=0.0)
    )

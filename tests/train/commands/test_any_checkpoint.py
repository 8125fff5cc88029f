"""``msdeform eval`` and ``predict`` of one model in every format: the same detections."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.cli import main
from msdeform.models.inference.image_size import Size
from msdeform.models.weights.convert import convert
from msdeform.models.weights.formats import save_msdeform
from msdeform.models.zoo import create_model
from msdeform.train.config.options import TrainOptions
from msdeform.train.data.annotations import Category
from msdeform.train.engine.checkpoint import Trained, load_trained, save_checkpoint
from msdeform.train.engine.state import Training
from msdeform.train.evaluation.detect import match_categories
from msdeform.train.evaluation.results import coco_results
from tests.models.huggingface import randomise

# wide enough for Hugging Face's groups of channels; 2 heads, as the name that weights alone are given
WIDE = ("hidden_dim=128", "backbone_frozen=true")


@pytest.fixture
def run(options: TrainOptions, changed: Any) -> Path:
    """A run's checkpoint of random weights, whose detections differ from image to image."""
    training = Training(changed(override=WIDE))
    randomise(training.model)
    path = Path(str(options.run.out)) / "checkpoint-00000003.pt"
    save_checkpoint(path, training.state())
    return path


def evaluated(checkpoint: Path, shapes: Path, out: Path, *words: str) -> list[dict[str, Any]]:
    settings = ["--device", "cpu", "--attn-backend", "reference", "--workers", "0", "--no-progress", "--out", str(out)]
    assert main(["eval", "--data", str(shapes), "--checkpoint", str(checkpoint), *settings, *words]) == 0
    return list(json.loads(out.read_text()))


def test_every_format_is_evaluated_alike(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = evaluated(run, shapes, tmp_path / "run.json")
    assert len({result["category_id"] for result in expected}) > 1
    first = capsys.readouterr().out
    assert first.startswith("deformable_detr_tiny at step 0, reference on cpu, 4 images\n")
    for to in ("msdeform", "huggingface", "official"):
        convert(run.parent, tmp_path / to, to)
        assert evaluated(tmp_path / to, shapes, tmp_path / f"{to}.json") == expected
        out = capsys.readouterr().out
        assert out.startswith(f"{to}, reference on cpu, 4 images\n")
        assert out.splitlines()[1] == first.splitlines()[1]


def test_weights_alone_are_evaluated_by_the_name_of_their_model(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = create_model("deformable_detr_tiny", num_classes=3, attn_backend="reference")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    assert main(["eval", "--data", str(shapes), "--checkpoint", str(tmp_path / "bare.pth"), "--device", "cpu"]) == 1
    assert "name the model it is of: deformable_detr_mini" in capsys.readouterr().err
    words = ("--model", "deformable_detr_tiny", "--image-size", "64")
    assert evaluated(tmp_path / "bare.pth", shapes, tmp_path / "out.json", *words)


def test_classes_are_matched_by_name_whatever_their_order(run: Path, shapes: Path, tmp_path: Path) -> None:
    trained = load_trained(run, torch.device("cpu"), "reference")
    names, ids = [c.name for c in trained.categories], [c.id for c in trained.categories]
    weights, config = trained.model.state_dict(), trained.model.require_config().to_dict()
    save_msdeform(tmp_path / "turned", weights, config, names[::-1], Size(64, 64))
    expected = evaluated(run, shapes, tmp_path / "a.json")
    found = evaluated(tmp_path / "turned", shapes, tmp_path / "b.json")
    turned = dict(zip(ids, ids[::-1], strict=True))
    assert found == [{**result, "category_id": turned[result["category_id"]]} for result in expected]


def test_a_run_is_evaluated_on_the_same_classes_by_other_ids(run: Path, shapes: Path, tmp_path: Path) -> None:
    given = shapes / "annotations" / "instances_val2017.json"
    content = json.loads(given.read_text())
    ids = [category["id"] for category in content["categories"]]
    other = dict(zip(ids, [one + 10 for one in reversed(ids)], strict=True))
    for entry, key in [(one, "id") for one in content["categories"]] + [
        (one, "category_id") for one in content["annotations"]
    ]:
        entry[key] = other[entry[key]]
    (tmp_path / "other.json").write_text(json.dumps(content))
    expected = evaluated(run, shapes, tmp_path / "a.json")
    words = ("--val-images", str(shapes / "val2017"), "--val-annotations", str(tmp_path / "other.json"))
    found = evaluated(run, shapes, tmp_path / "b.json", *words)
    assert found == [{**result, "category_id": other[result["category_id"]]} for result in expected]


def test_predict_takes_every_format(run: Path, shapes: Path, tmp_path: Path) -> None:
    found = {}
    for to in ("run", "msdeform", "huggingface", "official"):
        path = run.parent if to == "run" else tmp_path / to
        if to != "run":
            convert(run, path, to)
        words = ["predict", str(shapes / "val2017"), "--checkpoint", str(path), "--out", str(tmp_path / f"{to}-seen")]
        words += ["--confidence", "0", "--image-size", "64", "--device", "cpu", "--no-progress"]
        assert main([*words, "--attn-backend", "reference"]) == 0
        found[to] = json.loads((tmp_path / f"{to}-seen" / "predictions.json").read_text())
    ids = [category.id for category in load_trained(run, torch.device("cpu"), "reference").categories]
    # weights that no run wrote know labels alone
    labelled = [{**result, "category_id": ids.index(result["category_id"])} for result in found["run"]]
    assert labelled
    assert found["msdeform"] == found["huggingface"] == found["official"] == labelled


def trained(num_classes: int, names: list[str] | None = None) -> Trained:
    model = create_model("detr_tiny", num_classes=num_classes)
    model.categories = names
    return Trained(model, "mine.pth", [], TrainOptions(), "reference", torch.device("cpu"), None)


DATA = [Category(1, "person"), Category(3, "car"), Category(7, "train")]


def test_labels_become_the_datas_category_ids() -> None:
    names = ["N/A", "car", "N/A", "train", "person"]
    assert match_categories(trained(5, names), DATA) == [None, 3, None, 7, 1]
    assert match_categories(trained(3), DATA) == [1, 3, 7]  # as many: the data's own, in order
    assert match_categories(trained(8), DATA) == list(range(8))  # official: category ids
    with pytest.raises(ValueError, match=r"^mine\.pth has 7 classes without names, and the data has 3 others$"):
        match_categories(trained(7), DATA)
    with pytest.raises(ValueError, match=r"^mine\.pth has no class 'car'; it lacks 2 of the data's 3 classes$"):
        match_categories(trained(2, ["person", "dog"]), DATA)


def test_a_label_without_a_category_gives_no_result() -> None:
    found = {"scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([0, 1]), "boxes": torch.ones(2, 4)}
    assert [result["category_id"] for result in coco_results(1, found, [None, 3])] == [3]


def test_labels_without_names_are_numbered(tmp_path: Path) -> None:
    model = create_model("detr_tiny", num_classes=2)
    save_msdeform(tmp_path, model.state_dict(), model.require_config().to_dict())
    assert load_trained(tmp_path, torch.device("cpu")).categories == [Category(0, "0"), Category(1, "1")]

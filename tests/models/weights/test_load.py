"""Detectors out of every format: the same outputs, bit for bit; and starts from each, with what was taken of it."""

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from msdeform.models.families.detector import Detector
from msdeform.models.inference.image_size import Size
from msdeform.models.weights.formats import read_source, save_huggingface, save_msdeform, save_official
from msdeform.models.weights.load import Start, nearest_model, start_from
from msdeform.models.zoo import create_model, load_model
from msdeform.train.engine.checkpoint import save_checkpoint
from tests.models.huggingface import randomise

# wide enough for Hugging Face's groups of channels
WIDE: dict[str, Any] = {"hidden_dim": 128, "dim_feedforward": 24, "num_queries": 7, "dec_layers": 2}
DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("detr_tiny", WIDE),
    "detr, learned positions": ("detr_tiny", {**WIDE, "position_embedding": "learned"}),
    "single scale": ("deformable_detr_tiny", {**WIDE, "num_feature_levels": 1}),
    "multi-scale": ("deformable_detr_tiny", WIDE),
    "refine": ("deformable_detr_tiny", {**WIDE, "with_box_refine": True}),
    "two-stage": ("deformable_detr_tiny", {**WIDE, "with_box_refine": True, "two_stage": True}),
}
ONLY_OURS = {
    "focal, pre-norm": ("detr_tiny", {"focal": True, "pre_norm": True}),
    "demo": ("detr_demo", {"backbone": "resnet10_tiny", "hidden_dim": 32, "nheads": 4, "dim_feedforward": 16}),
    "faster r-cnn": ("fasterrcnn_tiny", {}),
}
NAMES = ["cat", "dog", "N/A", "bird"]
FORMATS = ("official", "huggingface", "msdeform", "training", "run")


def detector(variant: str, num_classes: int = 4, **overrides: Any) -> Detector:
    name, own = {**DETECTORS, **ONLY_OURS}[variant]
    settings = {"backbone_frozen": True, **own, **overrides}
    model = create_model(name, num_classes=num_classes, attn_backend="reference", **settings)
    randomise(model)
    model.categories, model.input_size = NAMES[:num_classes], Size(64, 64)
    return model.eval()


def training_state(model: Detector) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "model_config": model.require_config().to_dict(),
        "categories": [{"id": 10 * i, "name": name} for i, name in enumerate(model.categories or [])],
        "options": {"input": {"image_size": 64}},
    }


def written(model: Detector, form: str, folder: Path) -> Path:
    """The model's weights in a format."""
    path = folder / {"official": "official.pth", "training": "checkpoint-00000007.pt"}.get(form, form)
    weights, config = model.state_dict(), model.require_config().to_dict()
    if form == "official":
        save_official(path, weights, config, model.categories, model.input_size)
    elif form == "huggingface":
        save_huggingface(path, weights, config, model.categories, model.input_size)
    elif form == "msdeform":
        save_msdeform(path, weights, config, model.categories, model.input_size)
    elif form == "training":
        save_checkpoint(path, training_state(model))
    else:
        save_checkpoint(path / "checkpoint-00000001.pt", {})
        save_checkpoint(path / "checkpoint-00000002.pt", training_state(model))
        (path / "checkpoint-00000003.pt").write_bytes(b"half of a file")
    return path


def outputs(model: Detector) -> dict[str, Tensor]:
    images = [torch.linspace(-2, 2, 3 * 64 * 48).view(3, 64, 48), torch.linspace(2, -1, 3 * 40 * 64).view(3, 40, 64)]
    with torch.no_grad():
        found = model(images)
    return {key: found[key] for key in ("pred_logits", "pred_boxes")}


def assert_same_outputs(one: Detector, other: Detector) -> None:
    expected = outputs(other)
    for key, tensor in outputs(one).items():
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("variant", DETECTORS)
def test_every_format_rebuilds_the_model(variant: str, form: str, tmp_path: Path) -> None:
    model = detector(variant)
    found = load_model(written(model, form, tmp_path), attn_backend="reference")
    assert type(found) is type(model)
    assert found.config == model.config
    assert not found.training
    assert_same_outputs(found, model)
    assert found.categories == NAMES
    assert found.input_size == Size(64, 64)


@pytest.mark.parametrize("form", ["official", "msdeform", "training"])
@pytest.mark.parametrize("variant", ONLY_OURS)
def test_what_only_ours_has_is_rebuilt_too(variant: str, form: str, tmp_path: Path) -> None:
    model = detector(variant, backbone_frozen=False)
    found = load_model(written(model, form, tmp_path), attn_backend="reference")
    assert found.config == model.config
    own = found.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(own[name], tensor), name


@pytest.mark.parametrize("form", ["bare", "official", "huggingface"])
def test_weights_alone_need_the_name_of_their_model(form: str, tmp_path: Path) -> None:
    model = create_model("detr_tiny", num_classes=4, attn_backend="reference", backbone_frozen=True).eval()
    randomise(model)
    path = tmp_path / ("weights.safetensors" if form == "huggingface" else "weights.pth")
    if form == "huggingface":
        save_file(load_file(written(model, form, tmp_path) / "model.safetensors"), path)
    else:
        torch.save(model.state_dict() if form == "bare" else {"model": model.state_dict(), "epoch": 3}, path)
    assert_same_outputs(load_model(path, name="detr_tiny"), model)
    with pytest.raises(ValueError, match=r"says nothing of its detr's structure; name the model it is of: detr_mini, "):
        load_model(path)
    with pytest.raises(ValueError, match="holds the weights of a detr; deformable_detr_tiny is a deformable_detr"):
        load_model(path, name="deformable_detr_tiny")
    with pytest.raises(ValueError, match=r"another model: [0-9]+ parameters differ, the first backbone\.0"):
        load_model(path, name="detr_mini")
    with pytest.raises(ValueError, match="no model is called 'detr_tny'; did you mean detr_tiny"):
        load_model(path, name="detr_tny")


def test_a_name_is_held_against_what_the_source_says_itself(tmp_path: Path) -> None:
    model = create_model("deformable_detr_tiny", num_classes=4, attn_backend="reference")
    path = written(model, "official", tmp_path)
    assert load_model(path, attn_backend="reference", name="deformable_detr_tiny").config == model.config
    # of the same shapes: only the settings beside the weights tell one from the other
    for field, value in (("nheads", 4), ("dilation", True)):
        state = torch.load(path, weights_only=False)
        vars(state["args"])[field] = value
        torch.save(state, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=rf"other\.pth( is not of deformable_detr_tiny)?: {field}: expected"):
            load_model(tmp_path / "other.pth", name="deformable_detr_tiny")


def test_an_official_command_line_may_say_more_than_we_know(tmp_path: Path) -> None:
    model = detector("multi-scale")
    config = model.require_config().to_dict()
    args = argparse.Namespace(**config, lr_drop=40, coco_path="./data/coco", position_embedding_scale=6.28, masks=False)
    state = {"model": model.state_dict(), "args": args, "optimizer": {"state": {}}, "lr_scheduler": {}, "epoch": 49}
    state["model"] = {**state["model"], "transformer.total_params": torch.zeros(1), "total_ops": torch.zeros(1)}
    torch.save(state, tmp_path / "r50.pth")
    assert_same_outputs(load_model(tmp_path / "r50.pth", attn_backend="reference"), model)
    assert read_source(tmp_path / "r50.pth").ignored == ["total_ops", "transformer.total_params"]


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return (print, ("ran",))

    torch.save({"model": {}, "args": Code()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth is damaged or not a checkpoint: .*[Ww]eights.only"):
        load_model(tmp_path / "x.pth")


def test_an_exported_file_is_told_from_weights(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").touch()
    with pytest.raises(ValueError, match=r"x\.onnx is an exported file, .*: name what it was exported from"):
        load_model(tmp_path / "x.onnx")


def test_counts_of_batches_in_published_files_thaw_no_norm(tmp_path: Path) -> None:
    """Those of some norms, under the names that transformers itself passes over in its published files."""
    model = detector("multi-scale")
    folder = written(model, "huggingface", tmp_path)
    count = "model.backbone.conv_encoder.model.layer2.0.downsample.1.num_batches_tracked"
    save_file({**load_file(folder / "model.safetensors"), count: torch.tensor(0)}, folder / "model.safetensors")
    found = load_model(folder, attn_backend="reference")
    assert found.config == model.config
    assert_same_outputs(found, model)
    assert read_source(folder).ignored == [count]
    assert start_from(detector("multi-scale"), read_source(folder)).ignored == [count]


def test_names_of_classes_keep_their_labels(tmp_path: Path) -> None:
    folder = written(detector("detr"), "huggingface", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"3": "bird", "1": "dog"}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(folder).categories == ["0", "dog", "2", "bird"]
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(4)}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(folder).categories is None


def test_a_folder_that_says_nonsense_is_named(tmp_path: Path) -> None:
    folder = written(detector("detr"), "msdeform", tmp_path)
    good = json.loads((folder / "config.json").read_text())

    def sentence(config: Any) -> str:
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "its configuration is of a yolo" in sentence({**good, "model": {**good["model"], "family": "yolo"}})
    assert "nheads: expected at least 1, got 0" in sentence({**good, "model": {**good["model"], "nheads": 0}})
    assert "heads: not a field of the configuration of detr" in sentence(
        {**good, "model": {**good["model"], "heads": 1}}
    )
    assert "enc_layers: expected int, got 'six'" in sentence({**good, "model": {**good["model"], "enc_layers": "six"}})
    assert "expected a configuration with format" in sentence({"format": good["format"]})
    assert "expected a configuration with format" in sentence([1])
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="name the model it is of"):
        load_model(folder)
    with pytest.raises(FileNotFoundError, match=r"or a run's with best\.pt or checkpoint-\*\.pt, found neither"):
        load_model(tmp_path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("variant", ["detr", "multi-scale", "two-stage"])
def test_init_from_any_format_reports_what_it_took(variant: str, form: str, tmp_path: Path) -> None:
    source, model = detector(variant), detector(variant, num_classes=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    randomise(source, seed=1)
    path = written(source, form, tmp_path)
    start = start_from(model, read_source(path))
    heads = sorted(name for name in before if "class_embed" in name)
    assert heads
    assert start.fresh == start.ignored == heads
    assert sorted([*start.loaded, *heads]) == sorted(before)
    assert start.format == ("training" if form == "run" else form)
    after, given = model.state_dict(), source.state_dict()
    for name in heads:  # where classes are scored one by one, a new one begins as the mean of the old
        begun = given[name].mean(0, keepdim=True).expand_as(before[name]) if model.focal else before[name]
        torch.testing.assert_close(after[name], begun)
    for name in start.loaded:
        assert torch.equal(after[name], given[name]), name
    lines = start.sentences()
    assert lines[0].startswith(f"{len(start.loaded)} tensors loaded from {start.source} ({start.format} format)")
    assert lines[1:] == [f"new: class_embed ({len(heads)} tensors), because the classes differ"]


def test_a_start_says_what_is_new_and_not_used_in_a_line_each() -> None:
    fresh = ["class_embed.0.weight", "class_embed.1.weight", "query_embed.weight"]
    start = Start(Path("x"), "official", ["a"], fresh, [*fresh, "other.a", "other.b", "total_ops"])
    assert start.sentences() == [
        "1 tensors loaded from x (official format)",
        "new: class_embed (2 tensors), because the classes differ",
        "new: query_embed (1 tensors), because the numbers of queries differ",
        "not used: other (2 tensors), total_ops (1 tensors)",
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_the_nearest_model_and_what_differs_rebuild_the_detector(form: str, tmp_path: Path) -> None:
    model = detector("two-stage", num_queries=7)
    found = nearest_model(read_source(written(model, form, tmp_path)))
    assert found is not None
    name, differing = found
    again = create_model(name, num_classes=model.config.num_classes, attn_backend="reference", **differing)
    assert dataclasses.replace(again.config, backbone_frozen=model.config.backbone_frozen) == model.config
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    assert nearest_model(read_source(tmp_path / "bare.pth")) is None


@pytest.mark.parametrize("form", FORMATS)
def test_init_from_another_model_is_one_sentence(form: str, tmp_path: Path) -> None:
    path = written(detector("multi-scale"), form, tmp_path)
    for model in (detector("detr"), detector("multi-scale", dim_feedforward=48)):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match=r"is a checkpoint of another model: [0-9]+ parameters beside") as caught:
            start_from(model, read_source(path))
        assert "\n" not in str(caught.value)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), f"{name} was changed although the start was refused"


def test_counters_of_a_profiler_are_reported_as_ignored(tmp_path: Path) -> None:
    model = detector("detr")
    torch.save({"model": {**model.state_dict(), "class_embed.total_ops": torch.zeros(1)}}, tmp_path / "x.pth")
    start = start_from(detector("detr"), read_source(tmp_path / "x.pth"))
    assert start == dataclasses.replace(start, fresh=[], ignored=["class_embed.total_ops"])
    assert Start(tmp_path, "official", ["a"], [], []).sentences() == [
        f"1 tensors loaded from {tmp_path} (official format)"
    ]


@pytest.mark.parametrize(("variant", "heads"), [("demo", "linear_class"), ("faster r-cnn", "box_predictor")])
def test_heads_of_every_family_are_made_anew(variant: str, heads: str, tmp_path: Path) -> None:
    path = written(detector(variant), "msdeform", tmp_path)
    start = start_from(detector(variant, num_classes=2), read_source(path))
    assert start.fresh
    assert all(heads in name for name in start.fresh)

"""``msdeform convert``: every format into every other, there and back, and transformers reads what comes out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from msdeform.cli import main
from msdeform.models.inference.image_size import Size
from msdeform.models.inference.images import normalise, read_image
from msdeform.models.weights import formats
from msdeform.models.weights.convert import FORMATS, convert
from msdeform.models.weights.formats import read_source
from msdeform.models.zoo import load_model
from tests.models.huggingface import batch
from tests.models.weights.test_load import DETECTORS, NAMES, assert_same_outputs, detector, written

READ = ("official", "huggingface", "msdeform", "run")


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("form", READ)
def test_every_format_becomes_every_other(form: str, to: str, tmp_path: Path) -> None:
    model = detector("two-stage")
    src, dst, back = written(model, form, tmp_path), tmp_path / "there", tmp_path / "back"
    source = convert(src, dst, to)
    assert read_source(dst).format == to
    found = load_model(dst, attn_backend="reference")
    assert_same_outputs(found, model)
    assert found.config == model.config
    assert found.categories == NAMES
    assert found.input_size == model.input_size == Size(64, 64)
    convert(dst, back, "official")
    assert (read_source(back).categories, read_source(back).input_size) == (NAMES, Size(64, 64))
    again = read_source(back).weights
    assert again.keys() == source.weights.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], tensor), name


def test_minimum_scores_go_along(tmp_path: Path) -> None:
    model = detector("two-stage")
    model.thresholds = [0.1 + 0.8 * label / len(NAMES) for label in range(len(NAMES))]
    model.save_pretrained(tmp_path / "a")
    for src, dst, to in (
        ("a", "b", "msdeform"),
        ("b", "c", "official"),
        ("c", "d", "msdeform"),
        ("d", "e", "official"),
    ):
        convert(tmp_path / src, tmp_path / dst, to)
        assert load_model(tmp_path / dst, attn_backend="reference").thresholds == model.thresholds
    convert(tmp_path / "a", tmp_path / "theirs", "huggingface")
    assert load_model(tmp_path / "theirs", attn_backend="reference").thresholds is None
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    for wrong, got in ((0.5, "0.5"), ([0.5, 2.0], "\\[0.5, 2.0\\]"), ([0.5], "1")):
        (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "thresholds": wrong}))
        with pytest.raises(ValueError, match=f"a: thresholds: expected a number .*, got {got}$"):
            load_model(tmp_path / "a", attn_backend="reference")


@pytest.mark.parametrize("variant", DETECTORS)
def test_transformers_reads_what_is_converted(variant: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = detector(variant)
    convert(written(model, "official", tmp_path), tmp_path / "theirs", "huggingface")
    other, log = transformers.AutoModelForObjectDetection.from_pretrained(
        tmp_path / "theirs", output_loading_info=True, local_files_only=True, dtype=torch.float64
    )
    assert not any(log[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images, mask = batch(sizes=((64, 96), (96, 64)))
    with torch.no_grad():
        theirs = other.eval()(pixel_values=images, pixel_mask=(~mask).long())
        ours = model.double()((images, mask))
    # transformers computes positions of proposals in float32: tests/models/families/test_transformers.py
    close = 1e-5 if variant == "two-stage" else 1e-10
    assert (theirs.logits - ours["pred_logits"]).abs().max() < close
    assert (theirs.pred_boxes - ours["pred_boxes"]).abs().max() < close
    # and what it saves of it, by the names of its own, is the same again
    other.save_pretrained(tmp_path / "again")
    again = read_source(tmp_path / "again").weights
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize("variant", ["detr", "two-stage"])
def test_transformers_resizes_and_normalises_as_the_training_did(variant: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = detector(variant)
    model.input_size = Size(48, 90)
    convert(written(model, "msdeform", tmp_path), tmp_path / "theirs", "huggingface")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "theirs", local_files_only=True)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (48, 90)
    image = np.random.default_rng(0).integers(0, 256, (60, 200, 3), dtype=np.uint8)
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
    pixels = read_image(image, name="image")
    ours = normalise(F.resize(pixels, list(model.input_size.fit(60, 200)), antialias=True))
    assert theirs.shape == ours.shape == (3, 27, 90)
    # one of them rounds to 8 bits between resizing and normalising
    assert (theirs - ours).abs().max() < 0.02
    # and what it saves is read again
    processor.save_pretrained(tmp_path / "theirs")
    assert read_source(tmp_path / "theirs").input_size == Size(48, 90)


@pytest.mark.parametrize(
    ("described", "size"),
    [
        ({"size": {"shortest_edge": 48, "longest_edge": 90}}, Size(48, 90)),
        ({"size": 48, "max_size": 90}, Size(48, 90)),  # as in the published files
        ({"size": {"shortest_edge": 48}, "max_size": 90}, Size(48, 90)),
        ({"size": {"max_height": 90, "max_width": 90}}, Size(90, 90)),
        ({"do_resize": False, "size": {"shortest_edge": 48, "longest_edge": 90}}, None),
        ({"do_resize": True}, None),
    ],
)
def test_sizes_as_other_programs_write_them(described: dict[str, Any], size: Size | None, tmp_path: Path) -> None:
    folder = written(detector("detr"), "huggingface", tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    assert read_source(folder).input_size == size


def test_a_size_that_is_none_is_refused_by_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(detector("detr"), "huggingface", tmp_path)
    file = folder / "preprocessor_config.json"
    file.write_text('{"size": "large"}')
    with pytest.raises(ValueError, match="expected shortest_edge and longest_edge in pixels, got 'large'"):
        read_source(folder)
    file.write_text('{"size": ')
    with pytest.raises(ValueError, match="preprocessor_config.json cannot be read as JSON"):
        read_source(folder)
    file.write_text('{"size": 90, "max_size": 48}')
    with pytest.raises(ValueError, match="size: expected pixels, the shortest side and then the longest, got 90, 48"):
        read_source(folder)
    capsys.readouterr()
    for otherwise in (
        '"image_mean": [0.5, 0.5, 0.5]',
        '"image_std": 0.5',
        '"do_rescale": false',
        '"rescale_factor": 1',
    ):
        file.write_text(f'{{"size": 48, "max_size": 90, {otherwise}}}')
        assert read_source(folder).input_size == Size(48, 90)
        assert "images are normalised otherwise than with ImageNet's mean" in capsys.readouterr().err, otherwise


def test_a_size_of_another_kind_is_said_and_the_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(detector("detr"), "huggingface", tmp_path)
    file = folder / "preprocessor_config.json"
    file.write_text('{"size": {"height": 48, "width": 90}}')
    assert read_source(folder).input_size is None
    assert capsys.readouterr().err == (
        f"{file}: size {{'height': 48, 'width': 90}} changes the shape of images, which these detectors do not do\n"
    )


@pytest.mark.parametrize(("size", "known"), [([48, 90], Size(48, 90)), (224, None), ([3, 224, 224], None)])
def test_fields_of_other_programs_in_official_files_are_no_mistake(
    size: Any, known: Size | None, tmp_path: Path
) -> None:
    path = written(detector("detr"), "official", tmp_path)
    state = torch.load(path, weights_only=False)
    state["args"].input_size, state["args"].categories = size, "coco"
    torch.save(state, path)
    source = read_source(path)
    assert (source.input_size, source.categories) == (known, None)


@pytest.mark.parametrize("size", [[48], 48, [90, 48], ["a", "b"]])
def test_a_wrong_size_in_our_own_folder_is_one_sentence(size: Any, tmp_path: Path) -> None:
    folder = written(detector("detr"), "msdeform", tmp_path)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "input_size": size}))
    with pytest.raises(ValueError, match=r"msdeform: input_size: expected "):
        read_source(folder)


def test_a_size_that_nobody_knows_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = detector("detr")
    model.input_size = None
    src = written(model, "msdeform", tmp_path)
    assert main(words(src, tmp_path / "theirs", "--to", "huggingface")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{src} does not say to what size images were resized in training: without --image-size, "
        "detecting resizes them to 800 pixels, at most 1333"
    )
    assert not (tmp_path / "theirs" / "preprocessor_config.json").exists()
    assert read_source(tmp_path / "theirs").input_size is None


def test_transformers_names_the_classes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    convert(written(detector("detr"), "msdeform", tmp_path), tmp_path / "theirs", "huggingface")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "theirs", local_files_only=True)
    assert config.id2label == dict(enumerate(NAMES))


def words(*rest: Any) -> list[str]:
    return ["convert", *map(str, rest)]


def test_the_command_says_what_it_wrote_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = detector("detr", backbone_frozen=False)
    src = written(model, "msdeform", tmp_path)
    count = len(model.state_dict())
    assert main(words(src, tmp_path / "a.pth", "--to", "official")) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{count} tensors from {src} (msdeform) to {tmp_path / 'a.pth'} (official)",
    ]
    state = torch.load(tmp_path / "a.pth", weights_only=False)
    torch.save({"model": {**state["model"], "total_ops": torch.zeros(1)}, "args": state["args"]}, tmp_path / "a.pth")
    assert main(words(tmp_path / "a.pth", tmp_path / "b", "--to", "huggingface")) == 0
    lines = capsys.readouterr().out.splitlines()
    norms = sum(name.endswith("num_batches_tracked") for name in model.state_dict())
    assert lines[1:] == [
        f"left out {norms} counts of batches: there, batch norms are constants",
        "left out 1 that are no weights: total_ops",
    ]


def test_weights_alone_need_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = detector("detr")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    assert main(words(tmp_path / "bare.pth", tmp_path / "out", "--to", "msdeform")) == 1
    assert "name the model it is of: detr_mini, detr_r101" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(words(tmp_path / "bare.pth", tmp_path / "out", "--to", "msdeform", "--model", "detr_tny"))
    assert "did you mean detr_tiny" in capsys.readouterr().err
    assert main(words(tmp_path / "bare.pth", tmp_path / "out", "--to", "msdeform", "--model", "detr_tiny")) == 1
    error = capsys.readouterr().err
    assert "is a checkpoint of another model" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = written(detector("detr"), "msdeform", tmp_path)
    before = (src / "model.safetensors").read_bytes()
    for dst in (src, src / "config.json"):
        for to in FORMATS:
            assert main(words(src, dst, "--to", to)) == 1
            assert capsys.readouterr().err == f"msdeform convert: {dst} exists; name a place where nothing is yet\n"
    assert (src / "model.safetensors").read_bytes() == before
    (tmp_path / "empty").mkdir()
    assert main(words(src, tmp_path / "empty", "--to", "huggingface")) == 0


@pytest.mark.parametrize("to", FORMATS)
def test_a_write_that_fails_leaves_nothing(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = written(detector("detr"), "msdeform", tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    # the last thing that is written: the configuration of a folder, the only file of the official
    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(formats.json, "dumps", full)
    with pytest.raises(OSError, match="no space left"):
        convert(src, tmp_path / "new" / "there", to)
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_format_cannot_hold_is_said_and_not_written(tmp_path: Path) -> None:
    for variant, sentence in (
        ("focal, pre-norm", "pre_norm: Hugging Face's detectors have none, got True"),
        ("faster r-cnn", "family: Hugging Face's files are of detr or deformable_detr, got faster_rcnn"),
    ):
        src = written(detector(variant), "msdeform", tmp_path / variant)
        with pytest.raises(ValueError, match=sentence):
            convert(src, tmp_path / "there", "huggingface")
        assert not (tmp_path / "there").exists()
    with pytest.raises(ValueError, match="to: expected one of official, huggingface, msdeform, got 'onnx'"):
        convert(src, tmp_path / "there", "onnx")


def test_help_and_slips(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(words("--help"))
    assert done.value.code == 0
    text = capsys.readouterr().out
    for word in (*FORMATS, "training", "--model", "examples:", "msdeform convert runs/mine mine --to msdeform"):
        assert word in text
    for given, sentence in (
        (("a", "b", "--to", "onnx"), "msdeform convert: --to: expected official, huggingface or msdeform, got 'onnx'"),
        (
            ("a", "b", "--to", "msdeform", "--modle", "x"),
            "msdeform convert: unknown option --modle; did you mean --model",
        ),
        (("a", "b"), "msdeform convert: expected --to {official,huggingface,msdeform}: format to write"),
    ):
        with pytest.raises(SystemExit) as done:
            main(words(*given))
        assert done.value.code == 2
        assert capsys.readouterr().err.startswith(sentence)


def test_a_config_without_its_weights_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "config.json").write_text(json.dumps({"format": formats.FORMAT}))
    assert main(words(tmp_path / "src", tmp_path / "dst", "--to", "official")) == 1
    assert "expected a folder with model.safetensors and config.json" in capsys.readouterr().err

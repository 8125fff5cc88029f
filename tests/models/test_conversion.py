"""``msdeform convert``: every format into every other, there and back, and transformers reads what comes out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.cli import main
from msdeform.models import formats
from msdeform.models.conversion import FORMATS, convert
from msdeform.models.formats import read_source
from msdeform.models.loading import load_model
from tests.models.huggingface import batch
from tests.models.test_loading import DETECTORS, NAMES, assert_same_outputs, detector, written

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
    assert found.categories == (None if "official" in (form, to) else NAMES)
    kept = form in ("msdeform", "run") and to == "msdeform"
    assert found.input_size == (model.input_size if kept else None)
    convert(dst, back, "official")
    again = read_source(back).weights
    assert again.keys() == source.weights.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], tensor), name


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
    # transformers computes positions of proposals in float32: tests/models/test_transformers.py
    close = 1e-5 if variant == "two-stage" else 1e-10
    assert (theirs.logits - ours["pred_logits"]).abs().max() < close
    assert (theirs.pred_boxes - ours["pred_boxes"]).abs().max() < close
    # and what it saves of it, by the names of its own, is the same again
    other.save_pretrained(tmp_path / "again")
    again = read_source(tmp_path / "again").weights
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], tensor), name


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
        "left out the names of 4 classes, which this format has no place for",
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

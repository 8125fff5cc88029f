"""Checkpoints: whole or not there, and told apart from anything else."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.common.files import atomic_file
from msdeform.models.weights.formats import read_source
from msdeform.models.weights.load import start_from
from msdeform.models.zoo import create_model
from msdeform.train.config.options import TrainOptions, from_plain, to_plain
from msdeform.train.engine import checkpoint
from msdeform.train.engine.checkpoint import load_checkpoint, load_trained, save_checkpoint
from msdeform.train.engine.state import Training


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint-00000001.pt"
    save_checkpoint(path, {"step": 1})

    def half(state: dict[str, Any], file: Any) -> None:
        file.write(b"half of a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_name_is_taken_only_after_the_content_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened = []
    replace, fsync = checkpoint.atomic_file.__globals__["os"].replace, checkpoint.atomic_file.__globals__["os"].fsync
    monkeypatch.setattr("os.fsync", lambda fd: (happened.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr("os.replace", lambda a, b: (happened.append("replace"), replace(a, b))[1])
    with atomic_file(tmp_path / "file") as file:
        file.write(b"content")
        assert not (tmp_path / "file").exists()
    assert happened[:2] == ["fsync", "replace"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_folder_gives_its_newest_whole_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / f"checkpoint-{step:08d}.pt", {"step": step})
    newest = tmp_path / "checkpoint-00000003.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    assert load_checkpoint(tmp_path)["step"] == 2
    assert f"passing over {newest}" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02half a pickle"])
def test_a_damaged_file_is_named_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    for load in (load_checkpoint, lambda p: start_from(torch.nn.Linear(1, 1), read_source(p))):
        with pytest.raises(ValueError, match=re.escape(f"checkpoint {path} is damaged or not a checkpoint")) as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*nowhere\.pt does not exist"):
        load_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_checkpoint(tmp_path)
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="was not written by `msdeform train`"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_checkpoint_of_another_model_is_refused(options: TrainOptions, changed: Callable[..., TrainOptions]) -> None:
    state = Training(options).state()
    with pytest.raises(ValueError, match="is a checkpoint of another model: deformable_detr_tiny, not deformable_detr"):
        Training(changed(model="deformable_detr_mini"), state)
    with pytest.raises(ValueError, match=r"is a checkpoint of another model: --override was "):
        Training(changed(override=("hidden_dim=64",)), state)
    state["categories"][0]["name"] = "cube"
    with pytest.raises(ValueError, match="was trained on other classes; --init-from takes its weights"):
        Training(options, state)
    state["categories"][0]["name"] = "disc"
    name = next(iter(state["model"]))
    del state["model"][name]
    with pytest.raises(ValueError, match=rf"another model: 1 parameters differ, the first {name}"):
        Training(options, state)


def tiny(num_classes: int, **overrides: Any) -> torch.nn.Module:
    return create_model("deformable_detr_tiny", num_classes=num_classes, attn_backend="reference", **overrides)


@pytest.mark.parametrize("form", ["bare", "official", "safetensors"])
def test_init_from_takes_all_but_heads_that_do_not_fit(tmp_path: Path, form: str) -> None:
    source, model = tiny(7), tiny(3)
    state = source.state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    else:
        torch.save(state if form == "bare" else {"model": state, "args": argparse.Namespace(lr=1), "epoch": 3}, path)
    start = start_from(model, read_source(path))
    fresh = ["class_embed.0.bias", "class_embed.0.weight"]
    assert start.fresh == start.ignored == fresh
    assert sorted([*start.loaded, *fresh]) == sorted(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]) == (name not in fresh)


def test_init_from_refuses_another_model(tmp_path: Path) -> None:
    torch.save(tiny(3, dim_feedforward=96).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"6 parameters beside the heads .*expected \(64,\), got \(96,\)"):
        start_from(tiny(3), read_source(tmp_path / "wide.pt"))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected a state dict, bare or under the key 'model'"):
        start_from(tiny(3), read_source(tmp_path / "list.pt"))


def test_a_trained_model_comes_back_as_it_was(options: TrainOptions, tmp_path: Path) -> None:
    training = Training(options)
    training.step(next(training.batches()))
    save_checkpoint(tmp_path / "x.pt", training.state())
    trained = load_trained(tmp_path / "x.pt", torch.device("cpu"), "reference")
    image = [torch.randn(3, 64, 48)]
    with torch.no_grad():
        mine, theirs = training.model.eval()(image), trained.model(image)
    assert torch.equal(mine["pred_logits"], theirs["pred_logits"])
    assert torch.equal(mine["pred_boxes"], theirs["pred_boxes"])
    assert trained.categories == training.data.annotations.categories
    assert trained.options == options


def test_settings_survive_as_plain_values(options: TrainOptions) -> None:
    plain = to_plain(options)
    assert plain["source"]["data"] == str(options.source.data)
    assert from_plain(TrainOptions, plain) == options
    # a checkpoint of an older or newer version
    del plain["optim"]["clip"]
    plain["optim"]["something_new"] = 1
    assert from_plain(TrainOptions, plain) == options

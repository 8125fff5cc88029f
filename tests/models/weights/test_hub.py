"""The Hub's methods on local folders, and what they would send and ask for."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError

import msdeform
from msdeform.models.families.deformable_detr import DeformableDetr
from msdeform.models.families.detector import Detector
from msdeform.models.families.detr import Detr
from msdeform.models.inference.image_size import Size
from msdeform.models.weights import hub
from msdeform.models.zoo import create_model
from tests.models.huggingface import randomise


def tiny(name: str = "deformable_detr_tiny", **settings: Any) -> Detector:
    model = create_model(name, num_classes=3, attn_backend="reference", **settings)
    randomise(model)
    model.categories, model.input_size = ["cat", "dog", "bird"], Size(96, 128)
    return model.eval()


def assert_same(found: Any, model: Detector) -> None:
    assert type(found) is type(model)
    assert found.config == model.config
    assert (found.categories, found.input_size) == (model.categories, model.input_size)
    assert not found.training
    own = found.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(own[name], tensor), name


@pytest.mark.parametrize("name", ["deformable_detr_tiny", "detr_tiny", "fasterrcnn_tiny"])
def test_a_folder_holds_the_whole_model(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    model.save_pretrained(tmp_path / "mine")
    assert {file.name for file in (tmp_path / "mine").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    for load in (Detector.from_pretrained, type(model).from_pretrained, msdeform.from_pretrained, msdeform.load_model):
        assert_same(load(tmp_path / "mine", attn_backend="reference"), model)
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["format"] == "msdeform-model-1"
    assert "object-detection" in (tmp_path / "mine" / "README.md").read_text()


def test_saving_again_replaces_what_was_there(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    other = tiny("detr_tiny")
    other.save_pretrained(tmp_path)
    assert_same(Detector.from_pretrained(tmp_path), other)


def test_the_backend_is_the_readers_choice(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    found = msdeform.from_pretrained(tmp_path, attn_backend="reference")
    assert {module.backend for module in found.modules() if isinstance(module, msdeform.MSDeformAttn)} == {"reference"}


def test_a_family_takes_no_others_folder(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds a DeformableDetr, which is no Detr; msdeform\.from_pretrained takes any"
    ):
        Detr.from_pretrained(tmp_path)


def test_a_model_built_by_hand_is_not_half_saved(tmp_path: Path) -> None:
    model = tiny()
    model.config = None
    with pytest.raises(ValueError, match="got one built from parts by hand"):
        model.save_pretrained(tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_pushing_sends_what_saving_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sent = tiny(), {}

    def create_repo(self: HfApi, repo_id: str, **_: Any) -> Any:
        return type("Url", (), {"repo_id": repo_id})

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Path, **_: Any) -> str:
        sent[repo_id] = sorted(file.name for file in folder_path.iterdir())
        assert_same(Detector.from_pretrained(folder_path, attn_backend="reference"), model)
        return "https://huggingface.co/me/mine/commit/1"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert model.push_to_hub("me/mine") == "https://huggingface.co/me/mine/commit/1"
    assert sent == {"me/mine": ["README.md", "config.json", "model.safetensors"]}


def test_a_repository_is_fetched_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tiny(), []
    model.save_pretrained(tmp_path)

    def download(repository: str, file: str, *, revision: str | None, **_: Any) -> str:
        asked.append((repository, file, revision))
        return str(tmp_path / file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "_no_answer", lambda: None)
    assert_same(DeformableDetr.from_pretrained("me/mine", revision="v1", attn_backend="reference"), model)
    files = ("config.json", "preprocessor_config.json", "model.safetensors")
    assert asked == [("me/mine", file, "v1") for file in files]


def test_without_a_network_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    monkeypatch.setattr(hub, "_no_answer", lambda: None)
    with pytest.raises(ConnectionError) as caught:
        msdeform.from_pretrained("me/mine")
    assert str(caught.value) == (
        "me/mine is no local folder, and could not be had from the Hugging Face Hub (no connection); fetch "
        "config.json, preprocessor_config.json and model.safetensors from https://huggingface.co/me/mine elsewhere, "
        "put them into a folder, and name that"
    )
    for wrong in ("mine", "./mine", "/a/b", "a/b/c", "../mine", "mine/"):
        with pytest.raises(FileNotFoundError, match="expected a folder, a file or OWNER/NAME on the Hugging Face Hub"):
            msdeform.from_pretrained(wrong)


def test_the_mixin_leaves_copies_and_pickles_alone() -> None:
    model = tiny()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(again, model)

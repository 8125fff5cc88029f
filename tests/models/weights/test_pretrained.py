"""Published weights: known by place and hash, checked before use, and missed in one sentence."""

import hashlib
import re
import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from msdeform.models.catalog import MODELS, list_models
from msdeform.models.weights import pretrained
from msdeform.models.weights.pretrained import PUBLISHED, Published, coco_names, fetch
from msdeform.models.zoo import create_model
from tests.models.huggingface import randomise

TINY = "deformable_detr_tiny"
SETTINGS = {"attn_backend": "reference"}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""

    def fail(url: str, *_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_, **__: None)
    return tmp_path


def test_the_table_names_a_place_and_a_hash_for_each() -> None:
    for name, weights in PUBLISHED.items():
        assert name in MODELS
        assert re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{8}", weights.sha256)
        if weights.url is None:
            # a branch could change under its name
            assert re.fullmatch(r"[0-9a-f]{40}", str(weights.revision))
            assert len(weights.sha256) == 64
            assert re.fullmatch(r"SenseTime/deformable-detr(-[a-z0-9-]+)?", str(weights.repository))
        else:
            assert re.search(rf"-{weights.sha256}\.pth$", weights.url)
    assert len({weights.address for weights in PUBLISHED.values()}) == len(PUBLISHED)
    # what a repository is of shows in its name
    for name, weights in PUBLISHED.items():
        words = (weights.repository or "").split("/")[-1]
        assert ("two-stage" in words) == name.endswith("two_stage")
        assert words.endswith("dc5") == name.endswith("dc5")
        assert ("single-scale" in words) == ("single_scale" in name)
        assert ("101" in words) == ("101" in name)


def test_coco_names_leave_its_gaps() -> None:
    names = coco_names()
    assert len(names) == 91
    assert sum(name != "N/A" for name in names) == 80
    assert (names[0], names[1], names[17], names[90]) == ("N/A", "person", "cat", "toothbrush")
    for gap in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83):
        assert names[gap] == "N/A"


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_a_network_one_sentence_says_what_to_do(name: str, elsewhere: Path) -> None:
    with pytest.raises(ConnectionError) as caught:
        create_model(name, pretrained=True)
    sentence = str(caught.value)
    assert re.fullmatch(
        rf"pretrained: the weights of {name} could not be downloaded from https://\S+ \(.*no route to host.*\); "
        rf"fetch that file elsewhere, and put it at {elsewhere}/\S+, or name it: pretrained=PATH",
        sentence,
    )
    assert PUBLISHED[name].address in sentence
    assert not list(elsewhere.rglob("*.pth"))


def test_offline_mode_is_respected(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        fetch("deformable_detr_r50")


def test_what_is_not_published_is_said(elsewhere: Path) -> None:
    unpublished = set(list_models()) - PUBLISHED.keys()
    assert {"detr_r50_dc5_plus", "deformable_detr_r101", TINY} <= unpublished
    with pytest.raises(
        ValueError, match=r"^pretrained: no weights of deformable_detr_r101 are known; there are those of "
    ):
        create_model("deformable_detr_r101", pretrained=True)
    with pytest.raises(ValueError, match="backbone_weights: expected None beside pretrained"):
        create_model("detr_r50", pretrained=True, backbone_weights="imagenet")


@pytest.fixture
def tiny(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.nn.Module, Path]:
    """A tiny detector as published: on a server that has the file, with its hash in the table."""
    model = create_model(TINY, backbone_frozen=True, **SETTINGS)
    randomise(model)
    file = elsewhere / "server.pth"
    torch.save({"model": model.state_dict()}, file)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(
        PUBLISHED, TINY, Published(None, found[:8], url=f"https://nowhere.invalid/tiny-{found[:8]}.pth")
    )

    def download(url: str, target: str, hash_prefix: str, progress: bool) -> None:
        assert hash_prefix == found[:8]
        shutil.copy(file, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return model, file


def test_pretrained_weights_are_downloaded_once_and_loaded(
    tiny: tuple[torch.nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = tiny
    model = create_model(TINY, pretrained=True, **SETTINGS)
    assert model.config is not None
    assert model.config.backbone_frozen
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    assert model.categories == coco_names()
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # a second download would fail
    create_model(TINY, pretrained=True, **SETTINGS)


def test_another_number_of_classes_makes_the_heads_anew(tiny: tuple[torch.nn.Module, Path]) -> None:
    expected = tiny[0].state_dict()
    model = create_model(TINY, num_classes=3, pretrained=True, **SETTINGS)
    same = {
        name: torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items() if "class" not in name
    }
    assert all(same.values())
    assert model.state_dict()["class_embed.0.weight"].shape[0] == 3
    assert model.categories is None
    fewer = create_model(TINY, num_queries=4, pretrained=True, **SETTINGS)
    assert fewer.categories == coco_names()
    with pytest.raises(ValueError, match="is a checkpoint of another model"):
        create_model(TINY, pretrained=True, hidden_dim=64, **SETTINGS)


def test_a_file_that_is_not_the_published_one_is_refused(tiny: tuple[torch.nn.Module, Path]) -> None:
    file = fetch(TINY)
    file.write_bytes(file.read_bytes() + b"!")
    with pytest.raises(
        ValueError, match=r"is not the published file of deformable_detr_tiny: expected SHA-256 [0-9a-f]{8},"
    ):
        create_model(TINY, pretrained=True, **SETTINGS)


def test_a_local_file_stands_for_the_published_one(tiny: tuple[torch.nn.Module, Path]) -> None:
    expected, file = tiny
    model = create_model(TINY, pretrained=file, **SETTINGS)
    assert torch.equal(model.state_dict()["transformer.level_embed"], expected.state_dict()["transformer.level_embed"])
    with pytest.raises(FileNotFoundError, match=r"checkpoint nowhere\.pth does not exist"):
        create_model(TINY, pretrained="nowhere.pth", **SETTINGS)


def test_the_hubs_own_cache_is_used(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = elsewhere / "model.safetensors"
    file.write_bytes(b"weights")
    asked = []

    def cached(*place: object, revision: str) -> str:
        asked.append((*place, revision))
        return str(file)

    monkeypatch.setattr(pretrained, "try_to_load_from_cache", cached)
    with pytest.raises(ValueError, match="is not the published file of deformable_detr_r50: expected SHA-256 caf1e3e6"):
        fetch("deformable_detr_r50")
    weights = PUBLISHED["deformable_detr_r50"]
    assert asked == [(weights.repository, "model.safetensors", weights.revision)]

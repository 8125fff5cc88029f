"""Folders of transformers that bring code, or reach outside of themselves: nothing of it runs or is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from msdeform.integrations.detectors.detector import TransformersDetector  # noqa: E402
from tests.fuzz.fuzzing import is_a_sentence  # noqa: E402
from tests.integrations.detectors.test_detector import saved  # noqa: E402
from tests.models.weights.hostile import PICKLES, archive  # noqa: E402


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A whole detector, beside which lies code that makes a marker."""
    made = Path(shutil.copytree(whole, tmp_path / "model"))
    for name in ("modeling_evil.py", "configuration_evil.py", "image_processing_evil.py", "__init__.py", "hubconf.py"):
        (made / name).write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\nclass Evil: ...\n")
    return made


def changed(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(folder: Path, wanted: str | None = None) -> None:
    with pytest.raises(ValueError, match=wanted) as caught:
        TransformersDetector.from_pretrained(folder)
    assert is_a_sentence(caught.value), caught.value
    assert not (folder.parent / "marker").exists()


def test_code_beside_a_known_model_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any) -> str:
        raise AssertionError("transformers asked whether the code may run")

    monkeypatch.setattr("builtins.input", ask)
    code = {"AutoConfig": "configuration_evil.Evil", "AutoModelForObjectDetection": "modeling_evil.Evil"}
    changed(folder / "config.json", auto_map=code)
    changed(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "image_processing_evil.Evil"})
    assert TransformersDetector.from_pretrained(folder).kind == "RTDetrForObjectDetection"
    assert not (folder.parent / "marker").exists()


def test_code_of_an_unknown_model_is_not_run_and_not_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    code = {"AutoConfig": "configuration_evil.Evil", "AutoModelForObjectDetection": "modeling_evil.Evil"}
    changed(folder / "config.json", auto_map=code, model_type="evil")
    refused(folder)
    changed(folder / "config.json", auto_map={name: f"someone/repository--{one}" for name, one in code.items()})
    refused(folder)
    assert not asked


@pytest.mark.parametrize("place", ["config.json", "backbone"])
def test_kernels_are_not_fetched(place: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Any] = []
    monkeypatch.setattr("transformers.integrations.hub_kernels.get_kernel", lambda *words, **_: fetched.append(words))
    file = folder / "config.json"
    if place == "backbone":
        inner = json.loads(file.read_text())["backbone_config"]
        changed(file, backbone_config={**inner, "attn_implementation": "someone/kernel"})
        TransformersDetector.from_pretrained(folder)  # which transformers does not look at
    else:
        changed(file, attn_implementation="someone/kernel")
        refused(folder, "names code to be fetched and run, 'someone/kernel'")
    assert not fetched


def test_quantised_weights_are_refused(folder: Path) -> None:
    changed(folder / "config.json", quantization_config={"quant_method": "torchao", "quant_type": "int8"})
    refused(folder, "quantised")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors"])
def test_an_index_reads_no_file_outside(name: str, folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "secret.safetensors")
    index = {"metadata": {}, "weight_map": {"model.a": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "expected files beside it")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    refused(folder, "is damaged")


@pytest.mark.parametrize("payload", ["reduce", "stack-global", "bytes"])
def test_pickled_weights_run_nothing(payload: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    made = archive(folder.parent, PICKLES[payload](folder.parent / "marker"))
    made.rename(folder / "pytorch_model.bin")
    refused(folder)


def test_other_pickles_in_a_folder_are_not_opened(folder: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"):
        (folder / name).write_bytes(PICKLES["reduce"](folder.parent / "marker"))
    assert TransformersDetector.from_pretrained(folder)(torch.zeros(1, 3, 96, 160))
    assert not (folder.parent / "marker").exists()

"""Files of weights that would run code, or take any memory: each is refused in one sentence, and nothing runs."""

import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.models.weights.backbone import load_backbone_weights
from msdeform.models.weights.files import read_file
from msdeform.models.weights.formats import TRAINING_FORMAT, read_source
from msdeform.models.zoo import create_model, load_model
from tests.fuzz.fuzzing import is_a_sentence
from tests.models.weights.hostile import CONTAINERS, LIES, PICKLES, archive

MEMORY = 800  # MiB that a reader may take beside what the process has


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Fail an allocation that takes more than `MEMORY`."""
    if sys.platform != "linux":
        yield
        return
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(read: Callable[[], Any], marker: Path) -> str:
    """The sentence with which something is refused: nothing ran, and little memory was taken."""
    with warnings.catch_warnings(action="ignore"), bounded_memory(), pytest.raises(ValueError) as caught:  # noqa: PT011
        read()
    assert not marker.exists(), "the payload ran"
    assert is_a_sentence(caught.value), caught.value
    return str(caught.value)


@pytest.mark.parametrize("payload", PICKLES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_no_pickle_runs_code(container: str, payload: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "hubconf.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\ndef entry(): ...\n")
    file = CONTAINERS[container](tmp_path, PICKLES[payload](marker))
    assert str(file) in refused(lambda: read_file(file), marker)


@pytest.mark.parametrize("payload", sorted(PICKLES.keys() - {"attribute"}))
def test_the_payloads_do_run_where_pickles_are_trusted(payload: str, tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    marker = tmp_path / "marker"
    (tmp_path / "hubconf.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\ndef entry(): ...\n")
    torch.load(archive(tmp_path, PICKLES[payload](marker)), weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("kind", LIES)
def test_what_lies_about_its_tensors_is_refused(kind: str, tmp_path: Path) -> None:
    file = LIES[kind](tmp_path, tmp_path / "marker")
    assert str(file) in refused(lambda: read_file(file), tmp_path / "marker")


@pytest.mark.parametrize("place", ["fifo", "/dev/zero", "folder"])
def test_what_is_no_file_is_not_waited_for(place: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if place == "fifo":
        os.mkfifo(path)
    elif place == "folder":
        path.mkdir()
    else:
        path.symlink_to(place)
    begun = time.monotonic()
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_file(path)
    assert is_a_sentence(caught.value)
    assert time.monotonic() - begun < 20


CONFIGS: dict[str, Any] = {
    "nested": '{"a":' * 10_000,
    "names a module": {"format": "msdeform-model-1", "model": {"family": "os.system", "backbone": "os"}},
    "backbone of a module": {"format": "msdeform-model-1", "model": {"family": "detr", "backbone": "os.system"}},
    "a million layers": {"format": "msdeform-model-1", "model": {"family": "detr", "enc_layers": 10**6}},
    "a width of gigabytes": {"format": "msdeform-model-1", "model": {"family": "detr", "hidden_dim": 2**20}},
    "a million million classes": {"model_type": "detr", "id2label": {"999999999999": "a"}},
    "custom code": {"model_type": "detr", "auto_map": {"AutoModel": "evil.Evil"}, "backbone": "../evil"},
    "types": {"format": "msdeform-model-1", "model": {"family": ["detr"], "enc_layers": "6"}},
    "not an object": [1, 2],
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_configuration_makes_nothing_that_the_weights_are_not(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {name: torch.zeros(3, 8) for name in ("class_embed.weight", "query_embed.weight")},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    content = CONFIGS[kind]
    (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    begun = time.monotonic()
    refused(lambda: load_model(tmp_path), tmp_path / "marker")
    assert time.monotonic() - begun < 20


def test_a_configuration_of_a_gigabyte_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"class_embed.weight": torch.zeros(3, 8)}, tmp_path / "model.safetensors")
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(2**30)
    assert "expected at most" in refused(lambda: load_model(tmp_path), tmp_path / "marker")


def test_weights_of_a_backbone_are_read_as_others_are(tmp_path: Path) -> None:
    body = create_model("detr_tiny").body
    file = archive(tmp_path, PICKLES["reduce"](tmp_path / "marker"))
    refused(lambda: load_backbone_weights(body, "resnet10_tiny", file), tmp_path / "marker")


def test_a_family_that_is_no_name_is_told_on_one_line(tmp_path: Path) -> None:
    model = create_model("detr_tiny", num_classes=2)
    odd = {**model.config.to_dict(), "family": torch.zeros(2, 3)}
    content = {"format": TRAINING_FORMAT, "model": model.state_dict(), "model_config": odd, "categories": []}
    torch.save({**content, "options": {}}, tmp_path / "checkpoint-00000001.pt")
    assert "its configuration is of a" in refused(
        lambda: load_model(tmp_path / "checkpoint-00000001.pt"), tmp_path / "m"
    )


def test_a_run_s_checkpoint_of_another_form_is_told(tmp_path: Path) -> None:
    """Of the right format by its name, and otherwise nothing that a run wrote."""
    for content in ({}, {"model_config": {}}, {"model_config": [], "model": {}, "options": 3, "categories": {"a": 1}}):
        torch.save({"format": TRAINING_FORMAT, **content}, tmp_path / "checkpoint-00000001.pt")
        assert "is damaged: " in refused(lambda: read_source(tmp_path / "checkpoint-00000001.pt"), tmp_path / "marker")

"""Files and folders of weights in every format: bytes changed at random, and values in them replaced by others."""

import argparse
import atexit
import io
import json
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from msdeform.models.families.detector import Detector
from msdeform.models.weights.convert import convert
from msdeform.models.weights.formats import read_source
from msdeform.models.zoo import create_model, load_model
from msdeform.train.commands.replay import _read as read_batch
from msdeform.train.config.options import TrainOptions, to_plain
from msdeform.train.config.resolve import checkpoint_options
from msdeform.train.engine.checkpoint import load_checkpoint
from msdeform.train.engine.state import REPLAY_FORMAT
from tests.fuzz.fuzzing import Kind, Outcome, is_a_sentence, with_bytes

_SMALL = {"backbone": "resnet10_tiny", "hidden_dim": 8, "nheads": 2, "enc_layers": 0, "dec_layers": 1}
_OTHERS: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1,
        7,
        10**6,
        10**12,
        2**63,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "detr",
        "../../x",
        "a\x1b[2Jb\n",
    ),
    *([], [1, "a"], {}, {"a": {}}, [[[[]]]], "x" * 3000),
]
_TENSORS = [
    *(
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(2, 3),
        torch.full((8,), torch.nan),
        torch.zeros(3, dtype=torch.int64),
    ),
    *(torch.zeros(1).expand(10**12), torch.zeros(2, 2).to_sparse(), torch.empty(4, device="meta")),
]


@dataclass(frozen=True)
class File:
    """A file or folder to be written, and what reads it."""

    form: str
    reader: str
    values: tuple[tuple[int, int], ...] = ()
    """Which value of it is replaced by which other."""
    bytes: tuple[tuple[float, int], ...] = ()
    """At which share of the file which byte is put, at last; 256 and above cut the file there."""
    part: int = 0
    """Of a folder, the file whose bytes they are."""
    whole: bool = False
    """With the weights of a whole detector, rather than a few."""


def _changes(least: int) -> Any:
    return st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 10**4)), min_size=least, max_size=3).map(tuple)


_BYTES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 280)), min_size=1, max_size=8).map(tuple)
_FILE: dict[str, Any] = {
    "form": st.sampled_from(("official", "bare", "run", "batch", "msdeform", "huggingface")),
    "reader": st.sampled_from(("read", "load", "convert", "resume", "replay")),
    "whole": st.integers(0, 9).map(lambda number: number == 9),  # they take a hundred times as long
}
INPUTS = st.builds(File, **_FILE, values=_changes(0)) | st.builds(File, **_FILE, bytes=_BYTES, part=st.integers(0, 2))


@cache
def _model() -> Detector:
    torch.manual_seed(0)
    return create_model("detr_tiny", num_classes=2, num_queries=3, dim_feedforward=8, backbone_frozen=True, **_SMALL)


@cache
def _parts(form: str, whole: bool) -> dict[str, Any]:
    """What is in a format's files, by their names: JSON's values in one that ends so, else what is saved."""
    weights, config = dict(_model().state_dict()), _model().require_config().to_dict()
    if not whole:
        weights = {name: tensor for name, tensor in weights.items() if "embed" in name}
    categories = [{"id": 0, "name": "a"}, {"id": 3, "name": "b"}]
    described = {
        "model": weights,
        "model_config": config,
        "categories": categories,
        "model_name": "detr_tiny",
        "step": 3,
    }
    if form == "official":
        return {"official.pth": {"model": weights, "args": argparse.Namespace(**config, thresholds=[0.1, 0.2])}}
    if form == "bare":
        return {"bare.pth": weights}
    if form == "run":
        more = {"options": to_plain(TrainOptions()), "ema": None, "thresholds": [0.2, 0.3], "attn_backend": "reference"}
        return {"checkpoint-00000003.pt": {"format": "msdeform-checkpoint-1", **described, **more}}
    if form == "batch":
        target = {"image_id": 4, "labels": torch.tensor([1]), "boxes": torch.full((1, 4), 0.5)}
        samples = [(torch.zeros(3, 8, 8, dtype=torch.uint8), target)]
        random = {"torch": torch.zeros(16, dtype=torch.uint8), "cuda": None}
        more = {"samples": samples, "precision": "fp32", "batch_size": 1, "random": random, "attn_backend": "reference"}
        return {"batch.pt": {"format": REPLAY_FORMAT, **described, **more}}
    if form == "msdeform":
        ours = {"format": "msdeform-model-1", "model": config, "categories": ["a", "b"], "input_size": [64, 64]}
        return {"config.json": {**ours, "thresholds": [0.1, 0.2]}, "model.safetensors": weights}
    theirs = {"model_type": "detr", "id2label": {"0": "a", "1": "b"}, "d_model": 8, "backbone": "resnet50"}
    images = {"size": {"shortest_edge": 64, "longest_edge": 96}, "image_mean": [0.5] * 3, "do_resize": True}
    renamed = {f"model.{name}": tensor for name, tensor in weights.items()}
    return {"config.json": theirs, "model.safetensors": renamed, "preprocessor_config.json": images}


def _places(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values are in dictionaries and lists, as keys from the outermost; few of many tensors."""
    inside = vars(content) if isinstance(content, argparse.Namespace) else content
    if isinstance(inside, tuple):
        inside = list(inside)
    if not isinstance(inside, dict | list):
        return []
    keys = list(inside) if isinstance(inside, dict) else range(len(inside))
    found = []
    for key in [key for number, key in enumerate(keys) if not isinstance(inside[key], torch.Tensor) or number % 9 == 0]:
        found += [(*above, key), *_places(inside[key], (*above, key))]
    return found


def _with(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """The content with another value there; ``_GONE`` for none."""
    if not place:
        return value
    key, *rest = place
    if isinstance(content, argparse.Namespace):
        return argparse.Namespace(**_with(vars(content), place, value))
    if isinstance(content, tuple):
        return tuple(_with(list(content), place, value))
    if isinstance(content, list):
        if not rest and (value is _GONE or value is _RENAMED):
            value = None
        return [_with(one, tuple(rest), value) if number == key else one for number, one in enumerate(content)]
    if value is _GONE and not rest:
        return {name: one for name, one in content.items() if name != key}
    if value is _RENAMED and not rest:
        return {"\x1b[31m\n" if name == key else name: one for name, one in content.items()}
    return {name: _with(one, tuple(rest), value) if name == key else one for name, one in content.items()}


_GONE, _RENAMED = object(), object()


def write(folder: Path, one: File) -> Path:
    """The file or folder, written."""
    parts = dict(_parts(one.form, one.whole))
    for which, other in one.values:
        name = list(parts)[which % len(parts)]
        places = _places(parts[name])
        if not places:
            continue
        others = [*_OTHERS, _GONE, _RENAMED] if name.endswith(".json") else [*_OTHERS, *_TENSORS, _GONE, _RENAMED]
        parts[name] = _with(parts[name], places[which % len(places)], others[other % len(others)])
    files = {name: _encoded(name, content) for name, content in parts.items()}
    if one.bytes:
        name = list(files)[one.part % len(files)]
        files[name] = with_bytes(files[name], one.bytes)
    for name, encoded in files.items():
        (folder / name).write_bytes(encoded)
    return folder if len(files) > 1 else folder / next(iter(files))


def _encoded(name: str, content: Any) -> bytes:
    if name.endswith(".json"):
        return json.dumps(content).encode()
    if name.endswith(".safetensors"):
        plain = {
            key: one
            for key, one in (content.items() if isinstance(content, dict) else ())
            if isinstance(one, torch.Tensor)
            and one.layout == torch.strided
            and one.is_contiguous()
            and one.device.type == "cpu"
        }
        return save(plain)
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _read(path: Path, reader: str, out: Path) -> None:
    if reader == "read":
        read_source(path)
    elif reader == "load":
        load_model(path)
    elif reader == "convert":
        convert(path, out, "msdeform")
    elif reader == "resume":
        load_checkpoint(path)
        checkpoint_options(path)
    else:
        read_batch(path)


@cache
def _folder(form: str) -> Path:
    """One for all files of a form, written over each other: making folders would take longer than reading files."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{form}-"))
    atexit.register(shutil.rmtree, folder)
    return folder


def check(one: File) -> Outcome:
    """Read: a model, a source, settings or a batch; or a sentence."""
    folder = _folder(one.form)
    try:
        path = write(folder, one)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, of tensors that are refused then
            _read(path, one.reader, folder / "converted")
    except (ValueError, FileNotFoundError) as error:
        told = error
    else:
        return "answered"
    finally:
        if (folder / "converted").exists():
            shutil.rmtree(folder / "converted")
    assert is_a_sentence(told), f"{one}: {told!r}"
    return "refused"


KIND = Kind("checkpoints", INPUTS, check)

"""What exported files say of themselves: .onnx, .xml and .pt2, with values and bytes changed; no graph is computed."""

import atexit
import io
import json
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from msdeform.models.export.form import FILE
from msdeform.models.export.runtime import Engine, ExportedDetector
from tests.fuzz.fuzzing import Kind, Outcome, is_a_sentence, is_one_line, with_bytes

ABOUT: dict[str, Any] = {
    **{"msdeform": "1.0", "format": "onnx", "family": "detr", "model": None, "classes": ["a", "b"], "kind": "softmax"},
    **{"thresholds": [0.5, 0.5], "inputs": ["images", "mask"], "outputs": ["logits", "boxes"], "size": [64, 96]},
    **{"batch": 1, "dynamic": ["batch", "size"], "sampling": "gather", "dtype": "float32", "opset": 18, "short": 64},
    **{"longest": 96, "resize": "", "colours": "RGB", "scale": "", "mean": [0.4], "std": [0.2], "use": ""},
}
_OTHERS: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1,
        7,
        10**9,
        2**70,
        1.5,
        float("nan"),
        "",
        "detr",
        "sigmoid",
        "../../x",
        "a\x1b[2Jb\n",
        "x" * 3000,
    ),
    *([], [1, "a"], [10**9, 10**9], ["a"], [0.5] * 3, [None, 2], ["size"], {}, {"a": {}}),
]
_LITERAL = ["", "{", "NaN", "1e999", '"\\ud800"', "[" * 10_000, '{"a": 1, "a": 2}', "null", "\x00"]


@dataclass(frozen=True)
class File:
    """An exported file to be written, and what is changed in it."""

    kind: tuple[str, Engine | None]
    """Its suffix, and the engine that opens it."""
    values: tuple[tuple[str, int], ...] = ()
    """Of what it says of itself: which of `_OTHERS` stands for a value; one more for none at all."""
    literal: int | None = None
    """Which of `_LITERAL` stands for all of it."""
    bytes: tuple[tuple[float, int], ...] = ()
    """At which share of the file which byte is put, at last; 256 and above cut the file there."""


_VALUES = st.lists(st.tuples(st.sampled_from(sorted(ABOUT)), st.integers(0, len(_OTHERS))), max_size=3).map(tuple)
_BYTES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 280)), min_size=1, max_size=6).map(tuple)
# OpenVINO takes twenty times as long as onnxruntime to open a file
_RARE = {37: (".onnx", "openvino"), 38: (".xml", None), 39: (".pt2", None)}
_FILE = st.integers(0, 39).map(lambda number: _RARE.get(number, (".onnx", None)))
INPUTS = (
    st.builds(File, _FILE, values=_VALUES)
    | st.builds(File, _FILE, literal=st.integers(0, len(_LITERAL) - 1))
    | st.builds(File, _FILE, values=_VALUES, bytes=_BYTES)
)


def _onnx(said: dict[str, str]) -> bytes:
    """A graph that gives back its inputs."""
    from onnx import TensorProto, helper

    sizes = {"images": ["B", 3, "H", "W"], "mask": ["B", "H", "W"]}
    kinds = {"images": TensorProto.FLOAT, "mask": TensorProto.BOOL}
    takes = [helper.make_tensor_value_info(name, kinds[name], sizes[name]) for name in sizes]
    gives = [helper.make_tensor_value_info(f"{name}_out", kinds[name], sizes[name]) for name in sizes]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in sizes]
    model = helper.make_model(
        helper.make_graph(nodes, "g", takes, gives), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    for key, text in said.items():
        model.metadata_props.add(key=key, value=text)
    return model.SerializeToString()


@cache
def _xml() -> tuple[bytes, bytes]:
    """Of OpenVINO, the file and that of its weights; what it says of itself is to be put where SAID is."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.onnx").write_bytes(_onnx({}))
        model = openvino.convert_model(Path(folder, "a.onnx"))
        model.set_rt_info("SAID", ["msdeform", FILE])
        openvino.save_model(model, Path(folder, "a.xml"), compress_to_fp16=False)
        return Path(folder, "a.xml").read_bytes(), Path(folder, "a.bin").read_bytes()


class _Program(torch.nn.Module):
    def forward(self, images: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images + 0, ~mask


@cache
def _pt2() -> dict[str, bytes]:
    """The entries of a program's archive."""
    file = io.BytesIO()
    example = (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool))
    torch.export.save(torch.export.export(_Program(), example), file, extra_files={FILE: "SAID"})
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(folder: Path, one: File) -> Path:
    """The file, written."""
    (suffix, _), about = one.kind, dict(ABOUT)
    for name, other in one.values:
        if other == len(_OTHERS):
            about.pop(name, None)
        else:
            about[name] = _OTHERS[other]
    text = json.dumps(about) if one.literal is None else _LITERAL[one.literal]
    path = folder / f"a{suffix}"
    if suffix == ".onnx":
        said = {name: json.dumps(value) for name, value in about.items()}
        content = _onnx(said if one.literal is None else {**said, "inputs": text, "classes": text})
    elif suffix == ".xml":
        xml, weights = _xml()
        path.with_suffix(".bin").write_bytes(weights)
        escaped = text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
        content = xml.replace(b"SAID", escaped.encode())
    else:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, entry in _pt2().items():
                archive.writestr(name, text.encode() if entry == b"SAID" else entry)
        content = file.getvalue()
    path.write_bytes(with_bytes(content, one.bytes))
    return path


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-exports-"))
    atexit.register(shutil.rmtree, folder)
    return folder


def check(one: File) -> Outcome:
    """A detector that says what the file is, or a sentence; a ``.pt2`` is never opened, and so always refused."""
    path, (suffix, engine) = write(_folder(), one), one.kind
    try:
        detector = ExportedDetector(path, engine=engine, threads=1)
    except ValueError as error:
        told = error
    else:
        assert suffix != ".pt2", "opened a file that runs code"
        _use(detector)
        return "answered"
    assert is_a_sentence(told), f"{one}: {told!r}"
    return "refused"


def _use(detector: ExportedDetector) -> None:
    """Take from it what commands take before they compute."""
    assert detector.kind
    assert len(detector.categories or []) == len(detector.thresholds or [])
    assert all(is_one_line(name) for name in detector.categories or [])
    detector.resized_to(None).fit(480, 640)


KIND = Kind("exports", INPUTS, check)

"""Exported files that would run code, read other files, or lie about themselves: each is refused in one sentence."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.cli import main
from msdeform.models.export.form import FILE
from msdeform.models.export.runtime import TRUST, Engine, ExportedDetector
from tests.fuzz.fuzzing import is_a_sentence
from tests.fuzz.kind_exports import ABOUT
from tests.models.weights.hostile import PICKLES, archive, rezipped


def refused(path: Path, engine: Engine | None = None, marker: Path | None = None, **how: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        ExportedDetector(path, engine=engine, threads=1, **how)
    assert is_a_sentence(caught.value), caught.value
    assert marker is None or not marker.exists()
    return str(caught.value)


class Copies(torch.nn.Module):
    def forward(self, images: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images + 0, ~mask


def program(path: Path, marker: Path, payload: str) -> Path:
    """A torch.export program whose sample inputs are a pickle that runs code."""
    example = (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool))
    whole = path.with_name("whole.pt2")
    torch.export.save(torch.export.export(Copies(), example), whole, extra_files={FILE: json.dumps(ABOUT)})
    hostile = archive(path.parent, PICKLES[payload](marker)).read_bytes()

    def change(name: str, entry: bytes) -> tuple[str, bytes]:
        return name, hostile if name.endswith("sample_inputs/model.pt") else entry

    path.write_bytes(rezipped(whole.read_bytes(), change))
    return path


@pytest.mark.parametrize("payload", ["reduce", "stack-global", "build"])
def test_a_program_is_not_opened_unless_it_is_trusted(payload: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    file = program(tmp_path / "a.pt2", marker, payload)
    assert TRUST in refused(file, marker=marker)
    # or there would be nothing to refuse
    with pytest.raises(ValueError, match="a.pt2"):
        ExportedDetector(file, trust_code=True)
    assert marker.exists()


def test_a_package_of_machine_code_is_not_opened_unless_it_is_trusted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as file:
        file.writestr("a/data/aotinductor/model/a.so", b"\x7fELF")
    assert "can run any code as soon as it is opened" in refused(tmp_path / "a.pt2")


def test_commands_open_no_pt2_unless_the_environment_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    file = program(tmp_path / "a.pt2", marker, "reduce")
    (tmp_path / "image.png").write_bytes(b"")
    words = ["predict", str(tmp_path / "image.png"), "--checkpoint", str(file), "--out", str(tmp_path / "out")]
    for command in (words, ["serve", str(file), "--port", "0"]):
        assert main(command) == 1
        assert f"set {TRUST}=1" in capsys.readouterr().err
        assert not marker.exists()
    monkeypatch.setenv(TRUST, "1")
    assert main(words) == 1
    assert marker.exists()


def graph(path: Path, location: str | None = None, about: dict[str, Any] | None = None, domain: str = "") -> Path:
    """An ONNX file, with weights elsewhere or of operators of others."""
    onnx = pytest.importorskip("onnx")
    helper, float_, bool_ = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
    takes = [
        helper.make_tensor_value_info("images", float_, ["B", 3, "H", "W"]),
        helper.make_tensor_value_info("mask", bool_, ["B", "H", "W"]),
    ]
    gives = [helper.make_tensor_value_info("logits", float_, None), helper.make_tensor_value_info("boxes", bool_, None)]
    weight = helper.make_tensor("weight", float_, [1], [0.0])
    if location is not None:
        weight.ClearField("float_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "4")):
            weight.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("Add" if not domain else "Evil", ["images", "weight"], ["logits"], domain=domain),
        helper.make_node("Identity", ["mask"], ["boxes"]),
    ]
    made = helper.make_model(
        helper.make_graph(nodes, "g", takes, gives, [weight]),
        opset_imports=[helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])],
        ir_version=10,
    )
    for name, value in (ABOUT if about is None else about).items():
        made.metadata_props.add(
            key=name,
            value=value if str(value).startswith(("[[", "{")) and isinstance(value, str) else json.dumps(value),
        )
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "../secret", "link", "nowhere"])
def test_weights_elsewhere_are_not_read(location: str, engine: Engine, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    folder = tmp_path / "deep"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"1234")
    (folder / "link").symlink_to(tmp_path / "secret")
    refused(graph(folder / "a.onnx", location), engine)
    if location == "nowhere":  # beside the file, they are read
        (folder / location).write_bytes(bytes(4))
        assert ExportedDetector(folder / "a.onnx", engine=engine, threads=1).categories == ["a", "b"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_operators_of_others_are_not_looked_for(engine: Engine, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    (tmp_path / "evil.so").write_bytes(b"\x7fELF")
    refused(graph(tmp_path / "a.onnx", domain="evil"), engine)


@pytest.mark.parametrize(
    "about",
    [
        {},
        {**ABOUT, "inputs": "[" * 10_000},
        {**ABOUT, "size": [10**9, 10**9]},
        {**ABOUT, "classes": '{"a": "__import__(\'os\')"}'},
        {**ABOUT, "inputs": ["images", "mask", "other"]},
    ],
)
def test_what_a_file_says_of_itself_is_checked(about: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    refused(graph(tmp_path / "a.onnx", about=about), "onnxruntime")


ENTITIES = '<!DOCTYPE net [<!ENTITY a "{}">' + "".join(
    f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
XML = {
    "external entity": '<!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/passwd">]><net name="&a;" version="11">&a;</net>',
    "billions of laughs": ENTITIES.replace("{}", "ha" * 50) + ']><net name="&j;" version="11">&j;</net>',
    "nested": "<net>" * 10_000,
    "empty": "",
}


@pytest.mark.parametrize("kind", XML)
def test_an_xml_reads_no_other_file_and_does_not_grow(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "a.xml").write_text(XML[kind])
    (tmp_path / "a.bin").write_bytes(bytes(64))
    assert "root:" not in refused(tmp_path / "a.xml")


def test_pickles_of_other_names_are_no_exports(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for suffix in (".onnx", ".xml"):
        (tmp_path / f"a{suffix}").write_bytes(PICKLES["reduce"](marker))
        refused(tmp_path / f"a{suffix}", marker=marker)

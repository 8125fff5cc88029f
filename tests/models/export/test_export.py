"""Exported and compiled detectors give the model's numbers, whatever file they went through."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from msdeform.cli import main
from msdeform.models.export import formats
from msdeform.models.export.check import like_a_photograph
from msdeform.models.export.export import export, write
from msdeform.models.export.form import Form
from msdeform.models.export.formats import FORMATS, Opened
from msdeform.models.export.program import exportable
from msdeform.models.export.runtime import ExportedDetector
from msdeform.models.families.detector import Detector
from msdeform.models.inference.image_size import Size
from msdeform.models.layers.batch import shrink_mask
from msdeform.models.options import ExportOptions
from msdeform.models.zoo import create_model

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install")
needs_openvino = pytest.mark.skipif(
    bool(MISSING) or importlib.util.find_spec("openvino") is None, reason="needs openvino: pip install openvino"
)

SLIM: dict[str, Any] = {
    "backbone": "resnet10_tiny",
    "hidden_dim": 32,
    "nheads": 2,
    "dim_feedforward": 64,
    "enc_layers": 1,
    "dec_layers": 2,
    "num_queries": 10,
}
DEFORMABLE = {**SLIM, "attn_backend": "reference"}
FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("detr_tiny", {}),
    "detr-learned-pre-norm": ("detr_tiny", {"position_embedding": "learned", "pre_norm": True}),
    "detr-focal": ("detr_tiny", {"focal": True}),
    "detr-demo": ("detr_demo", SLIM),
    "single-scale": ("deformable_detr_r50_single_scale", DEFORMABLE),
    "deformable": ("deformable_detr_r50", DEFORMABLE),
    "refine": ("deformable_detr_r50_refine", DEFORMABLE),
    "two-stage": ("deformable_detr_r50_two_stage", {**DEFORMABLE, "dec_layers": 1, "num_feature_levels": 2}),
}
# bottleneck blocks alone can be dilated
DILATED = {
    "detr-dc5": ("detr_tiny", {"backbone": "resnet50", "dilation": True}),
    "single-scale-dc5": (
        "deformable_detr_r50_single_scale_dc5",
        {**DEFORMABLE, "backbone": "resnet50"},
    ),
}
SIZE = (64, 96)
FIXED = Form(SIZE, dynamic=())


def detector(name: str) -> Detector:
    torch.manual_seed(0)
    called, fields = {**FAMILY, **DILATED, "faster-rcnn": ("fasterrcnn_tiny", {})}[name]
    return create_model(called, num_classes=5, **fields).eval()


def quick(names: tuple[str, ...], *few: str) -> list[Any]:
    """`names`, but for a `few` slow: the exporter takes seconds for each."""
    return [name if name in few else pytest.param(name, marks=pytest.mark.slow) for name in names]


EVERY = (*FAMILY, *DILATED, "faster-rcnn")


@pytest.mark.parametrize("name", quick(EVERY, "detr"))  # Faster R-CNN's is compared below
def test_a_program_gives_the_models_numbers(name: str, tmp_path: Path) -> None:
    assert export(detector(name), tmp_path / "model.pt2", FIXED).difference < 1e-5


@needs_onnx
@pytest.mark.parametrize("name", quick(EVERY, "two-stage"))
def test_an_onnx_file_gives_the_models_numbers_and_has_standard_operators_alone(name: str, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "model.onnx"
    form = FIXED if name == "faster-rcnn" else Form(SIZE, batch=2, dynamic=())
    assert export(detector(name), path, form).difference < 1e-4
    made = onnx.load(path)
    assert {node.domain for node in made.graph.node} <= {"", "ai.onnx"}
    onnx.checker.check_model(made)


@needs_onnx
@pytest.mark.parametrize("sampling", ["gather", pytest.param("gridsample", marks=pytest.mark.slow)])
def test_a_file_of_any_size_is_right_at_sizes_that_no_tracing_saw(sampling: str, tmp_path: Path) -> None:
    """And by gather without the node that TensorRT computes wrong."""
    import onnx
    import onnxruntime

    torch.manual_seed(0)
    # at 64x96 the coarsest map has one row, at others more
    model = create_model("deformable_detr_tiny", num_feature_levels=4, num_classes=3, dec_layers=1).eval()
    path = tmp_path / "model.onnx"
    found = export(model, path, Form(SIZE, sampling=sampling), checks=2)
    assert (found.shapes, found.compared) == (15, 3 + 7 + 2 + 4 * (1 + 2 + 3) + 2 + 3)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert ("GridSample" in kinds) == (sampling == "gridsample")
    session = onnxruntime.InferenceSession(path)
    assert [known.shape for known in session.get_inputs()] == [
        ["batch", 3, "height", "width"],
        ["batch", "height", "width"],
    ]
    for batch, size in ((4, (57, 131)), (1, (200, 33))):
        images = torch.stack([like_a_photograph(size, seed) for seed in range(batch)])
        mask = torch.zeros(batch, *size, dtype=torch.bool)
        mask[0, :, size[1] - 9 :] = True
        images = images.masked_fill(mask[:, None], 0.0)
        with torch.no_grad():
            outputs = model((images, mask))
        came = session.run(None, {"images": images.numpy(), "mask": mask.numpy()})
        for one, name in zip(came, ("pred_logits", "pred_boxes"), strict=True):
            torch.testing.assert_close(torch.from_numpy(one), outputs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param("m.onnx", marks=needs_onnx), pytest.param("m.xml", marks=needs_openvino), "m.pt2"]
)
def test_a_file_names_no_place_of_the_machine_that_wrote_it(name: str, tmp_path: Path) -> None:
    export(detector("detr"), tmp_path / name, Form(SIZE, dynamic=()), checks=0)
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"site-packages" not in written
    assert str(tmp_path).encode() not in written
    assert str(Path(__file__).parents[3]).encode() not in written


@needs_onnx
def test_weights_may_lie_beside_the_graph(tmp_path: Path) -> None:
    model, whole, graph = detector("detr"), tmp_path / "whole.onnx", tmp_path / "graph.onnx"
    export(model, whole, FIXED, checks=0)
    export(model, graph, FIXED, checks=0, weights_beside=True)
    assert {file.name for file in tmp_path.iterdir()} == {"whole.onnx", "graph.onnx", "graph.onnx.data"}
    assert graph.stat().st_size < whole.stat().st_size / 3
    inputs = exportable(model, FIXED).example(like_a_photograph(SIZE)[None])
    one, other = (FORMATS["onnx"].open(path, None).call(*inputs) for path in (whole, graph))
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("name", quick(("detr", "deformable", "two-stage"), "detr"))
def test_float16_is_near_and_keeps_norms_and_boxes_in_float32(name: str, tmp_path: Path) -> None:
    program = exportable(detector(name), Form(SIZE, dynamic=(), dtype=torch.float16))
    outputs = program(*program.example(like_a_photograph(SIZE)[None]))
    assert {output.dtype for output in outputs} == {torch.float32}
    dtypes: dict[type[torch.nn.Module], set[torch.dtype]] = {
        kind: set() for kind in (torch.nn.Conv2d, torch.nn.LayerNorm)
    }
    for module in program.modules():
        if type(module) in dtypes:
            dtypes[type(module)] |= {parameter.dtype for parameter in module.parameters()}
    assert dtypes == {torch.nn.Conv2d: {torch.float16}, torch.nn.LayerNorm: {torch.float32}}
    found = export(detector(name), tmp_path / "model.pt2", program.form, checks=2)
    assert 1e-5 < found.difference < 2e-2  # float32 would be nearer


def test_norms_within_convolutions_change_nothing() -> None:
    model = detector("detr")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    program, images = exportable(model, FIXED), like_a_photograph(SIZE)[None]
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in program.modules())
    with torch.no_grad():
        outputs = model((images, torch.zeros(1, *SIZE, dtype=torch.bool)))
        torch.testing.assert_close(program.model.body(images), model.body(images), rtol=1e-3, atol=1e-4)
        came = program(images, torch.zeros(1, *SIZE, dtype=torch.bool))
    torch.testing.assert_close(came[0], outputs["pred_logits"], rtol=1e-4, atol=1e-5)


@needs_openvino
@pytest.mark.parametrize("name", quick(EVERY, "detr"))
def test_openvino_gives_the_models_numbers(name: str, tmp_path: Path) -> None:
    form = FIXED if name == "faster-rcnn" else Form(SIZE)
    assert export(detector(name), tmp_path / "model.xml", form, checks=2).difference < 1e-4
    assert {file.name for file in tmp_path.iterdir()} == {"model.xml", "model.bin"}


@pytest.mark.skipif(importlib.util.find_spec("litert_torch") is None, reason="needs litert-torch: pip install")
@pytest.mark.parametrize("name", quick((*FAMILY, *DILATED), "deformable"))
def test_litert_gives_the_models_numbers(name: str, tmp_path: Path) -> None:
    assert export(detector(name), tmp_path / "model.tflite", FIXED, checks=2).difference < 1e-4
    assert {file.name for file in tmp_path.iterdir()} == {"model.tflite", "model.tflite.json"}


@pytest.mark.slow  # a C++ compiler works half a minute, and more than ten on a file of any size
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, g++")
def test_a_package_of_machine_code_runs_where_this_package_is_not(tmp_path: Path) -> None:
    """With a batch that no tracing saw, in a process that cannot import msdeform."""
    model, path = detector("deformable"), tmp_path / "model.pt2"
    assert export(model, path, Form(SIZE, dynamic=("batch",)), to="aoti", checks=2).difference < 1e-4
    with zipfile.ZipFile(path) as archive:
        sources = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".cpp"))
    assert b"omp parallel" in sources
    assert b"num_threads(" not in sources  # as many as there are where it runs
    images = torch.stack([like_a_photograph(SIZE, seed) for seed in range(5)])
    with torch.no_grad():
        outputs = model((images, torch.zeros(5, *SIZE, dtype=torch.bool)))
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import sys; sys.modules['msdeform'] = None\n"
        "import torch\n"
        "images = torch.load('images.pt')\n"
        "package = torch._inductor.aoti_load_package('model.pt2')\n"
        "logits, boxes = package(images, torch.zeros(5, 64, 96, dtype=torch.bool))\n"
        "torch.save(logits, 'logits.pt')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), outputs["pred_logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # a C++ compiler works half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, g++")
def test_a_package_of_machine_code_calls_our_operator_where_it_is_asked_to(tmp_path: Path) -> None:
    pytest.importorskip("llvmlite")
    model, path = detector("deformable"), tmp_path / "model.pt2"
    assert export(model, path, replace(FIXED, sampling="cpu"), to="aoti", checks=2).difference < 1e-4
    found = ExportedDetector(path)
    assert (found.engine, found.about["sampling"]) == ("pytorch", "cpu")
    images = like_a_photograph(SIZE)[None]
    with torch.no_grad():
        wanted = model((images, torch.zeros(1, *SIZE, dtype=torch.bool)))
        came = found((images, torch.zeros(1, *SIZE, dtype=torch.bool)))
    torch.testing.assert_close(came["pred_logits"], wanted["pred_logits"], rtol=1e-4, atol=1e-5)


def test_a_program_calls_our_operator_where_it_is_asked_to(tmp_path: Path) -> None:
    pytest.importorskip("llvmlite")
    model, path = detector("deformable"), tmp_path / "model.pt2"
    assert export(model, path, Form(SIZE, sampling="cpu"), checks=2).difference < 1e-4
    images = like_a_photograph((57, 131))[None]
    with torch.no_grad():
        outputs = model((images, torch.zeros(1, 57, 131, dtype=torch.bool)))
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import torch, msdeform\n"
        "try: torch.export.load('model.pt2')\n"
        "except RuntimeError: pass\n"
        "else: raise SystemExit('it needs no operator of ours')\n"
        "msdeform.load_operators('cpu')\n"
        "program = torch.export.load('model.pt2').module(check_guards=False)\n"
        "logits, boxes = program(torch.load('images.pt'), torch.zeros(1, 57, 131, dtype=torch.bool))\n"
        "torch.save(logits, 'logits.pt')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), outputs["pred_logits"], rtol=1e-4, atol=1e-5)


@needs_onnx
def test_onnx_shrinks_a_mask_to_the_same_pixels_at_every_row(tmp_path: Path) -> None:
    """ONNX's Resize took the pixel before at rows 15, 30 and 45 of 60: a row of padding was image in the file only."""
    import onnxruntime

    sizes = [(8, 12), (4, 6), (2, 3), (1, 2)]

    class Shrink(torch.nn.Module):
        def forward(self, mask: torch.Tensor) -> list[torch.Tensor]:
            return [shrink_mask(mask, size) for size in sizes]

    whole = torch.zeros(1, 60, 90, dtype=torch.bool)
    path = tmp_path / "mask.onnx"
    torch.onnx.export(Shrink(), (whole,), path, dynamo=True, verbose=False, input_names=["mask"])
    session = onnxruntime.InferenceSession(path)
    for rows in range(1, 61):
        mask = whole.clone()
        mask[:, rows:], mask[:, :, rows * 3 // 2 :] = True, True
        for came, size in zip(session.run(None, {"mask": mask.numpy()}), sizes, strict=True):
            assert torch.equal(torch.from_numpy(came), shrink_mask(mask, size)), (rows, size)


@pytest.mark.slow  # fifteen seconds; the mask alone is exported above
@needs_onnx
def test_padded_images_get_the_models_boxes_from_onnx(tmp_path: Path) -> None:
    """With four levels at 60x90, the file took other rows for padding than the model at 15, 30 and 45 of 60."""
    import onnxruntime

    torch.manual_seed(0)
    model = create_model("deformable_detr_tiny", num_feature_levels=4, num_classes=3, **DEFORMABLE).eval()
    program, path = exportable(model, Form((60, 90))), tmp_path / "model.onnx"
    write(model, program, path, "onnx")
    session = onnxruntime.InferenceSession(path)
    picture = like_a_photograph((60, 90))[None]
    for real in (60, 45, 31, 30, 15):
        padding = (torch.arange(60)[:, None] >= real, torch.arange(90) >= 90)
        images, mask = program.padded(picture, [padding])
        with torch.no_grad():
            wanted = program(images, mask)
        came = session.run(None, {"images": images.numpy(), "mask": mask.numpy()})
        for one, other in zip(wanted, came, strict=True):
            torch.testing.assert_close(torch.from_numpy(other), one, rtol=1e-4, atol=1e-4, msg=f"{real} real rows")


@pytest.mark.parametrize("name", quick((*FAMILY, *DILATED), "two-stage"))
def test_the_forward_compiles_in_one_piece(name: str) -> None:
    torch.compiler.reset()
    program = exportable(detector(name), FIXED)
    inputs = program.example(torch.stack([like_a_photograph(SIZE, seed) for seed in range(2)]))
    with torch.no_grad():
        # the graph is what is in question: generated code is compared in tests/train/whole/test_overfit.py
        compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
        for came, wanted in zip(compiled(*inputs), program(*inputs), strict=True):
            torch.testing.assert_close(came, wanted, rtol=1e-4, atol=1e-4)


def test_exported_faster_rcnn_takes_other_images_and_may_find_nothing(tmp_path: Path) -> None:
    model, path = detector("faster-rcnn"), tmp_path / "model.pt2"
    assert export(model, path, FIXED).difference < 1e-5
    program = torch.export.load(path).module()
    images = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(images)["detections"][0]
        came = program(images, torch.tensor(model.detector.roi_heads.score_thresh))
        for name, one in zip(("boxes", "labels", "scores"), came, strict=True):
            torch.testing.assert_close(one, found[name], rtol=1e-4, atol=1e-5)
        assert [tuple(x.shape) for x in program(images, torch.tensor(1.0))] == [(0, 4), (0,), (0,)]


def test_numbers_that_differ_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = Opened(lambda *inputs: [torch.zeros(1, 10, 5 + 1), torch.zeros(1, 10, 4)], {})
    monkeypatch.setitem(FORMATS, "program", FORMATS["program"]._replace(open=lambda path, threads: wrong))
    with pytest.raises(ValueError, match="logits: the exported program differs from the model by"):
        export(detector("detr"), tmp_path / "model.pt2", FIXED)
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """OpenVINO 2025.4 gave such, and what pairs the best queries takes none."""
    nothing = torch.full((1, 3), float("nan"))
    wrong = Opened(lambda *inputs: [nothing[..., None].expand(-1, -1, 4), torch.zeros(1, 3).long(), nothing], {})
    monkeypatch.setitem(FORMATS, "program", FORMATS["program"]._replace(open=lambda path, threads: wrong))
    with pytest.raises(ValueError, match="boxes: the exported program differs from the model by nan"):
        export(detector("detr"), tmp_path / "model.pt2", replace(FIXED, top_k=3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["detr_tiny", "out.bin"], 2, "OUT: expected a name that ends in .onnx, .xml, .pt2 or .tflite, got out.bin"),
        (["detr_tinny", "out.pt2"], 2, "detr_tinny does not exist, no model is called so; did you mean detr_tiny"),
        (["nowhere/model.pth", "out.pt2"], 2, "nowhere/model.pth does not exist"),
        (["detr_tiny", "out.onnx", "--to", "aoti"], 1, "out.onnx: expected a name that ends in .pt2"),
        (["detr_tiny", "out.pt2", "--size", "16x64"], 1, "sides of at least 32 pixels, got 1 of 16x64"),
        (["fasterrcnn_tiny", "out.pt2", "--size", "64x100"], 1, "sides of multiples of 32, got 1 of 64x100"),
        (["detr_tiny", "out.onnx", "--sampling", "cpu"], 1, "sampling: expected gather or gridsample for ONNX"),
        (["detr_tiny", "out.pt2", "--batch", "0"], 2, "--batch: expected at least 1, got 0"),
        (["fasterrcnn_tiny", "out.pt2", "--batch", "2"], 1, "batch: expected 1 for Faster R-CNN"),
        (["fasterrcnn_tiny", "out.pt2", "--dynamic", "size"], 1, "dynamic: expected none for Faster R-CNN"),
        (["fasterrcnn_tiny", "out.pt2", "--top-k", "9"], 1, "Faster R-CNN is exported in float32"),
        (["detr_tiny", "out.pt2", "--pixels", "--dynamic", "batch"], 1, "pixels: expected --dynamic with size"),
    ],
)
def test_a_wrong_word_gets_a_sentence_and_writes_nothing(
    words: list[str],
    status: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        came = main(["export", *words])
    except SystemExit as stopped:
        came = stopped.code
    assert came == status
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.pt2"
    assert main(["export", "detr_tiny", str(out), "--size", "64x64"]) == 0
    said = capsys.readouterr().out
    assert "logits, boxes of images, mask, images Bx3xHxW" in said
    assert "largest difference from the model: " in said
    assert out.is_file()


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.partition("it runs without this package:\n")[2]


@pytest.mark.parametrize(
    ("name", "suffix", "flags"),
    [
        pytest.param("detr", ".onnx", "--dynamic none", marks=needs_onnx),
        pytest.param("detr", ".onnx", "", marks=[needs_onnx, pytest.mark.slow]),
        ("detr-focal", ".pt2", "--dynamic size --batch 2"),
        pytest.param("detr", ".xml", "--top-k 7 --pixels", marks=needs_openvino),
        pytest.param(
            "detr",
            ".tflite",
            "",
            marks=pytest.mark.skipif(importlib.util.find_spec("litert_torch") is None, reason="needs litert-torch"),
        ),
        pytest.param("detr-focal", ".onnx", "--top-k 7", marks=[needs_onnx, pytest.mark.slow]),
        pytest.param("detr-focal", ".pt2", "--top-k 7 --pixels", marks=pytest.mark.slow),
        pytest.param("two-stage", ".onnx", "", marks=[needs_onnx, pytest.mark.slow]),
        pytest.param("faster-rcnn", ".onnx", "", marks=[needs_onnx, pytest.mark.slow]),
        pytest.param("faster-rcnn", ".pt2", "", marks=pytest.mark.slow),
    ],
)
def test_the_printed_lines_find_in_an_image_what_the_model_predicts(
    name: str,
    suffix: str,
    flags: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = detector(name)
    model.categories, model.input_size = ["a", "b", "c", "d", "naïve, e"], Size(64, 96)
    # suppression among boxes of random weights turns on the last digit: no resizing there
    save_picture((64, 96) if name == "faster-rcnn" else (90, 135))
    # of random weights, the best score is below a half
    scores = model.predict("image.jpg", confidence=0.0).scores
    model.thresholds = [float(scores[: len(scores) // 2].min()) - 1e-3] * 4 + [0.99]
    model.save_pretrained(tmp_path / "model")
    assert main(["export", "model", f"out{suffix}", "--size", "64x96", "--no-progress", *flags.split()]) == 0
    lines = printed(capsys)

    ran: dict[str, Any] = {}
    exec(lines, ran)
    wanted = model.predict("image.jpg", top_k=7 if "--top-k" in flags else 100)
    assert len(ran["found"]) > 1
    same_detections(ran["found"], wanted.names, wanted.scores, wanted.boxes)
    if "--dynamic none" not in flags:
        return
    # one that leaves room: the file computes what the model does on the same padded image
    save_picture((90, 90))
    exec(lines, ran)
    assert ran["mask"].any()
    with torch.no_grad():
        outputs = model((torch.from_numpy(ran["images"]), torch.from_numpy(ran["mask"])))
    best = model.post_process(outputs, torch.tensor([[90, 90]]))[0]
    kept = best["scores"] >= torch.tensor(model.thresholds)[best["labels"]]
    names = [model.categories[label] for label in best["labels"][kept]]
    same_detections(ran["found"], names, best["scores"][kept], best["boxes"][kept])


def save_picture(size: tuple[int, int]) -> None:
    pixels = (like_a_photograph(size) * 50 + 120).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save("image.jpg", quality=95)


def same_detections(found: list[Any], names: list[str], scores: torch.Tensor, boxes: torch.Tensor) -> None:
    """In any order; a picture that was resized by Pillow differs by one of 255 in places."""
    assert len(found) == len(names)
    for name, score, box in found:
        far = (boxes - torch.as_tensor(box)).abs().amax(1) + 10 * (scores - float(score)).abs()
        far += torch.tensor([10.0 * (name != other) for other in names])
        assert far.min() < 0.3, (name, score, box)


@pytest.mark.parametrize(
    ("said", "trained", "step", "size"),
    [
        (None, None, 1, (800, 1216)),
        (None, Size(), 1, (800, 1216)),
        (None, Size(160, 160), 1, (160, 160)),
        (None, Size(100, 170), 32, (128, 192)),
        ("96x128", Size(160, 160), 1, (96, 128)),
    ],
)
def test_the_size_of_an_export_is_that_of_training(
    said: str | None, trained: Size | None, step: int, size: tuple[int, int]
) -> None:
    options = ExportOptions("detr_tiny", Path("x.onnx"), size=said)
    assert options.height_and_width(trained, step) == size


def test_the_model_that_is_exported_stays_as_it_was(tmp_path: Path) -> None:
    model = detector("detr").double().train()
    export(model, tmp_path / "model.pt2", FIXED)
    assert model.training
    assert next(model.parameters()).dtype == torch.float64


def test_a_package_is_compiled_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's usual one has a known name below the folder for temporary files, where others may have made it."""
    seen: list[Path] = []
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "known"))
    monkeypatch.setattr(
        torch._inductor,
        "aoti_compile_and_package",
        lambda *_, **__: seen.append(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])),
    )
    formats._write_aoti(None, None, {}, tmp_path / "model.pt2", False)  # type: ignore[arg-type]
    (folder,) = seen
    assert folder != tmp_path / "known"
    assert not folder.exists()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "known")

"""Explanations of detectors of transformers, against what transformers and autograd say by themselves."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

transformers = pytest.importorskip("transformers")

from msdeform.cli import main  # noqa: E402
from msdeform.explain.core.capture import capture  # noqa: E402
from msdeform.explain.core.completeness import completeness  # noqa: E402
from msdeform.explain.core.interventions import intervene, mean_outputs  # noqa: E402
from msdeform.explain.core.maps import heat_map, token_map  # noqa: E402
from msdeform.explain.core.masks import Mask  # noqa: E402
from msdeform.explain.core.sites import sites  # noqa: E402
from msdeform.explain.core.trace import TARGETS, AttentionTrace  # noqa: E402
from msdeform.explain.figures.points import draw_points  # noqa: E402
from msdeform.explain.options import (  # noqa: E402
    MANY_PASSES,
    METHODS,
    ExplainOptions,
    ExploreOptions,
)
from msdeform.explain.page.interface import look, masks_of, switches  # noqa: E402
from msdeform.integrations.detectors.detector import TransformersDetector  # noqa: E402
from msdeform.integrations.detectors.image_settings import ImageSettings  # noqa: E402
from msdeform.kernels.api import ms_deform_attn  # noqa: E402
from msdeform.models.inference.image_size import ExactSize  # noqa: E402
from tests.integrations.architectures import make  # noqa: E402
from tests.integrations.detectors.test_detector import DETECTORS as installed  # noqa: E402

WITH_ENCODER = ("deformable_detr", "deformable_detr two-stage")
DETECTORS = [name for name in installed if name != "pp_doclayout_v2"] + ["rt_detr_v2 discrete"]
RAGGED = {"d_fine": [3, 6, 3], "deimv2": [4, 2, 1]}


def detector(name: str, dtype: torch.dtype = torch.float64) -> TransformersDetector:
    """A small one of random weights, whose classes are told apart."""
    model: Any = make(name, dtype)
    height, width = {"lw_detr": (96, 96), "rf_detr": (64, 128)}.get(name, (96, 160))
    settings = ImageSettings(ExactSize(height, width), (0.0,) * 3, (1.0,) * 3)
    return TransformersDetector(model, settings, attn_backend="reference").eval()


def image(height: int = 70, width: int = 100) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def pixels(model: TransformersDetector) -> list[Tensor]:
    assert isinstance(model.input_size, ExactSize)
    size = (3, model.input_size.height, model.input_size.width)
    return [torch.randn(size, generator=torch.Generator().manual_seed(1)).to(model.dtype)]


@pytest.mark.parametrize("name", DETECTORS)
def test_every_attention_has_the_name_that_ours_has(name: str) -> None:
    found = sites(detector(name))
    encoder = [f"encoder.{layer}.self" for layer in range(2 if name in WITH_ENCODER else 0)]
    assert list(found) == [*encoder, *[f"decoder.{layer}.{kind}" for layer in (0, 1) for kind in ("self", "cross")]]
    assert [site.deformable for site in found.values()] == [*[True for _ in encoder], False, True, False, True]
    assert found["decoder.1.cross"].counts == tuple(RAGGED.get(name, ()))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", DETECTORS)
def test_the_model_answers_as_without(name: str, gradients: bool) -> None:
    model = detector(name)
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    expected = model(pixels(model))
    with capture(model, "*", gradients=gradients) as tape:
        got = model(pixels(model))
    assert set(tape) == set(sites(model))
    for key in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=1e-9)
    again = {path: dict(vars(module)) for path, module in model.named_modules()}
    for path, held in before.items():
        assert held.keys() == again[path].keys()
        assert held.get("config") is again[path].get("config")
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(pixels(model))["pred_logits"], expected["pred_logits"])


@pytest.mark.parametrize("name", DETECTORS)
def test_recorded_weights_are_what_transformers_tells(name: str) -> None:
    model = detector(name)
    with torch.no_grad(), capture(model, "*") as tape:
        model(pixels(model))
    plain: Any = make(name)
    plain.set_attn_implementation("eager")
    batch = model.settings.convert(torch.stack(pixels(model)), torch.zeros(1, *pixels(model)[0].shape[1:]).bool())
    with torch.no_grad():
        told = plain(batch, output_attentions=True)
    crossed = told.cross_attentions
    itself = told.get("decoder_attentions") or told.get("attentions")
    assert len(crossed) == 2
    exact = 1e-7 if name in ("lw_detr", "rf_detr") else 1e-9  # their own softmax is in float32
    for layer in (0, 1):
        record = tape[f"decoder.{layer}.cross"]
        there = record.site.sampled(torch.device("cpu"))
        assert (record.weights[..., ~there] == 0).all()
        torch.testing.assert_close(record.weights[..., there], crossed[layer].flatten(3), rtol=0, atol=exact)
        torch.testing.assert_close(tape[f"decoder.{layer}.self"].weights, itself[layer], rtol=0, atol=exact)
    if name in WITH_ENCODER:
        for layer in (0, 1):
            own = told.encoder_attentions[layer]
            torch.testing.assert_close(tape[f"encoder.{layer}.self"].weights, own, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_record_gives_the_modules_own_answer(name: str) -> None:
    """Locations, weights and values, by the reference and by the matrix, are what the operator answered."""
    model = detector(name)
    with torch.no_grad(), capture(model, "*", gradients=True) as tape, mean_outputs(model) as means:
        model(pixels(model))
    for record in tape.values():
        if record.site.deformable:
            got = ms_deform_attn(record.value(), record.shapes, record.locations, record.weights, backend="reference")
            assert record.reference.shape == (1, *record.weights.shape[1:2], record.site.levels, 2 + 2 * _boxes(record))
        else:
            got = torch.einsum("bhqs,bshd->bqhd", record.weights, record.value()).flatten(2)
        dense = torch.einsum("bhqs,bshd->bqhd", record.dense(), record.value()).flatten(2)
        torch.testing.assert_close(dense, got, rtol=0, atol=1e-9)
        mean = got.mean((0, 1)).unflatten(-1, (record.site.heads, -1))
        torch.testing.assert_close(means[record.site.name], mean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["deformable_detr", "lw_detr"])
def test_padded_pixels_are_told_and_have_no_part(name: str) -> None:
    model = detector(name)
    (whole,) = pixels(model)
    with torch.no_grad(), capture(model, "*", gradients=True) as tape:
        model([whole, whole[:, :48, :64]])
    for site, record in tape.items():
        if record.site.deformable:
            assert record.mask is not None
            assert record.mask.any(1).tolist() == [False, True]
            assert not record.dense().movedim(3, 1)[record.mask].any(), site
            assert not record.value()[record.mask].any()


def _boxes(record: Any) -> int:
    return int(record.reference.shape[-1] == 4)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_a_head_that_is_off_is_as_if_its_columns_of_the_projection_were_zero(name: str, kind: str) -> None:
    model = detector(name)
    off = f"decoder.1.{kind}"
    plain = model(pixels(model))["pred_logits"]
    with intervene(model, Mask(off, heads=(1,))):
        got = model(pixels(model))["pred_logits"]
    assert (got - plain).abs().max() > 1e-9
    module: Any = sites(model)[off].module
    if kind == "self":
        projection = module.o_proj
    elif hasattr(module, "output_proj"):
        projection = module.output_proj
    else:  # D-FINE and DEIMv2 have none

        def without(_: Any, __: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            heads = output[0].unflatten(-1, (2, -1)).clone()
            heads[:, :, 1] = 0
            return heads.flatten(2), output[1]

        module.register_forward_hook(without)
        torch.testing.assert_close(got, model(pixels(model))["pred_logits"], rtol=0, atol=1e-9)
        return
    with torch.no_grad():
        projection.weight[:, projection.weight.shape[1] // 2 :] = 0
    torch.testing.assert_close(got, model(pixels(model))["pred_logits"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in ("deformable_detr", "deimv2", "d_fine") if name in DETECTORS])
def test_uniform_shares_among_the_points_that_there_are(name: str) -> None:
    model = detector(name)
    with torch.no_grad(), intervene(model, Mask("decoder.0.cross", mode="uniform")), capture(model, "*") as tape:
        model(pixels(model))
    weights = tape["decoder.0.cross"].weights
    levels, points = weights.shape[3:]
    there = torch.arange(points) < torch.tensor(RAGGED.get(name, [points] * levels))[:, None]
    assert torch.allclose(weights[..., there], torch.tensor(1 / int(there.sum())).double())
    assert not weights[..., ~there].any()


def test_blocks_nest() -> None:
    model = detector("rt_detr")
    outer, inner = Mask("decoder.*.cross", heads=(0,)), Mask("decoder.*.*", heads=(1,), mode="uniform")
    answers = []
    for masks in ((), (outer,), (outer, inner)):
        with intervene(model, *masks):
            answers.append(model(pixels(model))["pred_logits"])
    with intervene(model, outer):
        with intervene(model, inner):
            assert torch.equal(model(pixels(model))["pred_logits"], answers[2])
        assert torch.equal(model(pixels(model))["pred_logits"], answers[1])
    assert torch.equal(model(pixels(model))["pred_logits"], answers[0])
    assert not torch.equal(answers[1], answers[2])
    assert not torch.equal(answers[0], answers[1])


def test_the_attention_of_a_plain_model_is_recorded_too() -> None:
    """One that is neither wrapped nor accelerated, which it is not afterwards either."""
    model: Any = make("rt_detr")
    batch = torch.randn(1, 3, 96, 160, dtype=torch.float64)
    expected = model(batch).logits
    with capture(model, "decoder.*") as tape:
        torch.testing.assert_close(model(batch).logits, expected, rtol=0, atol=1e-9)
    assert len(tape) == 4
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", DETECTORS)
def test_gradients_are_autograds_of_the_reference_by_hand(name: str) -> None:
    """Of the last layer's cross-attention, put into the model's graph as a leaf in the place of the operator."""
    model = detector(name)
    with capture(model, "*", gradients=True) as tape:
        y = model(pixels(model))["pred_logits"][0, 3, 1]
    gradients = tape.gradients(y)
    assert set(gradients) == set(tape) or name not in WITH_ENCODER
    site = sites(model)["decoder.1.cross"]
    leaves: list[Tensor] = []

    def by_hand(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor) -> Tensor:
        leaves[:] = [weights.detach().requires_grad_(), locations.detach().requires_grad_()]
        return ms_deform_attn(value, shapes, leaves[1], leaves[0], backend="reference")

    assert site.place is not None
    site.place.put(by_hand)
    y = model(pixels(model))["pred_logits"][0, 3, 1]
    expected = torch.autograd.grad(y, leaves)
    assert expected[0].abs().max() > 0
    torch.testing.assert_close(gradients["decoder.1.cross"].weights, expected[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients["decoder.1.cross"].locations, expected[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_graph_begins_where_attention_does(name: str) -> None:
    """Gradients are those of the whole graph, and a trace has none of the backbone's."""
    model = detector(name)
    trace = AttentionTrace(model, image())
    seen = trace.prediction(3)
    with capture(model, "*", gradients=True) as tape, torch.enable_grad():
        whole = tape.gradients(model([trace.pixels])["pred_logits"][0, 3, seen.label])
    found = trace.gradients(seen)
    assert found.keys() == whole.keys()
    for site, one in found.items():
        torch.testing.assert_close(one.weights, whole[site].weights, rtol=0, atol=1e-10)
    assert trace.shapes == tape["decoder.1.cross"].shapes
    assert len(trace.layer_scores) == 2


@pytest.mark.parametrize("method", [name for name in METHODS if name not in MANY_PASSES])
@pytest.mark.parametrize("name", DETECTORS)
def test_every_map_is_finite_and_not_empty(name: str, method: str) -> None:
    trace = AttentionTrace(detector(name), image())
    found = torch.stack([heat_map(trace, trace.prediction(3), method, target=target) for target in TARGETS])
    assert found.shape == (len(TARGETS), 70, 100)
    assert found.isfinite().all()
    assert found.max() > 0  # Grad-CAM's for one target may have no positive part
    assert found.min() >= 0


@pytest.mark.parametrize("name", ["rt_detr", "d_fine"])
@pytest.mark.parametrize("parity", [False, True])
def test_relevance_without_an_encoder_is_chefers_rule_by_hand(name: str, parity: bool) -> None:
    trace = AttentionTrace(detector(name), image())
    seen = trace.prediction(3)
    gradients = trace.gradients(seen)

    def factor(site: str) -> Tensor:
        record, slopes = trace.tape[site], gradients.get(site)
        if slopes is None:
            return torch.zeros(len(trace.layer_boxes[0]), record.dense().shape[-1], dtype=torch.float64)
        if not record.site.deformable:
            return (record.weights[0] * slopes.weights[0]).clamp(min=0).mean(0)
        # the positive part of a point's weight times its slope, shared out by its coefficients
        positive = (slopes.weights > 0) * slopes.weights
        scaled = type(record)(record.site, record.weights * positive, record.mask, record.parts)
        return scaled.dense()[0].mean(0)

    queries = torch.eye(trace.queries, dtype=torch.float64)
    looked = torch.zeros_like(factor("decoder.0.cross"))
    for layer in (0, 1):
        among = factor(f"decoder.{layer}.self")
        queries, looked = queries + among @ queries, looked + among @ looked
        rest = queries - torch.eye(trace.queries)
        total = rest.sum(-1, keepdim=True)
        if parity and (total == 0).any():
            continue
        norm = torch.eye(trace.queries) + torch.where(total == 0, 0, rest / torch.where(total == 0, 1, total))
        looked = looked + norm.T @ factor(f"decoder.{layer}.cross")
    got = token_map(trace, seen, "relevance", parity=parity)
    torch.testing.assert_close(got, looked[seen.query], rtol=0, atol=1e-12)
    assert parity or got.max() > 0


def test_frozen_offsets_are_our_modules_alone() -> None:
    model = detector("rt_detr")
    frozen = Mask(mode="frozen")
    sentence = "decoder.0.cross is a RTDetrMultiscaleDeformableAttention; expected our own"
    with pytest.raises(ValueError, match=sentence), intervene(model, frozen):
        pass
    sentence = "expected a level from 0 to 2 of decoder.0.cross, got 7"
    with pytest.raises(ValueError, match=sentence), intervene(model, Mask(levels=(7,))):
        pass


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An image of 70 x 100 pixels, and folders that transformers wrote; not to be written to."""
    folder = tmp_path_factory.mktemp("transformers")
    found = {"image": folder / "street.png"}
    Image.fromarray(image().permute(1, 2, 0).numpy()).save(found["image"])
    for name in ("rt_detr", "d_fine", "deformable_detr"):
        model: Any = make(name, torch.float32)
        model.config.id2label = dict(enumerate(["cat", "dog", "cow", "hen", "fox"]))
        model.save_pretrained(folder / name)
        transformers.RTDetrImageProcessor(size={"height": 96, "width": 160}).save_pretrained(folder / name)
        found[name] = folder / name
    return found


def run(files: dict[str, Path], out: Path, *words: Any) -> dict[str, Any]:
    fixed = ["--out", str(out), "--no-progress", "--dpi", "40", "--device", "cpu", "--confidence", "0", "--most", "1"]
    assert main(["explain", str(files["image"]), *fixed, *map(str, words)]) == 0
    return json.loads((out / "street-explanation.json").read_text())


@pytest.mark.parametrize("name", ["rt_detr", "d_fine", "deformable_detr"])
def test_the_command_draws_a_detector_of_transformers(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    about = run(files, tmp_path, "--model", files[name])
    made = {file.removeprefix("street-") for file in about["files"] if file.endswith(".png")}
    expected = {"queries.png", "det0-journey.png", "det0-points-decoder.1.png", "det0-relevance.png"}
    assert made == (expected if name == "deformable_detr" else {*expected, "seeds.png"})
    assert about["model"] == name
    assert about["checkpoint"] == str(files[name])
    assert about["step"] is None
    model = TransformersDetector.from_pretrained(files[name])
    best = model.predict(files["image"], confidence=0, top_k=1)
    assert about["explained"]["det0"]["name"] == best.names[0]
    assert about["explained"]["det0"]["score"] == pytest.approx(float(best.scores[0]), abs=1e-5)


def test_points_that_a_level_lacks_are_not_drawn(files: dict[str, Path], tmp_path: Path) -> None:
    """D-FINE's levels have 3, 6 and 3 points."""
    chosen = ("--model", files["d_fine"], "--query", 3, "--method", "points")
    run(files, tmp_path, *chosen, "--slopes")
    xy = np.load(tmp_path / "street-query3-points-decoder.1-slopes.npz")["xy"]
    assert np.isfinite(xy).all(-1).sum((0, 2)).tolist() == [2 * 3, 2 * 6, 2 * 3]
    trace = AttentionTrace(TransformersDetector.from_pretrained(files["d_fine"]), files["image"])
    drawing = draw_points(trace, trace.prediction(3), "decoder.1.cross")
    assert "24 sampled points" in drawing.figure.get_suptitle()
    (axes,) = [one for one in drawing.figure.axes if one.get_title() in ("", "the whole image") and one.images]
    assert axes.get_xlim()[0] > -0.5 * trace.width


def test_the_page_and_masks_of_a_detector_of_transformers(files: dict[str, Path], tmp_path: Path) -> None:
    run(files, tmp_path / "page", "--checkpoint", files["d_fine"], "--html")
    text = (tmp_path / "page" / "street.html").read_text()
    assert "DFineForObjectDetection: 12 queries, 2 decoder layers" in text
    about = run(files, tmp_path / "off", "--model", files["rt_detr"], "--cumulative", "--ref", "50,30")
    assert [mask["name"] for mask in about["masks"]] == ["all heads on", "1 head off", "2 heads off"]
    assert "street-masked-ref0-attention.png" in about["files"]


def test_the_explorer_switches_its_heads_and_levels() -> None:
    model, options = detector("d_fine", torch.float32), ExploreOptions(model="owner/name", relevance=1)
    found = switches(model)
    assert {pattern: [row.number for row in rows] for pattern, rows in found.items()} == {
        "decoder.*.self": [2, 2],
        "decoder.*.cross": [2, 2, 3],
    }
    plain, text, _ = look(model, options, image(), 0.0, [], "street")
    off, *_ = look(model, options, image(), 0.0, masks_of(found["decoder.*.cross"], [[0], [1], [0, 1]]), "street")
    assert "DFineForObjectDetection" in text
    assert [one.score for one in plain] != [one.score for one in off]


def test_folders_that_ours_reads_are_ours(files: dict[str, Path]) -> None:
    from msdeform.explain.options import AnyDetectorOptions
    from msdeform.explain.workspace import any_trained_model

    named = any_trained_model(AnyDetectorOptions(model=str(files["deformable_detr"]), device="cpu"))
    assert isinstance(named.model, TransformersDetector)
    other = any_trained_model(AnyDetectorOptions(checkpoint=files["d_fine"], device="cpu"))
    assert isinstance(other.model, TransformersDetector)
    # of their Deformable DETR, whose parts here are not the published ones, ours says so
    with pytest.raises(ValueError, match="deformable_detr"):
        any_trained_model(AnyDetectorOptions(checkpoint=files["deformable_detr"], device="cpu"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--model", "deformable_detr_r5"],
            "model: expected a folder of transformers, or OWNER/NAME on its Hub, or .*; got deformable_detr_r5 alone",
        ),
        (
            ["--model", "detr_r50"],
            "checkpoint: expected weights, or in --model a detector of transformers; got neither",
        ),
        ([], "checkpoint: expected weights, or in --model a detector of transformers; got neither"),
        (["--model", "a/b", "--checkpoint", "."], "checkpoint: --model a/b has weights of its own; leave one of them"),
        (
            ["--checkpoint", "FOLDER", "--model", "detr_r50"],
            "model: .* says itself what it is, .*leave --model out",
        ),
        (["--model", "FOLDER", "--image-size", "100"], "takes sides that are multiples of 32 pixels, got 100x100"),
        (["--model", "FOLDER", "--layer", "encoder.0"], "layer: expected one of decoder.0, decoder.1, or all; got"),
        (["--model", "FOLDER", "--ref", "3,4"], "ref: RTDetrForObjectDetection has no encoder whose attention"),
        (["--model", "FOLDER", "--mask", "decoder.*.cross:frozen"], "expected our own to freeze"),
    ],
)
def test_bad_input_is_one_sentence(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    given = ["--out", str(tmp_path / "out"), "--confidence", "0"]
    given += [word.replace("FOLDER", str(files["rt_detr"])) for word in words]
    try:
        status: Any = main(["explain", str(files["image"]), *given])
    except SystemExit as end:
        status = end.code
    assert status in (1, 2)
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_model_of_transformers_is_wrapped_first() -> None:
    with pytest.raises(TypeError, match="model: expected a detector of ours or a TransformersDetector .*, got RTDetr"):
        AttentionTrace(make("rt_detr"), image())


def test_a_path_that_is_no_folder_of_transformers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model: expected a folder of transformers, with a config.json, or OWNER/NAME"):
        ExplainOptions(image=tmp_path / "photo.jpg", model=f"{tmp_path}/absent")


def test_what_makes_other_queries_has_no_change() -> None:
    """transformers chooses pixels within its own code: without the encoder a query is another, which is told."""
    trace = AttentionTrace(detector("deformable_detr two-stage"), image())
    seeds = trace.tape.seeds
    assert seeds is not None
    masked = AttentionTrace(trace.model, trace.image, masks=[Mask("encoder.*")])
    moved = (masked.tape.seeds != seeds)[0].nonzero()[:, 0].tolist()
    assert moved
    prediction = trace.prediction(moved[0])
    (row,) = completeness(trace, prediction, patterns=["encoder.*"])
    assert row.change is None
    (row,) = completeness(trace, prediction, patterns=["decoder.0.cross"])
    assert row.change is not None

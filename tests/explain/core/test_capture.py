"""What a tape holds: the same on every backend, under padding, batches and autocast."""

from typing import Any

import pytest
import torch
from torch import Tensor

from msdeform.explain.core.capture import capture, held_seeds
from msdeform.explain.core.opening import opened
from msdeform.explain.core.sites import find_sites, sites
from msdeform.kernels.api import ms_deform_attn
from msdeform.models.attention import MSDeformAttn
from tests.explain.models import DETRS, images, uneven


@pytest.mark.parametrize("family", DETRS)
def test_every_attention_has_a_name(family: str) -> None:
    model = uneven(family)
    found = sites(model)
    assert list(found)[:3] == ["encoder.0.self", "decoder.0.self", "decoder.0.cross"]
    deformable = family in ("deformable", "two-stage")
    assert found["decoder.0.cross"].deformable is deformable
    assert not found["decoder.0.self"].deformable


def test_a_site_that_matches_nothing_is_told_with_the_sites() -> None:
    model = uneven("deformable")
    with pytest.raises(
        ValueError, match=r"'decoder.7.cross' matches nothing; this model has encoder.0.self, .*did you"
    ):
        find_sites(model, "decoder.0.*, decoder.7.cross")
    with pytest.raises(
        ValueError, match=r"got a Linear, whose attention cannot be recorded; msdeform.load_model\(FOLDER\)"
    ):
        find_sites(torch.nn.Linear(1, 1), "*")


@pytest.mark.parametrize("family", DETRS)
@pytest.mark.parametrize("gradients", [False, True])
def test_the_model_answers_as_without(family: str, gradients: bool) -> None:
    model = uneven(family)
    batch = [image.double() for image in images((64, 96), (96, 64))]
    expected = model(batch)
    with capture(model, "*", gradients=gradients) as tape:
        got = model(batch)
    assert set(tape) == set(sites(model))
    for key in ("pred_logits", "pred_boxes"):
        assert torch.allclose(got[key], expected[key], rtol=0, atol=1e-12)
    assert not any({"forward", "editor"} & vars(module).keys() for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["deformable", "two-stage"])
def test_records_give_the_modules_own_answer(family: str) -> None:
    """Locations and weights, through the operator, are the module's output: padding and 4 coordinates included."""
    model = uneven(family)
    answers = {}
    for name, site in sites(model).items():
        if isinstance(site.module, MSDeformAttn):
            site.module.output_proj.register_forward_pre_hook(
                lambda _, args, name=name: answers.__setitem__(name, args[0].detach())
            )
    with capture(model, "*", gradients=True) as tape:
        model([image.double() for image in images((64, 96), (96, 64))])
    assert len(answers) >= 2
    for name, expected in answers.items():
        record = tape[name]
        got = ms_deform_attn(record.value(), record.shapes, record.locations, record.weights, backend="reference")
        assert torch.allclose(got, expected, rtol=0, atol=1e-12)
        # and so is the matrix's, with padded pixels left out
        dense = torch.einsum("bhqs,bshd->bqhd", record.dense(), record.value()).flatten(2)
        assert torch.allclose(dense, expected, rtol=0, atol=1e-12)
        assert record.mask is not None
        assert (record.dense().movedim(3, 1)[record.mask] == 0).all()
        coordinates = 4 if family == "two-stage" and name.startswith("decoder") else 2
        assert record.reference.shape[-1] == coordinates


@pytest.mark.parametrize("family", ["detr", "demo"])
def test_dense_records_give_the_modules_own_answer(family: str) -> None:
    model = uneven(family)
    answers = {}
    for name, site in sites(model).items():
        site.module.register_forward_hook(lambda _, args, out, name=name: answers.__setitem__(name, out[0].detach()))
    with capture(model, "*", gradients=True) as tape, torch.no_grad():
        model([image.double() for image in images((64, 96), (96, 64))])
    for name, record in tape.items():
        out = torch.einsum("bhqs,bshd->bqhd", record.weights, record.value()).flatten(2)
        assert torch.allclose(record.site.module.out_proj(out), answers[name], rtol=0, atol=1e-12), name
    mask = tape["decoder.0.cross"].mask
    assert mask is not None
    assert mask.any()
    assert (tape["decoder.0.cross"].weights.movedim(3, 1)[mask] == 0).all()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("added", [False, True], ids=["bool", "added"])
@pytest.mark.parametrize("how", [{}, {"average_attn_weights": False}, {"need_weights": False}])
def test_dense_attention_answers_as_pytorchs(batch_first: bool, added: bool, how: dict[str, bool]) -> None:
    """Whatever its order of axes, its masks and what is asked of it."""
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(8, 2, batch_first=batch_first).double().eval()
    order = (0, 1, 2) if batch_first else (1, 0, 2)
    query, key, value = (torch.randn(2, n, 8, dtype=torch.float64).permute(order) for n in (5, 7, 7))
    padded, forbidden = torch.zeros(2, 7, dtype=torch.bool), torch.zeros(5, 7, dtype=torch.bool)
    padded[1, 5:] = forbidden[2, :3] = True
    masks = [
        torch.zeros(mask.shape).double().masked_fill(mask, -torch.inf) if added else mask
        for mask in (padded, forbidden)
    ]
    given = {"key_padding_mask": masks[0], "attn_mask": masks[1], **how}
    expected, weights = module(query, key, value, **given)
    with capture(torch.nn.ModuleDict({"a": module}), "a", gradients=True) as tape:
        got, got_weights = module(query, key, value, **given)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    assert (got_weights is None) == (weights is None)
    if weights is not None:
        assert torch.allclose(got_weights, weights, rtol=0, atol=1e-12)
    assert torch.equal(tape["a"].mask, padded)
    assert (tape["a"].weights[1, :, :, 5:] == 0).all()


def test_a_batch_is_its_images() -> None:
    model = uneven("deformable")
    one, two = (image.double() for image in images((64, 64), (64, 64)))
    with capture(model, "*") as both:
        model([one, two])
    for row, image in enumerate((one, two)):
        with capture(model, "*") as alone:
            model([image])
        for name in alone:
            assert torch.allclose(alone[name].weights[0], both[name].weights[row], rtol=0, atol=1e-12)
            if alone[name].site.deformable:
                assert torch.allclose(alone[name].locations[0], both[name].locations[row], rtol=0, atol=1e-12)


def test_chosen_rows_of_the_encoder() -> None:
    model = uneven("deformable")
    batch = [image.double() for image in images((64, 96))]
    rows = torch.tensor([29, 2])
    with capture(model, "*") as whole:
        model(batch)
    with capture(model, "*", rows=rows) as some:
        model(batch)
    kept, all_of_it = some["encoder.0.self"], whole["encoder.0.self"]
    assert torch.allclose(kept.locations, all_of_it.locations[:, rows], rtol=0, atol=1e-14)
    assert torch.allclose(kept.dense(), all_of_it.dense(rows), rtol=0, atol=1e-14)
    assert torch.equal(some["decoder.0.cross"].weights, whole["decoder.0.cross"].weights)
    assert some.nbytes < whole.nbytes
    with (
        pytest.raises(ValueError, match=r"rows: expected from 0 to \d+ for encoder.0.self, got -1 to 3"),
        capture(model, "*", rows=torch.tensor([-1, 3])),
    ):
        model(batch)
    with pytest.raises(ValueError, match="gradient needs every row"), capture(model, rows=rows, gradients=True):
        pass


def test_memory_is_counted_once() -> None:
    model = uneven("deformable")
    with capture(model, "decoder.0.cross") as tape:
        model([image.double() for image in images((64, 64))])
    record = tape["decoder.0.cross"]
    held = record.tensors()
    assert tape.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in held)
    # weights, locations and references of 10 queries, 2 heads, 2 levels and 2 points; nothing of the values
    assert sum(tensor.numel() for tensor in held if tensor.dtype != torch.bool) == 10 * (8 * 3 + 2 * 2)


@pytest.mark.parametrize("family", ["detr", "deformable"])
def test_under_autocast_what_ran_is_recorded(family: str) -> None:
    model = uneven(family).float()
    batch = images((64, 64))
    kept = {}
    if family == "deformable":
        module = sites(model)["decoder.0.cross"].module
        module.sampling_offsets.register_forward_hook(
            lambda _, args, out: kept.update(offsets=out.detach(), query=args[0])
        )
    with torch.autocast("cpu", torch.bfloat16), capture(model, "*") as tape:
        model(batch)
    record = tape["decoder.0.cross"]
    assert record.weights.dtype == torch.float32
    total = record.weights.flatten(3).sum(-1) if family == "deformable" else record.weights.sum(-1)
    assert torch.allclose(total, torch.tensor(1.0), atol=1e-2)
    if family == "deformable":
        assert kept["offsets"].dtype == torch.bfloat16
        h, w = record.shapes[0]
        offsets = (record.locations - record.reference[:, :, None, :, None])[:, :, :, 0] * torch.tensor([w, h])
        expected = kept["offsets"].unflatten(-1, (*record.locations.shape[2:5], 2))[:, :, :, 0]
        assert torch.allclose(offsets, expected.float(), atol=1e-4)
        unrounded = module.sampling_offsets(kept["query"]).view(record.locations.shape)[:, :, :, 0]
        assert not torch.allclose(offsets, unrounded, atol=1e-4)


def test_seeds_are_the_best_pixels() -> None:
    model = uneven("two-stage")
    with capture(model) as tape:
        outputs = model([image.double() for image in images((64, 64))])
    scores = outputs["enc_outputs"]["pred_logits"][..., 0]
    assert tape.seeds is not None
    assert torch.equal(tape.seeds, scores.topk(tape.seeds.shape[1], dim=1).indices)
    assert "choose_proposals" not in vars(model.transformer)
    with capture(uneven("deformable")) as none:
        pass
    assert none.seeds is None


def test_captures_nest_and_leave_a_two_stage_detector_as_it_was() -> None:
    model, pixels = uneven("two-stage"), [image.double() for image in images((64, 64))]
    with capture(model) as outer, held_seeds(model, torch.arange(12)[None]):
        with capture(model, "decoder.*.self") as inner:
            model(pixels)
        model(pixels)
    assert inner.seeds is not None
    assert inner.seeds.tolist() == [list(range(12))]
    assert outer.seeds is None, "what is held is not chosen"
    assert "choose_proposals" not in vars(model.transformer)


class Nudge:
    """Adds a little to one weight of an attention, or to one location."""

    def __init__(self, place: int, step: float, *, location: bool = False) -> None:
        self.place, self.step, self.location = place, step, location

    def _add(self, x: Tensor) -> Tensor:
        x = x.clone()
        x.view(-1)[self.place] += self.step
        return x

    def changed(self, weights: Tensor, locations: Tensor | None, _: Any) -> tuple[Tensor, Tensor | None]:
        return (weights, self._add(locations)) if self.location else (self._add(weights), locations)

    def output(self, out: Tensor) -> Tensor:
        return out


@pytest.mark.parametrize("family", DETRS)
def test_gradients_are_what_a_nudge_does(family: str) -> None:
    """Against the difference of two runs of the model, with one weight (or location) a little changed."""
    model = uneven(family)
    batch = [image.double() for image in images((64, 64))]

    def answer() -> Tensor:
        return model(batch)["pred_logits"][0, 3, 1]

    with capture(model, "*", gradients=True) as tape:
        y = answer()
    gradients = tape.gradients(y)
    assert set(gradients) == set(tape)
    # what earlier layers do to references, in two stages, is behind a detach
    for name in ("decoder.1.cross",) if family == "two-stage" else ("encoder.0.self", "decoder.0.cross"):
        site = tape[name].site
        kinds = [(gradients[name].weights, False)]
        if gradients[name].locations is not None:
            kinds.append((gradients[name].locations, True))
        for slopes, location in kinds:
            place = int(slopes.abs().flatten().argmax())
            with torch.no_grad(), opened([(site, Nudge(place, 1e-6, location=location))]):
                more = answer()
            with torch.no_grad(), opened([(site, Nudge(place, -1e-6, location=location))]):
                less = answer()
            assert slopes.flatten()[place] != 0
            assert torch.allclose((more - less) / 2e-6, slopes.flatten()[place], rtol=1e-4, atol=0), (name, location)


def test_errors_of_gradients() -> None:
    model = uneven("deformable")
    batch = [image.double() for image in images((64, 64))]
    with capture(model) as plain:
        outputs = model(batch)
    with pytest.raises(ValueError, match=r"capture\(..., gradients=True\)"):
        plain.gradients(outputs["pred_logits"][0, 0, 0])
    with capture(model, gradients=True) as tape:
        outputs = model(batch)
    with pytest.raises(ValueError, match=r"one number computed from the model's outputs.*got \(3,\)"):
        tape.gradients(outputs["pred_logits"][0, 0])
    with pytest.raises(ValueError, match="without a graph"):
        tape.gradients(torch.tensor(1.0))
    with pytest.raises(KeyError, match="was not recorded; the tape has decoder.0.cross"):
        tape["encoder.0.self"]


@pytest.mark.parametrize("gradients", [False, True])
def test_the_same_on_the_reference_and_on_a_fused_kernel(gradients: bool) -> None:
    tapes, slopes = [], []
    for backend in ("reference", "cpu"):
        model = uneven("deformable", attn_backend=backend)
        with capture(model, "*", gradients=gradients) as tape:
            y = model([image.double() for image in images((32, 64))])["pred_logits"][0, 3, 1]
        tapes.append(tape)
        slopes.append(tape.gradients(y) if gradients else {})
    reference, fused = tapes
    # the first layer's inputs do not depend on a backend, and what follows differs by its rounding
    assert torch.equal(reference["encoder.0.self"].locations, fused["encoder.0.self"].locations)
    for name in reference:
        assert torch.allclose(reference[name].weights, fused[name].weights, rtol=0, atol=1e-12)
        if reference[name].site.deformable:
            assert torch.allclose(reference[name].locations, fused[name].locations, rtol=0, atol=1e-12)
    for name in slopes[0]:
        assert torch.allclose(slopes[0][name].weights, slopes[1][name].weights, rtol=0, atol=1e-12)
        if slopes[0][name].locations is not None:
            assert torch.allclose(slopes[0][name].locations, slopes[1][name].locations, rtol=0, atol=1e-10)

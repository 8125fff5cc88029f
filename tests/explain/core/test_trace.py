"""What a trace tells: detections, layers, places in pixels; and its maps."""

import numpy as np
import pytest
import torch

from msdeform.explain.core.maps import METHODS, column_map, heat_map, row_map, token_map
from msdeform.explain.core.masks import Mask
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.options import MANY_PASSES
from tests.explain.models import DETRS, images, uneven
from tests.models.tiny import tiny


def scene_of(family: str, size: tuple[int, int] = (64, 96), **settings: object) -> AttentionTrace:
    return AttentionTrace(uneven(family, **settings), images(size)[0], size=max(size))


@pytest.mark.parametrize("family", DETRS)
def test_detections_are_the_predictors(family: str) -> None:
    model = uneven(family)
    image = images((64, 96))[0]
    expected = model.predict(image, confidence=0.0, size=96)
    trace = AttentionTrace(model, image, size=96)
    best = trace.detections(0.0)
    assert len(best) == trace.queries
    assert best[0].score == pytest.approx(float(expected.scores[0]))
    assert best[0].label == int(expected.labels[0])
    assert best[0].box == pytest.approx(expected.boxes[0].tolist())
    assert [one.score for one in best] == sorted((one.score for one in best), reverse=True)
    assert trace.layer_boxes[-1, best[0].query].tolist() == pytest.approx(expected.boxes[0].tolist())
    assert trace.detections(0.9999) == []


@pytest.mark.parametrize("family", DETRS)
def test_the_model_stays_as_it_was(family: str) -> None:
    model = uneven(family).train()
    model.requires_grad_(True)
    if hasattr(model, "aux_loss"):
        model.aux_loss = False
    before = {name: value.clone() for name, value in model.state_dict().items()}
    AttentionTrace(model, images((64, 96))[0], size=96, masks=[Mask(heads=(0,))])
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not getattr(model, "aux_loss", False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("family", DETRS)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in MANY_PASSES])
def test_every_method_gives_a_map_of_the_image(family: str, method: str) -> None:
    trace = scene_of(family)
    maps = [heat_map(trace, trace.prediction(query), method) for query in range(trace.queries)]
    for found in maps:
        assert found.shape == (64, 96)
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        assert (found >= 0).all()
    # a method that keeps what is positive may leave nothing of one
    assert max(found.max() for found in maps) > 0


@pytest.mark.parametrize("family", DETRS)
def test_the_mirrored_images_map_is_the_map_mirrored(family: str) -> None:
    """The mean with the mirrored image's does not know which of the two was asked."""
    trace = scene_of(family)
    prediction = trace.prediction(3)
    seen = trace.in_mirror(prediction)
    assert torch.equal(trace.mirrored.image, trace.image.flip(-1))
    assert trace.mirrored is trace.mirrored
    one = heat_map(trace, prediction, "relevance-mirrored")
    # a map of nothing adds nothing
    both = [heat_map(trace, prediction, "relevance-rollout"), heat_map(trace.mirrored, seen, "relevance-rollout")]
    assert float(one.sum()) == pytest.approx(sum(bool(each.any()) for each in both) / 2, rel=1e-3)
    back = trace.mirrored.in_mirror(seen)
    other = heat_map(trace.mirrored, seen, "relevance-mirrored")
    if back.query == prediction.query:
        torch.testing.assert_close(other.flip(-1), one)
    layers = range(len(trace.cross_sites))
    parts = [heat_map(trace, prediction, "relevance-mirrored", layer=layer) for layer in layers]
    torch.testing.assert_close(sum(parts), one)
    heads = range(trace.sites[trace.cross_sites[0]].heads)
    parts = [heat_map(trace, prediction, "relevance-mirrored", head=head) for head in heads]
    torch.testing.assert_close(sum(parts) / len(heads), one)


def test_a_map_keeps_its_mass_on_the_image() -> None:
    trace = scene_of("deformable", (64, 96))
    tokens = torch.zeros(30)
    tokens[9] = 1.0  # the second row, fourth column of the first level, 4 x 6
    pixels = trace.to_pixels(tokens)
    assert float(pixels.sum()) == pytest.approx(1, rel=1e-3)
    y, x = divmod(int(pixels.argmax()), 96)
    assert 16 <= y < 32
    assert 48 <= x < 64
    assert trace.place_of(9) == (56.0, 24.0, 0)
    assert trace.token_at(56.0, 24.0) == 9
    assert trace.place_of(trace.token_at(90, 60, level=1)) == (80.0, 48.0, 1)
    # of levels of other sizes, a pixel of the coarser is the fainter
    both = torch.zeros(30)
    both[9] = both[24] = 1.0
    assert float(trace.to_pixels(both).sum()) == pytest.approx(2, rel=0.05)
    assert float(trace.to_pixels(both, level=0).sum()) == pytest.approx(1, rel=1e-3)


def test_points_are_where_the_model_looks() -> None:
    trace = scene_of("deformable", (64, 96))
    record = trace.tape["decoder.0.cross"]
    points = trace.points("decoder.0.cross", 3)
    assert torch.allclose(points.xy / torch.tensor([96.0, 64.0]), record.locations[0, 3])
    assert torch.equal(points.weights, record.weights[0, 3])
    assert torch.allclose(points.reference / torch.tensor([96.0, 64.0]), record.reference[0, 3, 0])
    assert torch.equal(trace.references[0][3], points.reference)
    boxed = scene_of("two-stage", (64, 96))
    assert boxed.points("decoder.1.cross", 3).reference.shape == (4,)
    assert torch.allclose(boxed.references[1][3][:2], boxed.layer_boxes[0, 3].view(2, 2).mean(0).double(), atol=1e-4)


def test_row_and_column_are_of_one_matrix() -> None:
    for family in ("detr", "deformable"):
        trace = scene_of(family)
        record = trace.tape["encoder.0.self"]
        dense = record.dense()[0]
        assert torch.allclose(row_map(record, 4), dense.mean(0)[4], atol=1e-12)
        assert torch.allclose(row_map(record, 4, head=1), dense[1, 4], atol=1e-12)
        assert torch.allclose(column_map(record, 4), dense.mean(0)[:, 4], atol=1e-12)
        assert torch.allclose(column_map(record, 4, head=1), dense[1, :, 4], atol=1e-12)
        with pytest.raises(ValueError, match="head: expected from 0 to 1, got 2"):
            row_map(record, 4, head=2)


def test_rollout_of_one_layer_by_hand() -> None:
    trace = scene_of("deformable")
    E = trace.tape["encoder.0.self"].dense()[0].mean(0)
    among = trace.tape["decoder.0.self"].weights[0].mean(0)
    across = trace.tape["decoder.0.cross"].dense()[0].mean(0)
    eye = torch.eye(len(E)).double()
    expected = (across / 2 @ (eye + E) / 2)[3]
    got = token_map(trace, trace.prediction(3), "rollout")
    assert torch.allclose(got.double(), expected, atol=1e-6)
    # with two layers, the first layer's look comes through the second's self-attention
    trace = scene_of("detr", dec_layers=2)
    rows = torch.eye(10).double()
    found: torch.Tensor | float = 0.0
    for layer in (0, 1):
        among = trace.tape[f"decoder.{layer}.self"].weights[0].mean(0)
        across = trace.tape[f"decoder.{layer}.cross"].weights[0].mean(0)
        mixed = (torch.eye(10) + among) / 2
        rows = mixed @ rows / 2
        found = (mixed @ found if isinstance(found, torch.Tensor) else torch.zeros_like(across)) / 2 + across / 2
    E = trace.tape["encoder.0.self"].weights[0].mean(0)
    expected = (found @ (torch.eye(len(E)) + E) / 2)[3]
    assert torch.allclose(token_map(trace, trace.prediction(3), "rollout").double(), expected, atol=1e-6)


def test_layers_heads_and_levels_add_up() -> None:
    trace = scene_of("two-stage")
    prediction = trace.prediction(3)
    heads = sum(token_map(trace, prediction, "raw", head=head) for head in range(2)) / 2
    assert torch.allclose(heads, token_map(trace, prediction, "raw"))
    levels = sum(token_map(trace, prediction, "raw", level=level) for level in range(2))
    assert torch.allclose(levels, token_map(trace, prediction, "raw"))
    layers = sum(token_map(trace, prediction, "relevance", layer=layer) for layer in range(2))
    assert torch.allclose(layers, token_map(trace, prediction, "relevance"))
    assert not torch.allclose(
        token_map(trace, prediction, "raw", layer=0), token_map(trace, prediction, "raw", layer=1)
    )
    assert not torch.allclose(
        token_map(trace, prediction, "relevance"), token_map(trace, prediction, "relevance", target="w")
    )


def test_the_gradient_of_the_input_is_a_nudges() -> None:
    trace = scene_of("deformable")
    prediction = trace.prediction(3)
    slopes = trace.input_gradient(prediction, "x")
    place = np.unravel_index(int(slopes.abs().argmax()), slopes.shape)
    answers = []
    for step in (1e-5, -1e-5):
        pixels = trace.pixels.clone()
        pixels[place] += step
        with torch.no_grad():
            answers.append(trace.model([pixels])["pred_boxes"][0, 3, 0])
    assert torch.allclose((answers[0] - answers[1]) / 2e-5, slopes[place], rtol=1e-4)


def test_masks_act_on_the_scene() -> None:
    model = uneven("deformable")
    image = images((64, 96))[0]
    trace = AttentionTrace(model, image, size=96, masks=[Mask("decoder.*.cross", heads=(1,))])
    assert (trace.tape["decoder.0.cross"].weights[:, :, 1] == 0).all()
    found = trace.detections(0)
    assert max(token_map(trace, prediction, "relevance").max() for prediction in found) > 0
    assert max(token_map(trace, prediction, "relevance", head=1).max() for prediction in found) == 0
    prediction = found[0]
    other = AttentionTrace(model, image, size=96)
    assert trace.layer_boxes.tolist() != other.layer_boxes.tolist()
    assert not torch.equal(trace.input_gradient(prediction), other.input_gradient(prediction))


def test_the_nearest_query() -> None:
    trace = scene_of("deformable", (64, 96))
    for query in (0, 4):
        box = trace.layer_boxes[-1, query].tolist()
        assert trace.nearest(box).box == pytest.approx(box)
    far = trace.nearest((500, 500, 510, 510))
    centres = (trace.layer_boxes[-1, :, :2] + trace.layer_boxes[-1, :, 2:]) / 2
    distance = (centres - 505).norm(dim=1)
    assert distance[far.query] == pytest.approx(float(distance.min()))


def test_what_cannot_be_asked() -> None:
    trace = scene_of("deformable")
    prediction = trace.prediction(3)
    for call, sentence in (
        (lambda: trace.prediction(10), "query: expected from 0 to 9, got 10"),
        (lambda: trace.prediction(0, 3), "label: expected from 0 to 2, got 3"),
        (lambda: trace.nearest((5, 5, 5, 9)), "box: expected x1,y1,x2,y2 with x1 < x2 .* got 5,5,5,9"),
        (lambda: trace.points("decoder.9.cross", 0), "site 'decoder.9.cross': expected one of encoder.0.self"),
        (lambda: trace.points("decoder.0.self", 0), "decoder.0.self attends to every key"),
        (lambda: trace.points("decoder.0.cross", 10), "query: expected from 0 to 9 at decoder.0.cross, got 10"),
        (lambda: trace.token_at(97, 3), "ref: expected a place within 96 x 64, got 97,3"),
        (lambda: trace.token_at(1, 3, 5), "level: expected from 0 to 1, got 5"),
        (lambda: trace.place_of(1000), "token: expected from 0 to"),
        (lambda: heat_map(trace, prediction, "lime"), "method: expected one of raw, rollout"),
        (lambda: heat_map(trace, prediction, "raw", layer=4), "layer: expected from 0 to 0 of the decoder, got 4"),
        (lambda: heat_map(trace, prediction, "raw", head=2), "head: expected from 0 to 1, got 2"),
        (lambda: heat_map(trace, prediction, "raw", level=2), "level: expected from 0 to 1, got 2"),
        (
            lambda: heat_map(trace, prediction, "relevance", target="z"),
            "target: expected one of class, x, y, w, h, got 'z'",
        ),
        (lambda: heat_map(trace, prediction, "rollout", head=0), "rollout goes through all layers and heads"),
        (lambda: heat_map(trace, prediction, "input-grad", layer=0), "input-grad has no layer, head or level"),
        (lambda: token_map(trace, prediction, "input-grad"), "it has no map over levels"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    with pytest.raises(ValueError, match="FasterRcnn has no attention to explain"):
        AttentionTrace(tiny("faster r-cnn"), images((64, 64))[0])
    with pytest.raises(FileNotFoundError, match=r"no-such.jpg does not exist"):
        AttentionTrace(trace.model, "no-such.jpg")


def test_slopes_are_by_a_pixel_of_the_image() -> None:
    trace = scene_of("deformable", (64, 96))
    prediction = trace.prediction(3)
    slopes = trace.slopes("decoder.0.cross", prediction)
    found = trace.gradients(prediction, locations=True)["decoder.0.cross"].locations
    assert found is not None
    assert torch.allclose(slopes, found[0, 3] / torch.tensor([96.0, 64.0]))
    assert slopes.abs().max() > 0
    with pytest.raises(ValueError, match="samples no points that could move"):
        trace.slopes("decoder.0.self", prediction)


def test_several_detections_in_one_pass() -> None:
    trace = scene_of("deformable")
    prediction, other = trace.prediction(3), trace.prediction(6)
    alone = token_map(trace, prediction, "relevance")
    assert torch.equal(token_map(trace, prediction, "relevance", among=[prediction]), alone)
    made = []
    gradients = trace.tape.gradients

    def counted(*args: object, **kwargs: object) -> object:
        made.append(args)
        return gradients(*args, **kwargs)  # type: ignore[arg-type]

    trace.tape.gradients = counted  # type: ignore[assignment]
    both = [token_map(trace, one, "relevance", among=[prediction, other]) for one in (prediction, other)]
    assert len(made) == 1
    assert not torch.allclose(both[0], both[1])

"""The planted detectors do what they are said to do, and explanations of them say what they do."""

import pytest
import torch

from msdeform.explain.core.capture import capture
from msdeform.explain.core.interventions import intervene
from msdeform.explain.core.maps import heat_map, token_map
from msdeform.explain.core.masks import Mask
from msdeform.explain.core.relevance import factors, relevance
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.quality.measures import inside, pointing
from msdeform.models.inference.images import normalise
from tests.explain.planted import (
    BOARD,
    COLOURS,
    GAIN,
    MIDDLES,
    OTHER_HEAD,
    PATCH,
    PLANTED,
    SIDE,
    THRESHOLD,
    Board,
    random_board,
)

SEEDS = range(6)


def found(model, board):
    return model.predict(board.image, confidence=0.5)


def inputs(*boards):
    return [normalise(board.image).double() for board in boards]


@pytest.fixture(scope="module", params=PLANTED)
def model(request):
    return PLANTED[request.param]()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_square_is_found_by_its_query_and_nothing_else(model, seed) -> None:
    board = random_board(seed, squares=1 + seed % 3)
    detections = found(model, board)
    order = sorted(range(len(board.labels)), key=lambda i: board.labels[i])
    mine = sorted(range(len(detections)), key=lambda i: int(detections.labels[i]))
    assert [detections.names[i] for i in mine] == [COLOURS[board.labels[i]] for i in order]
    torch.testing.assert_close(detections.boxes[mine].double(), board.boxes[order], atol=1e-4, rtol=0)
    scores = model(inputs(board))["pred_logits"][0].sigmoid()
    assert {tuple(pair) for pair in (scores > 0.05).nonzero().tolist()} == {
        *zip(board.queries, board.labels, strict=True)
    }


@pytest.mark.parametrize("size", [(64, 128), (128, 64)])
def test_cells_of_other_shapes_are_found_by_deformable_attention(size) -> None:
    model, board = PLANTED["deformable"](), random_board(3, 3, *size)
    detections = found(model, board)
    assert sorted(detections.labels.tolist()) == sorted(board.labels)
    for box, label in zip(board.boxes, board.labels, strict=True):
        torch.testing.assert_close(detections.boxes[detections.labels == label][0].double(), box, atol=1e-4, rtol=0)


def test_a_black_image_has_no_evidence(model) -> None:
    black = Board(torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), torch.zeros(0, 4), [], [])
    logits = model(inputs(black))["pred_logits"]
    torch.testing.assert_close(logits, torch.full_like(logits, -GAIN * THRESHOLD), atol=0, rtol=0)
    assert logits.shape == (1, len(MIDDLES), len(COLOURS))


def test_padding_changes_nothing(model) -> None:
    board, wide = random_board(1), random_board(2, 2, 64, 128)
    alone, together = model(inputs(board)), model(inputs(board, wide))
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(together[name][:1], alone[name], atol=1e-12, rtol=0)


METHODS = ("raw", "rollout", "gradcam", "relevance", "relevance-rollout", "relevance-mirrored")


def patches(box):
    """The patches of a 64 x 64 image that a box covers, (64,) bool."""
    return torch.from_numpy(inside((box / PATCH).tolist(), (BOARD, BOARD))).flatten()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_method_points_at_the_square(model, seed) -> None:
    board = random_board(seed, squares=2)
    trace = AttentionTrace(model, board.image)
    detections = trace.detections(0.5)
    assert len(detections) == 2
    boxes = dict(zip(board.labels, board.boxes, strict=True))
    for prediction in detections:
        for method in (*METHODS, "input-grad"):
            heat = heat_map(trace, prediction, method).numpy()
            assert pointing(heat, inside(boxes[prediction.label].tolist(), heat.shape)) == 1, method


def test_relevance_is_of_what_matters_and_attention_is_not(model) -> None:
    """The fourth head attends to no avail, and Grad-CAM leaves it out; DETR's others attend a little beside the square,
    where there is no evidence, and relevance leaves that out as well."""
    board = random_board(0)
    trace = AttentionTrace(model, board.image)
    for prediction in trace.detections(0.5):
        square = patches(board.boxes[board.labels.index(prediction.label)])
        maps = {method: token_map(trace, prediction, method) for method in METHODS}
        share = {method: float(tokens[square].sum() / tokens.sum()) for method, tokens in maps.items()}
        assert share["relevance"] == pytest.approx(1, abs=1e-12)
        assert 0.95 < share["gradcam"] <= 1 + 1e-12
        dense = not trace.tape["decoder.1.cross"].site.deformable
        assert (share["gradcam"] < 0.99) is dense
        assert 0.7 < share["raw"] < 0.98


@pytest.mark.parametrize("seed", SEEDS)
def test_a_head_removed_deletes_its_detection_and_no_other(model, seed) -> None:
    board = random_board(seed, squares=3)
    whole = model(inputs(board))["pred_logits"]
    for query, label in zip(board.queries, board.labels, strict=True):
        with intervene(model, Mask("decoder.*.cross", heads=(label,))):
            without = model(inputs(board))
        logits = without["pred_logits"]
        assert whole[0, query, label] > 0 > logits[0, query, label]
        torch.testing.assert_close(
            logits[..., label], torch.full_like(logits[..., label], -GAIN * THRESHOLD), atol=0, rtol=0
        )
        others = [k for k in range(3) if k != label]
        # dense attention that is interfered with is computed step by step: the last bits differ
        torch.testing.assert_close(logits[..., others], whole[..., others], atol=1e-12, rtol=0)


def test_a_layer_of_it_is_enough(model) -> None:
    board = random_board(1, squares=1)
    for layer in range(2):
        with intervene(model, Mask(f"decoder.{layer}.cross", heads=(board.labels[0],))):
            assert model(inputs(board))["pred_logits"].max() < 0


def test_the_other_head_decides_no_class(model) -> None:
    board = random_board(2)
    whole = model(inputs(board))
    with intervene(model, Mask("decoder.*.cross", heads=(OTHER_HEAD,))):
        without = model(inputs(board))
    torch.testing.assert_close(without["pred_logits"], whole["pred_logits"], atol=1e-12, rtol=0)
    dense = not hasattr(model.transformer.decoder.layers[0], "cross_attn")
    moved = (whole["pred_boxes"] - without["pred_boxes"]).abs().max()
    assert moved > 0.1 if dense else moved < 1e-12


def test_without_its_heads_a_detector_is_blind(model) -> None:
    with intervene(model, Mask("decoder.*.cross")):
        one, other = (model(inputs(random_board(seed))) for seed in (0, 1))
    for name in ("pred_logits", "pred_boxes"):
        assert torch.equal(one[name], other[name])
    assert not torch.equal(*(model(inputs(random_board(seed)))["pred_logits"] for seed in (0, 1)))


def on_board(tokens, columns):
    """Maps (..., 8 * columns) of a batch as wide, cut to the board, (..., 64)."""
    return tokens.unflatten(-1, (BOARD, columns))[..., :BOARD].flatten(-2)


def explained(model, board, *others):
    """Attention (H, Q, S) of the last layer, and relevance (1, S), of the board's first square, in a batch."""
    query, label = board.queries[0], board.labels[0]
    with capture(model, "*", gradients=True) as tape:
        outputs = model(inputs(board, *others))
    found = factors(tape, tape.gradients(outputs["pred_logits"][0, query, label]))
    return tape["decoder.1.cross"].dense()[0].detach(), relevance(found, [query]).detach()


def test_maps_are_the_same_alone_and_padded_in_a_batch(model) -> None:
    board, wide = random_board(1), random_board(2, 2, 64, 128)
    attention, relevant = explained(model, board)
    attention_padded, relevant_padded = explained(model, board, wide)
    assert attention_padded.shape[-1] == 2 * attention.shape[-1]
    torch.testing.assert_close(on_board(relevant_padded, 2 * BOARD), relevant, atol=1e-12, rtol=0)
    torch.testing.assert_close(relevant_padded.sum(), relevant.sum(), atol=1e-12, rtol=0)
    # the other head of a query at the edge looks into the padding, where there is nothing to attend to
    torch.testing.assert_close(on_board(attention_padded, 2 * BOARD), attention, atol=1e-12, rtol=0)
    assert relevant.sum() > 0

"""Maps by name: they point at planted squares, and refuse in a sentence what they have not."""

from typing import Any

import pytest
import torch

from msdeform.explain.baselines.black_box import DetectionTrace
from msdeform.explain.core.maps import heat_map, token_map
from msdeform.explain.core.trace import TARGETS, AttentionTrace
from msdeform.explain.options import BLACK_BOX, METHOD_TITLES, METHODS, OF_A_TARGET, PIXEL_METHODS, Method
from msdeform.explain.quality.measures import inside, pointing
from tests.explain.baselines.seen import SquareSeen, white
from tests.explain.models import DETRS, images, uneven
from tests.explain.planted import PLANTED, random_board

NEW = PIXEL_METHODS[1:]


def quick(method: str) -> dict[str, Any]:
    return {"samples": 100} if method == "drise" else {}


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("kind", PLANTED)
def test_every_method_points_at_the_square(kind: str, seed: int) -> None:
    board = random_board(seed, squares=2)
    trace = AttentionTrace(PLANTED[kind](), board.image)
    boxes = dict(zip(board.labels, board.boxes, strict=True))
    detections = trace.detections(0.5)
    assert len(detections) == 2
    for prediction in detections:
        for method in NEW:
            # nothing is left of a square that is a tenth covered: few masks leave something
            heat = heat_map(trace, prediction, method, **({"samples": 800} if method == "drise" else {})).numpy()
            assert pointing(heat, inside(boxes[prediction.label].tolist(), heat.shape)) == 1, method


@pytest.mark.parametrize("method", NEW)
@pytest.mark.parametrize("family", DETRS)
def test_every_method_gives_a_map_of_the_image(family: str, method: str) -> None:
    trace = AttentionTrace(uneven(family).float(), images((48, 60))[0], size=64)
    target = "w" if method in OF_A_TARGET and family != "two-stage" else "class"
    heat = heat_map(trace, trace.prediction(3), method, target=target, **quick(method))
    assert heat.shape == (48, 60)
    assert heat.dtype == torch.float32
    assert heat.isfinite().all()
    assert heat.min() >= 0
    assert not heat.requires_grad


def test_names_agree() -> None:
    assert set(METHODS) == set(METHOD_TITLES) == {*Method.__args__} - {"points"}
    assert {*PIXEL_METHODS, *OF_A_TARGET} <= set(METHODS)


def test_what_is_not_there_is_refused() -> None:
    trace = AttentionTrace(uneven("deformable"), images((48, 60))[0], size=64)
    seen = trace.prediction(3)
    for method in NEW:
        for where in ({"layer": 0}, {"head": 0}, {"level": 0}):
            with pytest.raises(ValueError, match=f"method: {method} has no layer, head or level"):
                heat_map(trace, seen, method, **where)
        with pytest.raises(ValueError, match=f"method: {method} is a map of the image's pixels"):
            token_map(trace, seen, method)
        with pytest.raises(ValueError, match="target: expected one of class, x, y, w, h, got 'z'"):
            heat_map(trace, seen, method, target="z")
    for method in BLACK_BOX:
        for target in TARGETS[1:]:
            with pytest.raises(ValueError, match=f"target: {method} explains a detection as a whole.*got '{target}'"):
                heat_map(trace, seen, method, target=target)


def test_a_detector_without_attention_has_maps_from_outside_alone() -> None:
    trace = DetectionTrace(SquareSeen(), white())
    for method in METHODS:
        if method in BLACK_BOX:
            assert heat_map(trace, trace.prediction(0), method, **quick(method)).max() > 0
            continue
        with pytest.raises(ValueError, match=f"SquareSeen has no attention.*expected drise or occlusion, got {method}"):
            heat_map(trace, trace.prediction(0), method)

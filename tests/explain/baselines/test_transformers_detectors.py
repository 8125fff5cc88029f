"""The methods that run a detector many times, on small detectors of transformers."""

import pytest
import torch

pytest.importorskip("transformers", reason="the peer that this is held against")

from msdeform.explain.baselines.attribution import integrated_gradients, makes_queries
from msdeform.explain.baselines.drise import answers, drise
from msdeform.explain.core.trace import AttentionTrace
from tests.explain.core.test_transformers_detectors import DETECTORS, detector, image


@pytest.mark.parametrize("name", DETECTORS)
def test_it_answers_to_changed_images(name: str) -> None:
    model = detector(name)
    assert makes_queries(model) is (name != "deformable_detr")
    trace = AttentionTrace(model, image())
    seen = trace.detections(0.0)[0]
    heat = drise(trace, seen, samples=6)
    assert heat.shape == (70, 100)
    assert heat.isfinite().all()
    known = answers(trace, 6)
    # open everywhere it is the image itself
    assert known.boxes.shape == (6, trace.queries, 4)
    found, rest = integrated_gradients(trace, seen, steps=2)
    assert found.shape == trace.pixels.shape
    assert found.isfinite().all()
    assert torch.tensor(rest).isfinite()

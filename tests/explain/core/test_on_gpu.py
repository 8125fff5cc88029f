"""On a device every backend shows the same: what is recorded, its gradients, and the maps of a trace."""

import pytest
import torch

from msdeform.explain.core.capture import capture
from msdeform.explain.core.interventions import intervene
from msdeform.explain.core.maps import heat_map
from msdeform.explain.core.masks import Mask
from msdeform.explain.core.trace import AttentionTrace
from tests.explain.models import images, uneven

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("family", ["deformable", "two-stage"])
@pytest.mark.parametrize("masked", [False, True])
def test_records_and_gradients_are_the_references(backend: str, family: str, masked: bool) -> None:
    masks = [Mask("decoder.*.cross", heads=(1,))] if masked else []
    batch = [image.cuda() for image in images((64, 96), (96, 64))]
    found = []
    for name in ("reference", backend):
        model = uneven(family, attn_backend=name).float().cuda()
        with intervene(model, *masks), capture(model, "*", gradients=True) as tape:
            outputs = model(batch)
        found.append((tape, tape.gradients(outputs["pred_logits"][0, 3, 1])))
        with intervene(model, *masks), capture(model, "*") as fused, torch.no_grad():
            model(batch)
        for site in tape:
            assert torch.allclose(fused[site].weights, tape[site].weights, atol=1e-5)
    (expected, expected_slopes), (got, slopes) = found
    first = "encoder.0.self"
    assert torch.equal(got[first].locations, expected[first].locations)
    for site in expected:
        assert torch.allclose(got[site].weights, expected[site].weights, atol=1e-5)
        if expected[site].site.deformable:
            assert torch.allclose(got[site].locations, expected[site].locations, atol=1e-4)
        scale = expected_slopes[site].weights.abs().max()
        assert torch.allclose(slopes[site].weights, expected_slopes[site].weights, rtol=0, atol=1e-3 * float(scale))


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_maps_are_those_of_the_cpu(backend: str) -> None:
    image = images((64, 96))[0]
    there = AttentionTrace(uneven("deformable", attn_backend=backend).float().cuda(), image, size=96)
    here = AttentionTrace(uneven("deformable", attn_backend="reference").float(), image, size=96)
    prediction = here.prediction(3)
    for method in ("raw", "rollout", "relevance", "input-grad"):
        expected = heat_map(here, prediction, method)
        difference = (heat_map(there, there.prediction(3), method) - expected).abs().max()
        assert difference <= 1e-2 * expected.max(), method

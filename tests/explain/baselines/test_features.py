"""ODAM and Grad-CAM of the backbone against what they are made of."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from msdeform.explain.baselines.features import backbone_gradcam, odam
from msdeform.explain.core.masks import Mask
from msdeform.explain.core.trace import AttentionTrace
from tests.explain.models import DETRS, images, uneven


def scene(family: str, **settings: object) -> AttentionTrace:
    return AttentionTrace(uneven(family), images((64, 96))[0], size=96, **settings)


@pytest.mark.parametrize(("family", "layer"), [("deformable", "backbone.0.body.layer4"), ("demo", "backbone.layer4")])
@pytest.mark.parametrize("target", ["class", "w"])
def test_gradcam_of_the_backbone_is_captums(family: str, layer: str, target: str) -> None:
    captum = pytest.importorskip("captum.attr")
    trace = scene(family)
    seen = trace.prediction(3)

    def y(pixels: Tensor) -> Tensor:
        return trace.y(seen, target, trace.model([pixels[0]]))[None]

    theirs = captum.LayerGradCam(y, trace.model.get_submodule(layer))
    expected = theirs.attribute(trace.pixels[None], relu_attributions=True).detach()
    assert expected.shape[1] == 1
    expected = F.interpolate(expected, (64, 96), mode="bilinear")[0, 0].float()
    found = backbone_gradcam(trace, seen, target)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.max() > 0


@pytest.mark.parametrize("family", DETRS)
def test_odam_is_made_of_the_maps_that_attention_begins_with(family: str) -> None:
    trace = scene(family)
    model, maps = trace.model, list[Tensor]()

    def begin(output: Tensor) -> Tensor:
        maps.append(output)
        return output

    # through the whole graph, where a trace's begins at these maps
    with torch.enable_grad(), model.levels_from(begin):
        logits = model([trace.pixels])["pred_logits"][0]
    highest = 0.0
    for seen in map(trace.prediction, range(trace.queries)):
        wanted = torch.zeros(64, 96)
        slopes = torch.autograd.grad(logits[seen.query, seen.label], maps, retain_graph=True)
        for one, slope in zip(maps, slopes, strict=True):
            h, w = one.shape[2:]
            product = (one.detach() * slope).sum(1, keepdim=True).clamp(min=0).float() * h * w / (64 * 96)
            wanted += F.interpolate(product, (64, 96), mode="bilinear")[0, 0]
        torch.testing.assert_close(odam(trace, seen), wanted, rtol=1e-4, atol=1e-7)
        highest = max(highest, float(wanted.max()))
    assert highest > 0


@pytest.mark.parametrize("method", [odam, backbone_gradcam])
def test_masks_and_targets_act(method) -> None:
    trace, masked = scene("deformable"), scene("deformable", masks=[Mask("decoder.*.cross", heads=(0,))])
    whole, other = (method(one, one.prediction(3, 1)) for one in (trace, masked))
    assert not torch.allclose(whole, other)
    assert not torch.allclose(method(trace, trace.prediction(3), "w"), method(trace, trace.prediction(3), "h"))
    without = scene("deformable", masks=[Mask("decoder.*.cross")])
    # a decoder that looks at nothing depends on nothing
    assert method(without, without.prediction(3)).max() == 0

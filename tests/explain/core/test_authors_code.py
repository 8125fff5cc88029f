"""Relevance against the generator that Chefer et al. published, on the same DETR.

Against the maps that it gave, recorded; it runs itself where their repository is cloned:

    CLONE=.peers/hila-chefer/Transformer-MM-Explainability
    git clone https://github.com/hila-chefer/Transformer-MM-Explainability $CLONE

Their code knows batches of one, dense attention and no padding; it asks for a GPU by name, which is passed over here.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from msdeform.explain.core.relevance import factors, relevance
from msdeform.explain.core.trace import AttentionTrace
from msdeform.models.families.detr import Detr
from msdeform.models.layers.batch import as_batch, shrink_mask
from tests.explain.core.recorded import recorded
from tests.explain.models import images, uneven
from tests.models.tiny import tiny

CLONE = Path(__file__).parents[3] / ".peers/hila-chefer/Transformer-MM-Explainability"
QUERY, LABEL = 3, 1
Theirs = tuple[ModuleType, ModuleType] | None


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Theirs]:
    """Their generator's module and their transformer's, in float64 and without a GPU; None where they are not."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.syspath_prepend(str(CLONE))
    monkeypatch.setattr(Tensor, "cuda", lambda self, *_, **__: self)
    try:
        if not CLONE.is_dir():
            yield None
            return
        generator = importlib.import_module("DETR.modules.ExplanationGenerator")
        # by its file: the package around it imports what torchvision no longer has
        spec = importlib.util.spec_from_file_location("their_transformer", CLONE / "DETR/models/transformer.py")
        assert spec is not None
        assert spec.loader is not None
        transformer = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(transformer)
        yield generator, transformer
    finally:
        torch.set_default_dtype(before)


class TheirDetr(nn.Module):
    """Our DETR with their transformer in place of ours, of the same weights."""

    def __init__(self, ours: Detr, transformer: ModuleType) -> None:
        super().__init__()
        layer = ours.transformer.encoder.layers[0]
        self.ours = ours
        self.transformer = transformer.Transformer(
            ours.transformer.hidden_dim,
            layer.self_attn.num_heads,
            len(ours.transformer.encoder.layers),
            len(ours.transformer.decoder.layers),
            layer.linear1.out_features,
            dropout=0.0,
            return_intermediate_dec=True,
        )
        found = self.transformer.load_state_dict(ours.transformer.state_dict(), strict=False)
        assert not found.missing_keys

    def forward(self, pixels: list[Tensor]) -> dict[str, Tensor]:
        batch, mask = as_batch(pixels, self.ours.dtype)
        body, position = self.ours.backbone
        maps = self.ours.input_proj(body(batch)[-1])
        mask = shrink_mask(mask, maps.shape[-2:])
        places = position(mask, maps.dtype).transpose(1, 2).view(maps.shape)
        hidden, _ = self.transformer(maps, mask, self.ours.query_embed.weight, places)
        return {"pred_logits": self.ours.class_embed(hidden[-1])}


def of_both(theirs: Theirs, name: str, ours: Detr, **parity: Any) -> tuple[np.ndarray, np.ndarray]:
    """Their map and ours, (S,) each, of one query and class."""
    trace = AttentionTrace(ours, images((288, 192))[0], size=192)
    prediction = trace.prediction(QUERY, LABEL)
    got = relevance(factors(trace.tape, trace.gradients(prediction)), [QUERY], **parity)[0]

    def ask() -> Tensor:
        generator, transformer = theirs
        again = TheirDetr(ours, transformer).double().eval()
        logits = again([trace.pixels])["pred_logits"]
        torch.testing.assert_close(logits, trace.outputs["pred_logits"], rtol=0, atol=1e-9)
        return generator.Generator(again).generate_ours([trace.pixels], QUERY, LABEL, use_lrp=False).flatten().detach()

    return recorded(Path(__file__).with_name("authors_maps.json"), name, ask if theirs else None), got.numpy()


def test_the_authors_generator_gives_the_same_map(theirs: Theirs) -> None:
    expected, got = of_both(theirs, "whole", uneven("detr", dec_layers=3, enc_layers=2), parity=True)
    assert expected.max() > 1e-9
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-12)


def test_where_the_authors_generator_drops_a_layer(theirs: Theirs) -> None:
    """Queries that begin as zeros have a first self-attention of zeros: they divide by zero, and we do not."""
    ours = tiny("detr", dec_layers=4).double().eval()
    with torch.no_grad():
        for module in ours.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.in_proj_bias.zero_()
    expected, got = of_both(theirs, "a layer dropped", ours, parity=True)
    assert expected.max() > 0
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-15)
    _, whole = of_both(theirs, "a layer dropped", ours)
    assert whole.sum() > 1.01 * expected.sum()

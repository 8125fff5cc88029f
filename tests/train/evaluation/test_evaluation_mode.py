"""Evaluation mode for a while: every module gets its own mode back."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from msdeform.explain.core.trace import AttentionTrace
from msdeform.models.layers.evaluation_mode import evaluating, evaluation_mode
from msdeform.models.zoo import create_model
from msdeform.train.config.options import Input, Source
from msdeform.train.data.loader import validation_data
from msdeform.train.evaluation.detect import detect


def mixed() -> nn.Module:
    """A detector of which the backbone is in evaluation mode and the rest is not."""
    model = create_model("deformable_detr_tiny", num_classes=3, attn_backend="reference").train()
    model.get_submodule("backbone").eval()
    return model


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def test_every_module_has_its_own_mode_again() -> None:
    model = mixed()
    before = modes(model)
    assert len(set(before.values())) == 2
    with evaluating(model) as same:
        assert same is model
        assert not any(modes(model).values())
        assert not torch.is_grad_enabled()
    assert modes(model) == before
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        raise ZeroDivisionError
    assert modes(model) == before


def test_what_looks_at_a_model_leaves_its_modes(shapes: Path) -> None:
    model = mixed()
    before = modes(model)
    data = validation_data(Source(data=shapes), Input(image_size=64), None)
    detect(model, data, torch.device("cpu"))
    assert modes(model) == before
    model.predict(Image.new("RGB", (64, 48)))
    assert modes(model) == before
    AttentionTrace(model, Image.new("RGB", (64, 48)))
    assert modes(model) == before

"""Small detectors of transformers with random weights, their files, and ours with the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

# what decides how the model is built; everything else is as small as it can be. transformers always makes 32 groups of
# the projections' channels, we make groups of at least 4: a width of 128 has both
WIDTH = 128
SLIM = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}

# stages of a ResNet-50 with as many blocks as dilation can be told by: it is the second block of a stage that has it
SHORT = (1, 1, 1, 2)

VARIANTS: dict[str, dict[str, Any]] = {
    "single scale": {"num_feature_levels": 1},
    "single scale, DC5": {"num_feature_levels": 1, "dilation": True},
    "multi-scale": {"num_feature_levels": 4},
    "refine": {"num_feature_levels": 4, "with_box_refine": True},
    "two-stage": {"num_feature_levels": 4, "with_box_refine": True, "two_stage": True},
    "detr": {},
    "detr, DC5": {"dilation": True},
}


def dilated(variant: str) -> bool:
    """Is its backbone timm's, as published? transformers' own ResNets don't dilate."""
    return bool(VARIANTS[variant].get("dilation"))


def shorten_resnet50(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes timm's and torchvision's ResNet-50 of `SHORT` stages, for tests that run it a hundred times."""
    registry = pytest.importorskip("timm").models._registry
    whole = registry.model_entrypoint("resnet50")
    monkeypatch.setitem(
        registry._model_entrypoints,
        "resnet50",
        lambda pretrained=False, **settings: whole(pretrained, layers=SHORT, **settings),
    )
    monkeypatch.setattr(
        torchvision.models,
        "get_model",
        lambda name, weights=None, **settings: ResNet(Bottleneck, list(SHORT), **settings),
    )


def theirs(variant: str, **settings: Any) -> nn.Module:
    """A detector of transformers in float64 and evaluation, every parameter and buffer drawn at random."""
    pytest.importorskip("transformers")
    from transformers import (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        DetrConfig,
        DetrForObjectDetection,
        ResNetConfig,
    )

    levels = VARIANTS[variant].get("num_feature_levels", 1)
    stages = ["stage4"] if levels == 1 else ["stage2", "stage3", "stage4"]
    shape: dict[str, Any] = {
        "d_model": WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "num_queries": 9,
        "num_labels": 5,
        **VARIANTS[variant],
    }
    if dilated(variant):
        shape |= {"backbone": "resnet50", "use_timm_backbone": True, "use_pretrained_backbone": False}
    elif "backbone" not in settings:
        shape |= {"use_timm_backbone": False, "backbone_config": ResNetConfig(**SLIM, out_features=stages)}
    shape |= settings
    if variant.startswith("detr"):
        model: nn.Module = DetrForObjectDetection(DetrConfig(**shape))
    else:
        if shape.get("with_box_refine"):
            # transformers ties the class heads of a refining detector unless told not to, and would then save one
            shape |= {"tie_word_embeddings": False}
        model = DeformableDetrForObjectDetection(
            DeformableDetrConfig(**shape, encoder_n_points=2, decoder_n_points=3, two_stage_num_proposals=9)
        )
    model = model.double().eval()
    randomise(model)
    if not variant.startswith("detr") and shape.get("with_box_refine"):
        _tie_names(model)
    return model


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Draws every parameter and buffer: what is published at zero or one would hide an error in reading it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.copy_(1 + 0.2 * noise.tanh())
            elif tensor.dim() > 1:
                # keeps activations near one through the layers
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            else:
                tensor.copy_(0.3 * noise)


def _tie_names(model: Any) -> None:
    """The decoder's heads are officially the detector's own, one module under two names."""
    model.model.decoder.bbox_embed = model.bbox_embed
    if model.config.two_stage:
        model.model.decoder.class_embed = model.class_embed


def saved(model: Any, folder: Path) -> dict[str, Tensor]:
    """What `save_pretrained` writes, read back."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def batch(seed: int = 1, sizes: tuple[tuple[int, int], ...] = ((96, 128), (128, 96))) -> tuple[Tensor, Tensor]:
    """Random images of different sizes, (B, 3, H, W) in float64 with zeros where padded, and the mask, True there."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(side) for side in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, height, width, dtype=torch.float64)
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes):
        images[i, :, :h, :w] = torch.randn(3, h, w, generator=generator, dtype=torch.float64)
        mask[i, :h, :w] = False
    return images, mask

"""Deformable DETR (Zhu et al. 2021), multi-scale, with iterative box refinement and two stages as options."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import BACKBONES, Backbone
from .batch import pad_images
from .deformable_transformer import DeformableTransformer
from .position import sine_of_pixels

# the probability every class starts with (Lin et al. 2017, section 3.3)
PRIOR = 0.01


@dataclass(frozen=True)
class DeformableDetrConfig:
    """Everything that decides a detector's structure, in plain values: it is stored in checkpoints as JSON.

    With L = `num_feature_levels` up to 3, the maps are the backbone's last L stages; each further level halves the
    one before, the first of them from the last stage itself. Raises ValueError naming a field that does not fit.
    """

    num_classes: int = 91
    backbone: str = "resnet50"
    backbone_frozen: bool = False  # batch norm as constants, stem and first stage fixed: for trained weights
    num_queries: int = 300
    num_feature_levels: int = 4
    enc_layers: int = 6
    dec_layers: int = 6
    hidden_dim: int = 256
    dim_feedforward: int = 1024
    nheads: int = 8
    enc_n_points: int = 4
    dec_n_points: int = 4
    dropout: float = 0.1
    with_box_refine: bool = False
    two_stage: bool = False
    aux_loss: bool = True

    def __post_init__(self) -> None:
        for name in ("num_classes", "num_queries", "num_feature_levels", "dec_layers", "hidden_dim", "nheads"):
            _at_least(name, getattr(self, name), 1)
        for name in ("dim_feedforward", "enc_n_points", "dec_n_points"):
            _at_least(name, getattr(self, name), 1)
        _at_least("enc_layers", self.enc_layers, 0)
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {self.backbone!r}")
        if self.hidden_dim % self.nheads:
            raise ValueError(f"hidden_dim: expected a multiple of nheads={self.nheads}, got {self.hidden_dim}")
        if self.hidden_dim % 4:
            raise ValueError(
                f"hidden_dim: expected a multiple of 4 (sine and cosine of x and y), got {self.hidden_dim}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {self.dropout}")
        if self.two_stage and not self.with_box_refine:
            raise ValueError(
                "two_stage: expected with_box_refine=True beside it, got False: the proposals are boxes, "
                "which the decoder refines"
            )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


class BoxHead(nn.Module):
    """Three linear layers with ReLU between them: (..., C) to (..., 4) box logits, zero at the start."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        first, second, last = (nn.Linear(hidden_dim, out) for out in (hidden_dim, hidden_dim, 4))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.ModuleList([first, second, last])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class DeformableDetr(nn.Module):
    """The detector: backbone, projections to one width, transformer, and a class and a box head for every layer.

    The state dict has the names of the official code.
    ``model(images)`` takes a list of normalised images (3, h, w) of any sizes, or the pair of images (B, 3, H, W) and
    padding mask (B, H, W), bool, True where padded, or images (B, 3, H, W) alone.
    """

    def __init__(self, config: DeformableDetrConfig, *, attn_backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        width, levels = config.hidden_dim, config.num_feature_levels
        self.transformer = DeformableTransformer(
            hidden_dim=width,
            nheads=config.nheads,
            num_levels=levels,
            num_queries=config.num_queries,
            enc_layers=config.enc_layers,
            dec_layers=config.dec_layers,
            dim_feedforward=config.dim_feedforward,
            dropout=config.dropout,
            enc_n_points=config.enc_n_points,
            dec_n_points=config.dec_n_points,
            with_box_refine=config.with_box_refine,
            two_stage=config.two_stage,
            attn_backend=attn_backend,
        )
        self._build_heads()
        if not config.two_stage:
            # position, then content
            self.query_embed = nn.Embedding(config.num_queries, 2 * width)
        # a sequence of one: the official names count the sine position, which has no weights, as its second
        backbone = Backbone(config.backbone, min(levels, 3), frozen=config.backbone_frozen)
        self.backbone = nn.Sequential(backbone)
        self.input_proj = _projections(backbone.channels, levels, width)

    def _build_heads(self) -> None:
        config = self.config
        # layers that refine have heads of their own, others share one; in two stages the last is the encoder's
        heads = config.dec_layers + int(config.two_stage)
        class_head, box_head = nn.Linear(config.hidden_dim, config.num_classes), BoxHead(config.hidden_dim)
        nn.init.constant_(class_head.bias, -math.log((1 - PRIOR) / PRIOR))
        class_heads, box_heads = [class_head] * heads, [box_head] * heads
        if config.with_box_refine:
            class_heads = [copy.deepcopy(head) for head in class_heads]
            box_heads = [copy.deepcopy(head) for head in box_heads]
        if not config.two_stage:
            # learned references have no size: boxes start at sigmoid(-2) = 0.12 of the image
            nn.init.constant_(box_heads[0].get_parameter("layers.2.bias")[2:], -2.0)
        self.class_embed, self.bbox_embed = nn.ModuleList(class_heads), nn.ModuleList(box_heads)
        # official checkpoints carry these heads under a second name
        if config.with_box_refine:
            self.transformer.decoder.bbox_embed = self.bbox_embed
        if config.two_stage:
            self.transformer.decoder.class_embed = self.class_embed

    def forward(self, images: Sequence[Tensor] | tuple[Tensor, Tensor] | Tensor) -> dict[str, Any]:
        """Returns the last layer's ``pred_logits`` (B, Q, num_classes) and ``pred_boxes`` (B, Q, 4).

        Boxes are cxcywh, normalised to the unpadded image. With `aux_loss`, ``aux_outputs`` lists the same of the
        layers before; in two stages, ``enc_outputs`` holds the encoder's, with S in place of Q.
        """
        batch, mask = _as_batch(images)
        maps = self.backbone(batch)
        levels = [project(x) for project, x in zip(self.input_proj, maps, strict=False)]
        for project in self.input_proj[len(maps) :]:
            levels.append(project(maps[-1] if len(levels) == len(maps) else levels[-1]))
        masks = [_shrink(mask, x.shape[-2:]) for x in levels]
        positions = [sine_of_pixels(m, self.config.hidden_dim).to(x.dtype) for m, x in zip(masks, levels, strict=True)]

        query_embed = None if self.config.two_stage else self.query_embed.weight
        decoded = self.transformer(
            levels, masks, positions, query_embed, class_heads=self.class_embed, box_heads=self.bbox_embed
        )

        layers = [
            {"pred_logits": head(hidden), "pred_boxes": boxes}
            for head, hidden, boxes in zip(self.class_embed, decoded.hidden, decoded.boxes, strict=False)
        ]
        outputs: dict[str, Any] = dict(layers[-1])
        if self.config.aux_loss:
            outputs["aux_outputs"] = layers[:-1]
        if decoded.encoder_logits is not None:
            outputs["enc_outputs"] = {"pred_logits": decoded.encoder_logits, "pred_boxes": decoded.encoder_boxes}
        return outputs


def _projections(channels: Sequence[int], levels: int, width: int) -> nn.ModuleList:
    """A 1x1 convolution for each map of the backbone, then 3x3 ones of stride 2 for the coarser levels."""
    convolutions = [nn.Conv2d(c, width, 1) for c in channels]
    for level in range(len(channels), levels):
        source = channels[-1] if level == len(channels) else width
        convolutions.append(nn.Conv2d(source, width, 3, stride=2, padding=1))
    for convolution in convolutions:
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.get_parameter("bias"))
    # 32 groups as published, but fewer where a group would have less than 4 channels: one channel on a map of one
    # pixel would be normalised to nothing
    groups = math.gcd(32, width // 4)
    return nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(groups, width)) for conv in convolutions)


def _shrink(mask: Tensor, size: Sequence[int]) -> Tensor:
    """The padding mask (B, H, W) at another resolution, nearest pixel."""
    return F.interpolate(mask[None].float(), size=tuple(size))[0].bool()


def _as_batch(images: Sequence[Tensor] | tuple[Tensor, Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(images, Tensor):
        if images.dim() != 4:
            raise ValueError(f"images: expected (B, 3, H, W) or a list of (3, h, w), got {tuple(images.shape)}")
        batch, mask = images, images.new_zeros((len(images), *images.shape[2:]), dtype=torch.bool)
    elif isinstance(images, tuple) and len(images) == 2 and images[0].dim() == 4:
        batch, mask = images
        if mask.dtype != torch.bool or mask.shape != (len(batch), *batch.shape[2:]):
            raise ValueError(
                f"mask: expected bool {(len(batch), *batch.shape[2:])} like images, got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )
    else:
        batch, mask = pad_images(images)
    if batch.shape[1] != 3:
        raise ValueError(f"images: expected 3 channels, got {batch.shape[1]}")
    return batch, mask

"""Deformable DETR (Zhu et al. 2021), with iterative box refinement and two stages as options."""

import copy
import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..configs import DeformableDetrConfig
from ..layers.backbone import Backbone
from ..layers.batch import Images, as_batch, shrink_mask
from ..layers.heads import BoxHead, class_head
from ..layers.position import make_position
from .deformable_transformer import DeformableTransformer
from .detector import Detector, layer_outputs


class DeformableDetr(Detector, config=DeformableDetrConfig):
    """The detector: backbone, projections to one width, transformer, and a class and a box head for every layer.

    The state dict has the names of the official code. `position` gives a map's position from its mask; refinement and
    two stages are the transformer's. Raises ValueError if the transformer has fewer levels than the backbone maps.
    """

    def __init__(
        self,
        backbone: Backbone,
        position: nn.Module,
        transformer: DeformableTransformer,
        *,
        num_classes: int,
        aux_loss: bool = True,
    ) -> None:
        super().__init__()
        self.transformer, self.aux_loss = transformer, aux_loss
        width, levels = transformer.hidden_dim, len(transformer.level_embed)
        if levels < len(backbone.channels):
            raise ValueError(f"transformer: expected at least {len(backbone.channels)} levels, got {levels}")
        self._build_heads(num_classes)
        if not transformer.two_stage:
            # position, then content
            self.query_embed = nn.Embedding(transformer.num_queries, 2 * width)
        # by the official names the position stands second in the backbone
        self.backbone = nn.Sequential(backbone, position)
        self.input_proj = _projections(backbone.channels, levels, width)

    @classmethod
    def from_parts_of(cls, config: DeformableDetrConfig, attn_backend: str) -> "DeformableDetr":
        transformer = DeformableTransformer(config, attn_backend)  # first: a seed's weights depend on the order
        return cls(
            Backbone.from_config(config, min(config.num_feature_levels, 3)),
            make_position(config.position_embedding, config.hidden_dim, centred=True),
            transformer,
            num_classes=config.num_classes,
            aux_loss=config.aux_loss,
        )

    def _build_heads(self, num_classes: int) -> None:
        decoder, two_stage = self.transformer.decoder, self.transformer.two_stage
        width = self.transformer.hidden_dim
        # layers that refine have heads of their own, others share one; in two stages the last is the encoder's
        heads = len(decoder.layers) + int(two_stage)
        classes, box = class_head(width, num_classes, focal=True), BoxHead(width)
        nn.init.zeros_(box.get_parameter("layers.2.weight"))
        nn.init.zeros_(box.get_parameter("layers.2.bias"))
        class_heads, box_heads = [classes] * heads, [box] * heads
        if decoder.refine:
            class_heads = [copy.deepcopy(head) for head in class_heads]
            box_heads = [copy.deepcopy(head) for head in box_heads]
        if not two_stage:
            # learned references have no size: boxes start at sigmoid(-2) = 0.12 of the image
            nn.init.constant_(box_heads[0].get_parameter("layers.2.bias")[2:], -2.0)
        self.class_embed, self.bbox_embed = nn.ModuleList(class_heads), nn.ModuleList(box_heads)
        # official checkpoints carry these heads under a second name
        if decoder.refine:
            decoder.bbox_embed = self.bbox_embed
        if two_stage:
            decoder.class_embed = self.class_embed

    def forward(self, images: Images) -> dict[str, Any]:
        """Returns the last layer's ``pred_logits`` (B, Q, num_classes) and ``pred_boxes`` (B, Q, 4).

        Boxes are cxcywh, normalised to the unpadded image. With `aux_loss`, ``aux_outputs`` lists the same of the
        layers before; in two stages, ``enc_outputs`` holds the encoder's, with S in place of Q.
        """
        batch, mask = as_batch(images, self.dtype)
        body, position = self.backbone
        maps = body(batch)
        levels = [project(x) for project, x in zip(self.input_proj, maps, strict=False)]
        for project in self.input_proj[len(maps) :]:
            levels.append(project(maps[-1] if len(levels) == len(maps) else levels[-1]))
        masks = [shrink_mask(mask, x.shape[-2:]) for x in levels]
        positions = [position(m, x.dtype) for m, x in zip(masks, levels, strict=True)]

        query_embed = None if self.transformer.two_stage else self.query_embed.weight
        decoded = self.transformer(
            levels, masks, positions, query_embed, class_heads=self.class_embed, box_heads=self.bbox_embed
        )
        logits = [head(hidden) for head, hidden in zip(self.class_embed, decoded.hidden, strict=False)]
        outputs = layer_outputs(logits, decoded.boxes, aux_loss=self.aux_loss)
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

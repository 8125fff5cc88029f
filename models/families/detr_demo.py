"""The minimal DETR (Carion et al. 2020, listing 1, in the form of the published demo): forty lines that show the idea.

Learned row and column positions, added once, to the encoder's input; torch's own transformer; one linear layer for the
box; no losses at inner layers.
"""

from typing import Any

import torch
from torch import nn

from ..configs import DetrDemoConfig
from ..layers.backbone import Backbone
from ..layers.batch import Images, as_batch, shrink_mask
from ..layers.geometry import at_least_float32
from ..layers.position import learned_positions
from .detector import Detector

# the published demo's weights were trained with pixels scaled so
PIXEL_SCALE = 0.1
# rows and columns that have a position
SIZE = 50


class DetrDemo(Detector, config=DetrDemoConfig):
    """The state dict has the names of the published demo. Maps of more than 50 rows or columns raise ValueError."""

    focal = False

    def __init__(self, backbone: Backbone, transformer: nn.Transformer, *, num_classes: int, num_queries: int) -> None:
        super().__init__()
        width = transformer.d_model
        self.backbone = backbone.body
        self.conv = nn.Conv2d(backbone.channels[-1], width, 1)
        self.transformer = transformer
        self.linear_class = nn.Linear(width, num_classes + 1)
        self.linear_bbox = nn.Linear(width, 4)
        self.query_pos = nn.Parameter(torch.rand(num_queries, width))
        self.row_embed = nn.Parameter(torch.rand(SIZE, width // 2))
        self.col_embed = nn.Parameter(torch.rand(SIZE, width // 2))

    @classmethod
    def from_parts_of(cls, config: DetrDemoConfig, attn_backend: str) -> "DetrDemo":
        transformer = nn.Transformer(
            config.hidden_dim,
            config.nheads,
            config.enc_layers,
            config.dec_layers,
            config.dim_feedforward,
            config.dropout,
            batch_first=True,
        )
        # torch's nested tensors are a prototype, of which it warns on every padded batch
        transformer.encoder.use_nested_tensor = False
        backbone = Backbone.from_config(config, 1)
        return cls(backbone, transformer, num_classes=config.num_classes, num_queries=config.num_queries)

    @property
    def body(self) -> nn.Module:
        return self.backbone

    def forward(self, images: Images) -> dict[str, Any]:
        """Returns ``pred_logits`` (B, Q, num_classes + 1) and ``pred_boxes`` (B, Q, 4), cxcywh, normalised.

        The published demo takes one image at a time; here padding is masked, as in DETR.
        """
        batch, mask = as_batch(images, self.dtype)
        features = self.conv(self.backbone(batch))
        mask = shrink_mask(mask, features.shape[-2:]).flatten(1)
        position = learned_positions(self.row_embed, self.col_embed, *features.shape[-2:])
        x = position + PIXEL_SCALE * features.flatten(2).transpose(1, 2)
        hidden = self.transformer(
            x,
            self.query_pos.expand(batch.shape[0], -1, -1),
            src_key_padding_mask=mask,
            memory_key_padding_mask=mask,
        )
        return {
            "pred_logits": self.linear_class(hidden),
            "pred_boxes": at_least_float32(self.linear_bbox(hidden)).sigmoid(),
        }

"""DETR (Carion et al. 2020): dense attention to one map; and DETR-DC5+, its comparison with focal loss."""

from typing import Any

from torch import nn

from ..configs import DetrConfig
from ..layers.backbone import Backbone
from ..layers.batch import Images, as_batch, shrink_mask
from ..layers.geometry import at_least_float32
from ..layers.heads import BoxHead, class_head
from ..layers.position import make_position
from .detector import Detector, layer_outputs
from .detr_transformer import Attentions, DetrTransformer


class Detr(Detector, config=DetrConfig):
    """The detector: backbone, one projection, transformer, and heads that all decoder layers share.

    The state dict has the names of the official code. The backbone's last map is used. With `focal` the classes are
    independent sigmoids, without there is a last one for no object.
    """

    def __init__(
        self,
        backbone: Backbone,
        position: nn.Module,
        transformer: DetrTransformer,
        *,
        num_classes: int,
        num_queries: int,
        focal: bool = False,
        aux_loss: bool = True,
    ) -> None:
        super().__init__()
        self.focal, self.aux_loss = focal, aux_loss
        width = transformer.hidden_dim
        self.transformer = transformer
        self.class_embed = class_head(width, num_classes, focal=focal)
        self.bbox_embed = BoxHead(width)
        self.query_embed = nn.Embedding(num_queries, width)
        self.input_proj = nn.Conv2d(backbone.channels[-1], width, 1)
        # by the official names the position stands second in the backbone
        self.backbone = nn.Sequential(backbone, position)

    @classmethod
    def from_parts_of(cls, config: DetrConfig, attn_backend: str) -> "Detr":
        transformer = DetrTransformer(config)  # first: a seed's weights depend on the order
        return cls(
            Backbone.from_config(config, 1),
            make_position(config.position_embedding, config.hidden_dim, centred=False),
            transformer,
            num_classes=config.num_classes,
            num_queries=config.num_queries,
            focal=config.focal,
            aux_loss=config.aux_loss,
        )

    def forward(self, images: Images, *, need_attentions: bool = False) -> dict[str, Any]:
        """Returns the last layer's ``pred_logits`` (B, Q, num_classes, or one more) and ``pred_boxes`` (B, Q, 4).

        Boxes are cxcywh, normalised to the unpadded image. With `aux_loss`, ``aux_outputs`` lists the same of the
        layers before. With `need_attentions`, ``attentions`` holds the probabilities of every attention, an
        `Attentions`.
        """
        batch, mask = as_batch(images, self.dtype)
        body, position = self.backbone
        features = body(batch)[-1]
        mask = shrink_mask(mask, features.shape[-2:])
        keep = Attentions() if need_attentions else None
        hidden = self.transformer(
            self.input_proj(features), mask, position(mask, features.dtype), self.query_embed.weight, keep
        )
        boxes = [at_least_float32(self.bbox_embed(x)).sigmoid() for x in hidden]
        outputs = layer_outputs([self.class_embed(x) for x in hidden], boxes, aux_loss=self.aux_loss)
        if keep is not None:
            outputs["attentions"] = keep
        return outputs

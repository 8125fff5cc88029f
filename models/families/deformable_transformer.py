"""The encoder and decoder of Deformable DETR (Zhu et al. 2021, section 4).

Every cross-attention, and the encoder's self-attention, is multi-scale deformable attention; queries attend to each
other with ordinary attention. Position is added to queries and keys at every layer, never to values.

Norms stand after each sum, as published, or with `pre_norm` before each attention and feed-forward network, and once
more at the end of the encoder and of the decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import MSDeformAttn
from ..configs import DeformableDetrConfig
from ..layers.geometry import (
    Levels,
    at_least_float32,
    encoder_reference_points,
    inverse_sigmoid,
    proposals,
    valid_ratios,
)
from ..layers.position import sine_of_boxes
from ..layers.residual import ResidualLayer


class EncoderLayer(ResidualLayer):
    """Deformable self-attention over all levels, then a feed-forward network, each with dropout, sum and norm."""

    def __init__(
        self, attention: MSDeformAttn, dim_feedforward: int, dropout: float, *, pre_norm: bool = False
    ) -> None:
        super().__init__()
        d_model = attention.d_model
        self.self_attn = attention
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, levels: Levels) -> Tensor:
        """x, position (B, S, C), reference (B, S, L, 2); returns (B, S, C)."""

        def attend(x: Tensor) -> Tensor:
            return self.self_attn(x + position, reference, x, levels.shapes, input_padding_mask=levels.mask)

        x = self.residual(x, self.norm1, attend)
        return self.residual(x, self.norm2, self.feed_forward)


class DecoderLayer(ResidualLayer):
    """Self-attention of the queries, deformable attention to the encoder's memory, feed-forward network.

    By the official names ``norm2`` belongs to self-attention and ``norm1`` to cross-attention.
    """

    def __init__(
        self, attention: MSDeformAttn, dim_feedforward: int, dropout: float, *, pre_norm: bool = False
    ) -> None:
        super().__init__()
        d_model = attention.d_model
        self.cross_attn = attention
        self.norm1 = nn.LayerNorm(d_model)
        self.self_attn = nn.MultiheadAttention(d_model, attention.n_heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, memory: Tensor, levels: Levels) -> Tensor:
        """x, position (B, Q, C), reference (B, Q, L, 2 or 4), memory (B, S, C); returns (B, Q, C)."""

        def self_attention(x: Tensor) -> Tensor:
            query = x + position
            return self.self_attn(query, query, x, need_weights=False)[0]

        def cross_attention(x: Tensor) -> Tensor:
            return self.cross_attn(x + position, reference, memory, levels.shapes, input_padding_mask=levels.mask)

        x = self.residual(x, self.norm2, self_attention)
        x = self.residual(x, self.norm1, cross_attention)
        return self.residual(x, self.norm3, self.feed_forward)


class Encoder(nn.Module):
    """The encoder's layers, under their official names, and a last norm if there is one."""

    def __init__(self, layers: Sequence[EncoderLayer], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Tensor, position: Tensor, levels: Levels) -> Tensor:
        """x, position (B, S, C); returns the memory (B, S, C)."""
        reference = encoder_reference_points(levels)
        for layer in self.layers:
            x = layer(x, position, reference, levels)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    """The decoder's layers; each layer's boxes are predicted relative to the reference it looked around.

    With `refine`, a layer's boxes, detached, are the next layer's references (iterative box refinement).
    """

    def __init__(self, layers: Sequence[DecoderLayer], *, refine: bool, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.refine = refine

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        levels: Levels,
        *,
        box_heads: nn.ModuleList,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """x, position (B, Q, C), reference (B, Q, 2 or 4) normalised to the unpadded image, memory (B, S, C).

        Returns for each layer its queries (B, Q, C), and its boxes (B, Q, 4), cxcywh, normalised to the unpadded
        image, at least float32.
        """
        hidden, boxes = [], []
        # the layers without a head of their own are none: a two-stage detector's last head is the encoder's
        for layer, head in zip(self.layers, box_heads, strict=False):
            scale = levels.ratios.repeat(1, 1, reference.shape[-1] // 2)
            x = layer(x, position, reference[:, :, None] * scale[:, None], memory, levels)
            shift = inverse_sigmoid(reference)
            shift = F.pad(shift, (0, 4 - shift.shape[-1]))
            hidden.append(x if self.norm is None else self.norm(x))
            boxes.append((at_least_float32(head(hidden[-1])) + shift).sigmoid())
            if self.refine:
                reference = boxes[-1].detach()
        return hidden, boxes


@dataclass(frozen=True)
class Decoded:
    """What the transformer returns: one entry a decoder layer, and in two stages the encoder's own prediction."""

    hidden: list[Tensor]  # (B, Q, C)
    boxes: list[Tensor]  # (B, Q, 4) cxcywh
    encoder_logits: Tensor | None = None  # (B, S, classes)
    encoder_boxes: Tensor | None = None  # (B, S, 4) cxcywh


class DeformableTransformer(nn.Module):
    """Encoder, the choice of queries, and decoder.

    In one stage the queries are learned, and their reference points a linear function of their positions. In two
    stages (Zhu et al. 2021, section 4.2) every pixel of the memory predicts a box and a score, and the `num_queries`
    best become, detached, the references and, through their sines, the queries.
    """

    def __init__(self, config: DeformableDetrConfig, attn_backend: str = "auto") -> None:
        super().__init__()
        width, pre_norm = config.hidden_dim, config.pre_norm
        self.hidden_dim, self.num_queries, self.two_stage = width, config.num_queries, config.two_stage

        def attention(points: int) -> MSDeformAttn:
            return MSDeformAttn(width, config.num_feature_levels, config.nheads, points, backend=attn_backend)

        def norm() -> nn.LayerNorm | None:
            return nn.LayerNorm(width) if pre_norm else None

        rest = (config.dim_feedforward, config.dropout)
        self.encoder = Encoder(
            [EncoderLayer(attention(config.enc_n_points), *rest, pre_norm=pre_norm) for _ in range(config.enc_layers)],
            norm(),
        )
        self.decoder = Decoder(
            [DecoderLayer(attention(config.dec_n_points), *rest, pre_norm=pre_norm) for _ in range(config.dec_layers)],
            refine=config.with_box_refine,
            norm=norm(),
        )
        self.level_embed = nn.Parameter(torch.empty(config.num_feature_levels, width))
        if config.two_stage:
            self.enc_output = nn.Linear(width, width)
            self.enc_output_norm = nn.LayerNorm(width)
            self.pos_trans = nn.Linear(2 * width, 2 * width)
            self.pos_trans_norm = nn.LayerNorm(2 * width)
        else:
            self.reference_points = nn.Linear(width, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for every matrix, the deformable attention's own start, and normal level embeddings."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        if not self.two_stage:
            nn.init.zeros_(self.reference_points.bias)
        nn.init.normal_(self.level_embed)

    def forward(
        self,
        maps: Sequence[Tensor],
        masks: Sequence[Tensor],
        positions: Sequence[Tensor],
        query_embed: Tensor | None,
        *,
        class_heads: nn.ModuleList,
        box_heads: nn.ModuleList,
    ) -> Decoded:
        """maps (B, C, h, w), masks (B, h, w), positions (B, h*w, C), one a level; query_embed (Q, 2C) in one stage.

        The heads are the detector's, one a decoder layer; in two stages one more, last, for the encoder.
        """
        x = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        position = torch.cat([sine + self.level_embed[level] for level, sine in enumerate(positions)], dim=1)
        levels = Levels(
            shapes=tuple((level.shape[2], level.shape[3]) for level in maps),
            ratios=valid_ratios(masks, at_least_float32(x).dtype),
            mask=torch.cat([level.flatten(1) for level in masks], dim=1),
        )
        memory = self.encoder(x, position, levels)

        if self.two_stage:
            logits, box_logits = self._propose(memory, levels, class_heads[-1], box_heads[-1])
            reference = self._best(logits, box_logits)
            sines = sine_of_boxes(reference, self.hidden_dim).to(memory.dtype)
            query_position, content = self.pos_trans_norm(self.pos_trans(sines)).chunk(2, dim=-1)
            first = {"encoder_logits": logits, "encoder_boxes": box_logits.sigmoid()}
        else:
            if query_embed is None:
                raise ValueError("query_embed: expected (Q, 2C) for a detector of one stage, got None")
            query_position, content = (half.expand(x.shape[0], -1, -1) for half in query_embed.chunk(2, dim=-1))
            reference = at_least_float32(self.reference_points(query_position)).sigmoid()
            first = {}
        hidden, boxes = self.decoder(content, query_position, reference, memory, levels, box_heads=box_heads)
        return Decoded(hidden, boxes, **first)

    def _propose(
        self, memory: Tensor, levels: Levels, class_head: nn.Module, box_head: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """A class score (B, S, classes) and a box in logits (B, S, 4) from every pixel of the memory."""
        offers, usable = proposals(levels)
        memory = self.enc_output_norm(self.enc_output(memory.masked_fill(~usable[..., None], 0.0)))
        return class_head(memory), at_least_float32(box_head(memory)) + offers

    def _best(self, logits: Tensor, box_logits: Tensor) -> Tensor:
        """Boxes (B, Q, 4) of the pixels with the highest score of class 0, which the encoder's targets all carry.

        There are fewer than `num_queries` when the image has fewer pixels.
        """
        index = self.choose_proposals(logits)
        return box_logits.detach().gather(1, index[..., None].expand(-1, -1, 4)).sigmoid()

    def choose_proposals(self, logits: Tensor) -> Tensor:
        """Which pixels of the memory, (B, Q), become queries, from their class logits (B, S, classes)."""
        count = min(self.num_queries, logits.shape[1])
        return logits[..., 0].topk(count, dim=1).indices

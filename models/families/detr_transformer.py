"""DETR's encoder and decoder (Carion et al. 2020, appendix A.3), on PyTorch's own attention.

Position is added to queries and keys at every layer, never to values. Norms stand after each sum, as published, or
with `pre_norm` before each attention and feed-forward network, and once more at the end of the encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..configs import DetrConfig
from ..layers.residual import ResidualLayer


@dataclass
class Attentions:
    """Attention probabilities of every layer, each (B, heads, queries, keys)."""

    encoder: list[Tensor] = field(default_factory=list)
    decoder_self: list[Tensor] = field(default_factory=list)
    decoder_cross: list[Tensor] = field(default_factory=list)


def attend(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    keep: list[Tensor] | None,
) -> Tensor:
    """(B, n, C) queries to (B, n, C); `mask` (B, keys) is True where not to look.

    Runs on the fused scaled-dot-product attention, unless its probabilities are wanted: they are appended to `keep`.
    """
    answer, weights = attention(
        query,
        key,
        value,
        key_padding_mask=mask,
        need_weights=keep is not None,
        average_attn_weights=False,
    )
    if keep is not None:
        keep.append(weights)
    return answer


class DetrEncoderLayer(ResidualLayer):
    """Self-attention of the pixels, then a feed-forward network, each with dropout, sum and norm."""

    def __init__(
        self, d_model: int, nheads: int, dim_feedforward: int, dropout: float, *, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nheads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, position: Tensor, mask: Tensor, keep: list[Tensor] | None) -> Tensor:
        """x, position (B, S, C), mask (B, S), True where padded; returns (B, S, C)."""

        def self_attention(x: Tensor) -> Tensor:
            query = x + position
            return attend(self.self_attn, query, query, x, mask, keep)

        x = self.residual(x, self.norm1, self_attention)
        return self.residual(x, self.norm2, self.feed_forward)


class DetrDecoderLayer(ResidualLayer):
    """Self-attention of the queries, attention to the encoder's memory, feed-forward network."""

    def __init__(
        self, d_model: int, nheads: int, dim_feedforward: int, dropout: float, *, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nheads, dropout=dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(d_model, nheads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self, x: Tensor, query_position: Tensor, memory: Tensor, position: Tensor, mask: Tensor, keep: Attentions | None
    ) -> Tensor:
        """x, query_position (B, Q, C), memory, position (B, S, C), mask (B, S); returns (B, Q, C)."""
        among = None if keep is None else keep.decoder_self
        across = None if keep is None else keep.decoder_cross

        def self_attention(x: Tensor) -> Tensor:
            query = x + query_position
            return attend(self.self_attn, query, query, x, None, among)

        def cross_attention(x: Tensor) -> Tensor:
            return attend(self.multihead_attn, x + query_position, memory + position, memory, mask, across)

        x = self.residual(x, self.norm1, self_attention)
        x = self.residual(x, self.norm2, cross_attention)
        return self.residual(x, self.norm3, self.feed_forward)


class DetrEncoder(nn.Module):
    """The encoder's layers, and a last norm if there is one."""

    def __init__(self, layers: Sequence[DetrEncoderLayer], norm: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Tensor, position: Tensor, mask: Tensor, keep: Attentions | None) -> Tensor:
        """x, position (B, S, C), mask (B, S); returns the memory (B, S, C)."""
        for layer in self.layers:
            x = layer(x, position, mask, None if keep is None else keep.encoder)
        return x if self.norm is None else self.norm(x)


class DetrDecoder(nn.Module):
    """The decoder's layers; one norm, shared, stands before the heads of each."""

    def __init__(self, layers: Sequence[DetrDecoderLayer], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(
        self, x: Tensor, query_position: Tensor, memory: Tensor, position: Tensor, mask: Tensor, keep: Attentions | None
    ) -> list[Tensor]:
        """x, query_position (B, Q, C), memory, position (B, S, C), mask (B, S); each layer's queries, (B, Q, C)."""
        hidden = []
        for layer in self.layers:
            x = layer(x, query_position, memory, position, mask, keep)
            hidden.append(self.norm(x))
        return hidden


class DetrTransformer(nn.Module):
    """Encoder over the pixels of one map, decoder from learned queries; names are the official ones."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.hidden_dim, pre_norm = config.hidden_dim, config.pre_norm
        shape = (config.hidden_dim, config.nheads, config.dim_feedforward, config.dropout)
        self.encoder = DetrEncoder(
            [DetrEncoderLayer(*shape, pre_norm=pre_norm) for _ in range(config.enc_layers)],
            nn.LayerNorm(config.hidden_dim) if pre_norm else None,
        )
        decoder = [DetrDecoderLayer(*shape, pre_norm=pre_norm) for _ in range(config.dec_layers)]
        self.decoder = DetrDecoder(decoder, nn.LayerNorm(config.hidden_dim))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, x: Tensor, mask: Tensor, position: Tensor, query_embed: Tensor, keep: Attentions | None = None
    ) -> list[Tensor]:
        """x (B, C, h, w), mask (B, h, w), position (B, h*w, C), query_embed (Q, C).

        Returns each decoder layer's queries (B, Q, C), normed; attention probabilities go to `keep`.
        """
        pixels, padded = x.flatten(2).transpose(1, 2), mask.flatten(1)
        memory = self.encoder(pixels, position, padded, keep)
        query_position = query_embed.expand(x.shape[0], -1, -1)
        return self.decoder(torch.zeros_like(query_position), query_position, memory, position, padded, keep)

"""`MSDeformAttn` as mmcv and detrex call it: queries and identity in, dropout and addition inside."""

from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.api import ms_deform_attn
from ..models.attention import MSDeformAttn, Shapes


def multi_scale_deformable_attn_pytorch(
    value: Tensor, value_spatial_shapes: Shapes | Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """:func:`~msdeform.ms_deform_attn`, by the name under which mmcv and detrex have it for tensors on a CPU.

    value (B, S, H, D), level sizes (L, 2), locations (B, Q, H, L, P, 2) and weights (B, Q, H, L, P). Returns
    (B, Q, H*D) in value's dtype, by the backend that the process has set. Raises as the operator does.
    """
    return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


class DropIn(MSDeformAttn):
    """What the modules of mmcv and detrex have in common; each adds its own names of the constructor's arguments.

    Parameters have the names, shapes, order and initial values of theirs. It is an `MSDeformAttn`, so what records or
    changes attention works on it as well; its `forward` takes other arguments.

    Args:
        width: channels of queries and output, with the name that the caller knows it by.
        num_heads, num_levels, num_points: as in `MSDeformAttn`.
        im2col_step: kept and without effect: the batch is never cut into pieces.
        dropout: probability with which a channel of the output is zeroed in training.
        batch_first: tensors are (B, Q, width); otherwise (Q, B, width).
        value_width: channels that are sampled; those of the queries if left out.
        backend: of the operator, held from construction.

    Raises ValueError for a count below 1, and for a width that is not a multiple of `num_heads`.
    """

    is_init = True  # mmengine asks it of children, and initialises those that say no a second time

    def __init__(
        self,
        width: tuple[str, int],
        num_heads: int,
        num_levels: int,
        num_points: int,
        im2col_step: int,
        dropout: float,
        batch_first: bool,
        value_width: tuple[str, int] | None = None,
        *,
        backend: str,
    ) -> None:
        name, channels = width
        value_name, value_channels = value_width or width
        counts = {name: channels, "num_heads": num_heads, "num_levels": num_levels, "num_points": num_points}
        for argument, count in counts.items():
            if count < 1:
                raise ValueError(f"{argument}: expected at least 1, got {count}")
        if channels % num_heads:
            raise ValueError(f"{name}: expected a multiple of num_heads={num_heads}, got {channels}")
        if value_channels < 1 or value_channels % num_heads:
            raise ValueError(
                f"{value_name}: expected a width of values that is a multiple of num_heads={num_heads}, "
                f"got {value_channels} channels"
            )
        super().__init__(channels, num_levels, num_heads, num_points, backend=backend)
        if value_channels != channels:
            self.value_proj = nn.Linear(channels, value_channels)
            self.output_proj = nn.Linear(value_channels, channels)
            self.reset_parameters()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.im2col_step = im2col_step
        self.dropout = nn.Dropout(dropout)
        self.batch_first = batch_first

    def init_weights(self) -> None:
        """`reset_parameters`, by the name that models of mmcv and detrex call."""
        self.reset_parameters()

    def forward(  # type: ignore[override]  # their order, which their callers use
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Shapes | Tensor | None = None,
        level_start_index: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Attend from `query` (Q, B, C) to `value` (S, B, C); with `batch_first`, (B, Q, C) and (B, S, C).

        key               ignored; `value` is what is sampled, the query itself if left out
        identity          added to the output; the query, before `query_pos` is added, if left out
        query_pos         added to the query
        key_padding_mask  (B, S), bool, True where padded: the value is zero there
        reference_points  (B, Q, L, 2) xy or (B, Q, L, 4) cxcywh, normalised; a size of 1 serves all
        spatial_shapes    int tensor (L, 2), or L pairs (h, w)
        level_start_index  (L,), may be left out: it follows from the shapes

        Other keywords are ignored, since the layers around pass what only other attentions use.

        Returns ``dropout(output) + identity``, shaped as `query`. Raises ValueError or TypeError naming the argument
        that is wrong.
        """
        value = query if value is None else value
        identity = query if identity is None else identity
        for name, tensor in (("query", query), ("value", value)):
            if tensor.dim() != 3 or tensor.shape[-1] != self.d_model:
                layout = "(B, any, C)" if self.batch_first else "(any, B, C)"
                raise ValueError(f"{name}: expected {layout} with C={self.d_model}, got {tuple(tensor.shape)}")
        _check_addend("identity", identity, query)
        if query_pos is not None:
            _check_addend("query_pos", query_pos, query)
            query = query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        if query.shape[0] != value.shape[0]:
            raise ValueError(f"value: expected B={query.shape[0]} like query, got B={value.shape[0]}")
        if spatial_shapes is None:
            raise TypeError("spatial_shapes: expected an int tensor (L, 2) or pairs (h, w), got None")
        _check_mask(key_padding_mask, value)
        references = self._references(reference_points, query)
        out = self.attend(query, references, value, spatial_shapes, level_start_index, key_padding_mask)
        out = self.output_proj(out)
        return self.dropout(out if self.batch_first else out.transpose(0, 1)) + identity

    def _references(self, reference_points: Tensor | None, query: Tensor) -> Tensor:
        """Reference points of every image, query and level, (B, Q, L, 2 or 4)."""
        expected = f"(B={query.shape[0]}, Q={query.shape[1]}, L={self.num_levels}, 2 or 4)"
        if reference_points is None:
            raise TypeError(f"reference_points: expected a tensor {expected}, got None")
        shape, wanted = tuple(reference_points.shape), (*query.shape[:2], self.num_levels)
        fits = all(size in (1, want) for size, want in zip(shape, wanted, strict=False))
        if len(shape) != 4 or shape[-1] not in (2, 4) or not fits:
            raise ValueError(f"reference_points: expected {expected}, got {shape}")
        return reference_points.expand(*wanted, -1)


def _check_addend(name: str, tensor: Tensor, query: Tensor) -> None:
    sizes = zip(reversed(tensor.shape), reversed(query.shape), strict=False)
    if tensor.dim() > query.dim() or any(size not in (1, want) for size, want in sizes):
        raise ValueError(f"{name}: expected the shape of query, {tuple(query.shape)}, got {tuple(tensor.shape)}")


def _check_mask(mask: Tensor | None, value: Tensor) -> None:
    if mask is None:
        return
    if mask.shape != value.shape[:2]:
        raise ValueError(
            f"key_padding_mask: expected (B={value.shape[0]}, S={value.shape[1]}), got {tuple(mask.shape)}"
        )
    if mask.dtype is not torch.bool:
        raise TypeError(f"key_padding_mask: expected bool, True where padded, got {mask.dtype}")

"""Multi-scale deformable attention as a module (Zhu et al. 2021, equation 3), around the operator of `kernels`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import registry
from ..kernels.api import fused_ms_deform_attn, ms_deform_attn
from ..kernels.contract import FLOATS
from ..kernels.pytorch.reference import extents, locate
from .layers.geometry import at_least_float32

Shapes = tuple[tuple[int, int], ...]


def shapes_of(spatial_shapes: Shapes | Tensor) -> Shapes:
    """Level sizes as Python ints."""
    rows = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    return tuple((int(h), int(w)) for h, w in rows)


@dataclass(frozen=True, eq=False)
class DeformableCall:
    """The arguments of one call of `MSDeformAttn`, and what it computes from them, one step at a time."""

    module: "MSDeformAttn"
    query: Tensor  # (B, Q, C)
    reference: Tensor  # (B, Q, L, 2 or 4)
    inputs: Tensor | None  # (B, S, C); None where only locations and weights are wanted
    shapes: Shapes
    mask: Tensor | None  # (B, S), True where padded

    def sample(self) -> tuple[Tensor, Tensor]:
        """Locations (B, Q, H, L, P, 2), xy, normalised to each padded level, and weights (B, Q, H, L, P).

        Weights sum to 1 over L and P; both are at least float32.
        """
        offsets, logits = (at_least_float32(x) for x in self.module.project_points(self.query))
        sizes = extents(self.shapes, self.query.device, offsets.dtype)
        locations = locate(at_least_float32(self.reference), offsets, sizes)
        return locations, logits.flatten(3).softmax(-1).view(logits.shape)

    def value(self) -> Tensor:
        """What is sampled, (B, S, H, D)."""
        assert self.inputs is not None
        return self.module.project_value(self.inputs, self.mask)

    def attend(self, locations: Tensor, weights: Tensor) -> Tensor:
        """The operator's output (B, Q, C) of these locations and weights, shaped as `sample`'s."""
        return ms_deform_attn(self.value(), self.shapes, locations, weights, backend=self.module.backend)


Editor = Callable[[DeformableCall], Tensor]
"""Computes a call's output (B, Q, C), before the output projection, in the operator's place."""


class MSDeformAttn(nn.Module):
    """Each query samples `n_points` points of every head and level around its reference point, and weighs them.

    Parameter names, shapes and initialisation are those of the module of the official Deformable DETR
    (``sampling_offsets``, ``attention_weights``, ``value_proj``, ``output_proj``), so that its weights load.

    `backend` is the operator's (``auto``, ``reference``, ``cpu``, ``triton``, ``cuda``), held from construction as the
    attribute ``backend``; ``auto`` takes the process-wide setting of that moment. A setting that changed between a
    forward pass and its recomputation would otherwise change the backend.

    An `editor`, where one is set, is called in the place of the fused operator: explanations change weights by it.

    Raises ValueError if `d_model` is not a multiple of `n_heads`, a count is below 1, or the backend is not known.
    """

    editor: Editor | None = None

    def __init__(
        self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4, *, backend: str = "auto"
    ) -> None:
        super().__init__()
        counts: dict[str, Any] = {"d_model": d_model, "n_levels": n_levels, "n_heads": n_heads, "n_points": n_points}
        for name, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, Integral):
                raise TypeError(f"{name}: expected a whole number, got {count!r}")
            if count < 1:
                raise ValueError(f"{name}: expected at least 1, got {count}")
        if d_model % n_heads:
            raise ValueError(f"d_model: expected a multiple of n_heads={n_heads}, got {d_model}")
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.backend = registry.current_setting() if backend == registry.AUTO else registry.check_name(backend)
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head h looks in direction 2 pi h / n_heads, its point p at p+1 pixels (max norm), all with equal weight."""
        angle = torch.arange(self.n_heads, dtype=torch.float32) * (2 * math.pi / self.n_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.n_points + 1, dtype=torch.float32)
        bias = (direction[:, None, None] * distance[:, None]).expand(-1, self.n_levels, -1, -1)  # (H, L, P, 2)
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(bias.flatten())
            self.attention_weights.weight.zero_()
            self.attention_weights.bias.zero_()
            for projection in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(projection.weight)
                projection.bias.zero_()

    def forward(  # the official order, which callers use
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Shapes | Tensor,
        input_level_start_index: Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from `query` (B, Q, d_model) to `input_flatten` (B, S, d_model), its levels one after another.

        reference_points       (B, Q, L, 2) xy or (B, Q, L, 4) cxcywh, normalised to each padded level, float32
        input_spatial_shapes   L pairs (h, w) of Python ints, or an int tensor (L, 2)
        input_level_start_index  (L,), computed from the shapes if left out
        input_padding_mask     (B, S), bool, True where padded: the value is zero there

        Returns (B, Q, d_model). Raises ValueError naming the argument whose shape is wrong, and TypeError for one that
        is no tensor or of a wrong dtype, such as a mask that is not bool.
        """
        self._check(query, reference_points, input_flatten, input_padding_mask)
        out = self.attend(
            query, reference_points, input_flatten, input_spatial_shapes, input_level_start_index, input_padding_mask
        )
        return self.output_proj(out)

    def attend(
        self,
        query: Tensor,
        reference_points: Tensor,
        inputs: Tensor,
        spatial_shapes: Shapes | Tensor,
        level_start_index: Tensor | None,
        padding_mask: Tensor | None,
    ) -> Tensor:
        """The operator's output (B, Q, d_model), before the output projection, of `forward`'s arguments."""
        if self.editor is not None:
            shapes = shapes_of(spatial_shapes)
            return self.editor(DeformableCall(self, query, reference_points, inputs, shapes, padding_mask))
        offsets, logits = self.project_points(query)
        return fused_ms_deform_attn(
            self.project_value(inputs, padding_mask),
            spatial_shapes,
            reference_points,
            offsets,
            logits,
            level_start_index=level_start_index,
            backend=self.backend,
        )

    def project_value(self, inputs: Tensor, padding_mask: Tensor | None) -> Tensor:
        """What is sampled, (B, S, H, D), from inputs (B, S, d_model); zero where the mask (B, S) is True."""
        value = self.value_proj(inputs)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        return value.unflatten(-1, (self.n_heads, -1))

    def project_points(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (B, Q, H, L, P, 2) and attention logits (B, Q, H, L, P) of queries (B, Q, d_model)."""
        shape = (self.n_heads, self.n_levels, self.n_points)
        return self.sampling_offsets(query).unflatten(-1, (*shape, 2)), self.attention_weights(query).unflatten(
            -1, shape
        )

    def _check(self, query: Tensor, reference: Tensor, inputs: Tensor, mask: Tensor | None) -> None:
        given = {"query": query, "reference_points": reference, "input_flatten": inputs}
        for name, tensor in {**given, **({} if mask is None else {"input_padding_mask": mask})}.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        for name, tensor in (("query", query), ("input_flatten", inputs)):
            if tensor.dtype not in FLOATS:
                raise TypeError(f"{name}: expected float64, float32, float16 or bfloat16, got {tensor.dtype}")
            if tensor.dim() != 3 or tensor.shape[-1] != self.d_model:
                raise ValueError(f"{name}: expected (B, any, d_model={self.d_model}), got {tuple(tensor.shape)}")
        if query.shape[0] != inputs.shape[0]:
            raise ValueError(f"input_flatten: expected B={query.shape[0]} like query, got B={inputs.shape[0]}")
        expected = (*query.shape[:2], self.n_levels)
        if tuple(reference.shape[:-1]) != expected or reference.shape[-1] not in (2, 4):
            raise ValueError(
                f"reference_points: expected (B={expected[0]}, Q={expected[1]}, L={self.n_levels}, 2 or 4), "
                f"got {tuple(reference.shape)}"
            )
        if mask is not None and mask.shape != inputs.shape[:2]:
            raise ValueError(
                f"input_padding_mask: expected (B={inputs.shape[0]}, S={inputs.shape[1]}), got {tuple(mask.shape)}"
            )
        if mask is not None and mask.dtype != torch.bool:
            raise TypeError(f"input_padding_mask: expected bool, True where padded, got {mask.dtype}")

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, n_levels={self.n_levels}, n_heads={self.n_heads}, n_points={self.n_points}, "
            f"backend={self.backend!r}"
        )

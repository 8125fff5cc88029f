"""One call of an attention module: its arguments by name, whatever way they were passed, and what follows from them."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...models.attention import MSDeformAttn
from ...models.layers.geometry import at_least_float32
from .attention import Shapes, dense_values, probabilities, sample, shapes_of


@dataclass(frozen=True, eq=False)
class DeformableCall:
    """A call of `MSDeformAttn`."""

    module: MSDeformAttn
    query: Tensor  # (B, Q, C)
    reference: Tensor  # (B, Q, L, 2 or 4)
    inputs: Tensor | None  # (B, S, C); None where only locations and weights are wanted
    shapes: Shapes
    mask: Tensor | None  # (B, S), True where padded

    def sample(self) -> tuple[Tensor, Tensor]:
        """Locations (B, Q, H, L, P, 2) and weights (B, Q, H, L, P)."""
        return sample(self.module, self.query, self.reference, self.shapes)

    def value(self) -> Tensor:
        """(B, S, H, D)."""
        assert self.inputs is not None
        return self.module.project_value(self.inputs, self.mask)


@dataclass(frozen=True, eq=False)
class DenseCall:
    """A call of `nn.MultiheadAttention`, batch first."""

    module: nn.MultiheadAttention
    query: Tensor  # (B, Q, C)
    key: Tensor  # (B, S, C)
    inputs: Tensor  # (B, S, C), the values
    forbidden: Tensor  # (B or 1, H or 1, Q or 1, S), True where not to look, or added to the scores

    def weights(self) -> Tensor:
        """Probabilities (B, H, Q, S)."""
        return at_least_float32(probabilities(self.module, self.query, self.key, self.forbidden))

    def value(self) -> Tensor:
        """(B, S, H, D)."""
        return dense_values(self.module, self.inputs).transpose(1, 2)

    @property
    def allowed(self) -> Tensor:
        """Where a query may look, bool, shaped as `forbidden`."""
        return ~self.forbidden if self.forbidden.dtype == torch.bool else self.forbidden > -torch.inf


def read_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> DeformableCall | DenseCall:
    """The call that a module got as ``module(*args, **kwargs)``."""
    # the class's forward: an intervention stands in the place of the module's own
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if isinstance(module, MSDeformAttn):
        return DeformableCall(
            module,
            given["query"],
            given["reference_points"],
            given["input_flatten"],
            shapes_of(given["input_spatial_shapes"]),
            given["input_padding_mask"],
        )
    assert isinstance(module, nn.MultiheadAttention)
    tensors = [given[name] for name in ("query", "key", "value")]
    if tensors[0].dim() == 2:
        tensors = [tensor[None] for tensor in tensors]
    elif not module.batch_first:
        tensors = [tensor.transpose(0, 1) for tensor in tensors]
    query, key, value = tensors
    return DenseCall(module, query, key, value, _forbidden(module, given, key))


def _forbidden(module: nn.MultiheadAttention, given: dict[str, Any], key: Tensor) -> Tensor:
    """The two masks of PyTorch's attention as one."""
    masks = []
    padding, attention = given["key_padding_mask"], given["attn_mask"]
    if padding is not None:
        masks.append((padding if padding.dim() == 2 else padding[None])[:, None, None])
    if attention is not None:
        masks.append(attention if attention.dim() == 2 else attention.unflatten(0, (-1, module.num_heads)))
    if not masks:
        return torch.zeros(1, 1, 1, key.shape[1], dtype=torch.bool, device=key.device)
    if all(mask.dtype == torch.bool for mask in masks):
        return masks[0] if len(masks) == 1 else masks[0] | masks[1]
    added = [
        torch.zeros(mask.shape, dtype=key.dtype, device=key.device).masked_fill(mask, -torch.inf)
        if mask.dtype == torch.bool
        else mask
        for mask in masks
    ]
    return added[0] if len(added) == 1 else added[0] + added[1]


def answer(call: DeformableCall | DenseCall, given: dict[str, Any], out: Tensor, weights: Tensor | None) -> Any:
    """What the module returns for heads' outputs `out` (B, Q, C), before the output projection.

    `weights` (B, H, Q, S) are dense attention's; `given` its keyword arguments.
    """
    if isinstance(call, DeformableCall):
        return call.module.output_proj(out)
    module = call.module
    projected = module.out_proj(out)
    wanted = weights if given.get("need_weights", True) else None
    if wanted is not None and given.get("average_attn_weights", True):
        wanted = wanted.mean(1)
    return projected if module.batch_first else projected.transpose(0, 1), wanted

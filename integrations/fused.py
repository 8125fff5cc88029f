"""The second level: a whole attention module with locations and softmax inside the operator.

A module of transformers projects its queries to offsets and logits, computes locations and weights from them, and calls
the operator. Where that is all it does, :func:`msdeform.fused_ms_deform_attn` takes offsets and logits themselves, and
nothing as large as the locations is written to memory. Whether it is all is tried: a copy of the module with random
weights computes a small example in float64 both ways.
"""

import copy
import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.api import fused_ms_deform_attn
from .forms import OurOperator, same, sizes_of
from .places import Place, class_forward, stand_in

_LAYERS = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
_COUNTS = ("d_model", "n_heads", "n_levels", "n_points")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_QUERIES = 4  # of the small example


@dataclass(eq=False)
class FusedForward:
    """Stands in the place of a module's ``forward``.

    Computes as before with gradients, and on a GPU, where no benchmark of ours has shown this to be faster; where
    another operator than ours is at the place, as while attention is recorded; and where hooks watch the layer inside.
    """

    module: nn.Module
    place: Place
    """where the module would call the operator"""
    before: Any
    """what stood in the module's ``forward`` before, or None for its class's"""
    keeps: bool
    """whether the mask is True at pixels that are kept, or at padding"""

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        operator, inside = self.place.current, self.place.module
        hooked = inside is not self.module and any(vars(inside)[kind] for kind in _HOOKS)
        fits = hidden_states.is_cpu and not args and not hooked and not torch.is_grad_enabled()
        if fits and isinstance(operator, OurOperator):
            return self.fused(operator.backend, hidden_states, **kwargs)
        if self.before is not None:
            return self.before(hidden_states, *args, **kwargs)
        return class_forward(self.module)(self.module, hidden_states, *args, **kwargs)

    def on(self, module: nn.Module) -> "FusedForward":
        """The same for another module of the class."""
        return replace(self, module=module, before=None if self.before is None else self.before.on(module))

    def fused(
        self,
        backend: str,
        hidden_states: Tensor,
        *,
        encoder_hidden_states: Tensor,
        reference_points: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: Tensor | None = None,
        spatial_shapes: Any = None,
        spatial_shapes_list: Any = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """The output (B, Q, d_model) of queries (B, Q, d_model), and attention weights (B, Q, H, L, P)."""
        module: Any = self.module
        query = hidden_states if position_embeddings is None else hidden_states + position_embeddings
        value = module.value_proj(encoder_hidden_states)
        if attention_mask is not None:
            padding = ~attention_mask if self.keeps else attention_mask
            value = value.masked_fill(padding[..., None], 0.0)
        shape = (module.n_heads, module.n_levels, module.n_points)
        offsets = module.sampling_offsets(query).unflatten(-1, (*shape, 2))
        logits = module.attention_weights(query).unflatten(-1, shape)
        output = fused_ms_deform_attn(
            value.unflatten(-1, (module.n_heads, -1)),
            sizes_of(spatial_shapes if spatial_shapes_list is None else spatial_shapes_list),
            reference_points.expand(-1, -1, module.n_levels, -1),
            offsets,
            logits,
            backend=backend,
        )
        return module.output_proj(output), logits.flatten(3).softmax(-1).view(logits.shape)


def fuse(module: nn.Module, place: Place) -> bool:
    """Puts :class:`FusedForward` on `module`, which calls the operator at `place`, if that computes the same."""
    held = vars(module).get("forward")
    if held is not None and module is not place.module:
        return False  # somebody replaced it
    if not all(isinstance(getattr(module, name, None), nn.Module) for name in _LAYERS):
        return False
    C, H, L, P = (getattr(module, name, None) for name in _COUNTS)
    if not (isinstance(C, int) and isinstance(H, int) and isinstance(L, int) and isinstance(P, int)):
        return False
    kind = (type(module), C, H, L, P)
    if kind not in _kinds:
        try:
            with torch.device("cpu"), torch.no_grad():
                _kinds[kind] = _mask_keeps(module, (C, H, L, P))
        except Exception:  # whatever their code raises: then it is none of this form
            return False
    keeps = _kinds[kind]
    if keeps is None:
        return False
    stand_in(module, FusedForward(module, place, held, keeps))
    return True


def unfuse(model: nn.Module) -> None:
    """Takes every :class:`FusedForward` off."""
    for module in model.modules():
        held = vars(module).get("forward")
        if isinstance(held, FusedForward):
            stand_in(module, held.before)


# whether the mask of modules of a class and counts is True at pixels that are kept; None where they compute otherwise
_kinds: dict[Any, bool | None] = {}


def _mask_keeps(one: nn.Module, counts: tuple[int, int, int, int]) -> bool | None:
    module = copy.deepcopy(one)
    for held in (module, *module.children()):
        stand_in(held, None)
    module = module.to_empty(device="cpu").double().eval()
    random = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64) * 0.3)
    for keeps in (True, False):
        if all(_agrees(module, counts, keeps, coordinates, random) for coordinates in (2, 4)):
            return keeps
    return None


def _agrees(
    module: nn.Module, counts: tuple[int, int, int, int], keeps: bool, coordinates: int, random: torch.Generator
) -> bool:
    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random, dtype=torch.float64)

    C, _, L, _ = counts
    sizes = [(2 + level % 2, 3 + level) for level in range(L)]
    S = sum(h * w for h, w in sizes)
    given: dict[str, Any] = {
        "hidden_states": draw(2, _QUERIES, C) - 0.5,
        "attention_mask": draw(2, S) < 0.5,
        "encoder_hidden_states": draw(2, S, C) - 0.5,
        "position_embeddings": draw(2, _QUERIES, C) - 0.5,
        "reference_points": draw(2, _QUERIES, L, coordinates),
        "spatial_shapes": torch.tensor(sizes),
        "spatial_shapes_list": sizes,
        "level_start_index": torch.tensor([sum(h * w for h, w in sizes[:level]) for level in range(L)]),
    }
    forward = class_forward(module)
    known = inspect.signature(forward).parameters
    theirs = forward(module, **{name: one for name, one in given.items() if name in known})
    place = Place("", module, "")
    ours = FusedForward(module, place, None, keeps).fused("reference", **given)
    return isinstance(theirs, tuple) and all(same(*pair) for pair in zip(theirs, ours, strict=True))

"""Where transformers' DEIMv2 departs from the original code, and what undoes it.

Only with all four repairs do the published weights give the published detections. In transformers as it is (5.23 and
5.24), Atto's AP on the images of ``test_average_precision_on_real_images`` is below 0.04 instead of 0.275. The repairs
are code and not weights, so `from_pretrained` does not make them: call `repaired` after it.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def repaired(model: nn.Module, anchors: Tensor, *, without: Collection[str] = ()) -> nn.Module:
    """The same model, which from now on computes what the original code does.

    Args:
        model: transformers' ``Deimv2ForObjectDetection``; it is changed.
        anchors: (1, S, 4), what training stored, for images of the size of training.
        without: names of `REPAIRS` to leave out.

    Raises ValueError if ``without`` names no repair.
    """
    if unknown := set(without) - set(REPAIRS):
        raise ValueError(f"without: expected names among {', '.join(REPAIRS)}, got {', '.join(sorted(unknown))}")
    for name, repair in REPAIRS.items():
        if name not in without:
            repair(model, anchors)
    return model


def _no_norm_before_the_encoders_heads(model: Any, anchors: Tensor) -> None:
    """transformers puts a Linear and a LayerNorm there. A LayerNorm is no identity, whatever its weights."""
    model.model.enc_output = nn.Identity()


def _silu_in_the_box_heads(model: Any, anchors: Tensor) -> None:
    """transformers has ReLU in the heads for boxes and in the one for their quality, the original SiLU."""
    core, decoder = model.model, model.model.decoder
    quality = (layer.reg_conf for layer in decoder.lqe_layers)
    for head in (core.enc_bbox_head, decoder.pre_bbox_head, *decoder.bbox_embed, *model.bbox_embed, *quality):
        head.act = nn.SiLU()


class _FirstOutput:
    """Hooks that repeat a module's first output as long as another module's forward pass lasts.

    Hooks, because names of parameters then stay as they are; an object and not a closure, because a copy of the model
    then has its own.
    """

    def __init__(self) -> None:
        self.first: Tensor | None = None

    def forget(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.first = None

    def repeat(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        self.first = output if self.first is None else self.first
        return self.first


def _query_positions_once(model: Any, anchors: Tensor) -> None:
    """transformers computes the queries' position embeddings anew from each layer's boxes, the original once."""
    decoder, positions = model.model.decoder, _FirstOutput()
    decoder.register_forward_pre_hook(positions.forget)
    decoder.query_pos_head.register_forward_hook(positions.repeat)


def _stored_anchors(model: Any, anchors: Tensor) -> None:
    """The weights include anchors, which the EMA of training has moved by up to 2e-4 from what transformers computes.

    Images of another size have other anchors, which are computed, as in the original.
    """
    model.model.generate_anchors = partial(_anchors, model.model.generate_anchors, anchors)


def _anchors(
    compute: Callable[..., tuple[Tensor, Tensor]],
    stored: Tensor,
    spatial_shapes: tuple[tuple[int, int], ...] | None = None,
    grid_size: float = 0.05,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """What transformers' ``generate_anchors`` returns, anchors (1, S, 4) and which are valid, with the stored ones."""
    computed, valid = compute(spatial_shapes, grid_size, device, dtype)
    return (stored.to(device, dtype) if stored.shape == computed.shape else computed), valid


REPAIRS: dict[str, Callable[[Any, Tensor], None]] = {
    "no norm before the encoder's heads": _no_norm_before_the_encoders_heads,
    "SiLU in the box heads": _silu_in_the_box_heads,
    "query positions once": _query_positions_once,
    "stored anchors": _stored_anchors,
}

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

from msdeform.integrations.detectors.deimv2 import query_positions_once, silu_in_box_heads, without_norm


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
    "no norm before the encoder's heads": lambda model, _: without_norm(model),
    "SiLU in the box heads": lambda model, _: silu_in_box_heads(model),
    "query positions once": lambda model, _: query_positions_once(model),
    "stored anchors": _stored_anchors,
}

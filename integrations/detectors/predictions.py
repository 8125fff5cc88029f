"""What each decoder layer of a detector of transformers predicts, beside the last, which its outputs name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...models.layers.geometry import inverse_sigmoid


@contextmanager
def every_layer(model: nn.Module) -> Iterator[None]:
    """Within the block D-FINE's and DEIMv2's decoders give the predictions of all their layers.

    They give those of the last alone outside of training; the decoder's own flag is what they ask, and its layers stay
    in evaluation mode.
    """
    decoder: Any = model.get_submodule("model.decoder")
    mode = decoder.training
    # where layers follow the one that answers, training would answer by another
    if getattr(decoder, "eval_idx", None) == len(decoder.layers) - 1:
        decoder.training = True
    try:
        yield
    finally:
        decoder.training = mode


def layer_predictions(model: nn.Module, outputs: Any) -> list[tuple[Tensor, Tensor]]:
    """Logits (B, Q, classes) and boxes (B, Q, 4), cxcywh, of each decoder layer, the last one's the model's own.

    Args:
        model: RT-DETR and its kin, which give them in their outputs; Deformable DETR, with a head for each layer; or
            LW-DETR and RF-DETR, with one for all. Of others, the last layer's are all.
        outputs: the model's, of a call within `every_layer`.
    """
    last = (outputs.logits, outputs.pred_boxes)
    decoder: Any = model.get_submodule("model.decoder")
    logits, boxes = outputs.get("intermediate_logits"), outputs.get("intermediate_reference_points")
    if logits is not None:
        # D-FINE and DEIMv2 begin with what the first layer says before its distributions
        count = min(len(decoder.layers), logits.shape[1])
        earlier = list(zip(logits.unbind(1)[-count:], boxes.unbind(1)[-count:], strict=True))
    elif isinstance(getattr(model, "class_embed", None), nn.ModuleList):
        earlier = _own_heads(model, outputs.intermediate_hidden_states, outputs.init_reference_points, boxes)
    elif isinstance(getattr(model, "class_embed", None), nn.Linear):
        earlier = _shared_heads(model, outputs.intermediate_hidden_states, boxes[-1])
    else:
        return [last]
    return [*earlier[:-1], last]


def _own_heads(model: Any, hidden: Tensor, first: Tensor, refined: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Deformable DETR's: hidden (B, N, Q, C); each layer's box is relative to the reference that it looked around."""
    found = []
    for layer, x in enumerate(hidden.unbind(1)):
        reference = inverse_sigmoid(first if layer == 0 else refined[:, layer - 1])
        change = model.bbox_embed[layer](x)
        # a reference without a size, (B, Q, 2), moves the centre alone
        rest = change.shape[-1] - reference.shape[-1]
        boxes = (change + torch.cat([reference, torch.zeros_like(change[..., :rest])], -1)).sigmoid()
        found.append((model.class_embed[layer](x), boxes))
    return found


def _shared_heads(model: Any, hidden: Tensor, reference: Tensor) -> list[tuple[Tensor, Tensor]]:
    """LW-DETR's: hidden (N, B, Q, C); every layer's box is relative to the same reference (B, Q, 4), not refined."""
    found = []
    for x in hidden:
        change = model.bbox_embed(x)
        centre = change[..., :2] * reference[..., 2:] + reference[..., :2]
        found.append((model.class_embed(x), torch.cat([centre, change[..., 2:].exp() * reference[..., 2:]], -1)))
    return found

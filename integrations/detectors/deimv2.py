"""DEIMv2 as its authors' code computes it, where transformers (5.23 and 5.24) departs from that.

Only so do the published weights of Atto and Femto give the published detections. It is code and not weights, so a
model's configuration asks for it: ``"authors_code": true`` in config.json, or ``--override authors_code=true``.
"""

from typing import Any

from torch import Tensor, nn

FIELD = "authors_code"
"""Of the configuration, which transformers keeps and does not look at."""


def departs(config: Any) -> bool:
    """Does a model of this configuration compute otherwise than its authors' code?"""
    return config.model_type == "deimv2" and not getattr(config, FIELD, False)


def follow_authors(model: nn.Module) -> None:
    """Makes `model`, in place, compute what its authors' code does, if it is a DEIMv2 whose configuration asks for it.

    Raises ValueError if another model's configuration does.
    """
    config: Any = model.config
    if not getattr(config, FIELD, False):
        return
    if config.model_type != "deimv2":
        raise ValueError(
            f"{FIELD}: expected a DEIMv2, got a {config.model_type}, which transformers computes as its own"
        )
    without_norm(model)
    silu_in_box_heads(model)
    query_positions_once(model)


def without_norm(model: Any) -> None:
    """transformers puts a Linear and a LayerNorm before the encoder's heads, the authors of Atto and Femto nothing."""
    model.model.enc_output = nn.Identity()


def silu_in_box_heads(model: Any) -> None:
    """transformers has ReLU in the heads for boxes and in the one for their quality, the authors SiLU."""
    core, decoder = model.model, model.model.decoder
    quality = (layer.reg_conf for layer in decoder.lqe_layers)
    for head in (core.enc_bbox_head, decoder.pre_bbox_head, *decoder.bbox_embed, *model.bbox_embed, *quality):
        head.act = nn.SiLU()


def query_positions_once(model: Any) -> None:
    """transformers computes the queries' position embeddings anew from each layer's boxes, the authors once."""
    decoder, positions = model.model.decoder, _FirstOutput()
    decoder.register_forward_pre_hook(positions.forget)
    decoder.query_pos_head.register_forward_hook(positions.repeat)


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

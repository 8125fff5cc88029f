"""Detectors of hand-set weights that find coloured squares: what they look at is known, and so what is to be explained.

**The task.** An image is a black board of 8 x 8 cells with squares of 3 x 3 cells, each of its own colour: red, green
or blue, the classes. A query stands on each of the 36 cells that a square can have its middle on.

**The body** averages patches of 8 x 8 pixels and turns a colour's mean c, from 0 to 1, into evidence relu(2c - 1).
Black, and the padding of a batch, are no evidence at all.

**The encoder**: every pixel attends to itself, and adds what it finds: evidence doubles.

**The decoder**: two layers; head k reads the evidence of colour k in the 3 x 3 cells around the query's own and writes
it into a channel that the others leave alone. Each layer adds half of the share of these cells that is of the colour,
so that 1 is reached where the square stands around the query, and nowhere else. In the deformable detector the second
layer weighs the middle point by what the first has found: attention that the image decides. Queries see nothing of each
other, and the feed-forward networks are zero.

**The heads**: class k's logit is GAIN (share of colour k - THRESHOLD). The box is always a square's.

The fourth head has another task. The deformable detector's looks beside the square, and nothing is made of what it
sees: attention that explains nothing. DETR's boxes depend on what was read alone, not on the query's position, so
there it reads the place: its removal moves boxes, and no class.

Norms are replaced by the identity, so that every number can be worked out by hand; all weights not set here are zero.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from msdeform.models.configs import DeformableDetrConfig, DetrConfig
from msdeform.models.families.deformable_detr import DeformableDetr
from msdeform.models.families.deformable_transformer import DeformableTransformer
from msdeform.models.families.detector import Detector
from msdeform.models.families.detr import Detr
from msdeform.models.families.detr_transformer import DetrTransformer
from msdeform.models.inference.image_size import Size
from msdeform.models.inference.images import IMAGENET_MEAN, IMAGENET_STD
from msdeform.models.layers.position import SinePosition

COLOURS = ("red", "green", "blue")
BOARD, SQUARE, PATCH = 8, 3, 8
SIDE = BOARD * PATCH
MIDDLES = [(row, column) for row in range(1, BOARD - 1) for column in range(1, BOARD - 1)]
HEADS, WIDTH = 4, 16
OTHER_HEAD = 3
GAIN, THRESHOLD = 60.0, 0.9

_EACH = WIDTH // HEADS  # channels of a head
_EVIDENCE = 4  # of colour k, in channel 4 + k
_PLACE = 10  # logits of x and y, in channels 10 and 11; in DETR alone
# in a sine position, the sine and cosine of one turn over the image's height, and of one over its width
_TURNS = (0, 1, WIDTH // 2, WIDTH // 2 + 1)


@dataclass(frozen=True)
class Board:
    """An image with squares on it, and what a planted detector must find in it."""

    image: Tensor
    """(3, H, W) uint8"""
    boxes: Tensor
    """(N, 4) float64, xyxy in pixels"""
    labels: list[int]
    queries: list[int]
    """Of each square, the one that finds it."""


def random_board(seed: int, squares: int = 2, height: int = SIDE, width: int = SIDE) -> Board:
    """Up to three squares, each of another colour and at least a cell from the next, on an image of 8 x 8 cells."""
    generator = np.random.default_rng(seed)
    middles: list[int] = []
    while len(middles) < squares:
        middles = []
        for query in generator.permutation(len(MIDDLES)).tolist():
            row, column = MIDDLES[query]
            apart = (max(abs(row - MIDDLES[q][0]), abs(column - MIDDLES[q][1])) > SQUARE for q in middles)
            if len(middles) < squares and all(apart):
                middles.append(query)
    labels = generator.permutation(len(COLOURS))[:squares].tolist()
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    cell_height, cell_width = height // BOARD, width // BOARD
    boxes = []
    for query, label in zip(middles, labels, strict=True):
        top, left = ((place - 1) * size for place, size in zip(MIDDLES[query], (cell_height, cell_width), strict=True))
        bottom, right = top + SQUARE * cell_height, left + SQUARE * cell_width
        image[label, top:bottom, left:right] = 255
        boxes.append([left, top, right, bottom])
    return Board(image, torch.tensor(boxes, dtype=torch.float64), labels, middles)


class Body(nn.Module):
    """Evidence of each colour in every patch and, with `places`, after them the logits of the patch's own x and y.

    Takes normalised images. Places are those of a board of 64 x 64 pixels.
    """

    def __init__(self, *, places: bool) -> None:
        super().__init__()
        self.places = places
        self.channels = (len(COLOURS) + 2 * places,)
        self.average = nn.Conv2d(3, 3, PATCH, stride=PATCH)
        self.average.requires_grad_(False)
        self.average.weight.zero_()
        for k in range(3):  # 2 c - 1, with the normalisation undone
            self.average.weight[k, k] = 2 * IMAGENET_STD[k] / PATCH**2
            self.average.bias[k] = 2 * IMAGENET_MEAN[k] - 1

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to one map (B, channels, H / 8, W / 8)."""
        evidence = self.average(images).relu()
        if not self.places:
            return [evidence]
        rows, columns = (torch.logit((torch.arange(n).to(evidence) + 0.5) / BOARD) for n in evidence.shape[2:])
        # what lies beyond the board has no place on it
        y, x = torch.meshgrid(rows.nan_to_num(0.0), columns.nan_to_num(0.0), indexing="ij")
        return [torch.cat([evidence, torch.stack([x, y]).expand(len(evidence), -1, -1, -1)], dim=1)]


def planted_deformable_detr() -> DeformableDetr:
    """Images of 64 or 128 pixels a side, of one level; float64."""
    config = DeformableDetrConfig(
        hidden_dim=WIDTH,
        nheads=HEADS,
        num_feature_levels=1,
        num_queries=len(MIDDLES),
        enc_layers=1,
        dec_layers=2,
        dim_feedforward=WIDTH,
        dropout=0.0,
        enc_n_points=1,
        dec_n_points=SQUARE**2,
        with_box_refine=False,
        two_stage=False,
    )
    transformer = DeformableTransformer(config, "reference")
    body, position = Body(places=False), SinePosition(WIDTH, centred=True)
    model = DeformableDetr(body, position, transformer, num_classes=len(COLOURS))
    _blank(model)
    # the position of a query is where it stands: its references are the sigmoid of this
    model.query_embed.weight[:, 0:2] = torch.logit(_middles())
    transformer.reference_points.weight[:, 0:2] = torch.eye(2)
    _project(model.input_proj[0][0])

    itself = transformer.encoder.layers[0].self_attn  # one point, of no offset
    itself.value_proj.weight.copy_(torch.eye(WIDTH))
    itself.output_proj.weight.copy_(torch.eye(WIDTH))
    steps = torch.arange(SQUARE) - 1.0
    around = torch.cartesian_prod(steps, steps).flip(-1)  # (9, 2), xy in pixels of the map
    for layer in transformer.decoder.layers:
        offsets = layer.cross_attn.sampling_offsets.bias.view(HEADS, 1, SQUARE**2, 2)
        offsets[:] = around
        offsets[OTHER_HEAD] += torch.tensor([SQUARE, 0])
        logits = layer.cross_attn.attention_weights.weight.view(HEADS, 1, SQUARE**2, WIDTH)
        for k in range(3):
            logits[k, 0, SQUARE**2 // 2, _EVIDENCE + k] = 1.0  # the middle's: nothing in the first layer
            layer.cross_attn.value_proj.weight[k * _EACH, _EVIDENCE + k] = 1.0
            layer.cross_attn.output_proj.weight[_EVIDENCE + k, k * _EACH] = 0.25  # of doubled evidence, in two layers
    _classify(model.class_embed[0])
    model.bbox_embed[0].layers[2].bias[2:] = math.log(SQUARE / (BOARD - SQUARE))
    _finish(model)
    return model


def planted_detr() -> Detr:
    """The same with dense attention; images of 64 x 64 pixels; float64.

    A head attends by position alone: from y to y' by exp(sharpness cos(2 pi (y - y'))), and in x alike.
    """
    config = DetrConfig(hidden_dim=WIDTH, nheads=HEADS, enc_layers=1, dec_layers=2, dim_feedforward=WIDTH, dropout=0.0)
    transformer = DetrTransformer(config)
    body, position = Body(places=True), SinePosition(WIDTH, centred=True)
    model = Detr(body, position, transformer, num_classes=len(COLOURS), num_queries=len(MIDDLES), focal=True)
    _blank(model)
    x, y = (2 * math.pi * _middles()).unbind(-1)
    model.query_embed.weight[:, _TURNS] = torch.stack([y.sin(), y.cos(), x.sin(), x.cos()], dim=-1)
    _project(model.input_proj)
    model.input_proj.weight[_PLACE, 3] = model.input_proj.weight[_PLACE + 1, 4] = 1.0

    around, sharp = 4.0, 200.0  # a neighbour has exp(-1.2) and exp(-59) of what a pixel gives itself
    itself = transformer.encoder.layers[0].self_attn
    for k in range(HEADS):
        _attend_by_position(itself, k, sharp)
    for k in range(3):
        itself.in_proj_weight[2 * WIDTH + k * _EACH, _EVIDENCE + k] = 1.0
        itself.out_proj.weight[_EVIDENCE + k, k * _EACH] = 1.0
    for layer in transformer.decoder.layers:
        reader = layer.multihead_attn
        _attend_by_position(reader, OTHER_HEAD, sharp)
        for i in range(2):
            reader.in_proj_weight[2 * WIDTH + OTHER_HEAD * _EACH + i, _PLACE + i] = 1.0
            reader.out_proj.weight[_PLACE + i, OTHER_HEAD * _EACH + i] = 0.5
        for k in range(3):
            _attend_by_position(reader, k, around)
            reader.in_proj_weight[2 * WIDTH + k * _EACH, _EVIDENCE + k] = 1.0
            reader.out_proj.weight[_EVIDENCE + k, k * _EACH] = 0.25
    _classify(model.class_embed)
    first, second, last = model.bbox_embed.layers
    for i in range(2):  # relu(x) - relu(-x) is x
        first.weight[2 * i, _PLACE + i], first.weight[2 * i + 1, _PLACE + i] = 1.0, -1.0
        last.weight[i, 2 * i], last.weight[i, 2 * i + 1] = 1.0, -1.0
    second.weight.copy_(torch.eye(WIDTH))
    last.bias[2:] = math.log(SQUARE / (BOARD - SQUARE))
    _finish(model)
    return model


PLANTED = {"deformable": planted_deformable_detr, "dense": planted_detr}


def _blank(model: Detector) -> None:
    """No norms, and every weight zero but the body's."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm | nn.GroupNorm):
                setattr(module, name, nn.Identity())
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            parameter.zero_()
    model.double()


def _middles() -> Tensor:
    """(36, 2), xy from 0 to 1"""
    return (torch.tensor(MIDDLES, dtype=torch.float64).flip(-1) + 0.5) / BOARD


def _project(projection: nn.Conv2d) -> None:
    for k in range(3):
        projection.weight[_EVIDENCE + k, k] = 1.0


def _attend_by_position(attention: nn.MultiheadAttention, head: int, sharpness: float) -> None:
    """The turns of the query times those of the key, of which dense attention takes a half, 1 / sqrt(4)."""
    queries, keys = (attention.in_proj_weight[start : start + WIDTH] for start in (0, WIDTH))
    for i, channel in enumerate(_TURNS):
        queries[head * _EACH + i, channel] = sharpness * math.sqrt(_EACH)
        keys[head * _EACH + i, channel] = 1.0


def _classify(head: nn.Linear) -> None:
    for k in range(3):
        head.weight[k, _EVIDENCE + k] = GAIN
    head.bias.fill_(-GAIN * THRESHOLD)


def _finish(model: Detector) -> None:
    model.categories = list(COLOURS)
    model.input_size = Size(SIDE, 2 * SIDE)
    model.eval().requires_grad_()

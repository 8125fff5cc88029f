"""A DETR from tensors to tensors, as it is exported, with what a caller wants done around it."""

import copy
from collections.abc import Callable, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from ..attention import MSDeformAttn
from ..families.detector import Detector
from ..families.faster_rcnn import FasterRcnn
from ..inference.image_size import Size
from ..inference.images import IMAGENET_MEAN, IMAGENET_STD
from ..inference.post_processing import best_of_queries
from ..layers.boxes import cxcywh_to_xyxy
from .check import Padding
from .faster_rcnn import ExportableFasterRcnn
from .form import SAMPLING, Form

Call = Callable[..., list[Tensor]]
"""What a file computes of a program's inputs."""
# of two scores: rounding decides which is higher
_SAME_SCORE = 1e-4


class Exportable(nn.Module):
    """(images, mask) to (logits, boxes), or another `Form` of it."""

    def __init__(self, model: Detector, form: Form) -> None:
        super().__init__()
        self.model, self.form = model, form
        self.inputs, self.outputs = form.inputs, form.outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Takes `Form.inputs` and gives `Form.outputs`: ``msdeform export --help`` has the shapes."""
        if self.form.pixels:
            pixels = inputs[0]
            images, mask = resized(pixels, self.model.input_size or Size(), self.form.size)
            sizes = torch.tensor([pixels.shape[2], pixels.shape[3]]).expand(pixels.shape[0], 2)
        else:
            images, mask, *rest = inputs
            sizes = rest[0] if rest else mask.new_zeros(0)
        found = self.model((images, mask))
        logits, boxes = found["pred_logits"].float(), found["pred_boxes"]
        if self.form.top_k is None:
            return logits, boxes
        scores, labels, query = best_of_queries(logits, self.form.top_k, focal=self.model.focal)
        height, width = sizes.to(boxes.dtype).unbind(1)
        scale = torch.stack([width, height, width, height], dim=1)[:, None]
        return cxcywh_to_xyxy(boxes.gather(1, query[..., None].expand(-1, -1, 4))) * scale, labels, scores

    def example(self, images: Tensor) -> tuple[Tensor, ...]:
        """`images` normalised (B, 3, H, W), the last quarter of every one's rows and columns padded."""
        height, width = images.shape[2:]
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        return self.padded(images, [(rows >= height - height // 4, columns >= width - width // 4)] * len(images))

    def padded(self, images: Tensor, paddings: Sequence[Padding]) -> tuple[Tensor, ...]:
        """`images` normalised (B, 3, H, W), each padded as the padding of its place says; as pixels, without it."""
        if self.form.pixels:
            deviation, mean = (images.new_tensor(numbers)[:, None, None] for numbers in (IMAGENET_STD, IMAGENET_MEAN))
            return (((images * deviation + mean) * 255).round().clamp(0, 255).byte(),)
        mask = torch.stack([rows | columns for rows, columns in paddings])
        inputs = images.masked_fill(mask[:, None], 0.0), mask
        if self.form.top_k is None:
            return inputs
        sizes = torch.tensor([[images.shape[2] + 7 * number, images.shape[3] + 3] for number in range(len(images))])
        return *inputs, sizes

    def expected(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the exported program is compared with."""
        outputs: tuple[Tensor, ...] = self(*inputs)
        return outputs

    def paired(self, wanted: Sequence[Tensor], came: Sequence[Tensor]) -> list[Tensor]:
        """`came`, in the order of `wanted`: queries keep theirs, but in two stages, and where the best are chosen.

        There they are in the order of their scores: rounding decides which of two almost equal ones is first. Its place
        in the order decides nothing of what comes of it, and the output is a set. Each is compared with the one that it
        is nearest to, one to one. Where the best are chosen, those that score as the last of them are not compared:
        which of them come is rounding, too. Nor is, of two stages in float16, the quarter of the queries that differs
        most: it chooses some other proposals than float32.
        """
        two_stage = getattr(getattr(self.model, "transformer", None), "two_stage", False)
        top_k = self.form.top_k is not None
        comparable = all(
            one.shape == other.shape and bool(other.isfinite().all()) for one, other in zip(wanted, came, strict=True)
        )
        if not (top_k or two_stage) or not comparable:
            return list(came)
        both = [torch.cat([(x if x.dim() > 2 else x[..., None]).double() for x in of], -1) for of in (wanted, came)]
        order = [linear_sum_assignment(torch.cdist(one, other, p=1))[1] for one, other in zip(*both, strict=True)]
        paired = [torch.stack([one[rows] for one, rows in zip(tensor, order, strict=True)]) for tensor in came]
        if two_stage and self.form.dtype == torch.float16:
            far = torch.stack(
                [(one - other).abs().flatten(2).amax(2) for one, other in zip(wanted, paired, strict=True)]
            )
            strangers = far.amax(0).topk(far.shape[2] // 4, dim=1).indices
            for one, other in zip(wanted, paired, strict=True):
                rows = strangers[..., None].expand(-1, -1, one.shape[2])
                other.scatter_(1, rows, one.gather(1, rows))
        if top_k:
            scores = wanted[2]
            last = scores <= scores.amin(1, keepdim=True) + _SAME_SCORE
            paired = [
                torch.where(last.view(*last.shape, *[1] * (one.dim() - 2)), one, other)
                for one, other in zip(wanted, paired, strict=True)
            ]
        return paired


Program = Exportable | ExportableFasterRcnn
"""What is exported."""


def exportable(model: Detector, form: Form) -> Program:
    """A copy of a detector as it can be exported: in evaluation mode, on the CPU, its batch norms within convolutions.

    The deformable attention samples as `form` says.
    """
    model = copy.deepcopy(model).float().cpu().eval()  # the caller's keeps its mode, dtype and device
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            module.backend = SAMPLING[form.sampling]
    if isinstance(model, FasterRcnn):
        return ExportableFasterRcnn(model, form).eval()
    fold_norms(model.body)
    if form.dtype == torch.float16:
        halve(model)
    return Exportable(model, form).eval()


def fold_norms(body: nn.Module) -> None:
    """Puts the batch norms of a ResNet into the convolutions before them, in place: ``bn1`` into ``conv1``."""
    for parent in body.modules():
        children = dict(parent.named_children())
        for name, norm in children.items():
            if not isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
                continue
            before = children[name.replace("bn", "conv")] if "bn" in name else children[str(int(name) - 1)]
            assert isinstance(before, nn.Conv2d)
            before.weight, before.bias = fuse_conv_bn_weights(
                before.weight,
                before.bias,
                norm.running_mean,  # type: ignore[arg-type]
                norm.running_var,  # type: ignore[arg-type]
                norm.eps,
                norm.weight,
                norm.bias,
            )
            setattr(parent, name, nn.Identity())


def halve(model: nn.Module) -> None:
    """Makes a model float16, in place, but for what needs more: the sums of its norms are float32.

    Locations, attention weights, sums of samples, sines and boxes are float32 in any case (`at_least_float32`).
    """
    model.half()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.float()
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
            module.register_forward_hook(lambda _, __, output: output.half())


def resized(pixels: Tensor, trained: Size, canvas: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images uint8 (B, 3, h, w), all of one size, as a model takes them: normalised (B, 3, *canvas), and the mask.

    They are resized as `Size.fit` says, or smaller where that does not fit into the canvas, and lie in its upper left
    corner. Resizing is bilinear and antialiased as torchvision's, which rounds to whole numbers as this does: as one
    product with a matrix for the rows and one for the columns, which every runtime has.
    """
    height, width = pixels.shape[2], pixels.shape[3]
    h, w = torch.tensor([height, width]).unbind()
    new_h, new_w = _fit(h, w, trained, canvas)
    rows, columns = _triangles(height, h, new_h, canvas[0]), _triangles(width, w, new_w, canvas[1])
    image = (rows @ pixels.float() @ columns.T).round().clamp(0, 255)
    mean, deviation = (image.new_tensor(numbers)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    padded = (torch.arange(canvas[0]) >= new_h)[:, None] | (torch.arange(canvas[1]) >= new_w)
    return ((image / 255 - mean) / deviation).masked_fill(padded, 0.0), padded.expand(pixels.shape[0], -1, -1)


def _fit(h: Tensor, w: Tensor, trained: Size, canvas: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """`Size.fit` in whole numbers, for a graph in which they are tensors; within the canvas."""
    low, high = torch.minimum(h, w), torch.maximum(h, w)
    limited = _rounded(trained.longest * low, high).clamp(min=1)
    short = torch.where(high * trained.short > trained.longest * low, limited, trained.short)
    long = torch.where(low == short, high, short * high // low)
    new_h, new_w = torch.where(h <= w, short, long), torch.where(h <= w, long, short)
    fits = (new_h <= canvas[0]) & (new_w <= canvas[1])
    tall = canvas[0] * w <= canvas[1] * h
    most_h = torch.where(tall, canvas[0], _rounded(h * canvas[1], w).clamp(min=1))
    most_w = torch.where(tall, _rounded(w * canvas[0], h).clamp(min=1), canvas[1])
    return torch.where(fits, new_h, most_h), torch.where(fits, new_w, most_w)


def _rounded(a: Tensor, b: Tensor) -> Tensor:
    """a / b of positive whole numbers, rounded, ties to even, as Python rounds."""
    up = (2 * a + b) // (2 * b)
    tie = (2 * a + b) % (2 * b) == 0
    return up - (tie & (up % 2 == 1)).long()


def _triangles(length: int, old: Tensor, new: Tensor, rows: int) -> Tensor:
    """(rows, length): what each of the first `new` pixels is of the old ones; rows after them are zero."""
    scale = old.float() / new.float()
    centre = (torch.arange(rows) + 0.5) * scale
    distance = (torch.arange(length) + 0.5 - centre[:, None]).abs() / scale.clamp(min=1)
    share = (1 - distance).clamp(min=0)
    total = share.sum(1, keepdim=True)
    return torch.where(torch.arange(rows)[:, None] < new, share / total.clamp(min=1e-6), 0.0)

"""Multiply-adds of a detector, counted from shapes alone, over the images behind the published FLOPs.

The model and its input lie on the meta device, so nothing is computed, and ``torch.utils.flop_counter`` adds up what
every matrix product and convolution would cost. The operator has a formula of its own, the same for every backend: each
of the Q * L * P samples of each of the C = H * D channels costs four multiply-adds to interpolate and one to weigh,

    5 * B * Q * (L * P) * C.

Normalisation, activations, softmax and other elementwise work is not counted.
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula
from torchvision.ops import FrozenBatchNorm2d

from ...kernels import registry
from ...kernels.autograd import Operator
from ...kernels.backend import Functions
from ...models.families.faster_rcnn import STRIDE, FasterRcnn
from ...models.inference.image_size import Size
from ...models.zoo import create_model
from ..harness.records import Row

# width and height of the first 100 images of COCO val2017, by id
IMAGES = Path(__file__).with_name("val2017_first100_sizes.json")
PER_SAMPLE = 5

_COUNTING = "counting"


def count(name: str, sizes: Counter[tuple[int, int]]) -> Row:
    """Counts the model `name` over images of `sizes`, how many of each (height, width) in pixels, one at a time.

    Returns ``parameters``; ``multiply_adds`` of one image, the mean over all; and ``proposals`` of an image that the
    box head was counted for, None in a detector that has none. The backbone is frozen, as published: its norms have no
    parameters. Each distinct size is counted once. Raises ValueError for an unknown name.
    """
    with counting_backend():
        with torch.device("meta"):
            model = create_model(name, backbone_frozen=True, attn_backend=_COUNTING)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        _drop_elementwise(model)
        total = sum(number * multiply_adds(model, *size) for size, number in sizes.items())
    proposals = most_proposals(model) if isinstance(model, FasterRcnn) else None
    return {"parameters": parameters, "multiply_adds": total / sizes.total(), "proposals": proposals}


def _drop_elementwise(model: nn.Module) -> None:
    """Replaces modules that have no product to count; a counted pass then takes half as long."""
    uncounted = (FrozenBatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.ReLU, nn.Dropout)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, uncounted):
                setattr(module, name, nn.Identity())


def published_sizes() -> Counter[tuple[int, int]]:
    """The (height, width) that the published images are resized to, and how many of them to each."""
    images = json.loads(IMAGES.read_text())
    return Counter(Size().fit(image["height"], image["width"]) for image in images)


def multiply_adds(model: nn.Module, height: int, width: int) -> int:
    """Of one forward pass of one image, on the device where the model lies; its parameters want no gradients then.

    Deformable attention is counted on every backend but the reference, which is made of PyTorch's operators; on the
    meta device only the one of `counting_backend` runs.
    """
    register_formulas()
    parameter = next(model.parameters())
    image = torch.empty(1, 3, height, width, dtype=parameter.dtype, device=parameter.device)
    run = functools.partial(faster_rcnn, model) if isinstance(model, FasterRcnn) else model.eval()
    # the counter follows modules by their inputs' gradients, and fails where weights are inputs and there are none
    model.requires_grad_(False)
    # of fused attention it knows what CUDA runs, and of whole transformer layers nothing
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2  # torch counts a multiplication and an addition as two


def faster_rcnn(model: FasterRcnn, image: Tensor) -> None:
    """Runs what has a fixed shape: backbone, pyramid, proposal head, and the box head of as many proposals as it takes.

    Which proposals are left after suppression depends on the weights; how many there are at most does not. Choosing
    and pooling them, which is left out here, has no matrix product.
    """
    detector = model.detector
    height, width = (-side % STRIDE for side in image.shape[-2:])
    features = detector.backbone(F.pad(image, (0, width, 0, height)))
    detector.rpn.head(list(features.values()))
    roi = detector.roi_heads
    # (proposals, C, 7, 7)
    pooled = image.new_empty(most_proposals(model), detector.backbone.out_channels, *roi.box_roi_pool.output_size)
    roi.box_predictor(roi.box_head(pooled))


def most_proposals(model: FasterRcnn) -> int:
    """How many proposals of an image the box head takes at most in evaluation."""
    return model.eval().detector.rpn.post_nms_top_n()


def operator_flops(*shapes: Any, out_shape: Sequence[int]) -> int:
    """The operator's formula, as `register_flop_formula` takes it: two for each multiply-add.

    `shapes` are of the operator's arguments; before the two of the levels come the attention weights, or their logits,
    (B, Q, H, L, P), whether it is the fused form or not. `out_shape` is (B, Q, H*D).
    """
    L, P = shapes[-3][-2:]
    return 2 * PER_SAMPLE * L * P * math.prod(out_shape)


def register_formulas() -> None:
    """Give the formula to the operators of every backend that runs here or is loaded; more than once does no harm.

    It is not given where the operators are defined because torch's counter imports Triton, and CUDA does without.
    """
    for name in registry.BACKENDS:
        if registry.unavailable(name) is None:
            registry.implementation(name, False)  # defines its operators
        for operator in (f"{name}_forward", f"{name}_fused_forward"):
            packet = getattr(torch.ops.msdeform, operator, None)
            if packet is not None and packet not in flop_registry:
                register_flop_formula(packet)(operator_flops)


@contextmanager
def counting_backend() -> Iterator[None]:
    """While it lasts there is one more backend, ``counting``, of shapes without data: it takes the meta device.

    The reference runs there too, but without a formula: it is no operator of its own. ``auto`` takes neither for the
    other, since a model says that it counts.
    """
    load = _counting_operators()
    reference = registry.BACKENDS["reference"]
    counting = reference._replace(name=_COUNTING, rank=-1, summary="shapes without data", load=lambda: load)
    with registry.registered(counting):
        yield


@functools.cache  # an operator is defined once in a process
def _counting_operators() -> Functions:
    def refuse(*_: Any) -> Any:
        raise NotImplementedError(f"the {_COUNTING} backend has shapes without data: it runs on the meta device only")

    return Functions(*(Operator(_COUNTING, fused, refuse, refuse) for fused in (False, True)))

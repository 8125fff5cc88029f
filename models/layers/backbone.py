"""ResNet backbones: torchvision's, and slim ones of the same blocks for processors and tests.

Trained weights keep their batch norm frozen (statistics and affine terms as buffers) and their stem and first stage
fixed, as published. Random weights keep nothing frozen: an identity norm over random weights would let activations
grow to a standard deviation of 37 at the last stage.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1
from torchvision.ops import FrozenBatchNorm2d

from ..configs import BACKBONES, SLIM, Config

Norm = Callable[[int], nn.Module]


class Backbone(nn.Module):
    """The last `n_maps` stage outputs of a ResNet, finest first.

    `body` holds the ResNet's own children under their torchvision names (``conv1``, ``bn1``, ``layer1``, ...), without
    pooling and classifier. With `frozen`, every norm is a ``FrozenBatchNorm2d``, and ``conv1`` and ``layer1`` take no
    gradient. With `dilation` the last stage keeps the stride of the one before and is dilated (DC5). ``channels`` lists
    the width of each output. Raises ValueError for an unknown name.
    """

    def __init__(self, name: str, n_maps: int = 3, *, frozen: bool = False, dilation: bool = False) -> None:
        super().__init__()
        if name not in BACKBONES:
            raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {name!r}")
        norm: Norm = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
        if name in SLIM:
            self.body = _slim_resnet(SLIM[name], norm)
        else:
            dilated: dict[str, Any] = {"replace_stride_with_dilation": [False, False, True]} if dilation else {}
            resnet = torchvision.models.get_model(name, weights=None, norm_layer=norm, **dilated)
            self.body = nn.Sequential(
                OrderedDict((key, child) for key, child in resnet.named_children() if key not in ("avgpool", "fc"))
            )
        if frozen:
            for fixed in (self.body.conv1, self.body.layer1):
                fixed.requires_grad_(False)
        self.stages = tuple(f"layer{i}" for i in range(5 - n_maps, 5))
        self.channels = tuple(_width(self.body.get_submodule(stage)) for stage in self.stages)

    @classmethod
    def from_config(cls, config: Config, n_maps: int) -> "Backbone":
        dilation = getattr(config, "dilation", False)
        return cls(config.backbone, n_maps, frozen=config.backbone_frozen, dilation=dilation)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to `n_maps` maps (B, channels[i], H / stride, W / stride), rounded up, of stride up to 32."""
        maps = []
        x = images
        for name, stage in self.body.named_children():
            x = stage(x)
            if name in self.stages:
                maps.append(x)
        return maps


def _slim_resnet(stages: tuple[tuple[int, int], ...], norm: Norm) -> nn.Sequential:
    """A ResNet of basic blocks (He et al. 2016) with the given widths and depths, initialised as torchvision's."""
    width = stages[0][0]
    parts: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)),
        ("bn1", norm(width)),
        ("relu", nn.ReLU(inplace=True)),
        ("maxpool", nn.MaxPool2d(3, stride=2, padding=1)),
    ]
    block = partial(BasicBlock, norm_layer=norm)
    for i, (out, depth) in enumerate(stages):
        stride = 1 if i == 0 else 2
        shortcut = None
        if stride > 1 or out != width:
            shortcut = nn.Sequential(conv1x1(width, out, stride), norm(out))
        blocks = [block(width, out, stride, shortcut), *(block(out, out) for _ in range(depth - 1))]
        parts.append((f"layer{i + 1}", nn.Sequential(*blocks)))
        width = out
    body = nn.Sequential(OrderedDict(parts))
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body


def _width(stage: nn.Module) -> int:
    """Output channels of a stage: those of the last convolution of its last block."""
    return [module for module in stage.modules() if isinstance(module, nn.Conv2d)][-1].out_channels

"""What decides a detector's structure, in plain values: stored in checkpoints as JSON, and enough to rebuild it.

One dataclass a family. A field that does not fit raises ValueError naming it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

# torchvision's names; all have stages of stride 4, 8, 16, 32
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101")
# width and number of basic blocks of each stage
SLIM: dict[str, tuple[tuple[int, int], ...]] = {
    "resnet18_half": ((32, 2), (64, 2), (128, 2), (256, 2)),
    "resnet10_tiny": ((8, 1), (16, 1), (16, 1), (32, 1)),
}
BACKBONES = (*TORCHVISION, *SLIM)


def dilates(name: str) -> bool:
    """Can the last stage be dilated instead of strided? torchvision's bottleneck blocks can, basic blocks cannot."""
    return name in ("resnet50", "resnet101")


@dataclass(frozen=True)
class DeformableDetrConfig:
    """Deformable DETR (Zhu et al. 2021); the defaults are the published multi-scale detector.

    With L = `num_feature_levels` up to 3, the maps are the backbone's last L stages; each further level halves the
    one before, the first of them from the last stage itself.
    """

    family: ClassVar[str] = "deformable_detr"

    num_classes: int = 91
    backbone: str = "resnet50"
    backbone_frozen: bool = False  # batch norm as constants, stem and first stage fixed: for trained weights
    dilation: bool = False  # DC5: the last stage keeps its stride of 16, and is dilated
    position_embedding: str = "sine"
    num_queries: int = 300
    num_feature_levels: int = 4
    enc_layers: int = 6
    dec_layers: int = 6
    hidden_dim: int = 256
    dim_feedforward: int = 1024
    nheads: int = 8
    enc_n_points: int = 4
    dec_n_points: int = 4
    dropout: float = 0.1
    pre_norm: bool = False
    with_box_refine: bool = False
    two_stage: bool = False
    aux_loss: bool = True

    def __post_init__(self) -> None:
        for name in ("num_feature_levels", "enc_n_points", "dec_n_points"):
            _at_least(name, getattr(self, name), 1)
        _check_transformer(self)
        if self.two_stage and not self.with_box_refine:
            raise ValueError(
                "two_stage: expected with_box_refine=True beside it, got False: the proposals are boxes, "
                "which the decoder refines"
            )

    @property
    def focal(self) -> bool:
        """Classes are independent sigmoids."""
        return True


@dataclass(frozen=True)
class DetrConfig:
    """DETR (Carion et al. 2020); the defaults are the published detector.

    `focal` makes the classes independent sigmoids, as the comparison DETR-DC5+ of Zhu et al. 2021 has it.
    """

    family: ClassVar[str] = "detr"

    num_classes: int = 91
    backbone: str = "resnet50"
    backbone_frozen: bool = False
    dilation: bool = False
    position_embedding: str = "sine"
    num_queries: int = 100
    enc_layers: int = 6
    dec_layers: int = 6
    hidden_dim: int = 256
    dim_feedforward: int = 2048
    nheads: int = 8
    dropout: float = 0.1
    pre_norm: bool = False
    focal: bool = False
    aux_loss: bool = True

    def __post_init__(self) -> None:
        _check_transformer(self)


@dataclass(frozen=True)
class DetrDemoConfig:
    """The minimal DETR of Carion et al. 2020, listing 1: learned positions, torch's own transformer, one box layer."""

    family: ClassVar[str] = "detr_demo"
    focal: ClassVar[bool] = False
    aux_loss: ClassVar[bool] = False

    num_classes: int = 91
    backbone: str = "resnet50"
    backbone_frozen: bool = False
    dilation: bool = False
    num_queries: int = 100
    enc_layers: int = 6
    dec_layers: int = 6
    hidden_dim: int = 256
    dim_feedforward: int = 2048
    nheads: int = 8
    dropout: float = 0.1

    def __post_init__(self) -> None:
        _check_transformer(self)


@dataclass(frozen=True)
class FasterRcnnConfig:
    """Faster R-CNN with a feature pyramid (Ren et al. 2015, Lin et al. 2017), torchvision's."""

    family: ClassVar[str] = "faster_rcnn"

    num_classes: int = 91
    backbone: str = "resnet50"
    backbone_frozen: bool = False

    def __post_init__(self) -> None:
        _at_least("num_classes", self.num_classes, 1)
        _check_backbone(self)


Config = DeformableDetrConfig | DetrConfig | DetrDemoConfig | FasterRcnnConfig
FAMILIES: dict[str, type[Config]] = {
    kind.family: kind for kind in (DeformableDetrConfig, DetrConfig, DetrDemoConfig, FasterRcnnConfig)
}


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def _check_backbone(config: Any) -> None:
    if config.backbone not in BACKBONES:
        raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {config.backbone!r}")


def _check_transformer(config: Any) -> None:
    for name in ("num_classes", "num_queries", "dec_layers", "hidden_dim", "nheads", "dim_feedforward"):
        _at_least(name, getattr(config, name), 1)
    _at_least("enc_layers", config.enc_layers, 0)
    _check_backbone(config)
    if config.dilation and not dilates(config.backbone):
        raise ValueError(
            f"dilation: expected a backbone of bottleneck blocks (resnet50, resnet101), got {config.backbone}: "
            "torchvision's basic blocks cannot be dilated"
        )
    kind = getattr(config, "position_embedding", "sine")
    if kind not in ("sine", "learned"):
        raise ValueError(f"position_embedding: expected sine or learned, got {kind!r}")
    if config.hidden_dim % config.nheads:
        raise ValueError(f"hidden_dim: expected a multiple of nheads={config.nheads}, got {config.hidden_dim}")
    if config.hidden_dim % 4:
        raise ValueError(f"hidden_dim: expected a multiple of 4 (sine and cosine of x and y), got {config.hidden_dim}")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout: expected a probability in [0, 1), got {config.dropout}")

"""What decides a detector's structure, in plain values: stored in checkpoints as JSON, and enough to rebuild it.

One dataclass a family. A field that does not fit raises ValueError naming it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..common.text import suggest

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


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every family's configuration has; `from_dict` takes what `to_dict` gave."""

    family: ClassVar[str]

    num_classes: int = 91
    backbone: str = "resnet50"
    backbone_frozen: bool = False  # batch norm as constants, stem and first stage fixed: for trained weights

    def __post_init__(self) -> None:
        _at_least("num_classes", self.num_classes, 1)
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {self.backbone!r}")

    @property
    def least_parameters(self) -> int:
        """A number of parameters that no detector of this configuration is below."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON's values, with its ``family``."""
        return {"family": self.family, **dataclasses.asdict(self)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Config":
        """The configuration of the family that `values` name, or of Deformable DETR.

        Raises ValueError for an unknown family, a field that its configuration does not have, or a value that does
        not fit.
        """
        fields = dict(values)
        family = fields.pop("family", DeformableDetrConfig.family)
        if family not in FAMILIES:
            raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")
        check_fields(FAMILIES[family], fields)
        return FAMILIES[family](**fields)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Config):
    """What the configurations of the DETRs have; the defaults are DETR's."""

    focal: ClassVar[bool]
    """Classes are independent sigmoids."""
    aux_loss: ClassVar[bool]

    dilation: bool = False  # DC5: the last stage keeps its stride of 16, and is dilated
    num_queries: int = 100
    enc_layers: int = 6
    dec_layers: int = 6
    hidden_dim: int = 256
    dim_feedforward: int = 2048
    nheads: int = 8
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("num_classes", "num_queries", "dec_layers", "hidden_dim", "nheads", "dim_feedforward"):
            _at_least(name, getattr(self, name), 1)
        _at_least("enc_layers", self.enc_layers, 0)
        super().__post_init__()
        if self.dilation and not dilates(self.backbone):
            raise ValueError(
                f"dilation: expected a backbone of bottleneck blocks (resnet50, resnet101), got {self.backbone}: "
                "torchvision's basic blocks cannot be dilated"
            )
        kind = getattr(self, "position_embedding", "sine")
        if kind not in ("sine", "learned"):
            raise ValueError(f"position_embedding: expected sine or learned, got {kind!r}")
        if self.hidden_dim % self.nheads:
            raise ValueError(f"hidden_dim: expected a multiple of nheads={self.nheads}, got {self.hidden_dim}")
        if self.hidden_dim % 4:
            raise ValueError(
                f"hidden_dim: expected a multiple of 4 (sine and cosine of x and y), got {self.hidden_dim}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {self.dropout}")

    @property
    def least_parameters(self) -> int:
        layer = self.hidden_dim * (self.hidden_dim + 2 * self.dim_feedforward)
        two_stage = getattr(self, "two_stage", False)  # its queries are made of pixels
        queries = 0 if two_stage else self.num_queries * self.hidden_dim
        return (self.enc_layers + self.dec_layers) * layer + queries


@dataclass(frozen=True, kw_only=True)
class DeformableDetrConfig(TransformerConfig):
    """Deformable DETR (Zhu et al. 2021); the defaults are the published multi-scale detector.

    With L = `num_feature_levels` up to 3, the maps are the backbone's last L stages; each further level halves the
    one before, the first of them from the last stage itself.
    """

    family: ClassVar[str] = "deformable_detr"
    focal: ClassVar[bool] = True

    num_queries: int = 300
    dim_feedforward: int = 1024
    position_embedding: str = "sine"
    num_feature_levels: int = 4
    enc_n_points: int = 4
    dec_n_points: int = 4
    pre_norm: bool = False
    with_box_refine: bool = False
    two_stage: bool = False
    aux_loss: bool = True  # type: ignore[misc]  # a field here, a constant of the demo

    @property
    def least_parameters(self) -> int:
        points = self.enc_layers * self.enc_n_points + self.dec_layers * self.dec_n_points
        offsets = 3 * points * self.nheads * self.num_feature_levels * self.hidden_dim
        return super().least_parameters + offsets + self.num_feature_levels * self.hidden_dim**2

    def __post_init__(self) -> None:
        for name in ("num_feature_levels", "enc_n_points", "dec_n_points"):
            _at_least(name, getattr(self, name), 1)
        super().__post_init__()
        if self.two_stage and not self.with_box_refine:
            raise ValueError(
                "two_stage: expected with_box_refine=True beside it, got False: the proposals are boxes, "
                "which the decoder refines"
            )


@dataclass(frozen=True, kw_only=True)
class DetrConfig(TransformerConfig):
    """DETR (Carion et al. 2020); the defaults are the published detector.

    `focal` makes the classes independent sigmoids, as the comparison DETR-DC5+ of Zhu et al. 2021 has it.
    """

    family: ClassVar[str] = "detr"

    position_embedding: str = "sine"
    pre_norm: bool = False
    focal: bool = False  # type: ignore[misc]
    aux_loss: bool = True  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class DetrDemoConfig(TransformerConfig):
    """The minimal DETR of Carion et al. 2020, listing 1: learned positions, torch's own transformer, one box layer."""

    family: ClassVar[str] = "detr_demo"
    focal: ClassVar[bool] = False
    aux_loss: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class FasterRcnnConfig(Config):
    """Faster R-CNN with a feature pyramid (Ren et al. 2015, Lin et al. 2017), torchvision's."""

    family: ClassVar[str] = "faster_rcnn"


FAMILIES: dict[str, type[Config]] = {
    kind.family: kind for kind in (DeformableDetrConfig, DetrConfig, DetrDemoConfig, FasterRcnnConfig)
}


def check_fields(kind: type[Config], fields: Mapping[str, Any]) -> None:
    """Raises ValueError for a name that is no field of `kind`, with the nearest, and for a value of another type."""
    known = [field.name for field in dataclasses.fields(kind)]
    for name in fields:
        if name not in known:
            sentence = f"{name}: not a field of the configuration of {kind.family}, which has {', '.join(known)}"
            raise ValueError(suggest(sentence, name, known))
    for field in dataclasses.fields(kind):
        value, usual = fields.get(field.name, field.default), type(field.default)
        if type(value) is not usual and not (usual is float and type(value) is int):
            raise ValueError(f"{field.name}: expected {usual.__name__}, got {value!r}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")

"""What a detector of transformers needs to be trained as ours are: its losses, and a description to rebuild it from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...models.catalog import TRANSFORMERS
from ...models.layers.geometry import at_least_float32
from ...models.losses.matcher import NonFiniteCostError
from ...models.losses.targets import Target, check_shapes, check_values, pack_values, pad_targets

TRAINED = ("deformable_detr", "rt_detr", "rt_detr_v2", "d_fine", "deimv2", "lw_detr", "rf_detr")
"""Types of models whose own losses train them; others of transformers have none."""


@dataclass(frozen=True)
class TransformersConfig:
    """What rebuilds a detector of transformers without its weights, in plain values."""

    family: ClassVar[str] = TRANSFORMERS

    config: dict[str, Any]
    """Its config.json."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of colours from 0 to 1: how its images are normalised."""
    processor: str
    """The class of its image processor."""
    num_classes: int

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON's values, with the ``family``."""
        return {"family": self.family, **asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TransformersConfig":
        """What `to_dict` gave."""
        mean, std = tuple(values["mean"]), tuple(values["std"])
        return cls(values["config"], mean, std, values["processor"], values["num_classes"])


def labels_of(targets: Sequence[Target], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """B targets of ours as the ``labels`` that transformers' detectors take."""
    return [{"class_labels": one["labels"].long(), "boxes": one["boxes"].to(dtype)} for one in targets]


class TransformersCriterion(nn.Module):
    """The losses that a model of transformers comes with, under their own names: of classes, boxes, denoising, ...

    ``loss``, their sum as weighted there, is what is minimised. They divide by the number of boxes that they are given,
    so those of a part of a batch count by its share of the boxes, and add up to the whole's. Three do not, and of these
    the parts' weighted mean is taken: losses of denoised boxes, which are drawn for each part; ``loss_ddf`` of D-FINE
    and DEIMv2; and losses of DEIMv2's boxes, which divide by how many queries some layer has matched.
    """

    def __init__(self, model: nn.Module) -> None:
        """Raises ValueError for a `model` that transformers cannot train."""
        super().__init__()
        config: Any = model.config
        if config.model_type not in TRAINED:
            raise ValueError(
                f"model: {type(model).__name__} has no losses in transformers, and cannot be trained; expected one of "
                f"{', '.join(TRAINED)}"
            )
        self.weight_dict = {"loss": 1.0}
        self.num_classes = config.num_labels
        # not the model, which would be a part of the losses then
        self._of_model: Any = model.loss_function
        self._groups: int = getattr(config, "group_detr", 1)
        """How often LW-DETR and RF-DETR match every box in training."""
        self._float32 = config.model_type in ("d_fine", "deimv2")
        """Are the losses of boxes written for float32 alone?"""

    def forward(
        self,
        outputs: dict[str, Any],
        targets: Sequence[Target],
        *,
        box_counts: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Losses against B targets, which the model has met already; `box_counts` as `SetCriterion` takes them.

        Computed in at least float32, those of D-FINE and DEIMv2 in float32. Raises ValueError for outputs without
        targets and for targets that don't fit, and `matcher.NonFiniteCostError`.
        """
        if "for_losses" not in outputs:
            raise ValueError("outputs: expected those of model(images, targets), got those of images alone")
        arguments, named = outputs["for_losses"]
        logits: Tensor = arguments[0]
        check_shapes(targets, len(logits))
        check_values(pack_values(*pad_targets(targets, torch.float32)).cpu(), targets, self.num_classes)
        arguments = [self._precise(one) for one in arguments]
        named = {name: self._precise(one) for name, one in named.items()}
        counts = [len(target["labels"]) for target in targets]
        share = self._divisor(counts) / self._divisor(counts if box_counts is None else box_counts)
        with torch.autocast(logits.device.type, enabled=False):
            try:
                total, losses, _ = self._of_model(*arguments, **named)
            except ValueError as error:  # of boxes whose sides are no numbers
                if all(bool(one.isfinite().all()) for one in (*arguments, *named.values()) if isinstance(one, Tensor)):
                    raise
                raise NonFiniteCostError("losses: expected finite predictions, got NaN or infinity") from error
        return {name: torch.as_tensor(value) * share for name, value in {**losses, "loss": total}.items()}

    def _divisor(self, box_counts: Sequence[int]) -> int:
        return max(1, sum(box_counts) * self._groups)

    def _precise(self, value: Any) -> Any:
        if isinstance(value, list):  # the labels, each a dictionary
            return [{name: self._precise(one) for name, one in each.items()} for each in value]
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        return value.float() if self._float32 else at_least_float32(value)

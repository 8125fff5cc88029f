"""Our layer in the mapping of Hugging Face's ``kernels`` package, for models that take their kernels from there.

    msdeform.integrations.transformers.register()
    model = AutoModelForObjectDetection.from_pretrained(name, use_kernels=True)

``msdeform.accelerate(model)`` needs neither that package nor a matching version of it, and finds more models.
"""

import importlib.metadata
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..kernels import registry
from .forms import Layer, OurOperator

LAYER = Layer.names[0]
"""What transformers calls the layer."""
_USED_BY = "transformers.models.deformable_detr.modeling_deformable_detr"
_INSTEAD = "msdeform.accelerate(model) needs none of it"


def register(backend: str = "auto", devices: tuple[str, ...] = ("cpu", "cuda")) -> None:
    """Makes ``use_kernels=True`` and ``kernels.kernelize`` take our operator for transformers' layer, process-wide.

    Args:
        backend: of our operator; ``auto`` takes the fastest that runs where the tensors of a call are.
        devices: the types of devices on which the mapping is ours.

    Raises:
        ImportError: the package ``kernels`` is not installed.
        RuntimeError: the installed transformers would ignore the mapping without a word: it takes another version of
            ``kernels``. The sentence names both versions.
        ValueError: the backend is unknown.
    """
    registry.check_name(backend)
    try:
        from kernels import register_kernel_mapping
    except ImportError as error:
        raise ImportError(
            f"register: expected the package kernels, which fails to import: {error}; {_INSTEAD}"
        ) from None
    if (reason := _ignored()) is not None:
        raise RuntimeError(f"register: {reason}; {_INSTEAD}")
    register_kernel_mapping({LAYER: dict.fromkeys(devices, Repository(backend))})


@dataclass(frozen=True)
class Repository:
    """What ``kernels`` asks for a layer: ours, instead of one that it downloads."""

    backend: str = "auto"
    layer_name: str = LAYER

    def load(self) -> type[nn.Module]:
        """The layer as a class without state, as ``kernels`` wants it."""
        form = Layer(OurOperator(self.backend))

        class MultiScaleDeformableAttention(nn.Module):
            can_torch_compile = True
            has_backward = True

            def forward(
                self,
                value: Tensor,
                value_spatial_shapes: Tensor,
                value_spatial_shapes_list: list[tuple[int, int]],
                level_start_index: Tensor,
                sampling_locations: Tensor,
                attention_weights: Tensor,
                im2col_step: int,
            ) -> Tensor:
                return form(
                    value,
                    value_spatial_shapes,
                    value_spatial_shapes_list,
                    level_start_index,
                    sampling_locations,
                    attention_weights,
                    im2col_step,
                )

        return MultiScaleDeformableAttention


def _ignored() -> str | None:
    """Why the installed transformers would not look at the mapping, or None."""
    try:
        module: Any = __import__(_USED_BY, fromlist=[LAYER])
    except ImportError:  # without transformers, the mapping is somebody else's to use
        return None
    layer = getattr(module, LAYER, None)
    # what the decorator of kernels writes there; transformers' own stand-in for it writes nothing
    if hasattr(layer, "kernel_layer_name"):
        return None
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "kernels")]
    return f"{versions[0]} does not work with {versions[1]} and would ignore the mapping without a word"

"""The forms in which models call multi-scale deformable attention, and what of ours takes each call.

Libraries spell the same computation in few ways: a layer without parameters, a function, a function with a number of
points for each level, an autograd function around a compiled extension. Each class below stands in the place of one:
it takes exactly its arguments, brings them into the order of :mod:`msdeform.kernels.contract`, and hands them on to an
:data:`Operator`. All are plain objects, so that a model that holds them can be copied, pickled and compiled.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.api import ms_deform_attn
from ..kernels.contract import SpatialShapes

# (value, spatial_shapes, sampling_locations, attention_weights) -> output, shaped as in kernels.contract
Operator = Callable[[Tensor, SpatialShapes, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class OurOperator:
    """:func:`msdeform.ms_deform_attn` on a backend."""

    backend: str

    def __call__(
        self, value: Tensor, spatial_shapes: SpatialShapes, sampling_locations: Tensor, attention_weights: Tensor
    ) -> Tensor:
        return ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights, backend=self.backend)


@dataclass(frozen=True)
class Form:
    """What stands in the place of one way to call the operator."""

    operator: Operator
    original: Any = None
    """What it replaced, where that has to be put back."""
    names: ClassVar[tuple[str, ...]]
    """How libraries call it."""
    takes: ClassVar[str] = "__call__"
    """The method with their signature."""

    @classmethod
    def unlike(cls, theirs: Callable[..., Any]) -> str | None:
        """Why `theirs`, which has one of the names, is not of this form; None where it is.

        Its parameters have to be ours, and so has its result, on a small example in float64.
        """
        expected = _parameters(getattr(cls, cls.takes))[1:]
        try:
            got = [name for name in _parameters(theirs) if name != "self"]
        except (TypeError, ValueError):
            return "its signature cannot be read"
        if got != expected[: len(got)] or len(got) < 4:
            return f"an unknown signature: ({', '.join(got)})"
        try:
            differs = cls.differs(theirs)
        except Exception as error:  # whatever their code raises
            return f"it failed on a small example: {type(error).__name__}: {error}"
        return "it does not compute what our operator does" if differs else None

    @classmethod
    def differs(cls, theirs: Callable[..., Any]) -> bool:
        """Whether `theirs` gives another result than ours on a small example."""
        return not same(theirs(*cls.example()), getattr(cls(OurOperator("reference")), cls.takes)(*cls.example()))

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        """Arguments in their order."""
        raise NotImplementedError


@dataclass(frozen=True)
class Layer(Form):
    """The ``forward`` of transformers' layer, which the kernels of the Hub replace."""

    names = ("MultiScaleDeformableAttention",)

    def __call__(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Sequence[Sequence[int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        return self.operator(value, sizes_of(value_spatial_shapes_list), sampling_locations, attention_weights)

    @classmethod
    def differs(cls, theirs: Callable[..., Any]) -> bool:
        owner = torch.nn.Module()  # the layer has no state, and so its forward needs no more of itself
        return super().differs(lambda *arguments: theirs(owner, *arguments))

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        value, sizes, locations, weights = _example()
        starts = torch.tensor([0, sizes[0][0] * sizes[0][1]])
        return value, torch.tensor(sizes), list(sizes), starts, locations, weights, 64


@dataclass(frozen=True)
class Function(Form):
    """A function of value, sizes, locations and weights: Mask2Former's, mmcv's, detrex', the official repository's."""

    names = (
        "multi_scale_deformable_attention",
        "multi_scale_deformable_attn_pytorch",
        "ms_deform_attn_core_pytorch",
        "deformable_attention_core_func",
    )

    def __call__(
        self,
        value: Tensor,
        value_spatial_shapes: SpatialShapes,
        sampling_locations: Tensor,
        attention_weights: Tensor,
    ) -> Tensor:
        return self.operator(value, sizes_of(value_spatial_shapes), sampling_locations, attention_weights)

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        return _example()


@dataclass(frozen=True)
class RaggedFunction(Form):
    """The same with a number of points for each level, side by side: D-FINE, DEIMv2, RT-DETRv2.

    Locations are (B, Q, H, sum of P, 2) and weights (B, Q, H, sum of P). The method ``discrete`` takes the value of
    the pixel next to a location, and has no gradient of locations.
    """

    names = ("multi_scale_deformable_attention_v2",)

    def __call__(
        self,
        value: Tensor,
        value_spatial_shapes: SpatialShapes,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        num_points_list: Sequence[int],
        method: str = "default",
    ) -> Tensor:
        sizes = sizes_of(value_spatial_shapes)
        if method not in ("default", "discrete"):
            raise ValueError(f"method: expected 'default' or 'discrete', got {method!r}")
        if value.is_cpu and value.shape[0] == 1 and value.requires_grad:
            value = _GradientByChannel.apply(value)
        # padded points lie outside their level: their samples are zero, and so are their gradients
        locations, weights = (
            pad_points(sampling_locations, num_points_list, -1.0),
            pad_points(attention_weights[..., None], num_points_list, 0.0).squeeze(-1),
        )
        return self.operator(value, sizes, snap(locations, sizes) if method == "discrete" else locations, weights)

    @classmethod
    def differs(cls, theirs: Callable[..., Any]) -> bool:
        ours: Any = cls(OurOperator("reference"))
        every = [(*cls.example(), method) for method in ("default", "discrete")]
        return not all(same(theirs(*arguments), ours(*arguments)) for arguments in every)

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        value, sizes, locations, weights = _example()
        return value, sizes, locations.flatten(3, 4), weights.flatten(3), [3, 1]


@dataclass(frozen=True)
class AutogradFunction(Form):
    """The autograd function around a compiled extension, which is called by its ``apply``."""

    names = ("MSDeformAttnFunction", "MultiScaleDeformableAttnFunction", "MultiScaleDeformableAttentionFunction")
    takes = "apply"

    def apply(
        self,
        value: Tensor,
        value_spatial_shapes: SpatialShapes,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        return self.operator(value, sizes_of(value_spatial_shapes), sampling_locations, attention_weights)

    @classmethod
    def unlike(cls, theirs: Any) -> str | None:
        # what it calls was compiled for a GPU, or was not built: it is known by its name alone
        is_function = isinstance(theirs, type) and issubclass(theirs, torch.autograd.Function)
        return None if is_function or theirs is None else "it is no torch.autograd.Function"


FUNCTIONS: dict[str, type[Form]] = {
    name: form for form in (Function, RaggedFunction, AutogradFunction) for name in form.names
}


class _GradientByChannel(torch.autograd.Function):
    """Value (B, S, H, D) as it is; its gradient with the pixels of a channel side by side, as the function's own has.

    D-FINE and DEIMv2 pass maps on without a projection between. BatchNorm2d of PyTorch 2.11 takes a gradient whose
    pixels come one after the other for another tensor, on a CPU and for a batch of one.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def pad_points(points: Tensor, counts: Sequence[int], outside: float) -> Tensor:
    """(B, Q, H, sum of counts, n) as (B, Q, H, L, largest count, n), filled up with `outside`.

    A view where all levels have the same count.
    """
    if min(counts) == max(counts):
        return points.unflatten(3, (len(counts), counts[0]))
    parts = points.split(list(counts), 3)
    return torch.stack([F.pad(part, (0, 0, 0, max(counts) - part.shape[3]), value=outside) for part in parts], 3)


def snap(locations: Tensor, sizes: SpatialShapes) -> Tensor:
    """The centres of the pixels that RT-DETRv2's method ``discrete`` reads, in place of locations (B, Q, H, L, P, 2).

    Its index is ``int(location * size + 0.5)``, moved into the level; without a gradient, and at least float32.
    """
    extent = torch.tensor([(w, h) for h, w in sizes], device=locations.device)[:, None]  # (L, 1, 2)
    index = (locations.detach() * extent + 0.5).to(torch.int64)
    index = torch.minimum(index.clamp(min=0), extent - 1)
    exact = torch.float64 if locations.dtype is torch.float64 else torch.float32
    return (index.to(exact) + 0.5) / extent


def sizes_of(shapes: SpatialShapes) -> SpatialShapes:
    """Level sizes of a list as a tuple, by which calls are kept; a tensor as it is."""
    return shapes if isinstance(shapes, Tensor) else tuple((int(h), int(w)) for h, w in shapes)


def _parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def _example() -> tuple[Tensor, tuple[tuple[int, int], ...], Tensor, Tensor]:
    """Two images, levels of 3x5 and 2x4, two heads of three channels, four queries of two points, some outside."""
    random = torch.Generator().manual_seed(0)  # nobody's random numbers are used up

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random, dtype=torch.float64, device="cpu")

    return draw(2, 23, 2, 3), ((3, 5), (2, 4)), draw(2, 4, 2, 2, 2, 2) * 1.4 - 0.2, draw(2, 4, 2, 2, 2)


def same(theirs: Any, ours: Tensor) -> bool:
    """Whether both are tensors of a shape, equal to 1e-10."""
    if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
        return False
    return torch.allclose(theirs, ours, rtol=0, atol=1e-10)


_answers: dict[Any, str | None] = {}


def unlike(form: type[Form], theirs: Any) -> str | None:
    """`Form.unlike`, asked once for each function."""
    if (form, theirs) not in _answers:
        with torch.no_grad(), torch.device("cpu"):
            _answers[form, theirs] = form.unlike(theirs)
    return _answers[form, theirs]

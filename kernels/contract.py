"""What the operator takes: named dimensions, and every input check with its message.

Shape legend, used in every docstring of the project::

    B batch   Q queries   S = sum over levels of h*w   H heads   D channels per head   L levels   P points per level
    value                (B, S, H, D)
    spatial_shapes       ((h, w), ...), L pairs of Python ints, or an int tensor (L, 2)
    sampling_locations   (B, Q, H, L, P, 2)  xy, normalised to [0, 1] over the level; align_corners=False, zeros outside
    attention_weights    (B, Q, H, L, P)     used as given
    reference_points     (B, Q, L, 2 or 4)   xy, or cxcywh, normalised
    sampling_offsets     (B, Q, H, L, P, 2)  raw Linear output
    attention_logits     (B, Q, H, L, P)     raw Linear output; softmax jointly over L and P
    output               (B, Q, H*D)

Numbers that are not finite, the same in every backend:

- a NaN location (or a NaN that a location is computed from) makes the outputs of its (query, head) NaN; it reaches no
  pixel, so it adds nothing to grad_value; the gradients of its own location and weight are NaN;
- an infinite location lies outside the level: its sample is zero, and so are its gradients;
- a sample reads exactly those of its four neighbours that lie inside the level, and multiplies as IEEE arithmetic
  does: a neighbour that is infinite gives NaN where its bilinear coefficient is zero;
- a weight that is NaN gives NaN, an infinite one a result that is not finite (infinite or NaN: which, depends on the
  order of multiplication); logits follow softmax, where minus infinity is a weight of zero.
"""

import reprlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Sizes = tuple[tuple[int, int], ...]
SpatialShapes = Sequence[Sequence[int]] | Tensor


class Inputs(NamedTuple):
    """Named dimensions and placement of one call, as backends see them when asked whether they can take it."""

    B: int
    Q: int
    S: int
    H: int
    D: int
    L: int
    P: int
    dtype: torch.dtype
    """dtype of value and output"""
    compute_dtype: torch.dtype
    """float64 if any input is float64, else float32: locations, weights and accumulation"""
    device_type: str
    fused: bool

    def describe(self) -> str:
        call = "fused_ms_deform_attn" if self.fused else "ms_deform_attn"
        dims = ", ".join(f"{n}={getattr(self, n)}" for n in ("B", "Q", "S", "H", "D", "L", "P"))
        return f"{call} of {str(self.dtype).removeprefix('torch.')} on {self.device_type}, {dims}"


NAMES = {
    3: ("value", "sampling_locations", "attention_weights"),
    4: ("value", "reference_points", "sampling_offsets", "attention_logits"),
}
"""the tensors of ``ms_deform_attn`` and of ``fused_ms_deform_attn``, by how many they are"""


def check(
    given: Sequence[Tensor], spatial_shapes: SpatialShapes, level_start_index: Tensor | Sequence[int] | None
) -> tuple[Inputs, Tensor | None, Sizes]:
    """Check the arguments of either function, whose tensors come in the order of `NAMES`.

    Returns the named dimensions, and the level sizes either as a device tensor (L, 2) or, where the host knows them,
    as Python ints; the other of the two is None or empty.

    Raises:
        TypeError: an argument is not a tensor, or not of a floating dtype.
        ValueError: a rank, size, device or level sum is wrong. The sentence names the argument.
    """
    tensors = dict(zip(NAMES[len(given)], given, strict=True))
    value, points, fused = given[0], given[-2], len(given) == 4
    _check_tensors(tensors)
    B, S, H, D = _check_value(value)
    _, *_, points_name, weights_name = tensors
    _check_rank(points_name, points, "(B, Q, H, L, P, 2)")
    if fused:
        _check_rank("reference_points", given[1], "(B, Q, L, 2 or 4)")
    L = _count_levels(spatial_shapes)
    Q, P = points.shape[1], points.shape[4]
    if P < 1:
        raise ValueError(f"{points_name}: expected at least one point per level, got P=0")
    _check_shape(points_name, points, B=B, Q=None, H=H, L=L, P=None, xy=2)
    _check_shape(weights_name, given[-1], B=B, Q=Q, H=H, L=L, P=P)
    if fused:
        coordinates = given[1].shape[-1]
        if coordinates not in (2, 4):
            raise ValueError(
                "reference_points: expected 2 (xy) or 4 (cxcywh) coordinates in the last dimension, got "
                f"{tuple(given[1].shape)}"
            )
        _check_shape("reference_points", given[1], B=B, Q=Q, L=L, coordinates=coordinates)
    shapes, sizes = _check_levels(spatial_shapes, level_start_index, value)
    compute = torch.float64 if any(tensor.dtype is torch.float64 for tensor in given) else torch.float32
    return Inputs(B, Q, S, H, D, L, P, value.dtype, compute, value.device.type, fused), shapes, sizes


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name}: expected float64, float32, float16 or bfloat16, got {tensor.dtype}")
        if tensor.layout is not torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got one of layout {tensor.layout}")
        if tensor.device != tensors["value"].device:
            raise ValueError(f"{name}: expected the device of value, {tensors['value'].device}, got {tensor.device}")


def _check_rank(name: str, tensor: Tensor, expected: str) -> None:
    rank = expected.count(",") + 1
    if tensor.dim() != rank:
        raise ValueError(f"{name}: expected {expected}, got {tuple(tensor.shape)}: {rank} dimensions are needed")


def _check_value(value: Tensor) -> tuple[int, int, int, int]:
    _check_rank("value", value, "(B, S, H, D)")
    B, S, H, D = value.shape
    if H < 1 or D < 1:
        raise ValueError(
            f"value: expected (B, S, H, D) with at least one head and one channel per head, got {tuple(value.shape)}"
        )
    return B, S, H, D


def _check_shape(name: str, tensor: Tensor, **expected: int | None) -> None:
    """Sizes in the order of the tensor's dimensions; None accepts any."""
    shape = tuple(tensor.shape)
    fits = len(shape) == len(expected)
    for got, want in zip(shape, expected.values(), strict=False):
        fits = fits and (want is None or got == want)
    if fits:
        return
    wanted = ", ".join(
        str(want) if key in ("xy", "coordinates") else f"{key}={'any' if want is None else want}"
        for key, want in expected.items()
    )
    if len(shape) != len(expected):
        reason = f"{len(expected)} dimensions are needed"
    else:
        differing = [
            "the last dimension" if key in ("xy", "coordinates") else key
            for (key, want), got in zip(expected.items(), shape, strict=True)
            if want is not None and got != want
        ]
        reason = f"{' and '.join(differing)} {'differs' if len(differing) == 1 else 'differ'}"
    raise ValueError(f"{name}: expected ({wanted}), got {shape}: {reason}")


def _count_levels(spatial_shapes: SpatialShapes) -> int:
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2 or spatial_shapes.shape[0] < 1:
            raise ValueError(f"spatial_shapes: expected (L, 2) heights and widths, got {tuple(spatial_shapes.shape)}")
        if spatial_shapes.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"spatial_shapes: expected an int64 or int32 tensor, got {spatial_shapes.dtype}")
        return spatial_shapes.shape[0]
    try:
        lengths = [len(pair) for pair in spatial_shapes]
    except TypeError:
        raise TypeError(
            f"spatial_shapes: expected pairs (h, w) or an int tensor (L, 2), got {reprlib.repr(spatial_shapes)}"
        ) from None
    if not lengths or any(length != 2 for length in lengths):
        raise ValueError(f"spatial_shapes: expected one pair (h, w) for each level, got {reprlib.repr(spatial_shapes)}")
    return len(lengths)


def _check_levels(
    spatial_shapes: SpatialShapes, level_start_index: Tensor | Sequence[int] | None, value: Tensor
) -> tuple[Tensor | None, Sizes]:
    """Sizes that the host can read are checked against S here; a device tensor is checked inside the kernels, which
    return NaN for sizes that do not add up (a copy to the host would synchronise and break graph capture)."""
    if isinstance(spatial_shapes, Tensor):
        on_device = spatial_shapes.device == value.device and value.device.type != "cpu"
        if on_device or torch.compiler.is_compiling():
            return spatial_shapes, ()
        spatial_shapes = spatial_shapes.tolist()
    sizes = tuple((_as_int(h), _as_int(w)) for h, w in spatial_shapes)
    total = 0
    starts = []
    for h, w in sizes:
        if h < 1 or w < 1:
            raise ValueError(f"spatial_shapes: expected heights and widths of at least 1, got {sizes}")
        starts.append(total)
        total = total + h * w
    if total != value.shape[1]:
        raise ValueError(
            f"spatial_shapes: expected level sizes that sum to S={value.shape[1]} of value, got {sizes}, sum {total}"
        )
    if level_start_index is not None and not torch.compiler.is_compiling():
        _check_starts(level_start_index, starts)
    return None, sizes


def _check_starts(level_start_index: Tensor | Sequence[int], starts: list[int]) -> None:
    """The starts follow from the sizes and are never used; where the host can read them, a contradiction is named."""
    if isinstance(level_start_index, Tensor):
        if level_start_index.device.type != "cpu":
            return
        level_start_index = level_start_index.tolist()
    # a tensor without dimensions is a number as a list
    given = list(level_start_index) if isinstance(level_start_index, Iterable) else level_start_index
    if given != starts:
        raise ValueError(
            f"level_start_index: expected {starts}, which follow from spatial_shapes, got {reprlib.repr(given)}"
        )


def _as_int(size: object) -> int:
    if isinstance(size, (int, torch.SymInt)):
        return size  # type: ignore[return-value]  # a SymInt stands for an int while torch.compile traces
    try:
        return size.__index__()  # type: ignore[attr-defined]
    except AttributeError:
        raise TypeError(f"spatial_shapes: expected integer heights and widths, got {reprlib.repr(size)}") from None

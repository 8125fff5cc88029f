"""Calls of the operator: shapes, dtypes, strides, devices, values and level sizes, right ones and those with a mistake.

A right call must be answered, and the answer is held against the formula of `formula.py` in float64, within the
project's tolerances; so are its gradients, where all numbers are finite. A call with a mistake must be refused.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msdeform.kernels.api import fused_ms_deform_attn, ms_deform_attn
from msdeform.kernels.diagnostics.tolerances import compare
from msdeform.kernels.registry import BackendUnavailable, unavailable
from tests.fuzz.choices import Choices, made_of
from tests.fuzz.formula import at_a_kink, attention, locations_of
from tests.fuzz.fuzzing import Kind, Outcome, refused

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
OTHER_DTYPES = (
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
)
NAMES = {
    "points": ("value", "sampling_locations", "attention_weights"),
    "fused2": ("value", "reference_points", "sampling_offsets", "attention_logits"),
    "fused4": ("value", "reference_points", "sampling_offsets", "attention_logits"),
}
# the backend `cpu` compiles a kernel for each of these, which takes half a second
COMPILED = (
    ("points", 3, 2, 2, torch.float32, torch.float32),
    ("fused2", 4, 1, 1, torch.float32, torch.float32),
    ("fused4", 2, 2, 1, torch.float32, torch.float32),
    ("fused2", 1, 1, 3, torch.float64, torch.float64),
    ("points", 8, 1, 1, torch.bfloat16, torch.float32),
    ("fused2", 5, 2, 2, torch.float16, torch.float16),
)
NAMED = ("backend", "spatial_shapes", "level_start_index", "no backend")
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e30, 1e30, 65504.0)
NOT_SIZES: tuple[Any, ...] = (
    *(None, 7, 2.5, "34", ["34"], (), [], {}, [()], [(1,)], [(1, 2, 3)], ["ab"], [None], object()),
    *([(0, 4)], [(-1, -4)], [(2**70, 2**70)], [(2.0, 2.0)], [("2", "2")], [(math.nan, 1)], [[[2], [2]]]),
    *(torch.tensor(4), torch.tensor([4, 4]), torch.tensor([[2.0, 2.0]]), torch.tensor([[True, True]])),
    *(torch.zeros(0, 2, dtype=torch.int64), torch.tensor([[0, 4]]), torch.tensor([[-(2**63), 1]]), [("x" * 9000, 1)]),
)


@dataclass
class Call:
    """A call, and what its answer should be."""

    function: str
    backend: Any
    tensors: list[Any]
    sizes: tuple[tuple[int, int], ...]
    spatial_shapes: Any
    starts: Any = None
    gradients: bool = False
    finite: bool = True
    mistakes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        told = [
            f"{tuple(each.shape)} {each.dtype} {each.device} strides {each.stride()}"
            if isinstance(each, Tensor)
            else repr(each)
            for each in self.tensors
        ]
        return (
            f"Call({self.function}, backend={self.backend!r}, mistakes={self.mistakes}, sizes={self.sizes}, "
            f"shapes={self.spatial_shapes!r:.200}, starts={self.starts!r}, gradients={self.gradients}, {told})"
        )


def make(choices: Choices) -> Call:
    compiled = choices.chance(2) and not unavailable("cpu")
    if compiled:
        function, D, L, P, wide, narrow = choices.one_of(COMPILED)
    else:
        function = choices.one_of(("points", "fused2", "fused4"))
        D, L, P = choices.between(1, 9), choices.between(1, 3), choices.between(1, 3)
        wide, narrow = choices.one_of(FLOATS), choices.one_of(FLOATS)
    B, Q, H = choices.between(0, 2), choices.between(0, 4), choices.between(1, 2)
    B = B or choices.below(2)  # few calls are empty
    numbers = np.random.default_rng(choices.below(2**16))
    finite = not choices.chance(3)
    # powers of two, of which float32 loses nothing: where a number is not finite, each neighbour that is read counts
    sides = (1, 2, 4) if not finite else (1, 2, 3, 4, 5)
    sizes = tuple((choices.one_of(sides), choices.one_of(sides)) for _ in range(L))
    P = P if compiled or finite else choices.one_of((1, 2))
    S = sum(h * w for h, w in sizes)
    shapes = {
        "value": (B, S, H, D),
        "sampling_locations": (B, Q, H, L, P, 2),
        "attention_weights": (B, Q, H, L, P),
        "reference_points": (B, Q, L, 4 if function == "fused4" else 2),
        "sampling_offsets": (B, Q, H, L, P, 2),
        "attention_logits": (B, Q, H, L, P),
    }
    tensors: list[Any] = []
    for name in NAMES[function]:
        # whole 64ths and odd 256ths: few samples lie so near to a pixel's centre that rounding decides their side
        drawn = {
            "sampling_locations": lambda shape: numbers.integers(-64, 128, shape) / 64 + 1 / 256,
            "reference_points": lambda shape: numbers.integers(0, 65, shape) / 64,
            "sampling_offsets": lambda shape: numbers.integers(-512, 512, shape) / 128 + 1 / 256,
        }.get(name, numbers.standard_normal)(shapes[name])
        special = choices.one_of(SPECIAL) if not finite else 0.0
        if not finite and drawn.size and choices.chance(2):
            drawn.flat[choices.below(drawn.size)] = special
        tensors.append(torch.from_numpy(drawn).to(wide if name == "value" else narrow))
    tensors = [laid_out(tensor, choices.below(12)) for tensor in tensors]
    backend = choices.one_of(("cpu", "cpu", None, "auto") if compiled else ("reference", "reference", "gather"))
    call = Call(function, backend, tensors, sizes, sizes, finite=finite, gradients=not choices.chance(3))
    call.spatial_shapes = SIZES_AS[choices.below(len(SIZES_AS))](sizes)
    if choices.chance(4):
        first = [sum(h * w for h, w in sizes[:level]) for level in range(L)]
        call.starts = choices.one_of((first, tuple(first), torch.tensor(first)))
    if choices.chance(50):  # PyTorch takes its time there
        call.tensors = [tensor.to("meta") for tensor in call.tensors]
        call.backend = choices.one_of(("reference", "gather", None))
    for _ in range(choices.one_of((0, 0, 1, 2, 0, 1))):
        if "sparse" not in call.mistakes:  # there is little that can be done with those
            choices.one_of(MISTAKES)(call, choices)
    return call


SIZES_AS: tuple[Callable[[Any], Any], ...] = (
    lambda sizes: sizes,
    list,
    lambda sizes: [list(pair) for pair in sizes],
    torch.tensor,
    lambda sizes: torch.tensor(sizes, dtype=torch.int32),
    lambda sizes: tuple(torch.Size(pair) for pair in sizes),
    np.array,
    lambda sizes: [(np.int64(h), np.int32(w)) for h, w in sizes],
    lambda sizes: torch.tensor(sizes).t().contiguous().t(),
)


def laid_out(tensor: Tensor, how: int) -> Tensor:
    """The same numbers, or fewer of them repeated, in another layout of memory."""
    if how == 1:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if how == 2:
        return tensor.transpose(1, -1).contiguous().transpose(1, -1)
    if how == 3:  # every other row of something larger
        return torch.stack([tensor, torch.full_like(tensor, math.nan)], 1).flatten(0, 1)[::2]
    if how == 4 and tensor.shape[1]:  # one row for all
        return tensor[:, :1].expand(tensor.shape)
    if how == 5 and tensor.numel():  # one number for all
        return tensor.flatten()[:1].as_strided(tensor.shape, [0] * tensor.dim())
    if how == 6 and tensor.numel() > 1:  # rows that overlap
        steps = [1 if size > 1 else 0 for size in tensor.shape]
        if sum(tensor.shape) - tensor.dim() < tensor.numel():
            return tensor.flatten().as_strided(tensor.shape, steps)
    if how == 7:  # not at the start of an aligned block
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    return tensor


def _wrong_dtype(call: Call, choices: Choices) -> None:
    at, dtype = choices.below(len(call.tensors)), choices.one_of(OTHER_DTYPES)
    if isinstance(call.tensors[at], Tensor):
        call.tensors[at] = torch.zeros((), dtype=dtype, device=call.tensors[at].device).expand(call.tensors[at].shape)
        call.mistakes.append(f"{dtype}")


def of_another_size(call: Call) -> bool:
    """Whether another mistake of size could make it a right call again."""
    return any(" as " in each or each == "sizes" for each in call.mistakes)


def _wrong_shape(call: Call, choices: Choices) -> None:
    at = choices.below(len(call.tensors))
    tensor = call.tensors[at]
    if not isinstance(tensor, Tensor) or tensor.dim() == 0 or of_another_size(call):
        return
    shape, how = list(tensor.shape), choices.below(6)
    place = choices.below(len(shape))
    if how == 0:
        shape = shape[:place] + shape[place + 1 :]
    elif how == 1:
        shape.insert(place, choices.one_of((1, 0, 3)))
    elif how == 2 and place == 1 and NAMES[call.function][at] == "value":
        shape[1] += 1
    elif how in (2, 3) and not (NAMES[call.function][at] == "value" and place == 3):  # any D would do
        shape[place] += choices.one_of((1, 3, 2**20 if tensor.numel() == 0 else 5))
    elif how == 4:
        shape = []
    else:
        call.tensors[at] = tensor.new_zeros(()).expand([2**45] * min(1, len(shape)))
        call.mistakes.append(f"{NAMES[call.function][at]} as a huge vector")
        return
    call.tensors[at] = torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(shape)
    call.mistakes.append(f"{NAMES[call.function][at]}: {tuple(tensor.shape)} as {shape}")


def _wrong_device(call: Call, choices: Choices) -> None:
    at = choices.below(len(call.tensors))
    tensor = call.tensors[at]
    if isinstance(tensor, Tensor) and "another device" not in call.mistakes:
        call.tensors[at] = tensor.to("meta") if tensor.device.type == "cpu" else torch.zeros(()).expand(tensor.shape)
        call.mistakes.append("another device")


def _no_tensor(call: Call, choices: Choices) -> None:
    at = choices.below(len(call.tensors))
    call.tensors[at] = choices.one_of((None, 1.0, [], [[1.0]], "value", np.zeros((1, 2, 3, 4)), float))
    call.mistakes.append("no tensor")


def _sparse(call: Call, choices: Choices) -> None:
    at = choices.below(len(call.tensors))
    tensor = call.tensors[at]
    if isinstance(tensor, Tensor) and tensor.dim() and tensor.numel() < 10**6 and tensor.layout is torch.strided:
        call.tensors[at] = torch.zeros(tensor.shape).to_sparse()
        call.mistakes.append("sparse")


def _wrong_sizes(call: Call, choices: Choices) -> None:
    how = choices.below(4)
    if of_another_size(call):
        return
    if how == 0:
        call.spatial_shapes = [*call.sizes, (1, 1)]
    elif how == 1:
        h, w = call.sizes[-1]
        call.spatial_shapes = [*call.sizes[:-1], (h + choices.one_of((1, 2**40, 2**63)), w)]
    elif how == 2:
        call.spatial_shapes = [tuple(str(side) for side in pair) for pair in call.sizes]
    else:
        call.spatial_shapes = choices.one_of(NOT_SIZES)
    call.mistakes.append("sizes")


def _wrong_starts(call: Call, choices: Choices) -> None:
    first = [sum(h * w for h, w in call.sizes[:level]) for level in range(len(call.sizes))]
    call.starts = choices.one_of(
        ([*first, 0], [1, *first[1:]], torch.tensor([9]), torch.tensor(9), [], ["0"], [None], 0, "start", [2**80])
    )
    call.mistakes.append("starts")


def _wrong_backend(call: Call, choices: Choices) -> None:
    call.backend = choices.one_of(("Cpu", "", "numpy", "triton", "cuda", 3, b"cpu", ["cpu"], "x" * 5000, "a\nb"))
    call.mistakes.append("backend")


MISTAKES = (
    *(_wrong_shape, _wrong_sizes, _wrong_dtype, _wrong_starts, _wrong_backend, _wrong_device, _no_tensor, _sparse),
    *(_wrong_shape, _wrong_sizes),
)


def check(call: Call) -> Outcome:
    leaves = [each.detach() if isinstance(each, Tensor) else each for each in call.tensors]
    on_cpu = all(isinstance(each, Tensor) and each.device.type == "cpu" for each in leaves)
    gradients = call.gradients and on_cpu
    if gradients:
        leaves = [each.requires_grad_() if each.dtype in FLOATS else each for each in leaves]
    function = ms_deform_attn if call.function == "points" else fused_ms_deform_attn
    value, *others = leaves
    try:
        output = function(value, call.spatial_shapes, *others, level_start_index=call.starts, backend=call.backend)
    except (TypeError, ValueError, BackendUnavailable) as error:
        return refused(error, why=call.mistakes, names=(*NAMED, *NAMES[call.function]))
    assert not call.mistakes, f"answered in spite of {call.mistakes}: {output.shape}"
    B, _, H, D = value.shape
    assert output.shape == (B, others[-1].shape[1], H * D), output.shape
    assert output.dtype == value.dtype
    assert output.device == value.device
    if not on_cpu:
        return "answered"
    truth_leaves = [each.detach().double().requires_grad_(gradients) for each in leaves]
    locations, weights = points_and_weights(call, truth_leaves)
    truth = attention(truth_leaves[0], call.sizes, locations, weights)
    compute = torch.float64 if any(each.dtype == torch.float64 for each in leaves) else torch.float32
    # of numbers that cancel each other, rounding is left
    largest = 4 * truth_leaves[0].detach().abs().nan_to_num(posinf=0).amax().item() if truth.numel() else 0.0
    hold("output", output, truth, compute, largest)
    if gradients:
        upstream = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output.dtype)
        got = torch.autograd.grad(output, leaves, upstream)
        for name, each, gradient in zip(NAMES[call.function], leaves, got, strict=True):
            assert gradient.shape == each.shape, name
            assert gradient.dtype == each.dtype, name
        if call.finite:
            wanted = torch.autograd.grad(truth, truth_leaves, upstream.double())
            kink = at_a_kink(call.sizes, locations)
            for name, gradient, want in zip(NAMES[call.function], got, wanted, strict=True):
                if kink and name in ("sampling_locations", "reference_points", "sampling_offsets"):
                    continue  # it has two values there, and rounding decides which
                hold(f"gradient of {name}", gradient, want, compute, 64 * D * largest, gradient=True)
    return "answered"


def points_and_weights(call: Call, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Locations and weights of a call's tensors in float64."""
    if call.function == "points":
        return leaves[1], leaves[2]
    return locations_of(call.sizes, leaves[1], leaves[2]), leaves[3].flatten(3).softmax(-1).view(leaves[3].shape)


def hold(
    what: str, got: Tensor, truth: Tensor, compute: torch.dtype, largest: float, *, gradient: bool = False
) -> None:
    """Raises unless the result is within the tolerances, and not finite exactly where the truth, rounded, is not.

    ``largest``: what a term of its sums may come to.
    """
    truth = truth.detach()
    finite = truth.to(got.dtype).isfinite()
    assert torch.equal(got.isfinite(), finite), f"{what}: not finite elsewhere: {got} is not {truth}"
    compared = compare(got.detach().where(finite, 0), truth.where(finite, 0), compute, gradient=gradient)
    rounding = torch.finfo(compute).eps * largest
    assert compared.error <= compared.bound + rounding, f"{what}: {compared}, {rounding}: {got} is not {truth}"


KIND = Kind("calls of the operator", made_of(make, 96), check)

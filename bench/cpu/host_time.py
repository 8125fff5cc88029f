"""Microseconds of the host for one call of the Triton backend, in stages, on any machine.

The stages of a call:

    bare           an autograd.Function that allocates what the operator returns, and nothing else: the yardstick
    launches only  the launches of the forward, or of the backward in a direction that has one, and nothing else
    warm           the Function with its launches, all that shapes, dtypes and strides decide kept from a call before
    function       the public function, called as a user does, for a call like one before: the call cache, and `warm`
    launch         the Function with its launches prepared anew: block sizes, strides, grids, Triton's own launcher
    dispatcher     the same as an operator of PyTorch's, as compiled and exported code calls it
    checks         and checks its arguments, as for shapes that are new
    registry       and finds the backend that takes them

Kernels are compiled for sm_90 and launched through Triton into a driver that does nothing: what is left is Python,
PyTorch's dispatcher and allocation, and Triton's launch up to the driver's own, which a CPU shows as well as a GPU. On
a GPU the last column is the wall time of a row of calls that do run. The sorted backward's sort is PyTorch's, and does
run: on a CPU it is most of those calls, and only `launches only` says what ours cost. The levels are of a pixel or a
few, since no part of this depends on their size, and the references need no gradient, as in a decoder that refines
boxes. Stages alternate in short turns: whatever else the machine does slows all of them, and interrupts few turns.
"""

import contextlib
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ...kernels import contract, registry
from ...kernels.api import fused_ms_deform_attn, ms_deform_attn
from ..harness.measure import interval, time_call
from ..harness.records import Row
from ..harness.tables import Column, Line, fields, lines_of, numbers, spread
from ..operator.cases import Case, find
from ..operator.inputs import make_inputs

CASE = "decoder-800x1066"
STAGES = ("bare", "launches only", "warm", "function", "launch", "dispatcher", "checks", "registry")
DIRECTIONS = ("forward, no_grad", "forward", "forward+backward", "forward+backward, sorted")
_WARM_UP = 20
_SIZES = ((4, 4), (2, 2), (1, 1), (1, 1))  # as many levels as the case has

Call = Callable[[], object]


def table(rows: list[Row]) -> list[Line]:
    """A head, and a line for each row: the median, its spread, what it has over the bare Function, launches a call."""
    columns: dict[str, Column] = {
        **fields("function", "direction", "stage"),
        "us": numbers("median_us"),
        "p20-p80": spread,
        "over bare": lambda row: "-" if row["stage"] in STAGES[:2] else f"{row['over_bare_us']:+.1f}",
        "launches": "launches",
        "launched us": numbers("launched_us"),
    }
    return lines_of(rows, columns)


def measure(device: torch.device, rounds: int, calls: int) -> list[Row]:
    """A row for each function, direction and stage."""
    from ...kernels.triton import launch

    rows: list[Row] = []
    case = dataclasses.replace(find(CASE), sizes=_SIZES)
    for function, direction in product(("ms_deform_attn", "fused_ms_deform_attn"), DIRECTIONS):
        with launch.replaced(backward_method="sorted" if direction.endswith("sorted") else "atomics"):
            with without_device():
                stages = prepared(case, function, direction, device)
                launches = {stage: len(_launched(call)) for stage, call in stages.items()}
                times = alternate(list(stages.values()), rounds, calls)
            wall = None
            if device.type == "cuda":
                wall = _wall_us(prepared(case, function, direction, device)["function"], device)
        for stage, taken in zip(stages, times, strict=True):
            over = [a - b for a, b in zip(taken, times[0], strict=True)]
            fifths = statistics.quantiles(taken, n=5, method="inclusive") if rounds > 1 else [*taken] * 4
            low, high = interval(over)
            lead = {"kind": "dispatch", "case": CASE, "dtype": "float32", "backend": "triton"}
            lead |= {"function": function, "direction": direction, "stage": stage}
            times_us = {"median_us": statistics.median(taken), "p20_us": fifths[0], "p80_us": fifths[3]}
            over_us = {"over_bare_us": statistics.median(over), "over_bare_low_us": low, "over_bare_high_us": high}
            launched = {"launches": launches[stage], "launched_us": wall if stage == "function" else None}
            rows.append({**lead, **times_us, **over_us, **launched, "rounds": rounds, "calls": calls})
    return rows


def _wall_us(call: Call, device: torch.device) -> float | None:
    """Wall time of a call in a row of calls that launch their kernels."""
    return time_call(lambda _: call(), device, 0.0).dispatch_us


@contextlib.contextmanager
def without_device() -> Iterator[None]:
    """Within, the Triton backend takes tensors on a CPU, its kernels are compiled for sm_90 and their launches do
    nothing; results are memory as it was found."""
    from ..static.ptx.triton_driver import idling

    backend = registry.BACKENDS["triton"]._replace(unavailable=lambda: None, refuses=lambda _: None)
    with registry.registered(backend), idling():
        yield


def _launched(call: Call) -> list[Call]:
    """The launches of our kernels that a call makes, to be made again."""
    from ...kernels.triton.launch import Launch

    made: list[Call] = []
    original = Launch.__call__

    def note(self: Any, *arguments: Any) -> None:
        made.append(partial(self, *arguments))
        original(self, *arguments)

    with mock.patch.object(Launch, "__call__", note):
        call()
    return made


def alternate(calls: list[Call], rounds: int, times: int) -> list[list[float]]:
    """Microseconds of each call, once a round, from `times` calls in a row; no garbage is collected meanwhile."""
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        for _ in range(_WARM_UP):
            call()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for call, mine in zip(calls, taken, strict=True):
                start = time.perf_counter()
                for _ in range(times):
                    call()
                mine.append((time.perf_counter() - start) / times * 1e6)
    finally:
        if collecting:
            gc.enable()
    return taken


def prepared(case: Case, function: str, direction: str, device: torch.device) -> dict[str, Call]:
    """The stages of a function in a direction as calls without arguments."""
    inputs = make_inputs(case, torch.float32, device, seed=0)
    tensors = inputs.of(fused=function == "fused_ms_deform_attn")
    for tensor in tensors:
        tensor.requires_grad_(direction != "forward, no_grad" and tensor is not inputs.reference_points)
    gradients = partial(
        torch.autograd.grad,
        inputs=[tensor for tensor in tensors if tensor.requires_grad],
        grad_outputs=inputs.grad_output,
    )
    backward = direction.startswith("forward+backward")

    def whole(forward: Callable[[], Tensor]) -> Call:
        if backward:
            return lambda: gradients(forward())
        return torch.no_grad()(forward) if direction == "forward, no_grad" else forward

    forwards = _forwards(case, function, tensors)
    stages = {stage: whole(forward) for stage, forward in forwards.items()}
    launches = _launched(partial(gradients, forwards["function"]()) if backward else forwards["function"])

    def launch() -> None:
        for again in launches:
            again()

    stages["launches only"] = launch
    return {stage: stages[stage] for stage in STAGES}


def _forwards(case: Case, function: str, tensors: list[Tensor]) -> dict[str, Callable[[], Tensor]]:
    from ...kernels.triton import launch

    fused = function == "fused_ms_deform_attn"
    public_function: Any = fused_ms_deform_attn if fused else ms_deform_attn
    sizes = case.sizes
    name = registry.resolve(contract.check(tensors, sizes, None)[0])
    if name != "triton":
        raise RuntimeError(f"expected the backend triton, got {name}: its setting is made, or it does not run here")
    operator: Any = registry.implementation(name, fused)
    levels = tuple(size for pair in sizes for size in pair)

    def allocate(_: Any, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].new_empty(case.B, case.queries, case.H * case.D)

    def allocate_gradients(_: Tensor, __: Any, tensors: Sequence[Tensor], needs: tuple[bool, ...]) -> Any:
        value, *others = tensors
        small = (t.new_empty(t.shape) if need else None for t, need in zip(others, needs[1:], strict=True))
        return value.new_zeros(value.shape), *small

    keep_forward = launch.prepare_forward(levels, tensors)
    kept: dict[tuple[bool, ...], Any] = {}

    def backward(grad_output: Tensor, levels: Any, tensors: Sequence[Tensor], needs: tuple[bool, ...]) -> Any:
        if needs not in kept:
            kept[needs] = launch.prepare_backward(grad_output, levels, tensors, needs)
        return kept[needs](grad_output, levels, tensors)

    bare = _function(allocate, allocate_gradients)
    warm = _function(keep_forward, backward)
    launching = _function(launch.forward, launch.backward)

    def checks(resolve: bool = False) -> Tensor:
        inputs, shapes, sizes = contract.check(tensors, case.sizes, None)
        if resolve:
            registry.implementation(registry.resolve(inputs), fused)
        return operator.forward(*tensors, shapes, [size for pair in sizes for size in pair])

    return {
        "bare": lambda: bare(levels, *tensors),
        "warm": lambda: warm(levels, *tensors),
        "function": lambda: public_function(tensors[0], sizes, *tensors[1:]),
        "launch": lambda: launching(levels, *tensors),
        "dispatcher": lambda: operator.forward(*tensors, None, list(levels)),
        "checks": checks,
        "registry": lambda: checks(resolve=True),
    }


def _function(forward: Callable[..., Tensor], backward: Callable[..., Any]) -> Callable[..., Tensor]:
    """An autograd.Function around a forward (levels, tensors) and a backward (grad_output, levels, tensors, needs),
    that does no more than it must."""

    class Bare(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, levels: tuple[int, ...], *tensors: Tensor) -> Tensor:
            ctx.levels = levels
            ctx.save_for_backward(*tensors)
            return forward(levels, tensors)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Any:
            needs = ctx.needs_input_grad[1:]
            gradients = backward(grad_output, ctx.levels, ctx.saved_tensors, needs)
            return None, *(g if n else None for g, n in zip(gradients, needs, strict=True))

    return Bare.apply

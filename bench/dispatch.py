"""``msdeform bench dispatch``: microseconds of the host for one call of the Triton backend, its kernels left out.

Each line adds to what the one above it does:

    bare        an autograd.Function that allocates what the operator returns, and nothing else: the yardstick
    launch      and prepares the launches: block sizes, strides, grids
    dispatcher  the same as an operator of PyTorch's, as compiled and exported code calls it
    checks      and looks at its arguments, as for shapes that it has not seen
    registry    and finds the backend that takes them
    function    the public function, called as a user does

The kernels themselves are replaced by nothing: what is left is Python, PyTorch's dispatcher and allocation, which a CPU
shows as well as a GPU. On a GPU the last column is the wall time of a row of calls that do launch, which includes what
Triton's own launcher takes. The levels are of a pixel or a few, since no part of this depends on their size, and the
references need no gradient, as in a decoder that refines boxes. Stages alternate in short turns: whatever else the
machine does slows all of them, and interrupts few turns.
"""

import contextlib
import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels import contract, registry, seen
from ..kernels.api import fused_ms_deform_attn, ms_deform_attn
from ..kernels.arguments import Parser
from .cases import Case, find, make_inputs
from .measure import interval
from .provenance import provenance
from .records import RESULTS, Row, append
from .runner import public, usual_device
from .tables import Line, aligned, number

CASE = "decoder-800x1066"
STAGES = ("bare", "launch", "dispatcher", "checks", "registry", "function")
DIRECTIONS = ("forward, no_grad", "forward", "forward+backward")
_WARM_UP = 20
_SIZES = ((4, 4), (2, 2), (1, 1), (1, 1))  # as many levels as the case has

Call = Callable[[], object]


class Nothing:
    """Stands for a kernel, ``kernel[grid](*arguments)``: counts its launches and runs none of them."""

    def __init__(self) -> None:
        self.launches = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._launch

    def _launch(self, *arguments: Any, **parameters: Any) -> None:
        self.launches += 1


@contextlib.contextmanager
def without_kernels() -> Iterator[dict[str, Nothing]]:
    """Within, the Triton backend launches nothing, and takes tensors on a CPU; results are memory as it was found.

    Yields what stands for ``forward`` and ``backward``.
    """
    from ..kernels.triton import launch

    kernels = {"forward": Nothing(), "backward": Nothing()}
    real = {name: getattr(launch, f"{name}_kernel") for name in kernels}
    backend = registry.BACKENDS["triton"]
    availability = dict(registry._availability)
    try:
        for name, kernel in kernels.items():
            setattr(launch, f"{name}_kernel", kernel)
        registry.BACKENDS["triton"] = dataclasses.replace(
            backend, unavailable=lambda: None, refuses=lambda _: None, auto_refuses=lambda _: None
        )
        registry._availability["triton"] = None
        seen.forget()
        yield kernels
    finally:
        for name, kernel in real.items():
            setattr(launch, f"{name}_kernel", kernel)
        registry.BACKENDS["triton"] = backend
        registry._availability.clear()
        registry._availability.update(availability)
        seen.forget()


def main(argv: list[str] | None = None) -> int:
    """Measures, prints, and on request records."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="msdeform bench dispatch", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=600, help="how often the stages take turns (default: 600)")
    parser.add_argument("--calls", type=int, default=3, help="of a stage in its turn (default: 3)")
    parser.add_argument(
        "--out", type=Path, nargs="?", const=RESULTS, metavar="DIR", help="append the rows there (bench/results)"
    )
    options = parser.parse_args(arguments)
    for name in ("rounds", "calls"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(options, name)}")
    device = usual_device()
    rows = measure(device, options.rounds, options.calls)
    print(f"{CASE}, float32, {device.type}: microseconds of the host for a call, kernels left out\n")
    print(aligned(table(rows), 3))
    if options.out is not None:
        source = provenance(device, ["msdeform", "bench", "dispatch", *public(arguments)])
        append(options.out / "dispatch.jsonl", [{**row, **source} for row in rows])
    return 0


def table(rows: list[Row]) -> list[Line]:
    """A head, and a line for each row: the median, its spread, what it has over the bare Function, launches a call."""
    lines: list[Line] = [("function", "direction", "stage", "us", "p20-p80", "over bare", "launches", "launched us")]
    for row in rows:
        lead = (row["function"], row["direction"], row["stage"], number(row["median_us"]))
        spread = f"{row['p20_us']:.1f}-{row['p80_us']:.1f}"
        over = f"{row['over_bare_us']:+.1f}" if row["stage"] != "bare" else "-"
        lines.append((*lead, spread, over, str(row["launches"]), number(row["launched_us"])))
    return lines


def measure(device: torch.device, rounds: int, calls: int) -> list[Row]:
    """A row for each function, direction and stage."""
    rows: list[Row] = []
    case = dataclasses.replace(find(CASE), sizes=_SIZES)
    for function in ("ms_deform_attn", "fused_ms_deform_attn"):
        for direction in DIRECTIONS:
            with without_kernels() as kernels:
                stages = prepared(case, function, direction, device)
                launches = {stage: _launches(call, kernels) for stage, call in stages.items()}
                times = alternate(list(stages.values()), rounds, calls)
            launched = None
            if device.type == "cuda":
                launched = _launched_us(prepared(case, function, direction, device)["function"], device, calls)
            for stage, taken in zip(stages, times, strict=True):
                over = [a - b for a, b in zip(taken, times[0], strict=True)]
                fifths = statistics.quantiles(taken, n=5, method="inclusive") if rounds > 1 else [*taken] * 4
                low, high = interval(over)
                rows.append(
                    {
                        "kind": "dispatch",
                        "case": CASE,
                        "dtype": "float32",
                        "backend": "triton",
                        "function": function,
                        "direction": direction,
                        "stage": stage,
                        "median_us": statistics.median(taken),
                        "p20_us": fifths[0],
                        "p80_us": fifths[3],
                        "over_bare_us": statistics.median(over),
                        "over_bare_low_us": low,
                        "over_bare_high_us": high,
                        "launches": launches[stage],
                        "launched_us": launched if stage == "function" else None,
                        "rounds": rounds,
                        "calls": calls,
                    }
                )
    return rows


def _launches(call: Call, kernels: dict[str, Nothing]) -> int:
    """Kernels of ours that a call launches."""
    before = sum(kernel.launches for kernel in kernels.values())
    call()
    return sum(kernel.launches for kernel in kernels.values()) - before


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


def _launched_us(call: Call, device: torch.device, calls: int) -> float:
    """Wall time of a call in a row of calls that launch their kernels."""
    for _ in range(3):  # compiles
        call()
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / calls * 1e6


def prepared(case: Case, function: str, direction: str, device: torch.device) -> dict[str, Call]:
    """The stages of a function in a direction as calls without arguments."""
    fused = function == "fused_ms_deform_attn"
    inputs = make_inputs(case, torch.float32, device, seed=0)
    tensors = (
        [inputs.value, inputs.reference_points, inputs.sampling_offsets, inputs.attention_logits]
        if fused
        else [inputs.value, inputs.sampling_locations, inputs.attention_weights]
    )
    wanted = [tensor for tensor in tensors if tensor is not inputs.reference_points]
    for tensor in wanted:
        tensor.requires_grad_(direction != "forward, no_grad")

    def of(forward: Callable[[], Tensor]) -> Call:
        if direction == "forward":
            return forward
        if direction == "forward, no_grad":

            def call() -> object:
                with torch.no_grad():
                    return forward()
        else:

            def call() -> object:
                return torch.autograd.grad(forward(), wanted, inputs.grad_output)

        return call

    return {stage: of(forward) for stage, forward in _forwards(case, tensors, fused).items()}


def _forwards(case: Case, tensors: list[Tensor], fused: bool) -> dict[str, Callable[[], Tensor]]:
    from ..kernels.triton import launch

    public_function: Any = fused_ms_deform_attn if fused else ms_deform_attn
    check: Any = contract.check_fused if fused else contract.check
    sizes = case.sizes
    name = registry.resolve(check(tensors[0], sizes, *tensors[1:], None)[0])
    if name != "triton":
        raise RuntimeError(f"expected the backend triton, got {name}: its setting is made, or it does not run here")
    registry.implementation(name, fused)  # defines the operators
    operator = getattr(torch.ops.msdeform, f"triton_{'fused_' if fused else ''}forward").default
    flat = [size for pair in sizes for size in pair]
    levels = torch.tensor(sizes, device=tensors[0].device)
    prepare: Any = (launch.fused_forward, launch.fused_backward) if fused else (launch.forward, launch.backward)

    def allocate(value: Tensor, _: Tensor, *rest: Tensor) -> Tensor:
        return value.new_empty(case.B, case.queries, case.H * case.D)

    def allocate_gradients(_: Tensor, value: Tensor, levels: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
        *others, needs = rest
        small = (t.new_empty(t.shape) if need else None for t, need in zip(others, needs[1:], strict=True))
        return value.new_zeros(value.shape), *small

    bare = _function(allocate, allocate_gradients)
    launching = _function(*prepare)

    def checks() -> Tensor:
        _, shapes, sizes = check(tensors[0], case.sizes, *tensors[1:], None)
        return operator(*tensors, shapes, [size for pair in sizes for size in pair])

    def resolves() -> Tensor:
        inputs, shapes, sizes = check(tensors[0], case.sizes, *tensors[1:], None)
        registry.implementation(registry.resolve(inputs), fused)
        return operator(*tensors, shapes, [size for pair in sizes for size in pair])

    return {
        "bare": lambda: bare(levels, *tensors),
        "launch": lambda: launching(levels, *tensors),
        "dispatcher": lambda: operator(*tensors, None, flat),
        "checks": checks,
        "registry": resolves,
        "function": lambda: public_function(tensors[0], sizes, *tensors[1:]),
    }


def _function(forward: Callable[..., Tensor], backward: Callable[..., Any]) -> Callable[..., Tensor]:
    """An autograd.Function around a forward (value, levels, *rest) and a backward (grad_output, value, levels, *rest,
    needs), that does no more than it must."""

    class Bare(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, levels: Tensor, value: Tensor, *rest: Tensor) -> Tensor:
            ctx.save_for_backward(levels, value, *rest)
            return forward(value, levels, *rest)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Any:
            levels, value, *rest = ctx.saved_tensors
            needs = ctx.needs_input_grad[1:]
            gradients = backward(grad_output, value, levels, *rest, needs)
            return None, *(g if n else None for g, n in zip(gradients, needs, strict=True))

    return Bare.apply


if __name__ == "__main__":
    sys.exit(main())

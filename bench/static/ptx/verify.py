"""``msdeform verify --compiled``: check the Triton kernels as compiled for a device, executed on this machine's CPU."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....kernels.cuda import tiles
from ....kernels.diagnostics.checks import DTYPES, Case, evaluate, make_inputs
from ....kernels.diagnostics.tolerances import Comparison, compare
from ....kernels.triton import launch
from . import nvrtc
from .parse import Fault
from .triton_driver import executing

_METHODS = {"by query": "atomics", "sorted": "sorted", "by tiles": "tiles"}
"""the backwards, by the name they are printed with"""
Change = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


def cases() -> list[Case]:
    """Both functions and every dtype, and widths that are no power of two."""
    base = Case(B=1, Q=9, H=2)
    short = [replace(base, dtype=dtype) for dtype in DTYPES.values()]
    short += [replace(base, Q=37, coordinates=c) for c in (None, 4)]
    return [*short, Case(B=1, Q=21, H=3, D=30, P=3, sizes=((3, 7), (1, 1)), spread=1.0)]


def check(case: Case, method: str, *, change: Change | None = None, **options: Any) -> Iterator[tuple[str, Comparison]]:
    """Name and error beside its bound, of the output and each gradient that is needed.

    Args:
        case, method: of the inputs, and of the backward: "atomics", "sorted" or "tiles".
        change: what is done to the inputs before the call.
        options: of :func:`call`.

    Raises:
        Fault: a kernel does what it may not.
    """
    tensors = make_inputs(case)
    if change is not None:
        tensors = change(tensors)
    grad_output = make_grad_output(case)
    truth = evaluate(case, [t.double() for t in tensors], grad_output.double(), "reference")
    results = call(case.sizes, tensors, grad_output, method, **options)
    needs = (True, *(options.get("needs") or (True,) * len(tensors)))
    compute = torch.float64 if any(t.dtype is torch.float64 for t in tensors) else torch.float32
    for name, needed, result in zip(("output", *case.names), needs, results, strict=True):
        if needed:
            assert result is not None
            yield name, compare(result, truth[name], compute, gradient=name != "output")


def make_grad_output(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed + 1)
    return torch.randn(case.B, case.Q, case.H * case.D, generator=generator).to(case.dtype)


def call(
    sizes: Sequence[tuple[int, int]],
    tensors: Sequence[Tensor],
    grad_output: Tensor,
    method: str,
    *,
    needs: tuple[bool, ...] | None = None,
    by_value: bool = True,
    arch: int = 90,
    **options: Any,
) -> list[Tensor | None]:
    """Output and gradients of one call, plain for three tensors and fused for four, by executed code.

    Args:
        sizes, tensors: of :mod:`...kernels.contract`, value first.
        method: "atomics", "sorted" or "tiles".
        needs: which gradients to make; all if None. The others are None.
        by_value: whether level sizes go to the kernels as numbers, as Python ints do, or as a tensor.
        arch, options: of :func:`.triton_driver.executing`.
    """
    levels = tuple(itertools.chain(*sizes)) if by_value else torch.tensor(sizes)
    needed = needs or (True,) * len(tensors)
    with launch.replaced(backward_method=method), executing(arch, **options):
        output = launch.forward(levels, tensors)
        if method != "tiles" or tiles.refuses(launch.call_of(tensors)) is not None:
            return [output, *launch.backward(grad_output, levels, tensors, needed)]
    with launch.replaced(backward_method=method), nvrtc.executing(arch, **options):
        return [output, *launch.backward(grad_output, levels, tensors, needed)]


def print_errors(arch: int, chosen: Sequence[Case]) -> bool:
    """Print each case's errors beside their bounds; returns whether all hold and no kernel faults."""
    ok = True
    for case in chosen:
        print(f"\n{case.describe()}; value {str(case.dtype).removeprefix('torch.')}; sm_{arch}")
        print(f"  {'backward':<10} {'quantity':<24} {'error':>10} {'bound':>10} {'error/bound':>12}")
        for label, method in _METHODS.items():
            try:
                for name, comparison in check(case, method, arch=arch):
                    quantity, (error, bound) = name if name == "output" else f"grad {name}", comparison
                    ratio, mark = error / bound if bound else math.nan, "" if comparison.ok else "   BREACH"
                    print(
                        f"  {label:<10} {quantity:<24} {error:>10.2e} {bound:>10.2e} {ratio:>12.3f}{mark}", flush=True
                    )
                    ok = ok and comparison.ok
            except Fault as fault:
                print(f"  {label:<10} FAULT: {fault}", flush=True)
                ok = False
    return ok

"""What an implementation does on a case, and whether it does it right.

An implementation is held against the reference in float64 on the very inputs that it is timed on, the output and
every gradient, by the project's criterion (:mod:`msdeform.kernels.diagnostics.tolerances`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.api import fused_ms_deform_attn, ms_deform_attn
from ...kernels.diagnostics.tolerances import Comparison, compare
from ...models.attention import MSDeformAttn
from ..harness.tables import DIFFERS, HAS_NONE
from .cases import Case
from .implementations import Implementation
from .inputs import FUSED, PLAIN, OperatorInputs, on_kinks


@dataclass(frozen=True)
class Workload:
    """What one implementation does on one case: a function of leaves that want gradients."""

    run: Callable[..., Tensor]
    leaves: Sequence[tuple[Tensor, ...]]
    """one tuple of inputs for each set"""
    upstream: Sequence[Tensor]
    """gradient of each set's output"""
    parameters: tuple[Tensor, ...] = ()
    """more tensors whose gradients the backward computes"""
    forward_only: bool = False
    """it has no backward"""

    def forward(self, i: int) -> Tensor:
        return self.run(*self.leaves[i % len(self.leaves)])

    def both(self, i: int) -> tuple[Tensor, ...]:
        """A forward and its backward."""
        return self.gradients(i, self.forward(i))

    def gradients(self, i: int, output: Tensor, *, keep: bool = False) -> tuple[Tensor, ...]:
        """Gradients of the leaves and parameters for ``output = forward(i)``; `keep` to call it again."""
        i %= len(self.leaves)
        return torch.autograd.grad(output, (*self.leaves[i], *self.parameters), self.upstream[i], retain_graph=keep)


def checked(case: Case, subject: Implementation, inputs: OperatorInputs, fused: bool) -> dict[str, "Check"]:
    """One of the two functions held against the truth."""
    return check(operator(case, subject, [inputs], fused), truth(case, inputs, fused))


def operator(case: Case, subject: Implementation, sets: list[OperatorInputs], fused: bool) -> Workload:
    """One of the two functions."""
    function = subject.function(fused)
    assert function is not None

    def run(value: Tensor, *rest: Tensor) -> Tensor:
        return function(value, case.sizes, *rest)

    leaves = [_leaves(inputs, fused) for inputs in sets]
    return Workload(run, leaves, [inputs.grad_output for inputs in sets], forward_only=subject.forward_only)


def _leaves(inputs: OperatorInputs, fused: bool, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in inputs.of(fused))


def module(
    case: Case, subject: Implementation, sets: list[OperatorInputs], dtype: torch.dtype, device: torch.device
) -> Workload:
    """The whole attention module; its queries are as wide as its values."""
    torch.manual_seed(0)
    width = case.H * case.D
    module = MSDeformAttn(width, case.L, case.H, case.P, backend=subject.name).to(device, dtype)

    def run(query: Tensor, flat: Tensor) -> Tensor:
        return module(query, references, flat, case.sizes)

    references = sets[0].reference_points
    leaves = [
        (inputs.grad_output.clone().requires_grad_(), inputs.value.flatten(2).requires_grad_()) for inputs in sets
    ]
    return Workload(run, leaves, [inputs.grad_output for inputs in sets], tuple(module.parameters()))


class Truth(NamedTuple):
    """What is right: the reference in float64, on the same rounded inputs."""

    results: dict[str, Tensor]
    """the output, and the gradient of each input by its name"""
    ignored: dict[str, Tensor]
    """which elements of a result have no one true value"""


class Check(NamedTuple):
    """One direction held against the truth; JSON-serialisable."""

    error: float | None
    """of the worst result, in units of that result"""
    bound: float | None
    failure: str | None
    """what is wrong, or None"""


def truth(case: Case, inputs: OperatorInputs, fused: bool) -> Truth:
    """Output and gradients for one set of inputs."""
    function = fused_ms_deform_attn if fused else ms_deform_attn
    leaves = _leaves(inputs, fused, torch.float64)
    output = function(leaves[0], case.sizes, *leaves[1:], backend="reference")
    gradients = torch.autograd.grad(output, leaves, inputs.grad_output.double())
    results = {"output": output.detach(), **dict(zip(FUSED if fused else PLAIN, gradients, strict=True))}
    kinks = on_kinks(case, inputs.sampling_locations)
    # a reference point moves the points of every head
    moved = {"reference_points": kinks.any(4).any(2), "sampling_offsets": kinks, "sampling_locations": kinks}
    return Truth(results, moved)


def check(work: Workload, truth: Truth) -> dict[str, Check]:
    """The first set's output (``forward``), its gradients (``backward``) and the two (``both``) against the truth."""
    try:
        output = work.forward(0)
        gradients = () if work.forward_only else work.gradients(0, output)
        results = dict(zip(truth.results, (output.detach(), *gradients), strict=not work.forward_only))
        compute = torch.float64 if output.dtype is torch.float64 else torch.float32
        comparisons = {}
        for name, result in results.items():
            true, keep = truth.results[name], ~truth.ignored[name] if name in truth.ignored else ...
            comparisons[name] = compare(result[keep], true[keep], compute, gradient=name != "output")
    except Exception as error:  # an implementation may fail in any way, and the others are still to be measured
        failed = Check(None, None, sentence(error))
        return dict.fromkeys(("forward", "backward", "both"), failed)
    forward = _verdict({"output": comparisons.pop("output")})
    backward = _verdict(comparisons) if comparisons else Check(None, None, HAS_NONE)
    # a training step needs both: a forward that is wrong makes its backward worth nothing
    return {"forward": forward, "backward": backward, "both": backward if forward.failure is None else forward}


def sentence(error: Exception) -> str:
    """An error in a line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    message = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {message[0]}"


def _verdict(comparisons: dict[str, Comparison]) -> Check:
    def excess(name: str) -> tuple[bool, float]:
        error, bound = comparisons[name]
        return math.isnan(error), error / bound if bound else float(error > 0)

    name = max(comparisons, key=excess)
    worst = comparisons[name]
    return Check(worst.error, worst.bound, None if worst.ok else difference(name, worst))


def difference(name: str, comparison: Comparison) -> str:
    """What is told of a result that is further from float64 than its bound."""
    if math.isnan(comparison.error):
        return f"{DIFFERS} in {name}: some numbers are not finite in one of the two only"
    return f"{DIFFERS} in {name}: error {comparison.error:.2e}, bound {comparison.bound:.2e}"

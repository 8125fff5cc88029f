"""A launch prepared for calls alike is the launch that each would have made; and how many launches a call makes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from msdeform.bench.dispatch import without_kernels
from msdeform.kernels import seen
from msdeform.kernels.api import fused_ms_deform_attn, ms_deform_attn
from msdeform.kernels.triton import launch
from msdeform.kernels.verify import Case, make_inputs

SIZES = ((3, 4), (2, 2))


class Recorder:
    """A kernel that keeps what it would have been launched with, tensors by their place."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launched(*arguments: Any, **parameters: Any) -> None:
            places = [
                (a.data_ptr(), a.shape, a.stride(), a.dtype) if isinstance(a, Tensor) else a
                for i, a in enumerate(arguments)
                if i != 5  # the output
            ]
            self.launches.append((grid, places, parameters))

        return launched


def make(coordinates: int | None, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Tensor, ...]:
    dims: dict[str, Any] = {"B": 2, "Q": 3, "H": 2, "D": 8, "P": 2, **changes}
    case = Case(sizes=SIZES, coordinates=coordinates, **dims)
    value, *rest = make_inputs(case)
    return value.to(dtype), *rest


def within_more(value: Tensor) -> Tensor:
    """The same numbers between others: what a slice of a joint projection is."""
    return torch.cat([value, value], 3)[..., : value.shape[3]]


def at_offset(value: Tensor, offset: int) -> Tensor:
    memory = torch.zeros(value.numel() + offset, dtype=value.dtype)
    memory[offset:] = value.flatten()
    return memory[offset:].view(value.shape)


TENSORS = {
    "plain": lambda: make(None),
    "points": lambda: make(2),
    "boxes": lambda: make(4),
    "bfloat16": lambda: make(2, torch.bfloat16),
    "float64": lambda: make(None, torch.float64),
    "a slice": lambda: (within_more(make(None)[0]), *make(None)[1:]),
    "strided within": lambda: (make(None)[0].transpose(2, 3).contiguous().transpose(2, 3), *make(None)[1:]),
    "odd channels": lambda: make(2, torch.bfloat16, D=7),
    "no query": lambda: make(None, Q=0),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_prepared_launch_is_the_usual_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = TENSORS[name]()
    function: Any = ms_deform_attn if len(tensors) == 3 else fused_ms_deform_attn
    recorder = Recorder()
    with without_kernels():
        monkeypatch.setattr(launch, "forward_kernel", recorder)
        monkeypatch.setattr(seen, "_guard", lambda _: None)
        function(tensors[0], SIZES, *tensors[1:])
        monkeypatch.undo()
        monkeypatch.setattr(launch, "forward_kernel", recorder)
        function(tensors[0], SIZES, *tensors[1:])  # kept
        assert seen.find(len(tensors) == 4, None, SIZES, None, tensors) is not None
        outputs = [function(tensors[0], SIZES, *tensors[1:]) for _ in range(2)]
        monkeypatch.undo()
    assert all(output.shape == (2, tensors[1].shape[1], 2 * tensors[0].shape[3]) for output in outputs)
    assert all(output.dtype is tensors[0].dtype for output in outputs)
    assert len(recorder.launches) == (0 if name == "no query" else 4)
    if name == "strided within":  # a copy elsewhere each time
        for _, places, _ in recorder.launches:
            places[0] = places[0][1:]
    for other in recorder.launches[1:]:
        assert other == recorder.launches[0]


def within_queries(tensor: Tensor) -> Tensor:
    """The same numbers with heads outermost in memory."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


NEEDS = [(True, True, True, True), (True, False, True, True), (False, False, False, True), (True, False, False, False)]


@pytest.mark.parametrize("needs", NEEDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("coordinates", [None, 2, 4])
def test_a_prepared_backward_is_the_usual_one(
    coordinates: int | None, dtype: torch.dtype, needs: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    value, *rest = make(coordinates, dtype)
    *references, points, weights = rest
    tensors = [value, *references, within_queries(points), within_queries(weights)]
    needs = needs if coordinates else (needs[0], *needs[2:])
    leaves = [tensor.requires_grad_(needed) for tensor, needed in zip(tensors, needs, strict=True)]
    function: Any = fused_ms_deform_attn if coordinates else ms_deform_attn
    launched: list[tuple[Any, ...]] = []

    class Backward:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def run(*arguments: Any, **parameters: Any) -> None:
                wanted = [argument for argument, needed in zip(arguments[6:10], asked, strict=True) if needed]
                told = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in wanted]
                inputs = [None if tensor is None else tensor.data_ptr() for tensor in arguments[1:6]]
                launched.append((grid, inputs[:1] + inputs[2:], arguments[10:], told, parameters))

            return run

    plain = (needs[0], False, *needs[1:])
    value_, references_, points_, weights_ = needs if coordinates else plain
    asked = (value_, points_, weights_, references_)  # in the kernel's order
    with without_kernels():
        monkeypatch.setattr(launch, "backward_kernel", Backward())
        for _ in range(3):  # checked; past the checks; prepared
            output = function(leaves[0], SIZES, *leaves[1:])
            given = [leaf for leaf in leaves if leaf.requires_grad]
            gradients = torch.autograd.grad(output, given, torch.ones_like(output))
            assert [g.shape for g in gradients] == [leaf.shape for leaf in given]
            assert [g.dtype for g in gradients] == [leaf.dtype for leaf in given]
        monkeypatch.undo()
    assert len(launched) == 3
    assert launched[0] == launched[1] == launched[2]


def test_determinism_and_method_are_looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    value, *rest = make(2)
    leaf = value.requires_grad_()
    ways: list[str] = []
    with without_kernels():
        monkeypatch.setattr(launch, "_backward_by_cell", lambda *_: ways.append("cells"))
        monkeypatch.setattr(launch, "_backward_by_query", lambda *_: ways.append("query"))

        def run() -> None:
            before = len(ways)
            output = fused_ms_deform_attn(leaf, SIZES, *rest)
            torch.autograd.grad(output, leaf, torch.ones_like(output))
            if len(ways) == before:
                ways.append("prepared")

        for _ in range(2):
            run()
        monkeypatch.setattr(launch, "backward_method", "cells")
        run()
        monkeypatch.setattr(launch, "backward_method", "auto")
        torch.use_deterministic_algorithms(True)
        run()
        torch.use_deterministic_algorithms(False)
        run()
        monkeypatch.undo()
    assert ways == ["query", "prepared", "cells", "cells", "prepared"]


def unchanged(tensor: Tensor) -> Tensor:
    return tensor


def test_a_saved_tensor_may_come_back_with_other_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """From hooks that keep a copy, as torch.autograd.graph.save_on_cpu has them, in one of two calls alike."""
    value, *rest = make(2)
    strided = within_more(value).requires_grad_()
    launched: list[tuple[Any, ...]] = []

    class Backward:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **_: launched.append((arguments[1].stride()[:3], arguments[15:18]))

    with without_kernels():
        monkeypatch.setattr(launch, "backward_kernel", Backward())
        kept = [unchanged, unchanged, torch.Tensor.contiguous, unchanged]
        for pack in kept:
            with torch.autograd.graph.saved_tensors_hooks(pack, unchanged):
                output = fused_ms_deform_attn(strided, SIZES, *rest)
            torch.autograd.grad(output, strided, torch.ones_like(output))
        monkeypatch.undo()
    assert [strides == told for strides, told in launched] == [True] * 4
    assert len({strides for strides, _ in launched}) == 2


def test_where_memory_begins_is_looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of 16-bit channels are read where every row begins at 4 bytes; a guard does not see where that is."""
    value, *rest = make(2, torch.bfloat16)
    recorder = Recorder()
    with without_kernels():
        monkeypatch.setattr(launch, "forward_kernel", recorder)
        for offset in (0, 0, 2, 1, 0):
            fused_ms_deform_attn(at_offset(value, offset), SIZES, *rest)
        # memory of others, which begins where they say
        memory = bytearray(value.numel() * 2 + 2)
        for offset in (0, 2):
            shared = torch.frombuffer(memory, dtype=torch.bfloat16, count=value.numel(), offset=offset)
            fused_ms_deform_attn(shared.view(value.shape), SIZES, *rest)
        monkeypatch.undo()
    pairs = [parameters["PAIRS"] for _, _, parameters in recorder.launches]
    assert pairs == [True, True, True, False, True, True, False]


def test_a_batch_that_no_grid_holds_is_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make(2, B=5)
    recorder = Recorder()
    monkeypatch.setattr(launch, "_MOST_PROGRAMS", 2)
    with without_kernels():
        monkeypatch.setattr(launch, "forward_kernel", recorder)
        for _ in range(2):
            fused_ms_deform_attn(tensors[0], SIZES, *tensors[1:])
        monkeypatch.undo()
    assert [grid[2] for grid, _, _ in recorder.launches] == [2, 2, 1] * 2
    assert [places[0][1][0] for _, places, _ in recorder.launches] == [2, 2, 1] * 2


class Counting(TorchDispatchMode):
    """PyTorch's operators that would launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        if name not in ("new_empty", "empty", "empty_like", "view", "slice", "alias", "detach"):
            self.launched.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "references", "pytorchs"),
    [
        (torch.float32, False, ["new_zeros"]),
        (torch.bfloat16, False, ["new_zeros", "_to_copy"]),
        (torch.float32, True, ["new_zeros", "sum"]),
    ],
)
def test_launches_of_a_call(dtype: torch.dtype, references: bool, pytorchs: list[str]) -> None:
    """Ours: one forward, one backward. PyTorch's: none forward; backward the zeros that are added to, the one rounding
    of 16-bit gradients, and the sum over heads of the references' shares."""
    value, *rest = make(2, dtype)
    levels = torch.tensor(SIZES)
    with without_kernels() as kernels:
        with Counting() as forward:
            output = launch.fused_forward(value, levels, *rest)
        assert (kernels["forward"].launches, forward.launched) == (1, [])
        grad_output = torch.ones_like(output)
        with Counting() as backward:
            launch.fused_backward(grad_output, value, levels, *rest, (True, references, True, True))
        assert (kernels["backward"].launches, backward.launched) == (1, pytorchs)

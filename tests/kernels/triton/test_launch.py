"""A launch prepared for calls alike is the launch that each would have made; how many launches a call makes, and that
none compiles anew for another image or another number of queries."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from msdeform.bench.static.ptx.triton_driver import idling
from msdeform.kernels import call_cache
from msdeform.kernels.api import fused_ms_deform_attn, ms_deform_attn
from msdeform.kernels.diagnostics.checks import Case, make_inputs
from msdeform.kernels.triton import launch
from tests.kernels.stand_ins import StandIn, without_kernels

SIZES = ((3, 4), (2, 2))


class Recorder(StandIn):
    """A kernel that keeps what it was launched with, by parameter, whether by Triton's launcher or as kept."""

    def __init__(self, arg_names: Sequence[str]) -> None:
        super().__init__()
        self.arg_names = arg_names
        self.grids: list[tuple[int, ...]] = []
        self.told: list[dict[str, Any]] = []
        self.options: list[dict[str, Any]] = []  # of launches by Triton's launcher
        self.kept = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launched(*arguments: Any, **keywords: Any) -> StandIn:
            self.options.append({name: value for name, value in keywords.items() if name not in self.arg_names})
            parameters = {name: value for name, value in keywords.items() if name in self.arg_names}
            self._note(grid, dict(zip(self.arg_names, arguments, strict=False)) | parameters)
            return self

        return launched

    def run(self, *arguments: Any, **_: Any) -> StandIn:
        self.kept += 1
        self._note(arguments[:3], dict(zip(self.arg_names, arguments[9:], strict=True)))
        return self

    def _note(self, grid: tuple[int, ...], told: dict[str, Any]) -> None:
        self.launches += 1
        self.grids.append(grid)
        assert told.keys() == set(self.arg_names)
        self.told.append(told)

    def alike(self, others: Sequence[str]) -> list[Any]:
        """The launches for comparison: of the tensors named, which are new in every call, all but the place."""
        return [
            (grid, {name: told_of(tensor, place=name not in others) for name, tensor in told.items()})
            for grid, told in zip(self.grids, self.told, strict=True)
        ]


def told_of(argument: Any, place: bool) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return argument.data_ptr() if place else None, argument.shape, argument.stride(), argument.dtype


@contextmanager
def recording(*names: str) -> Iterator[list[Recorder]]:
    """Within, kernels of these names record; the others do nothing."""
    recorders = [Recorder(getattr(launch, f"{name}_kernel").arg_names) for name in names]
    with without_kernels():
        patches = [mock.patch.object(launch, f"{n}_kernel", r) for n, r in zip(names, recorders, strict=True)]
        for patch in patches:
            patch.start()
        try:
            yield recorders
        finally:
            for patch in patches:
                patch.stop()


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
def test_a_prepared_launch_is_the_usual_one(name: str) -> None:
    tensors = TENSORS[name]()
    function: Any = ms_deform_attn if len(tensors) == 3 else fused_ms_deform_attn
    with recording("forward") as (recorder,):
        with mock.patch.object(call_cache, "WHY_OFF", "switched off"):
            outputs = [function(tensors[0], SIZES, *tensors[1:])]
        for _ in range(3):  # checked; prepared; kept
            outputs.append(function(tensors[0], SIZES, *tensors[1:]))
        assert call_cache.find(len(tensors) == 4, "auto", SIZES, None, tensors) is not None
    assert all(output.shape == (2, tensors[1].shape[1], 2 * tensors[0].shape[3]) for output in outputs)
    assert all(output.dtype is tensors[0].dtype for output in outputs)
    assert (recorder.launches, recorder.kept) == ((0, 0) if name == "no query" else (4, 1))
    copied = ["value_ptr"] if name == "strided within" else []
    first, *rest = recorder.alike(["output_ptr", *copied]) or [None]
    assert all(other == first for other in rest)


def within_queries(tensor: Tensor) -> Tensor:
    """The same numbers with heads outermost in memory."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


NEEDS = [(True, True, True, True), (True, False, True, True), (False, False, False, True), (True, False, False, False)]


@pytest.mark.parametrize("needs", NEEDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("coordinates", [None, 2, 4])
def test_a_prepared_backward_is_the_usual_one(
    coordinates: int | None, dtype: torch.dtype, needs: tuple[bool, ...]
) -> None:
    value, *rest = make(coordinates, dtype)
    *references, points, weights = rest
    tensors = [value, *references, within_queries(points), within_queries(weights)]
    needs = needs if coordinates else (needs[0], *needs[2:])
    leaves = [tensor.requires_grad_(needed) for tensor, needed in zip(tensors, needs, strict=True)]
    function: Any = fused_ms_deform_attn if coordinates else ms_deform_attn
    with recording("backward") as (recorder,):
        for _ in range(4):  # checked; prepared; its forward kept; kept
            output = function(leaves[0], SIZES, *leaves[1:])
            given = [leaf for leaf in leaves if leaf.requires_grad]
            gradients = torch.autograd.grad(output, given, torch.ones_like(output))
            assert [g.shape for g in gradients] == [leaf.shape for leaf in given]
            assert [g.dtype for g in gradients] == [leaf.dtype for leaf in given]
    new = ["grad_output", *(name for name in recorder.arg_names if name.startswith("grad_"))]
    first, *rest = recorder.alike(new)
    assert len(rest) == 3
    assert recorder.kept == 2
    assert all(other == first for other in rest)


def test_determinism_and_method_are_looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    value, *rest = make(2)
    leaf = value.requires_grad_()
    ways: list[str] = []
    with without_kernels() as kernels:

        def run() -> None:
            before = kernels["keys"].launches
            output = fused_ms_deform_attn(leaf, SIZES, *rest)
            torch.autograd.grad(output, leaf, torch.ones_like(output))
            ways.append("sorted" if kernels["keys"].launches > before else "atomics")

        for _ in range(2):
            run()
        monkeypatch.setattr(launch, "backward_method", "sorted")
        run()
        monkeypatch.setattr(launch, "backward_method", "auto")
        torch.use_deterministic_algorithms(True)
        run()
        torch.use_deterministic_algorithms(False)
        run()
    assert ways == ["atomics", "atomics", "sorted", "sorted", "atomics"]
    assert kernels["backward"].launches == 3


def unchanged(tensor: Tensor) -> Tensor:
    return tensor


def test_a_saved_tensor_may_come_back_with_other_strides() -> None:
    """From hooks that keep a copy, as torch.autograd.graph.save_on_cpu has them, in one of two calls alike."""
    value, *rest = make(2)
    strided = within_more(value).requires_grad_()
    with recording("backward") as (recorder,):
        for pack in (unchanged, unchanged, torch.Tensor.contiguous, unchanged):
            with torch.autograd.graph.saved_tensors_hooks(pack, unchanged):
                output = fused_ms_deform_attn(strided, SIZES, *rest)
            torch.autograd.grad(output, strided, torch.ones_like(output))
    assert recorder.kept
    strides = [told["value_ptr"].stride() for told in recorder.told]
    assert [(told["value_stride_b"], told["value_stride_h"]) for told in recorder.told] == [
        (stride[0], stride[2]) for stride in strides
    ]
    assert len(set(strides)) == 2


def test_where_memory_begins_is_looked_at_each_time() -> None:
    """Pairs of 16-bit channels are read where every row begins at 4 bytes; a guard does not see where that is."""
    value, *rest = make(2, torch.bfloat16)
    with recording("forward") as (recorder,):
        for offset in (0, 0, 2, 1, 0):
            fused_ms_deform_attn(at_offset(value, offset), SIZES, *rest)
        # memory of others, which begins where they say
        memory = bytearray(value.numel() * 2 + 2)
        for offset in (0, 2):
            shared = torch.frombuffer(memory, dtype=torch.bfloat16, count=value.numel(), offset=offset)
            fused_ms_deform_attn(shared.view(value.shape), SIZES, *rest)
    assert [told["PAIRS"] for told in recorder.told] == [True, True, True, False, True, True, False]


def test_a_kept_kernel_is_for_tensors_that_begin_at_16_bytes() -> None:
    """Triton compiles two kernels, for such tensors and for others; only the first is kept."""
    value, *rest = make(2)
    with recording("forward") as (recorder,):
        fused_ms_deform_attn(value, SIZES, *rest)
        for offset, kept in ((4, 0), (1, 0), (1, 0), (0, 1), (1, 1), (4, 2)):
            fused_ms_deform_attn(at_offset(value, offset), SIZES, *rest)
            assert recorder.kept == kept, offset


def test_a_batch_that_no_grid_holds_is_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make(2, B=5)
    monkeypatch.setattr(launch, "_MOST_PROGRAMS", 2)
    with recording("forward") as (recorder,):
        for _ in range(2):
            fused_ms_deform_attn(tensors[0], SIZES, *tensors[1:])
    assert [grid[2] for grid in recorder.grids] == [2, 2, 1] * 2
    assert [told["value_ptr"].shape[0] for told in recorder.told] == [2, 2, 1] * 2


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
    tensors = make(2, dtype)
    levels = torch.tensor(SIZES)
    with without_kernels() as kernels:
        with Counting() as forward:
            output = launch.forward(levels, tensors)
        assert (kernels["forward"].launches, forward.launched) == (1, [])
        grad_output = torch.ones_like(output)
        with Counting() as backward:
            launch.backward(grad_output, levels, tensors, (True, references, True, True))
        assert (kernels["backward"].launches, backward.launched) == (1, pytorchs)


# of three and of four levels: even and odd heights and widths, of 1, and multiples of 16
IMAGES = {
    3: [((5, 7), (3, 4), (2, 2)), ((8, 16), (4, 8), (2, 4)), ((1, 16), (1, 8), (1, 4)), ((16, 1), (8, 1), (4, 1))],
    4: [
        ((5, 7), (3, 4), (2, 2), (1, 1)),
        ((8, 16), (4, 8), (2, 4), (1, 2)),
        ((16, 1), (8, 1), (4, 1), (2, 1)),
        ((12, 4), (6, 2), (3, 1), (2, 1)),
    ],
}
QUERIES = (2, 3, 4, 7, 16, 17, 32)


@pytest.mark.compiled
@pytest.mark.parametrize("way", ["forward", "atomics", "sorted"])
@pytest.mark.parametrize("L", IMAGES)
def test_no_image_and_no_number_of_queries_is_compiled_for(L: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilation stalls training for seconds; Triton would compile anew for 1 and for multiples of 16."""
    with idling() as variants:
        monkeypatch.setattr(launch, "backward_method", way)
        for sizes in IMAGES[L]:
            for Q in QUERIES:
                tensors = make_inputs(Case(sizes=sizes, coordinates=2, B=2, Q=Q, H=2, D=4, P=2))
                levels = tuple(size for pair in sizes for size in pair)
                if way == "forward":
                    launch.forward(levels, tensors)
                else:
                    launch.backward(torch.ones(2, Q, 8), levels, tensors, (True, True, True, True))
    compiled = Counter(variants)
    kernels = {"forward": 1, "atomics": 1, "sorted": 4}[way]
    assert len(compiled) == kernels
    assert set(compiled.values()) == {1}, compiled

"""Memory for large results of the CPU backend is kept and given to the next, and to no two at once."""

import mmap
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite", reason="the CPU backend needs llvmlite")

from msdeform.kernels.api import fused_ms_deform_attn
from msdeform.kernels.cpu import launch, memory
from msdeform.kernels.cpu.memory import LARGE, MOST_KEPT, Memory
from msdeform.kernels.diagnostics.checks import Case, evaluate, make_inputs

MIB = 1 << 20
BYTE = torch.empty(0, dtype=torch.uint8)


def kept(owner: Memory) -> list[int]:
    """Bytes of the blocks in which no result lies, those handed out last at the end."""
    return [len(block) for block, held in owner._last if held() is None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_freed_memory_is_given_to_the_next(dtype: torch.dtype) -> None:
    owner = Memory()
    first = owner.new_empty(torch.empty(0, dtype=dtype), 3, 2 * MIB)
    assert (first.shape, first.dtype, first.is_contiguous()) == ((3, 2 * MIB), dtype, True)
    address = first.data_ptr()
    second = owner.new_empty(first, 3, 2 * MIB)
    assert second.data_ptr() != address
    view = first[1:]
    del first
    third = owner.new_empty(second, 3, 2 * MIB)
    assert third.data_ptr() not in (address, second.data_ptr()), "a view still reads it"
    del view
    assert owner.new_empty(second, 3, 2 * MIB).data_ptr() == address


def test_only_large_results_lie_in_it() -> None:
    owner = Memory()
    owner.new_empty(BYTE, LARGE - 1)
    owner.new_empty(BYTE, 0, 7)
    assert kept(owner) == []
    owner.new_empty(BYTE, LARGE)
    assert kept(owner) == [LARGE]


def test_similar_sizes_share_a_block_and_a_small_one_leaves_a_large_one() -> None:
    owner = Memory()
    owner.new_empty(BYTE, 17 * MIB)
    address = owner.new_empty(BYTE, 20 * MIB).data_ptr()
    assert kept(owner) == [20 * MIB]
    small = owner.new_empty(BYTE, 9 * MIB)
    assert small.data_ptr() != address
    assert owner.new_empty(BYTE, 10 * MIB).data_ptr() == address
    assert owner.new_empty(BYTE, 21 * MIB).data_ptr() != address


def test_what_is_kept_is_limited_to_what_was_handed_out_last() -> None:
    owner = Memory()
    tensors = [owner.new_empty(BYTE, (64 + 16 * i) * MIB) for i in range(4)]
    tensors += [owner.new_empty(BYTE, size) for size in (64 * MIB, MOST_KEPT + 1)]
    tensors.clear()
    assert kept(owner) == [112 * MIB, 64 * MIB], "with the one of 96 MiB before them it would be more than 256"


def test_without_memory_the_kept_blocks_go_and_torch_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Memory()
    owner.new_empty(BYTE, LARGE)

    def none_left(*_: object, **__: object) -> mmap.mmap:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(memory.mmap, "mmap", none_left)
    assert owner.new_empty(BYTE, 3 * LARGE).numel() == 3 * LARGE
    assert kept(owner) == []


def test_threads_that_take_and_free_at_once() -> None:
    owner = Memory()
    wrong: list[int] = []

    def work(number: int) -> None:
        for i in range(400):
            tensor = owner.new_empty(BYTE, LARGE + i % 3 * MIB)
            ends = tensor[:: tensor.numel() - 1]
            ends.fill_(number)
            time.sleep(0)
            if not bool((ends == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert 0 < len(kept(owner)) <= 4 * 2 * 3, "of each size, the one in use and the one before it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_in_memory_that_was_used_before(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(B=2, Q=90, H=3, D=32, P=3, sizes=((9, 7), (5, 5), (2, 1), (1, 1)), dtype=dtype, coordinates=2)
    tensors, grad_output = make_inputs(case), torch.ones(2, 90, 96, dtype=dtype)
    expected = evaluate(case, tensors, grad_output, "cpu")
    owner = Memory()
    monkeypatch.setattr(memory, "LARGE", 64)
    monkeypatch.setattr(launch, "new_empty", owner.new_empty)
    for _ in range(3):
        found = evaluate(case, tensors, grad_output, "cpu")
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
        del found
        assert len(kept(owner)) >= 5
        for block, _ in owner._last:
            block[:] = b"\xff" * len(block)  # NaN in every dtype


def test_results_are_written_to_and_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(Case(sizes=((9, 7), (5, 5))), coordinates=2)
    value, *rest = make_inputs(case)
    value.requires_grad_()
    outputs: list[Tensor] = []
    for size in (LARGE, 64):
        monkeypatch.setattr(memory, "LARGE", size)
        output = fused_ms_deform_attn(value, case.sizes, *rest, backend="cpu")
        output.mul_(2).relu_()  # in place, with gradients recorded
        (gradient,) = torch.autograd.grad(output.sum(), value)
        outputs += [output.detach(), gradient.add_(1)]
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    before = outputs[2].clone()
    fused_ms_deform_attn(value, case.sizes, *rest, backend="cpu")
    assert torch.equal(outputs[2], before)

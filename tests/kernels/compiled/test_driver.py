"""The driver by which Triton compiles as for a device, and launches on the CPU."""

import pytest
import torch
import triton
import triton.language as tl

from msdeform.bench.static.ptx.parse import Fault
from msdeform.bench.static.ptx.triton_driver import executing

pytestmark = pytest.mark.compiled


@triton.jit
def scale_kernel(x_ptr, maybe_ptr, y_ptr, sizes, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    factor = sizes[0] * 10 + sizes[1]
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    if maybe_ptr is not None:
        x += tl.load(maybe_ptr + i, mask=i < n)
    tl.store(y_ptr + i, x * factor, mask=i < n)


@triton.jit
def without_mask_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i))


def test_arguments_of_every_kind() -> None:
    x, more = torch.randn(100), torch.randn(100)
    with executing(count=True) as device:
        y = torch.empty(100)
        compiled = scale_kernel[(2,)](x, None, y, (3, 2**40), 100, BLOCK=64)
        torch.testing.assert_close(y, x * (30 + 2**40))
        scale_kernel[(2,)](x, more, y, (3, 4), 100, BLOCK=64)
        torch.testing.assert_close(y, (x + more) * 34)
        again = torch.empty(100)
        compiled[2, 1, 1](x, None, again, (5, 2**40), 100, 64)
        torch.testing.assert_close(again, x * (50 + 2**40))
    assert [(launch.name, launch.grid) for launch in device.launches] == [("scale_kernel", (2, 1, 1))] * 3
    assert device.launches[0].counters.opcodes["ret"] == 8
    with pytest.raises(Fault, match="scale_kernel: compiled to be executed, and launched outside"):
        compiled.run(2, 1, 1, 0, None, None, None, None, None, x, None, y, (3, 2**40), 100, 64)


def test_alignment_is_specialised_on() -> None:
    """A pointer that is no multiple of 16 bytes takes other code, which a wide load in its place would break."""
    memory = torch.randn(129)
    with executing() as device:
        for offset in (0, 1):
            y = torch.empty(128)
            without_mask_kernel[(1,)](memory[offset : offset + 128], y, BLOCK=128)
            assert torch.equal(y, memory[offset : offset + 128])
    assert len(device.launches) == 2


def test_faults_reach_the_caller() -> None:
    with executing():
        with pytest.raises(Fault, match=r"without_mask_kernel: program .*test_driver.py:\d+.* out of bounds"):
            without_mask_kernel[(1,)](torch.ones(100), torch.ones(128), BLOCK=128)
        with pytest.raises(Fault, match="bytes never written: byte 0 of the 512 of x_ptr"):
            without_mask_kernel[(1,)](torch.empty(128), torch.ones(128), BLOCK=128)
        without_mask_kernel[(1,)](torch.empty(128).fill_(2), torch.ones(128), BLOCK=128)


def test_everything_is_put_back() -> None:
    from triton.compiler import CompiledKernel
    from triton.runtime.driver import driver

    before = driver._active, CompiledKernel._init_handles, torch.empty, torch.Tensor.new_empty
    with pytest.raises(ZeroDivisionError), executing():
        raise ZeroDivisionError
    assert (driver._active, CompiledKernel._init_handles, torch.empty, torch.Tensor.new_empty) == before

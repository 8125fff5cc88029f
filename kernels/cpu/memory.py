"""Memory for large results: fresh from the system, which hands it out filled with zeros, and in large pages.

A fresh tensor of a hundred megabytes is 25,000 pages of 4 KiB, each of which the system clears at the first write to
it; and a backward that writes all over it misses the processor's table of pages. Linux hands out pages of 2 MiB where a
program asks for them, which it does here for results that are large enough.
"""

import mmap
from contextlib import suppress

import torch
from torch import Tensor

_PAGE = 1 << 21
_LARGE = 2 * _PAGE


def new_tensor(like: Tensor, *shape: int) -> tuple[Tensor, bool]:
    """A tensor with the dtype of ``like``, and whether it is filled with zeros; else it is uninitialised."""
    count = torch.Size(shape).numel()
    size = count * like.element_size()
    if size < _LARGE:
        return like.new_empty(shape), False
    # with room for its start at a large page's
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, size + _PAGE, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    start = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    flat = torch.frombuffer(memory, dtype=like.dtype, count=count, offset=-start % _PAGE)
    # no view: a view made here could not be written to where gradients are recorded
    return like.new_empty(0).set_(flat.untyped_storage()).resize_(shape), True

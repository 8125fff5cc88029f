"""Memory for large results, in large pages where the system offers them.

A fresh tensor of a hundred megabytes is 25,000 pages of 4 KiB, each of which the system hands out and clears at the
first write to it; and a backward that writes all over it misses the processor's table of pages. Linux hands out pages
of 2 MiB where a program asks for them, which it does here for results that are large enough.
"""

import ctypes
import sys
from collections.abc import Callable

from torch import Tensor

_PAGE = 1 << 21
_HUGE_PAGES = 14  # MADV_HUGEPAGE


def new_empty(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor with the dtype of ``like``."""
    tensor = like.new_empty(shape)
    start, size = tensor.data_ptr(), tensor.nbytes
    if _advise is not None and size >= 2 * _PAGE:
        first, last = -(-start // _PAGE) * _PAGE, (start + size) // _PAGE * _PAGE
        _advise(first, last - first, _HUGE_PAGES)  # advice: whether it is taken changes nothing but time
    return tensor


def _find_advise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function


_advise = _find_advise()

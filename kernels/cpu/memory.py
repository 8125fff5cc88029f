"""Memory for large results: kept when a result is freed, and given to the next.

The system hands out fresh memory in pages of 4 KiB, and clears each at the first write to it; C libraries give large
memory back as soon as it is freed. So a decoder's gradient of value, 36 megabytes for two images, would cost 8,900
visits to the system in every call.
"""

import math
import mmap
import weakref
from collections import deque
from contextlib import suppress

import torch
from torch import Tensor

LARGE = 1 << 22
"""the fewest bytes of a result that lies in such memory; C libraries keep smaller ones themselves"""
MOST_KEPT = 1 << 28
"""the most bytes that are kept for later results"""

_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class Memory:
    """The blocks that results were given last, in that order, each with a weak reference to what a result holds while
    it lives.

    Nothing is called when a result is freed: an interrupt would be lost there. Nor is there a lock: a call takes the
    blocks off one by one, and puts them back, so that no two threads look at one.
    """

    def __init__(self) -> None:
        self._last: deque[tuple[mmap.mmap, weakref.ref[memoryview]]] = deque()

    def new_empty(self, like: Tensor, *shape: int) -> Tensor:
        """An uninitialised tensor with the dtype of ``like``."""
        count = math.prod(shape)
        size = count * like.element_size()
        block = self._block(size) if LARGE <= size <= MOST_KEPT else None
        if block is None:
            return like.new_empty(shape)
        held = memoryview(block)
        self._last.append((block, weakref.ref(held)))
        return torch.frombuffer(held, dtype=like.dtype, count=count).resize_(shape)  # a view could not be written to

    def _block(self, size: int) -> mmap.mmap | None:
        """A block that has the size and that no result lies in, or None where the system gives no more memory."""
        found, others = None, []
        with suppress(IndexError):
            while True:
                block, held = self._last.pop()
                if found is None and size <= len(block) <= 2 * size and held() is None:
                    found = block
                else:
                    others.append((block, held))
        try:
            found = found or mmap.mmap(-1, _rounded(size), **_PRIVATE)
        except OSError:
            return None
        room = MOST_KEPT - len(found)
        for block, held in others:  # the latest first
            room -= len(block)
            if room < 0:
                break
            self._last.appendleft((block, held))
        return found


def _rounded(size: int) -> int:
    """A little more, so that images of similar sizes share blocks; what nobody writes to takes no memory."""
    step = 1 << (size.bit_length() - 3)
    return -(-size // step) * step


new_empty = Memory().new_empty

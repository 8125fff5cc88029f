"""The operator's forward as plain loops that Numba compiles: what a CPU backend would be without vectors of our own.

Float32 inputs, offsets from reference points (xy). One loop over queries, parted among Numba's threads; the innermost
one runs along the channels, whose number is a constant, so that LLVM can vectorise it.
"""

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...kernels.contract import Sizes
from .implementations import CONVERTED, Implementation


@cache
def _compiled(D: int) -> Callable[..., None]:
    import numba
    import numpy as np

    @numba.njit(parallel=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
    def forward(value: Any, sizes: Any, references: Any, offsets: Any, logits: Any, output: Any) -> None:
        B, Q, H, L, P = logits.shape
        for i in numba.prange(B * Q):
            b, q = i // Q, i % Q
            total = np.empty(D, np.float32)
            for head in range(H):
                largest = logits[b, q, head].max()
                denominator = np.float32(0)
                total[:] = 0
                start = 0
                for level in range(L):
                    h, w = sizes[level]
                    for p in range(P):
                        weight = np.exp(logits[b, q, head, level, p] - largest)
                        denominator += weight
                        x = references[b, q, level, 0] * w - np.float32(0.5) + offsets[b, q, head, level, p, 0]
                        y = references[b, q, level, 1] * h - np.float32(0.5) + offsets[b, q, head, level, p, 1]
                        if not (x > -1 and y > -1 and x < w and y < h):
                            continue
                        column, row = int(np.floor(x)), int(np.floor(y))
                        for line in range(max(row, 0), min(row + 2, h)):
                            for place in range(max(column, 0), min(column + 2, w)):
                                share = weight * (1 - abs(x - place)) * (1 - abs(y - line))
                                pixel = value[b, start + line * w + place, head]
                                for d in range(D):
                                    total[d] += np.float32(share) * pixel[d]
                    start += h * w
                for d in range(D):
                    output[b, q, head, d] = total[d] / denominator

    return forward


def fused(value: Tensor, sizes: Sizes, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """Shapes as in :mod:`msdeform.kernels.contract`; dtypes other than float32 are converted, and back."""
    import numba
    import numpy as np

    B, Q, H = logits.shape[:3]
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    arrays = [tensor.detach().float().numpy() for tensor in (value, references, offsets, logits)]
    output = torch.empty(B, Q, H, value.shape[3])
    _compiled(value.shape[3])(arrays[0], np.array(sizes), *arrays[1:], output.numpy())
    return output.view(B, Q, -1).to(value.dtype)


def implementation(device: torch.device) -> Implementation:
    """For ``--backends cpu msdeform.bench.operator.numba_loops:implementation``."""
    if importlib.util.find_spec("numba") is None:
        return Implementation("numba", "it is not installed: pip install numba")
    return Implementation("numba", fused=fused, composed=CONVERTED, ours=True, forward_only=True)


peer = implementation  # the name in commands of recorded rows

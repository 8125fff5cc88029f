"""Block sizes and warps that were found for a GPU, read once from the table beside this file.

A class of calls is a kernel, an architecture, L, P, D, value's dtype and a bucket of queries: up to 1024 is a decoder,
more an encoder. The size of an image is no part of it, so nothing is tuned, and nothing compiled, for another size.
What the table does not hold takes the rule in :mod:`.launch`; so does everything in float64, and the interpreter.
``python -m msdeform.kernels.triton.tune`` writes the table. A row says what it was chosen by: ``time`` on the GPU
itself, or ``instructions`` that the compiler emitted for it, where there was none.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..registry import interpreting

TABLE = Path(__file__).with_name("tuning.json")
KINDS = ("forward",)  # the backward goes by the rule
DTYPES = ("float32", "bfloat16", "float16")
DECODER, ENCODER = "decoder", "encoder"
MOST_OF_A_DECODER = 1024  # queries

# kind, architecture, L, P, D, dtype, bucket
Key = tuple[str, int, int, int, int, str, str]


@dataclass(frozen=True)
class Choice:
    """How a kernel is launched."""

    block_q: int
    """queries of a program"""
    num_warps: int = 4
    maxnreg: int | None = None
    """registers of a thread that the compiler may take at most; None leaves it to the compiler"""

    @property
    def options(self) -> dict[str, int]:
        """What Triton's compiler is told."""
        return {"num_warps": self.num_warps} | ({} if self.maxnreg is None else {"maxnreg": self.maxnreg})


def bucket(queries: int) -> str:
    return DECODER if queries <= MOST_OF_A_DECODER else ENCODER


def key(row: dict[str, Any]) -> Key:
    return row["kind"], row["arch"], row["L"], row["P"], row["D"], row["dtype"], row["queries"]


def read(path: Path = TABLE) -> dict[Key, Choice]:
    """The choices of a table. Raises ValueError, in a sentence, for a row that no launch could take."""
    try:
        rows = json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path.name}: expected a list of rows, got what is not JSON") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path.name}: expected a list of rows, got {type(rows).__name__}")
    table: dict[Key, Choice] = {}
    for number, row in enumerate(rows, 1):
        reason = _wrong(row)
        if reason is None and key(row) in table:
            reason = "its class has a row already"
        if reason is not None:
            raise ValueError(f"{path.name}, row {number}: {reason}")
        table[key(row)] = Choice(row["block_q"], row["num_warps"], row["maxnreg"])
    return table


def _wrong(row: Any) -> str | None:
    """What is wrong with a row, or None."""
    if not isinstance(row, dict):
        return f"expected an object, got {type(row).__name__}"
    known: dict[str, tuple[Any, ...]] = {
        "kind": KINDS,
        "dtype": DTYPES,
        "queries": (DECODER, ENCODER),
        "by": ("time", "instructions"),
        "block_q": tuple(2**i for i in range(8)),
        "num_warps": (1, 2, 4, 8, 16),
    }
    for name in (*known, "arch", "L", "P", "D", "maxnreg"):
        if name not in row:
            return f"{name} is missing"
    for name, values in known.items():
        if row[name] not in values:
            return f"{name}: expected one of {', '.join(map(str, values))}, got {row[name]!r}"
    for name in ("arch", "L", "P", "D"):
        if type(row[name]) is not int or row[name] < 1:
            return f"{name}: expected a number of at least 1, got {row[name]!r}"
    if row["maxnreg"] is not None and (type(row["maxnreg"]) is not int or not 16 <= row["maxnreg"] <= 255):
        return f"maxnreg: expected 16 to 255 or null, got {row['maxnreg']!r}"
    return None


_table = read()
_arches: dict[int, int] = {}  # of devices by their index: asked once, not once a call


def arch_of(value: Tensor) -> int | None:
    """Compute capability times ten of value's device; None for one that has none."""
    index = value.get_device()
    if index < 0 or not value.is_cuda:
        return None
    if index not in _arches:
        major, minor = torch.cuda.get_device_capability(index)
        _arches[index] = 10 * major + minor
    return _arches[index]


def find(kind: str, value: Tensor, points: Tensor, arch: int | None = None) -> Choice | None:
    """The table's choice for a call, or None where it has none.

    Args:
        value: (B, S, H, D). points: (B, Q, H, L, P, 2).
        arch: to compile for; None takes that of value's device.
    """
    arch = arch_of(value) if arch is None else arch
    if arch is None or interpreting() or points.dtype is torch.float64:
        return None
    _, Q, _, L, P, _ = points.shape
    dtype = str(value.dtype).removeprefix("torch.")
    return _table.get((kind, arch, L, P, value.shape[3], dtype, bucket(Q)))

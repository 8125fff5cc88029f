"""Floating-point numbers as registers hold them, and the errors that PTX allows its approximate functions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..memory import Array

ULPS = {"ex2.approx": 2, "rcp.approx": 1, "div.full": 2, "div.approx": 2, "sqrt.approx": 1, "rsqrt.approx": 2}
ULPS |= {"lg2.approx": 2, "sin.approx": 2, "cos.approx": 2, "tanh.approx": 8192}
"""the error that the PTX manual documents, in units of the last place; of sin and cos in 2**-21"""


def _to_odd(x: Array) -> Array:
    """float64 as float32 rounded to odd, from where a second rounding gives what one would have given."""
    near = x.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.int32).copy()
    even = (bits & 1 == 0) & (back != x) & np.isfinite(x) & np.isfinite(near)
    toward = np.where(np.abs(x) > np.abs(back), 1, -1).astype(np.int32)
    return np.where(even, bits + toward, bits).view(np.float32)


def _to_bfloat16(x: Array) -> Array:
    x = np.atleast_1d(x)
    bits = (_to_odd(x) if x.dtype == np.float64 else x).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


TO_NUMBERS: dict[str, Callable[[Any], Any]] = {
    "f16": lambda x: x.view(np.float16).astype(np.float32),
    "bf16": lambda x: (x.astype(np.uint32) << np.uint32(16)).view(np.float32),
    "f16x2": lambda x: TO_NUMBERS["f16"](np.atleast_1d(x).view(np.uint16).reshape(-1, 2)),
    "bf16x2": lambda x: TO_NUMBERS["bf16"](np.atleast_1d(x).view(np.uint16).reshape(-1, 2)),
    "f32x2": lambda x: np.atleast_1d(x).view(np.float32).reshape(-1, 2),
}
"""registers, by their type, as the numbers that they hold, two packed ones as (lanes, 2); others are held as numbers"""
TO_REGISTERS: dict[str, Callable[[Any], Any]] = {
    "f16": lambda x: np.atleast_1d(x).astype(np.float16).view(np.uint16),
    "bf16": _to_bfloat16,
    "f16x2": lambda x: np.ascontiguousarray(TO_REGISTERS["f16"](x)).view(np.uint32).reshape(-1),
    "bf16x2": lambda x: np.ascontiguousarray(TO_REGISTERS["bf16"](x)).view(np.uint32).reshape(-1),
    "f32x2": lambda x: np.ascontiguousarray(x, np.float32).view(np.uint64).reshape(-1),
}
"""numbers as these registers hold them, rounded once to nearest even"""


def flush(x: Array) -> Array:
    """Subnormal float32 numbers to zero, with their sign."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def saturate(x: Array) -> Array:
    """Numbers clamped to [0, 1], NaN to zero."""
    return np.where(np.isnan(x), 0, np.clip(x, 0, 1)).astype(x.dtype)


def perturb(x: Array, name: str, seed: int) -> Array:
    """Move float32 results by up to the documented error; equal results move equally, as a device's do."""
    most = ULPS[name]
    x = np.atleast_1d(x)
    hashed = (x.view(np.uint32) ^ np.uint32(seed)) * np.uint32(2654435761)
    steps = (hashed >> np.uint32(8)).astype(np.int32) % (2 * most + 1) - most
    if name in ("sin.approx", "cos.approx"):
        return (x + steps * np.float32(2.0**-21)).astype(np.float32)
    moved = (x.view(np.int32) + steps).view(np.float32)
    usual = np.isfinite(x) & np.isfinite(moved) & (np.abs(x) > 1e-36)
    return np.where(usual, moved, x)

"""Which implementation runs: the backends, the setting, and the choice made for each call.

Precedence: the ``backend=`` argument, then :func:`use_backend`, then ``MSDEFORM_BACKEND`` (read once, when this module
is imported), then ``auto``. A backend named by any of the first three runs or raises; only ``auto`` chooses, and it
takes the highest rank that runs here and takes these inputs.

This module imports neither Triton nor CUDA, and what lies on the call path (:func:`resolve`) is plain functions and
module dictionaries, so that ``torch.compile(fullgraph=True)`` can trace it.
"""

import difflib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .contract import Inputs

AUTO = "auto"
VARIABLE = "MSDEFORM_BACKEND"

# (inputs, value, shapes, sizes, locations, weights) or (inputs, value, shapes, sizes, references, offsets, logits)
Implementation = Callable[..., Tensor]


class BackendUnavailable(RuntimeError):
    """No backend, or not the one that was named, can run this call; the message gives every reason."""


@dataclass(frozen=True)
class Backend:
    """One implementation of both functions."""

    name: str
    rank: int
    """auto takes the highest that fits"""
    summary: str
    unavailable: Callable[[], str | None]
    """why it cannot run on this machine, or None"""
    refuses: Callable[[Inputs], str | None]
    """why it cannot take these inputs, or None"""
    auto_refuses: Callable[[Inputs], str | None]
    """why auto passes it over although it could run, or None"""
    load: Callable[[], tuple[Implementation, Implementation]]
    """imports or compiles what it needs, only now; returns (ms_deform_attn, fused_ms_deform_attn)"""


def _never(_: Inputs) -> str | None:
    return None


def _always_available() -> str | None:
    return None


def _load_reference() -> tuple[Implementation, Implementation]:
    from . import reference

    return reference.ms_deform_attn, reference.fused_ms_deform_attn


def _load_triton() -> tuple[Implementation, Implementation]:
    from .triton import ops

    return ops.ms_deform_attn, ops.fused_ms_deform_attn


def _load_cuda() -> tuple[Implementation, Implementation]:
    from .cuda import ops

    return ops.ms_deform_attn, ops.fused_ms_deform_attn


def import_failure(package: str, module: str, error: Exception) -> str:
    """A sentence for an import that failed: not installed, or installed and broken (which is logged, too)."""
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        return f"{package} is not installed"
    reason = f"{package} is installed but fails to import: {type(error).__name__}: {error}"
    logging.getLogger("msdeform").warning(reason)
    return reason


# read once: the variable has to be set before Triton is imported to have an effect there, too
_INTERPRETING = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter in this process."""
    return _INTERPRETING


def _triton_unavailable() -> str | None:
    try:
        import triton  # noqa: F401
    except Exception as error:  # a broken installation raises whatever it likes
        return import_failure("Triton", "triton", error)
    if _INTERPRETING:
        return None
    if not torch.cuda.is_available():
        return "no CUDA device (on a CPU, TRITON_INTERPRET=1 runs the kernels in Triton's slow interpreter)"
    return None


def _triton_refuses(inputs: Inputs) -> str | None:
    if inputs.device_type == "cuda" or (_INTERPRETING and inputs.device_type == "cpu"):
        return None
    return f"the tensors are on {inputs.device_type}, not on a CUDA device"


def _triton_auto_refuses(inputs: Inputs) -> str | None:
    return "Triton's interpreter runs only when named" if _INTERPRETING else None


def _cuda_unavailable() -> str | None:
    from .cuda import compile as cuda_compile

    return cuda_compile.unavailable()


def _cuda_refuses(inputs: Inputs) -> str | None:
    if inputs.device_type != "cuda":
        return f"the tensors are on {inputs.device_type}, not on a CUDA device"
    return None


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("reference", 0, "grid_sample in plain PyTorch", _always_available, _never, _never, _load_reference),
        Backend(
            "triton",
            20,
            "fused Triton kernels, forward and backward",
            _triton_unavailable,
            _triton_refuses,
            _triton_auto_refuses,
            _load_triton,
        ),
        Backend(
            "cuda",
            10,
            "CUDA C++ in the classic one-thread-per-channel form, compiled by NVRTC",
            _cuda_unavailable,
            _cuda_refuses,
            _never,
            _load_cuda,
        ),
    )
}

_loaded: dict[str, tuple[Implementation, Implementation]] = {}
_availability: dict[str, str | None] = {}


def check_name(name: str) -> str:
    """Return a known backend's name or ``auto``; raise ValueError listing the known ones otherwise."""
    if name == AUTO or name in BACKENDS:
        return name
    near = difflib.get_close_matches(str(name), [AUTO, *BACKENDS], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"backend: expected one of {', '.join([AUTO, *BACKENDS])}, got {name!r}{hint}")


def _setting_from_environment() -> str:
    name = os.environ.get(VARIABLE) or AUTO
    try:
        return check_name(name)
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: {error}") from None


# a plain global: torch.compile guards on it, which it cannot do for a ContextVar
_setting = _setting_from_environment()


class use_backend:
    """Choose the backend of this process: ``use_backend("triton")``, or for a block, ``with use_backend("triton"):``.

    A call's own ``backend=`` goes before it. The setting is process-wide, not per thread. A backward pass always runs
    on the backend of its forward.

    Raises:
        ValueError: the name is not known.
    """

    def __init__(self, name: str) -> None:
        global _setting  # noqa: PLW0603
        self.previous = _setting
        _setting = check_name(name)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _setting  # noqa: PLW0603
        _setting = self.previous


def current_setting() -> str:
    """The backend that a call without ``backend=`` asks for; ``auto`` unless set."""
    return _setting


def unavailable(name: str) -> str | None:
    """Why backend ``name`` cannot run on this machine, or None; asked once in a process."""
    if name not in _availability:
        _availability[name] = BACKENDS[name].unavailable()
    return _availability[name]


def resolve(inputs: Inputs, backend: str | None = None) -> str:
    """The name of the backend that takes this call.

    Raises:
        ValueError: the name is not known.
        BackendUnavailable: the named backend cannot run, or ``auto`` finds none; every reason is given.
    """
    name = _setting if backend is None else check_name(backend)
    if name != AUTO:
        reason = unavailable(name) or BACKENDS[name].refuses(inputs)
        if reason is not None:
            raise BackendUnavailable(f"backend {name!r} cannot run {inputs.describe()}: {reason}")
        return name
    best = None
    for candidate in BACKENDS.values():
        if (best is None or candidate.rank > best.rank) and _auto_reason(candidate, inputs) is None:
            best = candidate
    if best is None:
        reasons = "; ".join(f"{b.name}: {_auto_reason(b, inputs)}" for b in BACKENDS.values())
        raise BackendUnavailable(f"no backend can run {inputs.describe()}: {reasons}")
    return best.name


def _auto_reason(backend: Backend, inputs: Inputs) -> str | None:
    return unavailable(backend.name) or backend.refuses(inputs) or backend.auto_refuses(inputs)


def implementation(name: str, fused: bool) -> Implementation:
    """The function of a backend that :func:`resolve` has named; loads it at first use."""
    if name not in _loaded:
        _loaded[name] = BACKENDS[name].load()
    return _loaded[name][1 if fused else 0]


@dataclass(frozen=True)
class Verdict:
    """What :func:`report` says of one backend."""

    name: str
    summary: str
    reason: str | None
    """why it does not take the call, or None"""
    auto_reason: str | None
    """why auto passes it over, or None"""


def report(inputs: Inputs) -> list[Verdict]:
    """Every backend with its verdict on a call, highest rank first."""
    ordered = sorted(BACKENDS.values(), key=lambda backend: -backend.rank)
    return [
        Verdict(b.name, b.summary, unavailable(b.name) or b.refuses(inputs), _auto_reason(b, inputs)) for b in ordered
    ]


def resolve_for(
    device: torch.device | str, dtype: torch.dtype = torch.float32, backend: str | None = None, **dims: Any
) -> str:
    """The backend that a model on ``device`` will run on, asked before there are tensors; raises as :func:`resolve`."""
    return resolve(example_inputs(device, dtype, **dims), backend)


def example_inputs(device: torch.device | str, dtype: torch.dtype = torch.float32, **dims: Any) -> Inputs:
    """Inputs of the published model's encoder (batch 1, 800x1066 pixels) on ``device``, with any field replaced."""
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    usual = Inputs(1, 17821, 17821, 8, 32, 4, 4, dtype, compute, torch.device(device).type, True)
    return usual._replace(**dims)

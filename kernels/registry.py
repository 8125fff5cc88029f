"""Which implementation runs: the backends, the setting, and the choice made for each call.

Precedence: the ``backend=`` argument, then :func:`use_backend`, then ``MSDEFORM_BACKEND`` (read once, when this module
is imported), then ``auto``. A backend named by any of the first three runs or raises; only ``auto`` chooses, and it
takes the highest rank that runs here and takes these inputs. Within ``torch.func``, forward-mode differentiation and
the export to ONNX it takes ``reference``, since they know PyTorch's own operators only: the others' have no forward
derivative, ``torch.func.grad`` refuses them, ``vmap`` calls them once for each element, and no ONNX runtime has them.

This module imports neither Triton nor CUDA, and what lies on the call path (:func:`resolve`) is plain functions and
module dictionaries, so that ``torch.compile(fullgraph=True)`` can trace it.
"""

import os
import reprlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import Any

import torch

from ..common.text import suggest
from .backend import Backend, Functions, Implementation
from .call_cache import forget, settled_while_tracing, transformed
from .contract import Inputs

AUTO = "auto"
VARIABLE = "MSDEFORM_BACKEND"


class BackendUnavailable(RuntimeError):
    """No backend, or not the one that was named, can run this call; the message gives every reason."""


# where each backend describes itself, in the order of messages
_MODULES = (".pytorch.reference", ".pytorch.gather", ".cpu.backend", ".triton.backend", ".cuda.backend")
BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (import_module(module, __package__).BACKEND for module in _MODULES)
}

_loaded: dict[str, Functions] = {}
_availability: dict[str, str | None] = {}
# operators are defined once in a process, and two threads may make the first call at once; one that forks waits, as its
# child would for a thread that it does not have
_loading = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)


@contextmanager
def registered(backend: Backend) -> Iterator[None]:
    """Within, a backend is known by its name, in the place of another of that name; benchmarks put stand-ins here."""
    usual, available = BACKENDS.copy(), _availability.copy()
    other = backend.name not in usual or usual[backend.name].load is not backend.load
    loaded = _loaded.pop(backend.name, None) if other else None
    _availability.pop(backend.name, None)
    BACKENDS[backend.name] = backend
    forget()
    try:
        yield
    finally:
        for now, before in ((BACKENDS, usual), (_availability, available)):
            now.clear()
            now.update(before)  # type: ignore[arg-type]
        if other:
            _loaded.pop(backend.name, None)
            _loaded.update({} if loaded is None else {backend.name: loaded})
        forget()


def check_name(name: str) -> str:
    """Return a known backend's name or ``auto``; raise ValueError listing the known ones otherwise."""
    if isinstance(name, str) and (name == AUTO or name in BACKENDS):
        return name
    known = [AUTO, *BACKENDS]
    raise ValueError(
        suggest(f"backend: expected one of {', '.join(known)}, got {reprlib.repr(name)}", str(name), known)
    )


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


@settled_while_tracing  # what it looks at cannot be traced
def unavailable(name: str) -> str | None:
    """Why backend ``name`` cannot run on this machine, or None; asked once in a process."""
    if name not in _availability:
        with _loading:
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
            raise BackendUnavailable(f"backend '{name}' cannot run {inputs.describe()}: {reason}")
        return name
    if transformed() or torch.onnx.is_in_onnx_export():
        return "reference"
    best = None
    for candidate in BACKENDS.values():
        if (best is None or candidate.rank > best.rank) and _auto_reason(candidate, inputs) is None:
            best = candidate
    if best is None:
        reasons = "; ".join(f"{b.name}: {_auto_reason(b, inputs)}" for b in BACKENDS.values())
        raise BackendUnavailable(f"no backend can run {inputs.describe()}: {reasons}")
    return best.name


def _auto_reason(backend: Backend, inputs: Inputs) -> str | None:
    return (
        unavailable(backend.name) or backend.refuses(inputs) or ("runs only when named" if backend.rank < 0 else None)
    )


def implementation(name: str, fused: bool) -> Implementation:
    """The function of a backend that :func:`resolve` has named; loads it at first use."""
    _load(name)
    return _loaded[name][1 if fused else 0]


def load_operators(*backends: str) -> None:
    """Defines the operators of these backends, ``torch.ops.msdeform``, in this process. The first call of a backend
    does so, too; a program that `torch.export` or AOTInductor saved, and that calls them, needs it before it is opened.

    Raises:
        ValueError: a name is not known.
        BackendUnavailable: a named backend cannot run here.
    """
    for name in backends:
        if name not in BACKENDS:
            raise ValueError(suggest(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}", name, BACKENDS))
        if (reason := unavailable(name)) is not None:
            raise BackendUnavailable(f"backend '{name}' cannot run here: {reason}")
        _load(name)


@settled_while_tracing
def _load(name: str) -> None:
    if name not in _loaded:
        with _loading:
            if name not in _loaded:
                _loaded[name] = BACKENDS[name].load()


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

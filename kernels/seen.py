"""Calls like one that was seen before: what its checks and choices came to, without making them again.

A model calls the operator a dozen times an image with the same shapes, dtypes, strides and devices. The first of such
calls is checked, and finds its backend; what that came to is kept beside a guard, the one ``torch.compile`` lays before
its graphs: a call into C++ that compares type, dispatch keys, dtype, device, ``requires_grad``, sizes and strides of
every tensor. A call that passes it goes to the kernels directly, without PyTorch's dispatcher.

Whatever is more than plain tensors in eager mode never passes: compilation, export and tracing, FakeTensor and other
subclasses, dispatch and function modes, functorch's transforms, forward-mode derivatives. Those go by the operator.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import registry
from .contract import Inputs, Sizes, SpatialShapes
from .registry import Implementation

# (spatial_shapes if a tensor, tensors) -> output
Direct = Callable[[Tensor | None, tuple[Tensor, ...]], Tensor]

_PLAIN = (Tensor, torch.nn.Parameter)
_MOST_KEYS = 1024  # about the sizes of images in a row; past that all are forgotten
_MOST_ALIKE = 8  # encoder and decoder, with and without gradients

# (fused, backend, sizes or None if a tensor) -> guards of the calls seen, and how to make them
_seen: dict[tuple[Any, ...], list[tuple[Callable[..., bool], Direct]]] = {}
_plain_keys: dict[bool, tuple[int, ...]] = {}
# how an implementation takes calls that pass a guard, where it has a way of its own
_direct: dict[Implementation, Callable[[Sizes, Tensor | None, tuple[Tensor, ...]], Direct]] = {}


def find(
    fused: bool,
    backend: str | None,
    spatial_shapes: SpatialShapes,
    level_start_index: object,
    tensors: tuple[Tensor, ...],
) -> Direct | None:
    """How to make this call, if one like it was seen; None if it has to be checked."""
    if _in_a_mode():
        return None
    key = _key(fused, backend, spatial_shapes, level_start_index)
    alike = None if key is None else _seen.get(key)
    if alike is None:
        return None
    guarded = (*tensors, spatial_shapes) if isinstance(spatial_shapes, Tensor) else tensors
    for passes, direct in alike:
        if passes(*guarded):
            return direct
    return None


def remember(
    fused: bool,
    backend: str | None,
    spatial_shapes: SpatialShapes,
    level_start_index: object,
    tensors: tuple[Tensor, ...],
    checked: tuple[Inputs, Tensor | None, Sizes, Implementation],
) -> None:
    """Keep what the checks of a call came to, if it is one of plain tensors.

    Args:
        checked: the named dimensions, the level sizes as a device tensor or as ints, and the implementation.
    """
    key = _key(fused, backend, spatial_shapes, level_start_index)
    inputs, shapes, sizes, run = checked
    on_host = isinstance(spatial_shapes, Tensor) and shapes is None  # whose numbers were read, and may change
    guarded = tensors if shapes is None else (*tensors, shapes)
    if key is None or on_host or not plain(*guarded):
        return
    passes = _guard(guarded)
    if passes is None:
        return
    prepare = _direct.get(run)

    def by_operator(shapes: Tensor | None, tensors: tuple[Tensor, ...]) -> Tensor:
        return run(inputs, tensors[0], shapes, sizes, *tensors[1:])

    direct = by_operator if prepare is None else prepare(sizes, shapes, tensors)
    if key not in _seen and len(_seen) >= _MOST_KEYS:
        _seen.clear()
    # a new list: another thread may be walking the old one
    _seen[key] = [(passes, direct), *_seen.get(key, [])][:_MOST_ALIKE]


def forget() -> None:
    """Drop everything kept: for whoever changes the registry's backends."""
    _seen.clear()


def provide(run: Implementation, prepare: Callable[[Sizes, Tensor | None, tuple[Tensor, ...]], Direct]) -> None:
    """Let calls that pass a guard go to ``prepare(sizes, shapes, tensors)`` of a first such call, not to ``run``."""
    _direct[run] = prepare


def plain(*tensors: Tensor) -> bool:
    """Whether these are PyTorch's own tensors with memory of their own, in eager mode, on a device of a backend."""
    if torch.compiler.is_compiling() or _in_a_mode():
        return False
    if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None:
        return False
    for tensor in tensors:
        if type(tensor) not in _PLAIN or not (tensor.is_cuda or tensor.is_cpu):
            return False
        keys = _plain_keys.get(tensor.is_cuda) or _find_plain_keys(tensor.is_cuda)
        if torch._C._dispatch_keys(tensor).raw_repr() not in keys:  # batched, negated, sparse, quantised, ...
            return False
    return True


def _find_plain_keys(cuda: bool) -> tuple[int, ...]:
    """The dispatch keys that tensors on a device have, made in inference mode and outside."""
    found = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            tensor = torch.empty(0, device="cuda" if cuda else "cpu")
            found.append(torch._C._dispatch_keys(tensor).raw_repr())
    _plain_keys[cuda] = tuple(found)
    return _plain_keys[cuda]


def _in_a_mode() -> bool:
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_torch_function_mode_enabled()
        or forward_ad._current_level >= 0
    )


def _key(
    fused: bool, backend: str | None, spatial_shapes: SpatialShapes, level_start_index: object
) -> tuple[Any, ...] | None:
    """What no guard of tensors sees, or None for a call that is checked every time."""
    name = registry.current_setting() if backend is None else backend
    if isinstance(spatial_shapes, Tensor):
        return fused, name, None
    if level_start_index is not None and not (isinstance(level_start_index, Tensor) and level_start_index.is_cuda):
        return None  # the host can see whether it contradicts the sizes
    try:
        for h, w in spatial_shapes:
            if type(h) is not int or type(w) is not int:  # 4.0 is a key like 4, and an error
                return None
        if type(spatial_shapes) is not tuple:
            spatial_shapes = tuple((h, w) for h, w in spatial_shapes)
        key = fused, name, spatial_shapes
        hash(key)
    except (TypeError, ValueError):  # not pairs: the checks say so
        return None
    return key


def _guard(tensors: tuple[Tensor, ...]) -> Callable[..., bool] | None:
    """Whether tensors are like these; None where this PyTorch has no such guard."""
    try:
        from torch._C._dynamo.guards import TensorGuards

        return TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
    except (ImportError, TypeError):  # no part of PyTorch's public interface
        return None

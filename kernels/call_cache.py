"""The calls that were checked before: kept, so that one like them goes to the kernels without being checked again.

A model calls the operator a dozen times an image with the same shapes, dtypes, strides and devices. The first of such
calls is checked, and finds its backend; what that came to is kept beside a guard, the one ``torch.compile`` lays before
its graphs: a call into C++ that compares type, dispatch keys, dtype, device, ``requires_grad``, sizes and strides of
every tensor. A call that passes it goes to the kernels directly, without PyTorch's dispatcher.

Whatever is more than plain tensors in eager mode never passes: compilation, export and tracing, FakeTensor and other
subclasses, dispatch and function modes, functorch's transforms, forward-mode derivatives. Those go by the operator.

Every private interface of PyTorch that this project uses stands in this file. What calls are kept by is tried when it
is imported; where something is missing `WHY_OFF` says so, nothing is kept, and every call is checked and goes by the
operator.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .autograd import Levels, Operator, as_levels
from .backend import Implementation
from .contract import Inputs, Sizes, SpatialShapes

# (spatial_shapes if a tensor, tensors) -> output
Direct = Callable[[Tensor | None, tuple[Tensor, ...]], Tensor]

_PLAIN = (Tensor, torch.nn.Parameter)
_MOST_KEYS = 1024  # about the sizes of images in a row; past that all are forgotten
_MOST_ALIKE = 8  # encoder and decoder, with and without gradients

# (function, gradients, backend, sizes or None if a tensor) -> guards of the calls kept, and how to make them
_kept: dict[tuple[Any, ...], list[tuple[Callable[..., bool], Direct]]] = {}
_plain_keys: dict[bool, tuple[int, ...]] = {}
# by function and gradients the last sizes and setting, and what is kept for them: layers of a model hand on one tuple
_last: dict[tuple[bool, bool], tuple[object, str, list[tuple[Callable[..., bool], Direct]]]] = {}


def find(
    fused: bool,
    setting: str,
    spatial_shapes: SpatialShapes,
    level_start_index: object,
    tensors: tuple[Tensor, ...],
) -> Direct | None:
    """How to make this call, if one like it is kept; None if it has to be checked.

    Args:
        setting: the backend that is asked for, which may be ``auto``.
    """
    if WHY_OFF is not None or _in_a_mode():
        return None
    gradients = torch.is_grad_enabled()
    last = _last.get((fused, gradients))
    if last is not None and last[0] is spatial_shapes and last[1] is setting and level_start_index is None:
        alike = last[2]
    else:
        key = _key(fused, setting, spatial_shapes, level_start_index)
        found = None if key is None else _kept.get(key)
        if found is None:
            return None
        alike = found
        if type(spatial_shapes) is tuple:  # of tuples, or it would be no part of a key: nothing in it can change
            _last[fused, gradients] = spatial_shapes, setting, alike
    guarded = (*tensors, spatial_shapes) if isinstance(spatial_shapes, Tensor) else tensors
    for passes, direct in alike:
        if passes(*guarded):
            return direct
    return None


def keep(
    fused: bool,
    setting: str,
    spatial_shapes: SpatialShapes,
    level_start_index: object,
    tensors: tuple[Tensor, ...],
    checked: tuple[Inputs, Tensor | None, Sizes, Implementation],
) -> None:
    """Keep what the checks of a call came to, if it is one of plain tensors.

    Args:
        checked: the named dimensions, the level sizes as a device tensor or as ints, and the implementation.
    """
    if WHY_OFF is not None:
        return
    key = _key(fused, setting, spatial_shapes, level_start_index)
    inputs, shapes, sizes, run = checked
    on_host = isinstance(spatial_shapes, Tensor) and shapes is None  # whose numbers were read, and may change
    guarded = tensors if shapes is None else (*tensors, shapes)
    if key is None or on_host or not plain(*guarded):
        return
    if isinstance(run, Operator):
        direct = _prepare(run, sizes, shapes, tensors)
    else:

        def direct(shapes: Tensor | None, tensors: tuple[Tensor, ...]) -> Tensor:
            return run(inputs, tensors[0], shapes, sizes, *tensors[1:])

    if key not in _kept and len(_kept) >= _MOST_KEYS:
        forget()
    _last.pop((fused, torch.is_grad_enabled()), None)
    # a new list: another thread may be walking the old one
    _kept[key] = [(_guard(guarded), direct), *_kept.get(key, [])][:_MOST_ALIKE]


def forget() -> None:
    """Drop everything kept: for whoever changes the registry's backends."""
    _kept.clear()
    _last.clear()


class _Prepared:
    """An operator's call without its tensors."""

    def __init__(self, operator: Operator, sizes: Sizes, shapes: Tensor | None, tensors: tuple[Tensor, ...]) -> None:
        self.operator = operator
        self.sizes = [size for pair in sizes for size in pair]
        self.levels = None if shapes is not None else tuple(self.sizes)
        self.run = operator.prepare_forward(self.levels_of(shapes), tensors)
        self.backwards: dict[tuple[Any, ...], Callable[..., Any]] = {}  # by what is needed and by strides

    def levels_of(self, shapes: Tensor | None) -> Levels:
        return self.levels if self.levels is not None else as_levels(shapes, ())


def _prepare(operator: Operator, sizes: Sizes, shapes: Tensor | None, tensors: tuple[Tensor, ...]) -> Direct:
    """The way past PyTorch's dispatcher, for calls of plain tensors."""
    prepared = _Prepared(operator, sizes, shapes, tensors)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        # without what Function.apply does for functorch's transforms, in which no call comes here
        apply = super(torch.autograd.Function, _Attention).apply
        return lambda shapes, tensors: apply(prepared, shapes, *tensors)
    run, levels = prepared.run, prepared.levels
    if levels is not None:
        return lambda _, tensors: run(levels, tensors)
    return lambda shapes, tensors: run(prepared.levels_of(shapes), tensors)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prepared: _Prepared, shapes: Tensor | None, *tensors: Tensor) -> Tensor:
        ctx.prepared = prepared
        # in the operator's order: a checkpoint that recomputes this call may go the other way, and compares them
        ctx.save_for_backward(*tensors, shapes)
        return prepared.run(prepared.levels_of(shapes), tensors)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        *tensors, shapes = ctx.saved_tensors
        prepared = ctx.prepared
        needs = ctx.needs_input_grad[2:]
        # a graph of the gradients is wanted, which the operator refuses in a sentence; or vmap, or a mode
        if torch.is_grad_enabled() or not plain(grad_output):
            gradients = prepared.operator.backward(grad_output, *tensors, shapes, prepared.sizes, list(needs))
            return (None, None, *(g if n else None for g, n in zip(gradients, needs, strict=True)))
        levels = prepared.levels_of(shapes)
        # hooks on saved tensors may give back others: of the same numbers, but not of the same strides
        key = (needs, grad_output.stride(), *[tensor.stride() for tensor in tensors])
        run = prepared.backwards.get(key)
        if run is None:
            run = prepared.operator.prepare_backward(grad_output, levels, tensors, needs)
            prepared.backwards[key] = run
        return (None, None, *run(grad_output, levels, tensors))


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


def transformed() -> bool:
    """Whether this stands within a transform of ``torch.func`` or a level of forward-mode derivatives."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def settled_while_tracing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that ``torch.compile`` calls while it traces, and takes the result for a constant.

    What ``torch.compiler.assume_constant_result`` does; that imports the compiler, and Triton with it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def _key(fused: bool, setting: Any, spatial_shapes: SpatialShapes, level_start_index: object) -> tuple[Any, ...] | None:
    """What no guard of tensors sees, or None for a call that is checked every time.

    Whether gradients are on is part of it: a guard made where they are off passes tensors that require them where they
    are on.
    """
    gradients = torch.is_grad_enabled()
    if not isinstance(setting, str):  # no backend's name, and perhaps no key: the checks say so
        return None
    if isinstance(spatial_shapes, Tensor):
        return fused, gradients, setting, None
    if level_start_index is not None and not (isinstance(level_start_index, Tensor) and level_start_index.is_cuda):
        return None  # the host can see whether it contradicts the sizes
    try:
        for h, w in spatial_shapes:
            if type(h) is not int or type(w) is not int:  # 4.0 is a key like 4, and an error
                return None
        if type(spatial_shapes) is not tuple:
            spatial_shapes = tuple((h, w) for h, w in spatial_shapes)
        key = fused, gradients, setting, spatial_shapes
        hash(key)
    except (TypeError, ValueError):  # not pairs: the checks say so
        return None
    return key


def _guard(tensors: tuple[Tensor, ...]) -> Callable[..., bool]:
    """Whether tensors are like these."""
    from torch._C._dynamo.guards import TensorGuards

    return TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check


def _probe() -> str | None:
    """Why calls cannot be kept with this PyTorch, or None: every private interface above is used once."""
    try:
        tensor = torch.empty(2, 3)
        usable = plain(tensor) and _guard((tensor,))(torch.empty(2, 3)) and not _guard((tensor,))(torch.empty(3, 2))
    except Exception as error:  # an interface that is gone or changed raises whatever it likes
        return f"PyTorch {torch.__version__} lacks what calls are kept by: {type(error).__name__}: {error}"
    return None if usable else f"PyTorch {torch.__version__} does not tell tensors apart as calls are kept by"


WHY_OFF = _probe()
"""why no call is kept, or None"""

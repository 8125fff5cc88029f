"""Stand-ins for the compiled extensions that other people's code imports, so that it runs unchanged, on a CPU as well.

    from msdeform.integrations.extension import install_extension

    install_extension()                  # Deformable DETR, DINO, MaskDINO: import MultiScaleDeformableAttention
    install_extension("mmcv._ext")       # mmcv, BEVFormer, mmdet
    install_extension("detrex._C")       # detrex

Call it before their code is imported. mmcv, BEVFormer and detrex call the extension for tensors on a GPU only; on a CPU
they take a function of their own, which :mod:`.mmcv` and :mod:`.detrex` replace.
"""

import sys
from collections.abc import Sequence
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..kernels import contract, registry
from ..kernels.api import ms_deform_attn
from ..kernels.autograd import Operator
from .substitution import Change, Substitution

OFFICIAL, MMCV, DETREX = "MultiScaleDeformableAttention", "mmcv._ext", "detrex._C"
FUNCTIONS = ("ms_deform_attn_forward", "ms_deform_attn_backward")


class StandIn(ModuleType):
    """A module that holds the two functions of an extension.

    mmcv looks up the names of all its operators while it is imported: its stand-in has them, as functions that raise.
    """

    def __init__(self, name: str, functions: dict[str, Any]) -> None:
        super().__init__(name, f"Stand-in of msdeform for the compiled extension {name}.")
        self.__spec__ = ModuleSpec(name, None, origin=__name__)  # pkgutil and importlib ask for one
        vars(self).update(functions)

    def __getattr__(self, name: str) -> Any:
        if self.__name__ != MMCV or name.startswith("__"):
            raise AttributeError(f"{self.__name__}: msdeform's stand-in has {' and '.join(FUNCTIONS)}, no {name}")

        def missing(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(
                f"{self.__name__}.{name}: expected a compiled mmcv, got msdeform's stand-in, which has "
                f"{' and '.join(FUNCTIONS)} only"
            )

        return missing


def install_extension(
    names: str | Sequence[str] = OFFICIAL, *, backend: str = "auto", replace: bool = False
) -> Substitution:
    """Make ``import MultiScaleDeformableAttention``, or the import of another extension, find a stand-in of ours.

    Its functions are ``ms_deform_attn_forward`` and ``ms_deform_attn_backward``, called as the compiled ones are: the
    backward of mmcv writes into the gradients it is given, those of the others return them. They take every dtype,
    device and layout that the operator takes, and any batch size whatever the `im2col_step`.

    Args:
        names: one or several of ``MultiScaleDeformableAttention``, ``mmcv._ext``, ``detrex._C``, or what a fork calls
            its extension, which is then called as the official one is.
        backend: of the operator; ``auto`` takes the process-wide setting at each call.
        replace: what to do about a compiled extension of that name. Its two functions are exchanged for ours if True,
            also for code that has imported it already, and its others stay. If False it is refused.

    Returns:
        A handle whose `undo` takes the stand-ins out again, and which is a context manager that does so. Code that has
        imported a stand-in by then keeps it.

    Raises:
        ValueError: a name is no module's name, or the backend is not known.
        RuntimeError: a compiled extension of a name is there and `replace` is False; nothing is changed.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name in registry.BACKENDS:
            raise ValueError(f"names: expected names of modules, got the backend {name!r}: pass backend={name!r}")
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"names: expected names of modules such as {OFFICIAL} or {MMCV}, got {name!r}")
    chosen = None if registry.check_name(backend) == registry.AUTO else backend
    changes: list[Change] = []
    for name in dict.fromkeys(names):
        ours = (forward, backward_in_place if name == MMCV else backward)
        functions = {known: partial(one, backend=chosen) for known, one in zip(FUNCTIONS, ours, strict=True)}
        compiled = _compiled(name, replace)
        if compiled is None:
            changes.append((sys.modules, name, StandIn(name, functions)))
        else:
            changes += [(vars(compiled), known, one) for known, one in functions.items()]
    return Substitution(changes)


def _compiled(name: str, replace: bool) -> ModuleType | None:
    """The compiled extension of a name, imported or only installed; None where there is none that loads.

    Raises RuntimeError if there is one and it is not to be replaced.
    """
    module = sys.modules.get(name)
    if isinstance(module, StandIn):
        return None
    spec = None if module else _installed(name)
    if not replace and (module or spec):
        state = "imported already" if module else f"installed at {spec.origin}"  # type: ignore[union-attr]
        raise RuntimeError(
            f"names: expected no compiled extension {name}, got one that is {state}; pass replace=True to exchange its "
            "two functions for ours"
        )
    if spec and spec.loader:
        module = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except ImportError:
            return None  # compiled for another PyTorch: what the stand-in is there for
        sys.modules[name] = module
    return module


def _installed(name: str) -> ModuleSpec | None:
    """Where an extension lies on disk. Its package is not imported: detrex settles at import what it has."""
    package = name.rpartition(".")[0]
    if package in sys.modules:
        path = list(getattr(sys.modules[package], "__path__", []))
        spec = PathFinder.find_spec(name, path)
    elif package:
        parent = _installed(package)
        spec = PathFinder.find_spec(name, parent.submodule_search_locations) if parent else None
    else:
        spec = find_spec(name)
    return spec if spec and spec.has_location else None  # a folder without code has none


def forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
    *,
    backend: str | None = None,
) -> Tensor:
    """The output (B, Q, H*D), without a graph: the caller's autograd function brings the backward.

    Arguments, by mmcv's names, as those of :func:`~msdeform.ms_deform_attn`; `im2col_step` has no effect. Raises as
    the operator does.
    """
    with torch.no_grad():
        return ms_deform_attn(
            value,
            value_spatial_shapes,
            sampling_locations,
            attention_weights,
            level_start_index=value_level_start_index,
            backend=backend,
        )


def backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    im2col_step: int = 64,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, shaped as these, from that of the output (B, Q, H*D).

    The backward of a compiled backend is called by itself; only `reference` runs a forward again. Raises ValueError
    for a `grad_output` of another shape, and otherwise as the operator does.
    """
    tensors = [tensor.detach() for tensor in (value, sampling_locations, attention_weights)]
    inputs, shapes, sizes = contract.check(tensors, value_spatial_shapes, value_level_start_index)
    expected = (inputs.B, inputs.Q, inputs.H * inputs.D)
    if tuple(grad_output.shape) != expected:
        raise ValueError(f"grad_output: expected (B, Q, H*D)={expected}, got {tuple(grad_output.shape)}")
    grad_output = grad_output.detach().to(inputs.dtype)
    run = registry.implementation(registry.resolve(inputs, backend), fused=False)
    if isinstance(run, Operator):
        pairs = [size for pair in sizes for size in pair]
        found = run.backward(grad_output, *tensors, shapes, pairs, [True, True, True])
    else:
        with torch.enable_grad():
            leaves = [tensor.requires_grad_() for tensor in tensors]
            found = torch.autograd.grad(run(inputs, leaves[0], shapes, sizes, *leaves[1:]), leaves, grad_output)
    grad_value, grad_locations, grad_weights = (gradient.contiguous() for gradient in found)
    return grad_value, grad_locations, grad_weights


def backward_in_place(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int = 64,
    *,
    backend: str | None = None,
) -> None:
    """:func:`backward` as mmcv has it: the gradients are written over what `grad_value` and the next two hold."""
    found = backward(
        value,
        value_spatial_shapes,
        value_level_start_index,
        sampling_locations,
        attention_weights,
        grad_output,
        backend=backend,
    )
    for given, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), found, strict=True):
        given.copy_(gradient)

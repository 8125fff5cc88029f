"""The implementations that are measured, ours and others', in one form.

An implementation offers either function of the operator with our arguments. Where it has no fused one, locations and
softmax are computed for it in PyTorch, as its users would, and are part of its time; such rows say so. None of the
others' code is here: each is used where it can be imported, and otherwise says how to get it.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.text import nearest
from ...kernels import registry
from ...kernels.api import fused_ms_deform_attn, ms_deform_attn
from ...kernels.contract import Sizes
from ...kernels.cuda import tiles
from ...kernels.diagnostics.options import BACKENDS
from ...kernels.pytorch.reference import extents, locate
from ...kernels.triton import interpreter
from ..options import COMPILED_IMPLEMENTATIONS, IMPLEMENTATIONS
from . import graphs
from .inputs import FUSED

Operator = Callable[[Tensor, Sizes, Tensor, Tensor], Tensor]
FusedOperator = Callable[[Tensor, Sizes, Tensor, Tensor, Tensor], Tensor]

_IN_VALUES_DTYPE = "it computes in value's dtype, in which locations of 16 bits are half a pixel off on a wide map"
_IM2COL_STEP = 64  # what models pass; the batch has to be a multiple of it, or smaller


@dataclass(frozen=True)
class Implementation:
    """One implementation, or the reason why there is none here."""

    name: str
    reason: str | None = None
    """why it cannot be measured here, and how to get it; None where it can"""
    plain: Operator | None = None
    """(value, sizes, sampling_locations, attention_weights) -> (B, Q, H*D); None where it has no such function"""
    fused: FusedOperator | None = None
    """(value, sizes, reference_points, sampling_offsets, attention_logits) -> (B, Q, H*D)"""
    composed: str | None = None
    """what PyTorch computes for it in the fused call"""
    ours: bool = False
    """a backend of this project: one that fails its check fails the run"""
    setting: str | None = None
    """what is set while its backward runs, beside the backend"""
    limits: str | None = None
    """why it differs from float64 where it is known to, in words"""
    forward_only: bool = False
    """it computes no gradients"""

    def function(self, fused: bool) -> Callable[..., Tensor] | None:
        return self.fused if fused else self.plain

    def about(self, fused: bool) -> dict[str, Any]:
        """What a row of a function says of it."""
        return {"ours": self.ours, "composed": self.composed if fused else None, "limits": self.limits}


class _Absent(Exception):
    """An implementation cannot be measured here; the message says why, and how to get it."""


def find(name: str, device: torch.device) -> Implementation:
    """The implementation of a name, or of ``MODULE:FUNCTION``, your function of a device that returns one.

    Raises ValueError for a name that is not known, with the nearest that there are.
    """
    if ":" in name:
        module, _, function = name.partition(":")
        return getattr(importlib.import_module(module), function)(device)
    if name not in IMPLEMENTATIONS:
        raise ValueError(nearest("backend", name, IMPLEMENTATIONS))
    try:
        return _MAKERS[name](name, device)
    except _Absent as absent:
        return Implementation(name, str(absent))


def usual_backends(device: torch.device) -> tuple[str, ...]:
    """Backends to measure where none is named: on a CPU what auto takes, on a GPU all that take its tensors."""
    call = registry.example_inputs(device)
    if device.type == "cpu":
        return (registry.resolve(call, registry.AUTO),)
    return tuple(name for name, backend in registry.BACKENDS.items() if backend.refuses(call) is None)


def _backend(name: str, device: torch.device) -> Implementation:
    reason = registry.unavailable(name) or registry.BACKENDS[name].refuses(registry.example_inputs(device))
    if name == "triton" and interpreter.interpreting():
        reason = "Triton's interpreter is never timed (unset TRITON_INTERPRET)"
    if reason is not None:
        return Implementation(name, reason, ours=True)

    plain, fused = (partial(one, backend=name) for one in (ms_deform_attn, fused_ms_deform_attn))
    return Implementation(name, plain=plain, fused=fused, ours=True)


@contextlib.contextmanager
def _determinism() -> Iterator[None]:
    """``torch.use_deterministic_algorithms(True)`` without the filling of all new memory with NaN, a pass over every
    gradient that is no part of a backend's work."""
    settings: Any = torch.utils.deterministic  # whose one setting is a property, which type checkers don't find
    usual = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False
    yield
    torch.use_deterministic_algorithms(False)
    settings.fill_uninitialized_memory = usual


def _deterministic(name: str, device: torch.device) -> Implementation:
    """The Triton backend with a deterministic backward, and nothing else deterministic."""
    subject = _during_backward(_backend("triton", device), _determinism)
    setting = "deterministic algorithms, fill_uninitialized_memory=False" if subject.reason is None else None
    return replace(subject, name=name, setting=setting)


def _backward_method(name: str, device: torch.device) -> Implementation:
    """The Triton backend with its sorted backward, without all else that determinism costs, or with that by tiles."""
    method, subject = name.removeprefix("triton-"), _backend("triton", device)

    def within() -> AbstractContextManager[Any]:
        from ...kernels.triton import launch

        return launch.replaced(backward_method=method)

    if method == "tiles" and subject.reason is None:
        subject = replace(subject, reason=tiles.unavailable())
    return replace(_during_backward(subject, within), name=name)


def _during_backward(subject: Implementation, within: Callable[[], AbstractContextManager[Any]]) -> Implementation:
    """An implementation whose backward, one node of the graph, runs within a context."""
    context = contextlib.ExitStack()

    def hooked(function: Callable[..., Tensor], *tensors: Any) -> Tensor:
        output = function(*tensors)
        if output.grad_fn is not None:
            output.grad_fn.register_prehook(lambda _: context.enter_context(within()) and None)
            output.grad_fn.register_hook(lambda *_: context.close())
        return output

    if subject.plain is None or subject.fused is None:
        return subject
    return replace(subject, plain=partial(hooked, subject.plain), fused=partial(hooked, subject.fused))


def _composed(name: str, plain: Operator, *, mixed: bool = False, limits: str | None = None) -> Implementation:
    """An implementation that has the plain function alone. `mixed`: it takes 16 bits as training in mixed precision
    does, under autocast, with locations, weights and grid_sample in float32."""

    def attend(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        if not mixed:
            return plain(value, sizes, locations, weights)
        with torch.autocast(value.device.type, value.dtype, enabled=value.dtype.itemsize == 2):
            return plain(value, sizes, locations, weights).to(value.dtype)

    def fused(value: Tensor, sizes: Sizes, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        locations = _locations(value, sizes, references, offsets)
        weights = logits.flatten(3).softmax(-1, dtype=torch.float32 if mixed else None).view(logits.shape)
        return attend(value, sizes, locations, weights)

    return Implementation(name, plain=attend, fused=fused, composed="locations and softmax", limits=limits)


def _locations(value: Tensor, sizes: Sizes, references: Tensor, offsets: Tensor) -> Tensor:
    return locate(references, offsets.float(), _extents(sizes, value.device))


# a model makes these once per image size, so they cost a call nothing
@cache
def _extents(sizes: Sizes, device: torch.device) -> Tensor:
    """(w, h) of the levels."""
    return extents(sizes, device, torch.float32)


@cache
def _tables(sizes: Sizes, device: torch.device) -> tuple[Tensor, Tensor]:
    """(h, w) of the levels, and where each begins."""
    shapes = torch.tensor(sizes, device=device)
    pixels = shapes.prod(1)
    return shapes, pixels.cumsum(0) - pixels


def _core(name: str, device: torch.device) -> Implementation:
    """What the official repository calls its core: the sum over levels of a weighted grid_sample, and no more. It
    promises nothing for numbers that are not finite, and computes in value's dtype.

    Maps are views of value, as there: PyTorch 2.11's grid_sample on a CPU returns numbers of any size for 16-bit maps
    whose channels lie side by side.
    """
    limits = _IN_VALUES_DTYPE
    if device.type == "cpu":
        limits += "; and PyTorch's grid_sample on a CPU may return any number for 16-bit maps that are not contiguous"

    def plain(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        B, _, H, D = value.shape
        Q = locations.shape[1]
        grid, maps = 2 * locations.to(value.dtype) - 1, value.permute(0, 2, 3, 1).flatten(0, 1)  # (B*H, D, S)
        output = maps.new_zeros(B * H, D, Q)
        for level, part in enumerate(maps.split([h * w for h, w in sizes], -1)):
            points = grid[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B*H, Q, P, 2)
            sampled = F.grid_sample(part.unflatten(-1, sizes[level]), points, align_corners=False)  # (B*H, D, Q, P)
            output = output + (sampled * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        return output.view(B, H * D, Q).transpose(1, 2)

    return _composed(name, plain, limits=limits)


def _embedding_bag(name: str, device: torch.device) -> Implementation:
    """PyTorch's sum of weighted rows of a table: the table is value, a row a pixel of a head, and a bag the four pixels
    around each point of a (query, head).

    What it cannot: it rounds the weights of pixels to value's dtype, keeps an index and a weight of every pixel in
    memory, and takes a pixel outside the map for row 0 with weight 0, which is NaN where row 0 is not finite.
    """

    def plain(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        B, S, H, D = value.shape
        Q, L, P = weights.shape[1], weights.shape[3], weights.shape[4]
        heads = torch.arange(H).view(H, 1, 1) + H * S * torch.arange(B).view(B, 1, 1, 1, 1)  # (B, 1, H, 1, 1)
        rows, shares, start = [], [], 0
        for level, (h, w) in enumerate(sizes):
            x, y = (locations[:, :, :, level] * locations.new_tensor((w, h)) - 0.5).unbind(-1)  # (B, Q, H, P)
            left, top = x.detach().floor(), y.detach().floor()
            columns, in_row = _pair(x - left, left.long(), w)  # (B, Q, H, P, 2)
            lines, in_column = _pair(y - top, top.long(), h)
            pixels = start + lines[..., :, None] * w + columns[..., None, :]  # (B, Q, H, P, 2, 2)
            rows.append(pixels.flatten(4) * H + heads)
            share = in_column[..., :, None] * in_row[..., None, :]
            shares.append(share.flatten(4) * weights[:, :, :, level, :, None])
            start += h * w
        bags = torch.stack(rows, 3).view(B * Q * H, L * P * 4)
        per_row = torch.stack(shares, 3).view(B * Q * H, L * P * 4).to(value.dtype)
        table = value.reshape(B * S * H, D)
        return F.embedding_bag(bags, table, mode="sum", per_sample_weights=per_row).view(B, Q, H * D)

    if device.type != "cpu":
        raise _Absent("written for a CPU")
    return _composed(name, plain, limits="it rounds the weight of every pixel to value's dtype")


def _pair(fraction: Tensor, first: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two pixels along an axis around each point and their weights, (..., 2): pixel 0 with weight 0 outside."""
    pixels = torch.stack([first, first + 1], -1)
    inside = (pixels >= 0) & (pixels < size)
    return pixels * inside, torch.stack([1 - fraction, fraction], -1) * inside


def _engine(name: str, device: torch.device) -> Implementation:
    """An engine that runs the core as a graph of GridSample nodes: forward only, in float32."""
    for module in (name, "onnx", "onnxscript"):
        _imported(module, f"pip install {name} onnx onnxscript")
    if device.type != "cpu":
        raise _Absent("it is measured on a CPU alone")
    make = {"onnxruntime": graphs.onnxruntime_engine, "openvino": graphs.openvino_engine}[name]
    engines: dict[Any, graphs.Engine] = {}

    def run(value: Tensor, sizes: Sizes, *rest: Tensor) -> Tensor:
        inputs = [tensor.detach().float().contiguous() for tensor in (value, *rest)]
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        key = sizes, shapes, torch.get_num_threads()
        if key not in engines:
            _extents(sizes, device)  # kept from here on: one that is made within an export is no tensor
            function = _core("core", device).function(len(inputs) == len(FUSED))
            assert function is not None
            engines[key] = make(graphs.graph(function, sizes, inputs), key[-1])
        B, Q, H = shapes[-1][:3]
        output = torch.empty(B, Q, H * shapes[0][3])
        engines[key](inputs, output)
        return output.to(value.dtype)

    composed = "conversion of 16-bit numbers to float32 and back"
    return Implementation(name, plain=run, fused=run, composed=composed, forward_only=True)


def _compiled(name: str, device: torch.device) -> Implementation:
    """An implementation of PyTorch's operators under torch.compile, whole graphs only."""
    subject = find(name.removesuffix("-compiled"), device)
    # a backward is timed many times on one graph, which keeps its buffers then
    importlib.import_module("torch._functorch.config").donated_buffer = False  # type: ignore[attr-defined]
    compiled: Any = partial(torch.compile, fullgraph=True, dynamic=False)
    return Implementation(name, None, compiled(subject.plain), compiled(subject.fused), limits=subject.limits)


def _imported(module: str, how: str) -> Any:
    """A module of someone else's. Raises _Absent where it is not installed (`how` to get it) or broken."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise _Absent(f"not installed ({how})")
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation raises whatever it likes
        raise _Absent(f"installed but fails to import: {type(error).__name__}: {error}") from error


def _needs_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        raise _Absent("its kernels need a CUDA device")


def _deformops(name: str, device: torch.device) -> Implementation:
    """deformops 3 (github.com/tue-p8n/deformops): weights in value's dtype, softmax inside, locations outside."""
    how = "pip install deformops; it needs Python 3.12 or 3.13"
    if sys.version_info < (3, 12):
        how += f", and this is {sys.version_info[0]}.{sys.version_info[1]}"
    msda = _imported("deformops.registry", how).msda
    # it leaves float32 accumulation of grad_value off on Hopper unless told
    options = {"fp32acc": True} if name == "deformops-fp32acc" else {}
    if device.type != "cpu" or options:  # on a CPU it is eager PyTorch, which has no option of accumulation
        _needs_cuda(device)

    def plain(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        return msda(value, *_tables(sizes, value.device), locations, weights, **options)

    def fused(value: Tensor, sizes: Sizes, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        locations = _locations(value, sizes, references, offsets)
        output = msda(value, *_tables(sizes, value.device), locations, logits, method="softmax", **options)
        return output.to(value.dtype)  # on a CPU, float32 locations make it float32

    return Implementation(name, plain=plain, fused=fused, composed="locations")


def _official(name: str, device: torch.device) -> Implementation:
    """The extension of Deformable-DETR, as its ``models/ops/setup.py`` builds it: float32 and float64."""
    how = "python setup.py install in models/ops of github.com/fundamentalvision/Deformable-DETR; it needs nvcc"
    extension = _imported("MultiScaleDeformableAttention", how)
    _needs_cuda(device)
    return _composed(name, _of_extension(extension))


def _hub(name: str, device: torch.device) -> Implementation:
    """The kernel of Hugging Face's hub, kernels-community/deformable-detr: the official one for 16 bits, too, in which
    it takes locations and weights, and adds up gradients."""
    how = "deformable-detr of Hugging Face's kernels-community, as a package deformable_detr"
    attend = _of_extension(_imported("deformable_detr", how))
    _needs_cuda(device)

    def plain(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        return attend(value, sizes, locations.to(value.dtype), weights.to(value.dtype))

    return _composed(name, plain, limits=_IN_VALUES_DTYPE)


def _of_extension(extension: Any) -> Operator:
    """The operator by a module with the official extension's two functions."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Tensor:
            ctx.save_for_backward(*tensors)
            return extension.ms_deform_attn_forward(*tensors, _step(tensors[0]))

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            tensors = ctx.saved_tensors
            value, locations, weights = extension.ms_deform_attn_backward(
                *tensors, gradients[0].contiguous(), _step(tensors[0])
            )
            return value, None, None, locations, weights

    def plain(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        return Attention.apply(value, *_tables(sizes, value.device), locations, weights)

    return plain


def _step(value: Tensor) -> int:
    """The most images that the extension takes at once, of which the batch has to be a multiple."""
    B = value.shape[0]
    return next(step for step in range(min(B, _IM2COL_STEP), 0, -1) if B % step == 0)


def _mmcv(name: str, device: torch.device) -> Implementation:
    """mmcv.ops (github.com/open-mmlab/mmcv): locations and weights are cast to value's dtype. On a CPU, its function
    of PyTorch's operators, 16 bits under autocast."""
    on_cpu, extension = device.type == "cpu", "mmcv._ext"
    # where its compiled part was not built, an empty module stands in for it: any name of it is None
    lacking = on_cpu and importlib.util.find_spec("mmcv") is not None and importlib.util.find_spec(extension) is None
    if lacking:
        sys.modules[extension] = ModuleType(extension)
        sys.modules[extension].__getattr__ = lambda _: None  # type: ignore[method-assign]
    try:
        found = _imported("mmcv.ops.multi_scale_deform_attn", "pip install openmim && mim install mmcv")
    finally:
        if lacking:
            del sys.modules[extension]
    if not on_cpu:
        _needs_cuda(device)

    def plain(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        shapes, starts = _tables(sizes, value.device)
        if on_cpu:
            return found.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
        function = found.MultiScaleDeformableAttnFunction
        return function.apply(value, shapes, starts, locations, weights, _step(value))

    return _composed(name, plain, mixed=on_cpu)


def _dcnv4(name: str, device: torch.device) -> Implementation:
    """FlashDeformAttn of DCNv4 (github.com/OpenGVLab/DCNv4): softmax inside, locations and logits in one tensor of
    value's dtype; it cannot take weights. Its backward has no bfloat16, and its module makes float16 of 16 bits.

    A block of its threads takes several queries, all with the values of the first one's image. Where one would take
    queries of two images, each image is a call of its own.
    """
    function = _imported("DCNv4.functions", "pip install DCNv4; it needs nvcc").FlashDeformAttnFunction
    _needs_cuda(device)

    def fused(value: Tensor, sizes: Sizes, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        locations = _locations(value, sizes, references, offsets)
        dtype = torch.float16 if value.dtype.itemsize == 2 else value.dtype
        both = torch.cat([locations.flatten(3).to(dtype), logits.flatten(3).to(dtype)], -1)
        tables, points = _tables(sizes, value.device), logits.shape[-1]

        def attend(value: Tensor, both: Tensor) -> Tensor:
            return function.apply(value, *tables, both, _step(value), points)

        pixels = value.to(dtype)
        if _straddles(len(value), both.shape[1], *value.shape[2:]):
            output = torch.cat([attend(*image) for image in zip(pixels.split(1), both.split(1), strict=True)])
        else:
            output = attend(pixels, both)
        return output.to(value.dtype)

    composed = "locations, bfloat16 as float16, and images one by one where its blocks would take two"
    limits = "of 16 bits it takes locations in float16, which are some hundredths of a pixel off on a wide map"
    return Implementation(name, fused=fused, composed=composed, limits=limits)


def _straddles(B: int, Q: int, H: int, D: int) -> bool:
    """Whether a block of DCNv4's threads would take queries of two images: it takes as many as divide all queries of
    the batch and as its limits of threads allow, in forward and backward."""
    for threads, most in ((H * D // 8, 512), (H * D // (2 if D >= 64 else 1), 256)):
        taken = [count for count in range(1, 65) if B * Q % count == 0 and count * threads <= most]
        if taken and Q % taken[-1]:
            return True
    return False


def _transformers(name: str, device: torch.device) -> Implementation:
    """The layer inside transformers' Deformable DETR; without its kernels hub, a grid_sample of PyTorch. Of 16 bits,
    under autocast."""
    module = "transformers.models.deformable_detr.modeling_deformable_detr"
    layer = _imported(module, "pip install transformers").MultiScaleDeformableAttention()

    def plain(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        shapes, starts = _tables(sizes, value.device)
        return layer(value, shapes, list(sizes), starts, locations, weights, _step(value))

    return _composed(name, plain, mixed=True)


# what the others are imported from, where it is not their name
_PACKAGES = {"deformops-fp32acc": "deformops", "official": "MultiScaleDeformableAttention", "dcnv4": "DCNv4"}
_PACKAGES["hub"] = "deformable_detr"
_PACKAGES |= {name: name for name in ("deformops", "mmcv", "transformers", "onnxruntime", "openvino")}


def absent(name: str, device: torch.device) -> str | None:
    """Why an implementation is not here, as far as that shows without importing it; None for one that may be."""
    package = _PACKAGES.get(name)
    if name in BACKENDS or (package is not None and importlib.util.find_spec(package) is None):
        return find(name, device).reason
    return None


_MAKERS: dict[str, Callable[[str, torch.device], Implementation]] = {
    **dict.fromkeys(BACKENDS, _backend),
    "triton-deterministic": _deterministic,
    **dict.fromkeys(("triton-sorted", "triton-tiles"), _backward_method),
    **dict.fromkeys(("deformops", "deformops-fp32acc"), _deformops),
    "official": _official,
    "hub": _hub,
    "mmcv": _mmcv,
    "dcnv4": _dcnv4,
    "transformers": _transformers,
    "core": _core,
    "embedding-bag": _embedding_bag,
    **dict.fromkeys(("onnxruntime", "openvino"), _engine),
    **dict.fromkeys(COMPILED_IMPLEMENTATIONS, _compiled),
}

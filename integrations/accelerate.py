"""``msdeform.accelerate(model)``: our operator in any model that computes multi-scale deformable attention."""

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import nn

from ..common.text import counted
from ..kernels import registry
from .forms import Layer, OurOperator
from .fused import fuse, unfuse
from .places import Place, find_places


@dataclass(frozen=True)
class Row:
    """Places of a model that are alike."""

    module: str
    """class of the modules"""
    calls: str
    """what they call: a layer's or a function's name"""
    paths: tuple[str, ...]
    """of the modules in the model"""
    reason: str | None
    """why they were not replaced; None where they were"""
    fused: bool = False
    """whether the modules' locations and softmax are computed inside the operator too"""


class Report:
    """What :func:`accelerate` did to a model. Prints as a table; within ``with``, the model is undone at the end."""

    def __init__(self, model: nn.Module, places: Iterable[tuple[Place, bool]], backend: str) -> None:
        groups: dict[tuple[str, str, str | None, bool], list[str]] = {}
        for place, fused in places:
            key = (type(place.module).__name__, place.spelling, place.problem, fused)
            groups.setdefault(key, []).append(place.path or "(the model)")
        self.model, self.backend = model, backend
        self.rows = [
            Row(module, calls, tuple(paths), reason, fused) for (module, calls, reason, fused), paths in groups.items()
        ]

    @property
    def replaced(self) -> int:
        """How many places compute with our operator now."""
        return sum(len(row.paths) for row in self.rows if row.reason is None)

    @property
    def left(self) -> int:
        """How many places were left as they were."""
        return sum(len(row.paths) for row in self.rows if row.reason is not None)

    def undo(self) -> None:
        """Puts back what was there; again has no effect."""
        restore(self.model)

    def __enter__(self) -> "Report":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        head = ("class", "calls", "places", "first of them", "")
        lines = [(row.module, row.calls, str(len(row.paths)), row.paths[0], _outcome(row)) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        table = [
            "  ".join(f"{cell:<{n}}" for cell, n in zip(line, widths, strict=True)).rstrip() for line in (head, *lines)
        ]
        left = f", {self.left} left" if self.left else ""
        return "\n".join([f"{counted(self.replaced, 'place')} replaced{left}; backend {self.backend}", *table])

    __repr__ = __str__


def _outcome(row: Row) -> str:
    if row.reason is not None:
        return f"left: {row.reason}"
    return "replaced, module fused" if row.fused else "replaced"


def accelerate(model: nn.Module, backend: str = "auto", *, fused: bool = True) -> Report:
    """Makes `model` compute its multi-scale deformable attention with our operator, in place.

    Looks at every module for what it computes the operator with: the layer or the functions of transformers, mmcv,
    detrex, and of the official repositories of Deformable DETR and RT-DETR. What it finds is tried on a small example,
    and replaced, on this model's modules alone, if both results are equal. Parameters, state dict and configuration
    stay as they are, and the model can be saved, pickled, copied, compiled, trained and wrapped as before.

        report = msdeform.accelerate(model)
        print(report)
        report.undo()

    Where the module around a place only computes locations and weights and projects, it is fused: the operator takes
    its offsets and logits (on a CPU and without gradients, where that is measured to be faster). It still returns
    attention weights.

    Args:
        model: any module; changed in place, and so are modules that it shares with other models.
        backend: ``auto``, which takes the fastest that runs where the tensors of a call are, or a backend's name.
        fused: False replaces the operator alone.

    Returns:
        What was replaced, what was not and why, and ``undo()``.

    Raises:
        TypeError: `model` is no module.
        ValueError: the backend is unknown, nothing was found in `model`, or it is accelerated already.
        BackendUnavailable: the named backend cannot run the model's dtype or device.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    registry.check_name(backend)
    kind = type(model).__name__
    places = find_places(model)
    if not places:
        raise ValueError(
            f"model: expected one that computes multi-scale deformable attention, found none in {kind} "
            f"({counted(sum(1 for _ in model.modules()), 'module')})"
        )
    there = [place for place in places if isinstance(place.current, OurOperator)]
    if there:
        raise ValueError(
            f"model: {kind} is accelerated already ({counted(len(there), 'place')}); undo that first, by the report's "
            "undo() or by msdeform.integrations.accelerate.restore(model)"
        )
    runs_on = _backend_of(model, backend)
    operator = OurOperator(backend)
    done = []
    for place in places:
        if place.problem is None:
            place.put(operator)
        done.append((place, fused and place.problem is None and fuse(_around(model, place), place)))
    return Report(model, done, runs_on)


def restore(model: nn.Module) -> None:
    """Puts back what :func:`accelerate` replaced in `model`, or in what `model` is a copy of."""
    unfuse(model)
    for place in find_places(model):
        place.restore()


def _around(model: nn.Module, place: Place) -> nn.Module:
    """The module that projects queries for a place: the one around a layer, else the place's own."""
    inside = Layer in place.forms.values() and "." in place.path
    return model.get_submodule(place.path.rpartition(".")[0]) if inside else place.module


def _backend_of(model: nn.Module, backend: str) -> str:
    """What the model's calls will run on, as the report says it."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    inputs = registry.example_inputs(like.device, like.dtype)
    where = f"{str(like.dtype).removeprefix('torch.')} on {like.device.type}"
    if backend != registry.AUTO:
        reason = registry.unavailable(backend) or registry.BACKENDS[backend].refuses(inputs)
        if reason is not None:
            raise registry.BackendUnavailable(f"backend: '{backend}' cannot run this model, which is {where}: {reason}")
        return backend
    try:
        name = registry.resolve(inputs, backend)
    except registry.BackendUnavailable as error:
        return f"auto: {error}"
    if name != "reference":
        return f"auto, which is {name} for {where}"
    passed = [f"{one.name}: {one.auto_reason}" for one in registry.report(inputs) if one.auto_reason]
    return f"auto, which is reference for {where} ({'; '.join(passed)})"

"""Calls of the module `MSDeformAttn`: its sizes, its tensors and its mask, right ones and those with a mistake."""

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from msdeform.models.attention import MSDeformAttn
from tests.fuzz.choices import Choices, made_of
from tests.fuzz.formula import attention, locations_of
from tests.fuzz.fuzzing import Kind, Outcome, refused

NAMES = ("query", "reference_points", "input_flatten", "input_spatial_shapes", "input_padding_mask")
ERRORS_NAME = (*NAMES, "sampling_offsets", "d_model", "n_levels", "n_heads", "n_points", "backend", "spatial_shapes")
MODULES = ((8, 1, 2, 1), (6, 2, 3, 2), (4, 3, 1, 2), (8, 2, 4, 1))
WRONG_SIZES: tuple[Any, ...] = (0, -1, 1.5, "8", None, True, float("nan"), [8], 7)


@dataclass
class Call:
    """A module's sizes, and the arguments of a call by name."""

    sizes: list[Any]
    arguments: dict[str, Any]
    levels: tuple[tuple[int, int], ...]
    backend: Any
    mistakes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        told = {
            name: f"{tuple(each.shape)} {each.dtype}" if isinstance(each, Tensor) else f"{each!r:.200}"
            for name, each in self.arguments.items()
        }
        return f"Call({self.sizes}, {told}, levels={self.levels}, backend={self.backend!r}, mistakes={self.mistakes})"


def make(choices: Choices) -> Call:
    sizes = choices.one_of(MODULES)
    d_model, L, _, _ = sizes
    B, Q = choices.between(0, 2), choices.between(0, 4)
    B = B or choices.below(2)
    levels = tuple((choices.between(1, 4), choices.between(1, 4)) for _ in range(L))
    S = sum(h * w for h, w in levels)
    generator = torch.Generator().manual_seed(choices.below(2**16))
    arguments = {
        "query": torch.randn(B, Q, d_model, generator=generator),
        "reference_points": torch.rand(B, Q, L, choices.one_of((2, 4)), generator=generator),
        "input_flatten": torch.randn(B, S, d_model, generator=generator),
        "input_spatial_shapes": torch.tensor(levels) if choices.chance(2) else levels,
    }
    if choices.chance(2):
        arguments["input_padding_mask"] = torch.rand(B, S, generator=generator) < 0.3
    call = Call(list(sizes), arguments, levels, choices.one_of(("reference", "gather")))
    for _ in range(choices.one_of((0, 0, 1, 2))):
        mistake(call, choices)
    return call


def mistake(call: Call, choices: Choices) -> None:
    """Makes the call wrong in one way."""
    name, how = choices.one_of(NAMES), choices.below(6)
    given = call.arguments.get(name)
    if how == 0:
        at = choices.below(4)
        call.sizes[at] = choices.one_of(WRONG_SIZES[: 9 if at == 0 else 8])
        call.mistakes.append(f"size {at}: {call.sizes[at]!r}")
    elif how == 1:
        call.backend = choices.one_of(("CPU", 3, None, ["cpu"], "", "x" * 3000))
        call.mistakes.append("backend")
    elif name == "input_spatial_shapes":
        call.arguments[name] = choices.one_of((None, 3, (), [(0, 1)], "abc", [*call.levels, (1, 1)], [("1", "2")]))
        call.mistakes.append(name)
    elif isinstance(given, Tensor) and given.dim() > 1 and how in (2, 3):
        place = choices.below(given.dim())
        shape = [*given.shape]
        if how == 2:
            del shape[place]
        elif place == 1 and name in ("query", "input_flatten"):
            shape[1] += 1
        else:
            shape[place] += 5
        call.arguments[name] = torch.zeros((), dtype=given.dtype).expand(shape)
        call.mistakes.append(f"{name}: {shape}")
    elif isinstance(given, Tensor) and given.dtype in (torch.float32, torch.bool):
        wrong = (torch.int64, torch.complex64, torch.uint8, torch.float8_e5m2)
        call.arguments[name] = torch.zeros(given.shape, dtype=choices.one_of(wrong))
        call.mistakes.append(f"{name}: {call.arguments[name].dtype}")
    elif given is not None:
        call.arguments[name] = choices.one_of((1.0, "query", [[1.0]], object))
        call.mistakes.append(f"{name}: no tensor")


@functools.cache
def module_of(sizes: tuple[int, ...]) -> MSDeformAttn:
    """A module whose projections are random; how they begin, every query's offsets are the same."""
    module = MSDeformAttn(*sizes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return module


def check(call: Call) -> Outcome:
    try:
        if call.mistakes:
            module = MSDeformAttn(*call.sizes, backend=call.backend)
        else:
            module = module_of(tuple(call.sizes))
            module.backend = call.backend
        with torch.no_grad():
            output = module(**call.arguments)
    except (TypeError, ValueError) as error:
        return refused(error, why=call.mistakes, names=ERRORS_NAME)
    assert not call.mistakes, f"answered in spite of {call.mistakes}: {output.shape}"
    truth = computed(module, call)
    assert output.shape == truth.shape
    scale = truth.abs().max().item() if truth.numel() else 0.0
    error = (output.double() - truth).abs().max().item() if truth.numel() else 0.0
    assert error <= 1e-4 * (1 + scale), f"{error} from {truth}"
    return "answered"


def computed(module: MSDeformAttn, call: Call) -> Tensor:
    """What the module should answer, in float64, from its weights and the formula alone."""
    weights = {name: each.detach().double() for name, each in module.named_parameters()}

    def projected(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    _, L, H, P = call.sizes
    query, reference, inputs = (call.arguments[name].double() for name in NAMES[:3])
    value = projected("value_proj", inputs)
    if "input_padding_mask" in call.arguments:
        value = value.masked_fill(call.arguments["input_padding_mask"][..., None], 0)
    offsets = projected("sampling_offsets", query).unflatten(-1, (H, L, P, 2))
    logits = projected("attention_weights", query).unflatten(-1, (H, L * P)).softmax(-1).unflatten(-1, (L, P))
    locations = locations_of(call.levels, reference, offsets)
    return projected("output_proj", attention(value.unflatten(-1, (H, -1)), call.levels, locations, logits))


KIND = Kind("calls of the module", made_of(make, 48), check)

"""detrex's module on our operator: its names, initial values and results, without detrex."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msdeform import ms_deform_attn
from msdeform.integrations.detrex import (
    MultiScaleDeformableAttention,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from tests.integrations import formula
from tests.integrations.formula import LEVELS, SHAPES, STARTS, B, H, L, P, Q, S, draw, padding, trained
from tests.kernels.backends import CPU

BACKENDS = [pytest.param(("reference", "cpu"), id="reference"), *CPU]


def test_arguments_and_defaults_are_detrexs() -> None:
    wanted = {
        "embed_dim": 256,
        "num_heads": 8,
        "num_levels": 4,
        "num_points": 4,
        "img2col_step": 64,
        "dropout": 0.1,
        "batch_first": False,
        "attn_backend": "auto",
    }
    parameters = inspect.signature(MultiScaleDeformableAttention).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == wanted
    assert parameters["attn_backend"].kind is inspect.Parameter.KEYWORD_ONLY
    module = MultiScaleDeformableAttention(128, 4, 3, 2, 32, 0.2, True)
    assert (module.embed_dim, module.num_heads, module.num_levels, module.num_points) == (128, 4, 3, 2)
    assert (module.im2col_step, module.dropout.p, module.batch_first) == (32, 0.2, True)
    order = ["query", "key", "value", "identity", "query_pos", "key_padding_mask", "reference_points"]
    called = list(inspect.signature(module.forward).parameters)
    assert called[:-1] == [*order, "spatial_shapes", "level_start_index"]


def test_names_and_shapes_of_weights_are_detrexs() -> None:
    module = MultiScaleDeformableAttention()
    shapes = [(name, tuple(weight.shape)) for name, weight in module.state_dict().items()]
    assert shapes == [
        ("sampling_offsets.weight", (256, 256)),
        ("sampling_offsets.bias", (256,)),
        ("attention_weights.weight", (128, 256)),
        ("attention_weights.bias", (128,)),
        ("value_proj.weight", (256, 256)),
        ("value_proj.bias", (256,)),
        ("output_proj.weight", (256, 256)),
        ("output_proj.bias", (256,)),
    ]


def test_initial_values_are_detrexs_for_the_same_seed() -> None:
    torch.manual_seed(5)
    module = MultiScaleDeformableAttention(24, 3, 2, 4)
    torch.manual_seed(5)
    layers = [nn.Linear(24, 48), nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)]
    for layer in layers[2:]:
        nn.init.xavier_uniform_(layer.weight)
    assert torch.equal(module.value_proj.weight, layers[2].weight)
    assert torch.equal(module.output_proj.weight, layers[3].weight)
    torch.testing.assert_close(module.sampling_offsets.bias.detach(), formula.expected_offsets(3, 2, 4))
    module.output_proj.bias.data.fill_(1)
    module.init_weights()
    assert not module.output_proj.bias.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("batch_first", [False, True], ids=["queries first", "batch first"])
def test_output_and_gradients_are_those_of_the_formula(
    batch_first: bool, coordinates: int, backend: tuple[str, str]
) -> None:
    made = MultiScaleDeformableAttention(8, H, L, P, dropout=0.0, batch_first=batch_first, attn_backend=backend[0])
    module = trained(made)
    query, position, identity = (draw(seed, B, Q, 8).requires_grad_() for seed in (20, 21, 22))
    value, references = draw(23, B, S, 8).requires_grad_(), draw(24, B, Q, L, coordinates)
    leaves = [query, position, identity, value, *module.parameters()]

    def turned(tensor: Tensor) -> Tensor:
        return tensor if batch_first else tensor.transpose(0, 1)

    out = module(
        query=turned(query),
        value=turned(value),
        identity=turned(identity),
        query_pos=turned(position),
        key_padding_mask=padding(),
        reference_points=references,
        spatial_shapes=LEVELS,
        level_start_index=STARTS,
    )
    expected = formula.attention(module, query + position, value, identity, references, padding())
    torch.testing.assert_close(turned(out), expected, rtol=1e-12, atol=1e-12)
    upstream = draw(25, B, Q, 8)
    ours = torch.autograd.grad(out, leaves, turned(upstream))
    for got, want in zip(ours, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_heads": 7}, "embed_dim: expected a multiple of num_heads=7, got 256"),
        ({"embed_dim": 0}, "embed_dim: expected at least 1, got 0"),
        ({"num_heads": 0}, "num_heads: expected at least 1, got 0"),
    ],
)
def test_wrong_arguments_of_the_constructor(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        MultiScaleDeformableAttention(**arguments)


def test_functions_are_the_operator() -> None:
    value, locations = draw(0, B, S, H, 4), draw(1, B, Q, H, L, P, 2)
    weights = draw(2, B, Q, H, L, P)
    expected = ms_deform_attn(value, SHAPES, locations, weights)
    assert torch.equal(multi_scale_deformable_attn_pytorch(value, LEVELS, locations, weights), expected)
    by_function = MultiScaleDeformableAttnFunction.apply(value, LEVELS, STARTS, locations, weights, 64)
    assert torch.equal(by_function, expected)

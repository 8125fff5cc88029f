"""mmcv's module on our operator: its names, initial values and results, without mmcv."""

import inspect
import pickle
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msdeform import MSDeformAttn, ms_deform_attn, use_backend
from msdeform.integrations.mmcv import (
    MultiScaleDeformableAttention,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
    register,
)
from tests.integrations import formula
from tests.integrations.formula import LEVELS, SHAPES, STARTS, B, H, L, P, Q, S, draw, padding, trained
from tests.kernels.backends import CPU

BACKENDS = [pytest.param(("reference", "cpu"), id="reference"), *CPU]


def made(**changes: Any) -> MultiScaleDeformableAttention:
    arguments = {"embed_dims": 8, "num_heads": H, "num_levels": L, "num_points": P, "dropout": 0.0} | changes
    return trained(MultiScaleDeformableAttention(**arguments))  # type: ignore[return-value]


def test_arguments_and_defaults_are_mmcvs() -> None:
    wanted = {
        "embed_dims": 256,
        "num_heads": 8,
        "num_levels": 4,
        "num_points": 4,
        "im2col_step": 64,
        "dropout": 0.1,
        "batch_first": False,
        "norm_cfg": None,
        "init_cfg": None,
        "value_proj_ratio": 1.0,
        "attn_backend": "auto",
    }
    parameters = inspect.signature(MultiScaleDeformableAttention).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == wanted
    assert parameters["attn_backend"].kind is inspect.Parameter.KEYWORD_ONLY
    module = MultiScaleDeformableAttention(256, 8, 4, 4, 32, 0.2, True, {"type": "LN"}, {"type": "Xavier"}, 0.5)
    assert (module.embed_dims, module.num_heads, module.num_levels, module.num_points) == (256, 8, 4, 4)
    assert (module.im2col_step, module.dropout.p, module.batch_first) == (32, 0.2, True)
    assert (module.norm_cfg, module.init_cfg) == ({"type": "LN"}, {"type": "Xavier"})
    order = ["query", "key", "value", "identity", "query_pos", "key_padding_mask", "reference_points"]
    called = list(inspect.signature(module.forward).parameters)
    assert called == [*order, "spatial_shapes", "level_start_index", "kwargs"]


@pytest.mark.parametrize(("ratio", "width"), [(1.0, 256), (0.5, 128), (2.0, 512)])
def test_names_and_shapes_of_weights_are_mmcvs(ratio: float, width: int) -> None:
    module = MultiScaleDeformableAttention(value_proj_ratio=ratio)
    shapes = [(name, tuple(weight.shape)) for name, weight in module.state_dict().items()]
    assert shapes == [
        ("sampling_offsets.weight", (256, 256)),
        ("sampling_offsets.bias", (256,)),
        ("attention_weights.weight", (128, 256)),
        ("attention_weights.bias", (128,)),
        ("value_proj.weight", (width, 256)),
        ("value_proj.bias", (width,)),
        ("output_proj.weight", (256, width)),
        ("output_proj.bias", (256,)),
    ]


def test_initial_values_are_mmcvs_for_the_same_seed() -> None:
    """Four linear layers are made in mmcv's order, then two are drawn anew: the same random numbers, in order."""
    torch.manual_seed(5)
    module = MultiScaleDeformableAttention(24, 3, 2, 4)
    torch.manual_seed(5)
    layers = [nn.Linear(24, 48), nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)]
    for layer in layers[2:]:
        nn.init.xavier_uniform_(layer.weight)
    assert torch.equal(module.value_proj.weight, layers[2].weight)
    assert torch.equal(module.output_proj.weight, layers[3].weight)
    torch.testing.assert_close(module.sampling_offsets.bias.detach(), formula.expected_offsets(3, 2, 4))
    for zero in (module.sampling_offsets.weight, *module.attention_weights.parameters(), module.value_proj.bias):
        assert not zero.any()
    before = {name: id(parameter) for name, parameter in module.named_parameters()}
    module.sampling_offsets.bias.data.zero_()
    module.init_weights()  # what mmdet calls after it has drawn every matrix anew
    torch.testing.assert_close(module.sampling_offsets.bias.detach(), formula.expected_offsets(3, 2, 4))
    assert {name: id(parameter) for name, parameter in module.named_parameters()} == before
    assert module.is_init  # mmengine does not call init_weights a second time


def test_initial_values_are_in_range_with_a_value_ratio() -> None:
    module = MultiScaleDeformableAttention(256, value_proj_ratio=0.5)
    for layer in (module.value_proj, module.output_proj):
        bound = (6 / (128 + 256)) ** 0.5  # xavier
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("batch_first", [False, True], ids=["queries first", "batch first"])
def test_output_and_gradients_are_those_of_the_formula(
    batch_first: bool, coordinates: int, masked: bool, ratio: float, backend: tuple[str, str]
) -> None:
    module = made(batch_first=batch_first, value_proj_ratio=ratio, attn_backend=backend[0])
    query, position, identity = (draw(seed, B, Q, 8).requires_grad_() for seed in (20, 21, 22))
    value, references = draw(23, B, S, 8).requires_grad_(), draw(24, B, Q, L, coordinates).requires_grad_()
    leaves = [query, position, identity, value, references, *module.parameters()]
    mask = padding() if masked else None

    def turned(tensor: Tensor) -> Tensor:
        return tensor if batch_first else tensor.transpose(0, 1)

    out = module(
        turned(query),
        None,
        turned(value),
        turned(identity),
        turned(position),
        mask,
        references,
        LEVELS,
        STARTS,
    )
    expected = formula.attention(module, query + position, value, identity, references, mask)
    torch.testing.assert_close(turned(out), expected, rtol=1e-12, atol=1e-12)
    upstream = draw(25, B, Q, 8)
    ours = torch.autograd.grad(out, leaves, turned(upstream))
    theirs = torch.autograd.grad(expected, leaves, upstream)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


def test_what_is_left_out() -> None:
    """Value and identity are the query before its position is added; the starts follow from the shapes."""
    module = made(batch_first=True, attn_backend="reference")
    query, position, references = draw(20, B, S, 8), draw(21, B, S, 8), draw(24, B, S, L, 2)
    out = module(query, query_pos=position, reference_points=references, spatial_shapes=LEVELS)
    whole = module(query, None, query, query, position, None, references, LEVELS, STARTS)
    assert torch.equal(out, whole)
    other = module(query, None, query + position, query + position, position, None, references, LEVELS, STARTS)
    assert not torch.allclose(out, other)
    value = draw(23, B, S, 8)
    arguments = {"value": value, "reference_points": references, "spatial_shapes": LEVELS}
    assert torch.equal(module(query, **arguments), module(query, identity=query, **arguments))


def test_what_layers_pass_besides_is_ignored() -> None:
    module = made(batch_first=True, attn_backend="reference")
    query, value, references = draw(20, B, Q, 8), draw(23, B, S, 8), draw(24, B, Q, L, 2)
    usual = {"value": value, "reference_points": references, "spatial_shapes": LEVELS}
    out = module(query, **usual)
    more = module(query, key=draw(1, B, S, 8), key_pos=None, attn_mask=None, valid_ratios=draw(2, B, L, 2), **usual)
    assert torch.equal(out, more)
    assert torch.equal(out, module(query, **usual | {"spatial_shapes": SHAPES}))


def test_references_of_size_one_serve_all_levels_and_images() -> None:
    module = made(batch_first=True, attn_backend="reference")
    query, value, references = draw(20, B, Q, 8), draw(23, B, S, 8), draw(24, 1, Q, 1, 4)
    one = module(query, value=value, reference_points=references, spatial_shapes=LEVELS)
    repeated = references.repeat(B, 1, L, 1)
    assert torch.equal(one, module(query, value=value, reference_points=repeated, spatial_shapes=LEVELS))


def test_dropout_is_before_the_identity() -> None:
    module = made(batch_first=True, dropout=0.5, attn_backend="reference")
    query, value, references = draw(20, B, Q, 8), draw(23, B, S, 8), draw(24, B, Q, L, 2)
    arguments = {"value": value, "reference_points": references, "spatial_shapes": LEVELS}
    whole = module.eval()(query, **arguments) - query
    torch.manual_seed(0)
    dropped = module.train()(query, **arguments) - query
    kept = dropped.abs() > 1e-9
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])


def test_residual_is_the_former_name_of_identity() -> None:
    module = made(batch_first=True, attn_backend="reference")
    query, value, identity = draw(20, B, Q, 8), draw(23, B, S, 8), draw(22, B, Q, 8)
    arguments = {"value": value, "reference_points": draw(24, B, Q, L, 2), "spatial_shapes": LEVELS}
    with pytest.warns(DeprecationWarning, match="residual: the argument is called identity now"):
        former = module(query, residual=identity, **arguments)
    assert torch.equal(former, module(query, identity=identity, **arguments))
    with pytest.raises(ValueError, match="residual: expected identity or residual, its former name, got both"):
        module(query, identity=identity, residual=identity, **arguments)


def test_half_precision_and_autocast() -> None:
    module = made(batch_first=True, attn_backend="reference").float()
    query, value, references = (x.float() for x in (draw(20, B, Q, 8), draw(23, B, S, 8), draw(24, B, Q, L, 2)))
    expected = module(query, value=value, reference_points=references, spatial_shapes=LEVELS)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(query, value=value, reference_points=references, spatial_shapes=LEVELS)
    torch.testing.assert_close(mixed.float(), expected, rtol=0.05, atol=0.05)
    halves = (x.bfloat16() for x in (query, value))
    query, value = halves
    out = module.bfloat16()(query, value=value, reference_points=references, spatial_shapes=LEVELS)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)


def test_it_is_recorded_and_changed_as_our_own_module_is() -> None:
    module = made(batch_first=True, attn_backend="reference")
    assert isinstance(module, MSDeformAttn)
    query, value, references = draw(20, B, Q, 8), draw(23, B, S, 8), draw(24, B, Q, L, 2)
    arguments = {"value": value, "reference_points": references, "spatial_shapes": LEVELS}
    usual = module(query, **arguments)
    module.editor = lambda call: call.attend(*call.sample())
    torch.testing.assert_close(module(query, **arguments), usual)
    module.editor = lambda call: call.attend(*call.sample()) * 0
    assert torch.equal(module(query, **arguments), module.output_proj.bias + query)


def test_the_backend_is_held_from_construction() -> None:
    assert MultiScaleDeformableAttention(attn_backend="reference").backend == "reference"
    with use_backend("reference"):
        module = MultiScaleDeformableAttention()
    assert module.backend == "reference"
    with pytest.raises(ValueError, match="backend: expected one of auto, .* got 'fast'"):
        MultiScaleDeformableAttention(attn_backend="fast")


def test_it_pickles() -> None:
    module = made(attn_backend="reference", init_cfg={"type": "Xavier"})
    again = pickle.loads(pickle.dumps(module))
    assert again.init_cfg == {"type": "Xavier"}
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_heads": 7}, "embed_dims: expected a multiple of num_heads=7, got 256"),
        ({"embed_dims": 0}, "embed_dims: expected at least 1, got 0"),
        ({"num_points": 0}, "num_points: expected at least 1, got 0"),
        ({"num_levels": -1}, "num_levels: expected at least 1, got -1"),
        (
            {"value_proj_ratio": 0.01},
            "value_proj_ratio: expected a width of values that is a multiple of num_heads=8, got 2 channels",
        ),
    ],
)
def test_wrong_arguments_of_the_constructor(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        MultiScaleDeformableAttention(**arguments)


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        ({"query": draw(0, Q, 8)}, ValueError, "query: expected (any, B, C) with C=8, got (5, 8)"),
        ({"value": draw(0, S, B, 4)}, ValueError, "value: expected (any, B, C) with C=8, got (16, 2, 4)"),
        ({"value": draw(0, S, 3, 8)}, ValueError, "value: expected B=2 like query, got B=3"),
        ({"identity": draw(0, B, Q, 8)}, ValueError, "identity: expected the shape of query, (5, 2, 8), got (2, 5, 8)"),
        (
            {"query_pos": draw(0, 4, 2, 8)},
            ValueError,
            "query_pos: expected the shape of query, (5, 2, 8), got (4, 2, 8)",
        ),
        ({"key_padding_mask": padding().T}, ValueError, "key_padding_mask: expected (B=2, S=16), got (16, 2)"),
        (
            {"key_padding_mask": padding().to(torch.uint8)},
            TypeError,
            "key_padding_mask: expected bool, True where padded, got torch.uint8",
        ),
        (
            {"reference_points": None},
            TypeError,
            "reference_points: expected a tensor (B=2, Q=5, L=2, 2 or 4), got None",
        ),
        (
            {"reference_points": draw(0, B, Q, L, 3)},
            ValueError,
            "reference_points: expected (B=2, Q=5, L=2, 2 or 4), got (2, 5, 2, 3)",
        ),
        (
            {"reference_points": draw(0, B, Q, 2)},
            ValueError,
            "reference_points: expected (B=2, Q=5, L=2, 2 or 4), got (2, 5, 2)",
        ),
        (
            {"spatial_shapes": None},
            TypeError,
            "spatial_shapes: expected an int tensor (L, 2) or pairs (h, w), got None",
        ),
        (
            {"spatial_shapes": torch.tensor([[3, 4], [2, 3]])},
            ValueError,
            "spatial_shapes: expected level sizes that sum to S=16 of value, got ((3, 4), (2, 3)), sum 18",
        ),
        (
            {"level_start_index": torch.tensor([0, 11])},
            ValueError,
            "level_start_index: expected [0, 12], which follow from spatial_shapes, got [0, 11]",
        ),
    ],
)
def test_wrong_arguments_of_a_call(wrong: dict[str, Any], error: type[Exception], sentence: str) -> None:
    right = {
        "query": draw(20, Q, B, 8),
        "value": draw(23, S, B, 8),
        "reference_points": draw(24, B, Q, L, 2),
        "spatial_shapes": LEVELS,
    }
    with pytest.raises(error) as caught:
        made(attn_backend="reference")(**right | wrong)
    assert str(caught.value) == sentence


def test_functions_are_the_operator() -> None:
    value, locations = draw(0, B, S, H, 4).requires_grad_(), draw(1, B, Q, H, L, P, 2)
    weights = draw(2, B, Q, H, L, P)
    expected = ms_deform_attn(value, SHAPES, locations, weights)
    assert torch.equal(multi_scale_deformable_attn_pytorch(value, LEVELS, locations, weights), expected)
    by_function = MultiScaleDeformableAttnFunction.apply(value, LEVELS, STARTS, locations, weights, 64)
    assert torch.equal(by_function, expected)
    assert by_function.requires_grad


class Registry:
    """What mmengine's and mmcv's registries have in common."""

    def __init__(self) -> None:
        self.module_dict: dict[str, type] = {}


@pytest.fixture(params=["MODELS", "ATTENTION"], ids=["mmcv 2", "mmcv 1"])
def fake_mmcv(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, Registry]:
    """mmcv, as far as `register` looks at it."""
    theirs = type("MultiScaleDeformableAttention", (), {})
    registry = Registry()
    registry.module_dict["MultiScaleDeformableAttention"] = theirs
    package, ops = ModuleType("mmcv"), ModuleType("mmcv.ops")
    module = ModuleType("mmcv.ops.multi_scale_deform_attn")
    vars(package)["ops"] = ops
    vars(ops).update(multi_scale_deform_attn=module, MultiScaleDeformableAttention=theirs)
    names = [theirs.__name__, "multi_scale_deformable_attn_pytorch", "MultiScaleDeformableAttnFunction"]
    vars(module).update(dict.fromkeys(names, theirs) | {request.param: registry})
    for one in (package, ops, module):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    return module, registry


def test_register_puts_our_module_where_theirs_is_found(fake_mmcv: tuple[ModuleType, Registry]) -> None:
    module, registry = fake_mmcv
    theirs = registry.module_dict["MultiScaleDeformableAttention"]
    registered = register()
    from mmcv.ops import MultiScaleDeformableAttention as found

    assert found is MultiScaleDeformableAttention
    assert registry.module_dict["MultiScaleDeformableAttention"] is MultiScaleDeformableAttention
    assert module.MultiScaleDeformableAttention is MultiScaleDeformableAttention
    # mmcv's own module looks up these two at every call
    assert module.multi_scale_deformable_attn_pytorch is multi_scale_deformable_attn_pytorch
    assert module.MultiScaleDeformableAttnFunction is MultiScaleDeformableAttnFunction
    registered.undo()
    from mmcv.ops import MultiScaleDeformableAttention as found

    assert found is theirs
    assert registry.module_dict == {"MultiScaleDeformableAttention": theirs}
    assert {value for name, value in vars(module).items() if name.lower().startswith("multi")} == {theirs}


def test_register_needs_mmcv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmcv", None)
    with pytest.raises(ImportError, match="^register: expected mmcv with its operators to be installed, got "):
        register()

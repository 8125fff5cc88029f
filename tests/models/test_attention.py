import math
import pickle

import pytest
import torch

from msdeform.kernels.registry import use_backend
from msdeform.models.attention import MSDeformAttn

SHAPES = ((3, 4), (2, 2))


def example(coordinates, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype)

    module = MSDeformAttn(8, 2, 2, 3, backend="reference").to(dtype)
    for parameter in module.parameters():
        parameter.data += draw(*parameter.shape) - 0.5
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[1, [3, 7, 11, 13]] = True
    return module, draw(2, 5, 8), draw(2, 5, 2, coordinates), draw(2, 16, 8), mask


def bilinear(level_map, x, y):
    """level_map[i][j] (D,) at pixel coordinates x, y, where pixel 0 has its centre at 0; zero outside."""
    h, w = len(level_map), len(level_map[0])
    total = torch.zeros_like(level_map[0][0])
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            if 0 <= i < h and 0 <= j < w:
                total = total + level_map[i][j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


def literal_attention(module, query, reference, inputs, mask):
    H, L, P = module.n_heads, module.n_levels, module.n_points
    value = module.value_proj(inputs)
    offsets = module.sampling_offsets(query).view(*query.shape[:2], H, L, P, 2)
    weights = (
        module.attention_weights(query).view(*query.shape[:2], H, L * P).softmax(-1).view(*query.shape[:2], H, L, P)
    )
    output = torch.zeros_like(query)
    width = module.d_model // H
    for b in range(query.shape[0]):
        for q in range(query.shape[1]):
            for head in range(H):
                columns = slice(head * width, (head + 1) * width)
                start = 0
                for level, (h, w) in enumerate(SHAPES):
                    pixel = [
                        [
                            torch.zeros(width, dtype=value.dtype)
                            if mask is not None and mask[b, start + i * w + j]
                            else value[b, start + i * w + j, columns]
                            for j in range(w)
                        ]
                        for i in range(h)
                    ]
                    start += h * w
                    for p in range(P):
                        ref = reference[b, q, level].tolist()
                        dx, dy = offsets[b, q, head, level, p].tolist()
                        if len(ref) == 2:
                            x, y = ref[0] + dx / w, ref[1] + dy / h
                        else:
                            x, y = ref[0] + dx / P * ref[2] * 0.5, ref[1] + dy / P * ref[3] * 0.5
                        sample = bilinear(pixel, x * w - 0.5, y * h - 0.5)
                        output[b, q, columns] += weights[b, q, head, level, p] * sample
    return module.output_proj(output)


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_forward_matches_the_equation(coordinates, masked):
    module, query, reference, inputs, mask = example(coordinates)
    mask = mask if masked else None
    with torch.no_grad():
        expected = literal_attention(module, query, reference, inputs, mask)
        output = module(query, reference, inputs, SHAPES, input_padding_mask=mask)
    torch.testing.assert_close(output, expected)


def test_padding_is_not_read():
    module, query, reference, inputs, mask = example(2)
    other = torch.where(mask[..., None], 1e6, inputs)
    with torch.no_grad():
        same = module(query, reference, inputs, SHAPES, None, mask), module(query, reference, other, SHAPES, None, mask)
        torch.testing.assert_close(*same, rtol=0, atol=0)
        assert not torch.allclose(module(query, reference, other, SHAPES), same[0])


def test_shapes_may_be_a_tensor():
    module, query, reference, inputs, _ = example(2)
    shapes, start = torch.tensor(SHAPES), torch.tensor([0, 12])
    torch.testing.assert_close(
        module(query, reference, inputs, shapes, start), module(query, reference, inputs, SHAPES), rtol=0, atol=0
    )


def test_initialisation():
    module = MSDeformAttn()
    assert not module.sampling_offsets.weight.any()
    assert not module.attention_weights.weight.any()
    for layer in (module.attention_weights, module.value_proj, module.output_proj):
        assert not layer.bias.any()
    bound = math.sqrt(6 / 512)
    for layer in (module.value_proj, module.output_proj):
        assert bound * 0.99 < layer.weight.abs().max() <= bound
    bias = module.sampling_offsets.bias.view(8, 4, 4, 2)
    # eight heads look along the axes and the diagonals, one more pixel with every point
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(directions):
        for level in range(4):
            for point in range(4):
                expected = torch.tensor(direction) * (point + 1.0)
                torch.testing.assert_close(bias[head, level, point], expected, atol=1e-5, rtol=0)


def test_names_are_the_official_ones():
    shapes = {name: tuple(tensor.shape) for name, tensor in MSDeformAttn(32, 2, 4, 3).state_dict().items()}
    assert shapes == {
        "sampling_offsets.weight": (48, 32),
        "sampling_offsets.bias": (48,),
        "attention_weights.weight": (24, 32),
        "attention_weights.bias": (24,),
        "value_proj.weight": (32, 32),
        "value_proj.bias": (32,),
        "output_proj.weight": (32, 32),
        "output_proj.bias": (32,),
    }


def test_the_backend_is_held_from_construction():
    assert MSDeformAttn(backend="reference").backend == "reference"
    with use_backend("reference"):
        assert MSDeformAttn().backend == "reference"
        assert MSDeformAttn(backend="triton").backend == "triton"
    assert MSDeformAttn().backend == "auto"
    module, query, reference, inputs, _ = example(2)
    with use_backend("cuda"):  # which could not run on a CPU
        module(query, reference, inputs, SHAPES)
    with pytest.raises(ValueError, match=r"backend: expected one of auto, .*got 'tritn'"):
        MSDeformAttn(backend="tritn")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((30, 4, 8), "d_model: expected a multiple of n_heads=8, got 30"),
        ((32, 0, 8), "n_levels: expected at least 1, got 0"),
        ((32, 4, 0), "n_heads: expected at least 1, got 0"),
        ((32, 4, 8, 0), "n_points: expected at least 1, got 0"),
    ],
)
def test_bad_construction(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        MSDeformAttn(*arguments)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"query": (2, 5, 7)}, r"query: expected \(B, any, d_model=8\), got \(2, 5, 7\)"),
        ({"input_flatten": (2, 16)}, r"input_flatten: expected \(B, any, d_model=8\), got \(2, 16\)"),
        ({"input_flatten": (3, 16, 8)}, "input_flatten: expected B=2 like query, got B=3"),
        ({"reference_points": (2, 5, 2, 3)}, r"reference_points: .* 2 or 4\), got \(2, 5, 2, 3\)"),
        ({"reference_points": (2, 5, 3, 2)}, r"reference_points: expected \(B=2, Q=5, L=2, .*got \(2, 5, 3, 2\)"),
        ({"reference_points": (2, 4, 2, 2)}, r"reference_points: expected \(B=2, Q=5, .*got \(2, 4, 2, 2\)"),
        ({"input_padding_mask": (2, 15)}, r"input_padding_mask: expected \(B=2, S=16\), got \(2, 15\)"),
        ({"input_flatten": (2, 15, 8)}, "spatial_shapes: .*15"),
    ],
)
def test_bad_shapes(change, sentence):
    shapes = {"query": (2, 5, 8), "reference_points": (2, 5, 2, 2), "input_flatten": (2, 16, 8)} | change
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=sentence):
        MSDeformAttn(8, 2, 2, 3)(**tensors, input_spatial_shapes=SHAPES)


@pytest.mark.parametrize("size", [1.5, "8", None, True, float("nan"), [8]])
def test_sizes_that_are_no_whole_numbers_are_refused(size):
    for place, name in enumerate(("d_model", "n_levels", "n_heads", "n_points")):
        with pytest.raises(TypeError, match=f"^{name}: expected a whole number, got "):
            MSDeformAttn(*(size if at == place else 8 for at in range(4)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"query": 1.0}, "^query: expected a tensor, got float$"),
        ({"reference_points": [0.5]}, "^reference_points: expected a tensor, got list$"),
        ({"input_padding_mask": "mask"}, "^input_padding_mask: expected a tensor, got str$"),
        ({"query": torch.zeros(2, 5, 8).long()}, "^query: expected float64, float32, float16 or bfloat16, got torch.i"),
        ({"input_flatten": torch.zeros(2, 16, 8).cfloat()}, "^input_flatten: expected float64, .*got torch.complex64$"),
    ],
)
def test_what_is_no_tensor_of_numbers_is_refused(change, sentence):
    shapes = {"query": (2, 5, 8), "reference_points": (2, 5, 2, 2), "input_flatten": (2, 16, 8)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()} | change
    with pytest.raises(TypeError, match=sentence):
        MSDeformAttn(8, 2, 2, 3)(**tensors, input_spatial_shapes=SHAPES)


def test_a_mask_that_is_not_bool_is_refused():
    tensors = {"query": torch.zeros(2, 5, 8), "reference_points": torch.zeros(2, 5, 2, 2)}
    with pytest.raises(TypeError, match=r"input_padding_mask: expected bool.*got torch.float32"):
        MSDeformAttn(8, 2, 2, 3)(
            **tensors,
            input_flatten=torch.zeros(2, 16, 8),
            input_spatial_shapes=SHAPES,
            input_padding_mask=torch.zeros(2, 16),
        )


@pytest.mark.parametrize("coordinates", [2, 4])
def test_an_editor_stands_in_the_operators_place_while_it_is_set(coordinates):
    module, query, reference, inputs, mask = example(coordinates)
    arguments = (query, reference, inputs, torch.tensor(SHAPES), None, mask)
    expected, state = module(*arguments), pickle.dumps(module)
    calls = []

    def editor(call):
        calls.append(call)
        locations, weights = call.sample()
        return call.attend(locations, weights * len(calls))

    module.editor = editor
    torch.testing.assert_close(module(*arguments), expected)
    assert calls[0].shapes == SHAPES
    bias = module.output_proj.bias
    torch.testing.assert_close(module(*arguments) - bias, 2 * (expected - bias))
    assert module.state_dict().keys() == pickle.loads(state).state_dict().keys()
    del module.editor
    assert torch.equal(module(*arguments), expected)
    assert (len(calls), pickle.dumps(module)) == (2, state)
    assert torch.equal(
        torch.compile(module, backend="eager", fullgraph=True)(*arguments[:3], SHAPES, None, mask), expected
    )

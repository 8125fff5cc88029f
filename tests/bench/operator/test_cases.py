"""The benchmark's inputs: sizes by real models' strides, both functions sampling the same points, kinks marked."""

import pytest
import torch

from msdeform import fused_ms_deform_attn, ms_deform_attn
from msdeform.bench.operator import cases
from msdeform.bench.operator.cases import CASES, FULL, REDUCED, Case, find, levels
from msdeform.bench.operator.inputs import make_inputs, on_kinks, pixel_grid

CPU = torch.device("cpu")
UNIFORM = Case("uniform", ((8, 10), (4, 5)), B=1, H=2, D=4, locations="uniform")


def test_published_sizes() -> None:
    encoder = CASES["encoder-800x1066-b2"]
    assert encoder.sizes == ((100, 134), (50, 67), (25, 34), (13, 17))
    assert encoder.S == encoder.queries == 17_821
    assert [CASES[f"encoder-800x1066-b{B}"].B for B in (1, 2, 4)] == [1, 2, 4]
    assert CASES["encoder-800x1333"].sizes[0] == (100, 167)
    assert CASES["decoder-800x1066"].queries == 300
    assert CASES["encoder-single-scale"].sizes == ((25, 34),)
    assert CASES["encoder-dc5"].sizes == ((50, 67),)


def test_other_models_sizes() -> None:
    dino, queries = CASES["dino-encoder"], CASES["dino-decoder"]
    assert dino.sizes == ((200, 267), (100, 134), (50, 67), (25, 34), (13, 17))
    assert (queries.L, queries.queries) == (5, 900)
    assert CASES["rt-detr-decoder"].sizes == ((80, 80), (40, 40), (20, 20))
    assert CASES["mask2former-pixel-decoder"].S == 128**2 + 64**2 + 32**2
    assert CASES["mask2former-pixel-decoder"].L == 3
    bev = CASES["bevformer-like"]
    assert (bev.queries, bev.P, bev.sizes[0]) == (40_000, 8, (116, 200))
    assert set(FULL).isdisjoint(REDUCED)


def test_an_unknown_case_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no case is called 'dino-encodr'; did you mean dino-encoder"):
        find("dino-encodr")
    with pytest.raises(ValueError, match="no case is called 'bev'; did you mean bevformer-like"):
        find("bev")
    with pytest.raises(ValueError, match="no case is called 'qqqq'; there are encoder-800x1066-b2, "):
        find("qqqq")
    assert find("odd", "uniform").locations == "uniform"


def test_levels_round_up() -> None:
    assert levels(65, 64, 8, 64, 128) == ((9, 8), (2, 1), (1, 1))


@pytest.mark.parametrize("case", [*map(find, REDUCED), UNIFORM])
def test_both_functions_sample_the_same_points(case: Case) -> None:
    inputs = make_inputs(case, torch.float64, CPU, seed=0)
    assert inputs.value.shape == (case.B, case.S, case.H, case.D)
    plain = ms_deform_attn(inputs.value, case.sizes, inputs.sampling_locations, inputs.attention_weights)
    fused = fused_ms_deform_attn(
        inputs.value, case.sizes, inputs.reference_points, inputs.sampling_offsets, inputs.attention_logits
    )
    assert plain.shape == inputs.grad_output.shape
    torch.testing.assert_close(plain, fused, atol=1e-4, rtol=0)  # float32 locations


def test_seeds_and_dtypes() -> None:
    case = find("decoder-reduced")
    first, again, other = (make_inputs(case, torch.bfloat16, CPU, seed) for seed in (0, 0, 1))
    assert torch.equal(first.value, again.value)
    assert not torch.equal(first.value, other.value)
    assert first.sampling_locations.dtype is torch.float32
    assert first.attention_weights.dtype is first.sampling_offsets.dtype is torch.bfloat16


def test_points_lie_a_few_pixels_around_their_reference() -> None:
    inputs = make_inputs(find("encoder-reduced"), torch.float32, CPU, seed=0)
    distance = inputs.sampling_offsets.norm(dim=-1).mean((0, 1, 2, 3))
    torch.testing.assert_close(distance, torch.tensor([1.0, 2.0, 3.0, 4.0]), atol=0.05, rtol=0)


def test_uniform_points_fill_the_image_and_no_more() -> None:
    locations = make_inputs(UNIFORM, torch.float32, CPU, seed=0).sampling_locations
    assert locations.min() > -1e-5
    assert locations.max() < 1 + 1e-5
    assert locations.mean() == pytest.approx(0.5, abs=0.02)


def test_pixel_grid() -> None:
    centres, extents = pixel_grid(((2, 4), (1, 1)))
    assert centres.tolist()[:2] == [[0.125, 0.25], [0.375, 0.25]]
    assert centres.tolist()[-1] == [0.5, 0.5]
    assert extents.tolist()[0] == [0.25, 0.5]


def test_kinks_are_few_and_found() -> None:
    case = find("encoder-reduced")
    locations = make_inputs(case, torch.bfloat16, CPU, seed=0).sampling_locations
    assert on_kinks(case, locations).float().mean() < 0.01
    locations[0, 3, 1, 2, 0, 0] = 1.5 / case.sizes[2][1]  # the centre of pixel 1
    assert on_kinks(case, locations)[0, 3, 1, 2, 0, 0]


def test_encoder_queries_lie_within_a_quarter_of_a_pixel_of_their_centres() -> None:
    case = find("encoder-reduced")
    centres, extents = pixel_grid(case.sizes)
    references = make_inputs(case, torch.float32, CPU, seed=0).reference_points[0, :, 0]
    off = ((references - centres) / extents).abs()
    assert 0.2 < off.max() < 0.2501
    assert off.mean() == pytest.approx(0.125, abs=0.02)  # on the centres themselves, whole offsets would meet kinks


def test_every_case_has_its_own_name() -> None:
    assert all(name == case.name for name, case in CASES.items())
    assert {*cases.SMALL, *cases.REDUCED, *cases.FULL, *cases.AREAS} == set(CASES)
    assert set(cases.ON_A_CPU) < set(CASES)
    sides = [CASES[name].sizes[0] for name in cases.AREAS]
    assert sides == [(25, 34), (50, 67), (100, 134), (150, 200)]

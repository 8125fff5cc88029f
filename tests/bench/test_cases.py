"""The benchmark's inputs: the published sizes, both functions sampling the same points, kinks marked."""

import pytest
import torch

from msdeform import fused_ms_deform_attn, ms_deform_attn
from msdeform.bench.cases import FULL, QUICK, Case, make_inputs, on_kinks, pixel_grid

CPU = torch.device("cpu")


def test_published_sizes() -> None:
    encoder, _, decoder = FULL
    assert encoder.S == encoder.queries == 17_821
    assert decoder.queries == 300


@pytest.mark.parametrize("case", [*QUICK, Case("uniform", ((8, 10), (4, 5)), B=2, H=2, D=4, uniform=True)])
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
    case = QUICK[1]
    first, again, other = (make_inputs(case, torch.bfloat16, CPU, seed) for seed in (0, 0, 1))
    assert torch.equal(first.value, again.value)
    assert not torch.equal(first.value, other.value)
    assert first.sampling_locations.dtype is torch.float32
    assert first.attention_weights.dtype is first.sampling_offsets.dtype is torch.bfloat16


def test_points_lie_a_few_pixels_around_their_reference() -> None:
    case = QUICK[0]
    inputs = make_inputs(case, torch.float32, CPU, seed=0)
    distance = inputs.sampling_offsets.norm(dim=-1).mean((0, 1, 2, 3))
    torch.testing.assert_close(distance, torch.tensor([1.0, 2.0, 3.0, 4.0]), atol=0.05, rtol=0)


def test_uniform_points_fill_the_image_and_no_more() -> None:
    case = Case("uniform", ((8, 10), (4, 5)), B=1, H=2, D=4, uniform=True)
    locations = make_inputs(case, torch.float32, CPU, seed=0).sampling_locations
    assert locations.min() > -1e-5
    assert locations.max() < 1 + 1e-5
    assert locations.mean() == pytest.approx(0.5, abs=0.02)


def test_pixel_grid() -> None:
    centres, extents = pixel_grid(((2, 4), (1, 1)))
    assert centres.tolist()[:2] == [[0.125, 0.25], [0.375, 0.25]]
    assert centres.tolist()[-1] == [0.5, 0.5]
    assert extents.tolist()[0] == [0.25, 0.5]


def test_kinks_are_few_and_found() -> None:
    case = QUICK[0]
    locations = make_inputs(case, torch.bfloat16, CPU, seed=0).sampling_locations
    assert on_kinks(case, locations).float().mean() < 0.01
    locations[0, 3, 1, 2, 0, 0] = 2.5 / case.sizes[2][1]  # the centre of pixel 2
    assert on_kinks(case, locations)[0, 3, 1, 2, 0, 0]


def test_encoder_queries_lie_within_a_quarter_of_a_pixel_of_their_centres() -> None:
    case = QUICK[0]
    centres, extents = pixel_grid(case.sizes)
    references = make_inputs(case, torch.float32, CPU, seed=0).reference_points[0, :, 0]
    off = ((references - centres) / extents).abs()
    assert 0.2 < off.max() < 0.2501
    assert off.mean() == pytest.approx(0.125, abs=0.02)  # on the centres themselves, whole offsets would meet kinks

"""Floors: the arithmetic of bytes and instructions, on invented rows."""

import pytest
import torch

from msdeform.bench.operator import bounds
from msdeform.bench.operator.cases import CASES, Case
from msdeform.bench.operator.inputs import make_inputs
from msdeform.bench.static import counts

CPU = torch.device("cpu")


def moved(case: Case, dtype: torch.dtype, direction: str, *, fused: bool) -> int:
    return bounds.compulsory_bytes(case, make_inputs(case, dtype, CPU, 0), fused=fused, direction=direction)


def test_the_published_encoder_moves_what_was_worked_out_by_hand() -> None:
    case = CASES["encoder-800x1066-b2"]
    # value and output of 36.5 MB each, locations of 36.5, weights of 18.2
    forward = moved(case, torch.float32, "forward", fused=False)
    assert forward == 4 * 2 * 17821 * 8 * (32 + 32 + 2 * 16 + 16)
    assert forward / 1e6 == pytest.approx(127.7, abs=0.1)
    # and back: output's gradient in, value's out, both for locations and weights
    backward = moved(case, torch.float32, "backward", fused=False)
    assert backward / 1e6 == pytest.approx(219, abs=1)
    assert moved(case, torch.float32, "both", fused=False) == forward + backward


def test_a_decoder_reads_no_more_of_value_than_it_samples() -> None:
    case = Case("few", ((50, 50),), B=1, Q=3, H=2, D=4, P=1)
    corners, small, output = 4 * 3 * 2 * 4 * 4, 3 * 2 * 3 * 4, 3 * 8 * 4
    assert moved(case, torch.float32, "forward", fused=False) == corners + small + output
    # the gradient of value is written whole
    value = 2500 * 2 * 4 * 4
    assert moved(case, torch.float32, "backward", fused=False) == corners + value + 2 * small + output


def test_sixteen_bits_move_half_but_for_locations() -> None:
    case = Case("all", ((4, 4),), B=1, H=2, D=4, P=2)
    wide, half = (moved(case, dtype, "forward", fused=False) for dtype in (torch.float32, torch.bfloat16))
    locations = 16 * 2 * 2 * 2 * 4
    assert half == (wide - locations) // 2 + locations


def test_floors() -> None:
    # a call of 100 us that moves 200 MB where a copy does 4 TB/s, and issues 46.4 M instructions of 928 G a second
    row = bounds.floors(100.0, 200_000_000, 4e12, 46.4e6, 928e9)
    assert row["traffic_floor_us"] == pytest.approx(50.0)
    assert row["bytes_per_second"] == pytest.approx(2e12)
    assert row["of_copy_bandwidth"] == pytest.approx(0.5)
    assert row["issue_floor_us"] == pytest.approx(50.0)
    assert row["of_issue_floor"] == pytest.approx(0.5)
    assert bounds.floors(100.0, 200_000_000, 4e12, 50e6, 928e9)["bound_by"] == "instruction issue"
    assert bounds.floors(100.0, 220_000_000, 4e12, 46.4e6, 928e9)["bound_by"] == "traffic"


def test_an_unknown_instruction_count_bounds_nothing() -> None:
    row = bounds.floors(100.0, 1, 1.0, None, 1.0)
    assert row["issue_floor_us"] is row["of_issue_floor"] is row["bound_by"] is None
    assert set(row) | {"instructions_per_query_and_head"} == set(bounds.FIELDS)


class Device:
    """What torch says of an H200."""

    major, minor, multi_processor_count, clock_rate = 9, 0, 132, 1_980_000


@pytest.mark.parametrize("known", [True, False])
def test_a_row_of_a_gpu(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Device)
    monkeypatch.setattr(counts, "issued_by", lambda *_: 200.0 if known else None)
    case = CASES["encoder-800x1066-b2"]
    inputs = make_inputs(case, torch.float32, CPU, 0)
    row = {"backend": "triton", "direction": "forward", "dtype": "float32", "median_us": 130.0}
    found = bounds.of_row(row, case, inputs, False, 4.3e12, CPU)
    assert found["traffic_floor_us"] == pytest.approx(29.7, abs=0.1)
    if known:
        # 200 * 285,136 (query, head) over 132 * 4 * 1.98 GHz
        assert found["issue_floor_us"] == pytest.approx(54.5, abs=0.1)
        assert found["bound_by"] == "instruction issue"
    else:
        assert found["issue_floor_us"] is found["bound_by"] is None

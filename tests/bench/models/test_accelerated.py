"""``msdeform bench accelerate``: rows of whole models, and a refusal of a speed where the operator is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform import cli
from msdeform.bench.models import accelerated
from msdeform.bench.options import ACCELERATED_MODELS, AccelerateOptions
from msdeform.integrations.forms import OurOperator


def measured(**changes: Any) -> dict[str, Any]:
    given = {"name": "rt_detr_v2", "direction": "forward", "device": "cpu", "seconds": 0.01, "quick": True}
    return accelerated.measured(**(given | changes))


@pytest.mark.parametrize("direction", ["forward", "attention", "training"])
def test_a_row_has_times_and_their_ratios(direction: str) -> None:
    row = measured(direction=direction)
    assert row["failure"] is None
    assert (row["model"], row["pass"], row["image"], row["places"]) == ("rt_detr_v2", direction, [128, 128], 6)
    assert 0 < row["difference"] < 1e-5
    assert ("fused_us" in row) == (direction != "training")
    for level in ("operator", "fused") if "fused_us" in row else ("operator",):
        ratio, low, high = row[f"{level}_faster"]
        assert low <= ratio <= high
        assert row[f"{level}_us"] > 0
    head, line = accelerated.accelerated_table([row])
    assert len(head) == len(line)
    assert line[:4] == ("rt_detr_v2", direction, "128x128", "6")
    assert (line[head.index("fused, ms")] == "") == (direction == "training")


def test_a_wrong_operator_gets_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = OurOperator.__call__

    def wrong(self: OurOperator, *args: Any) -> torch.Tensor:
        return usual(self, *args) * (1 if self.backend == "reference" else 1.01)

    monkeypatch.setattr(OurOperator, "__call__", wrong)
    row = measured()
    assert "theirs_us" not in row
    assert row["failure"].startswith("ValueError: the operator differs from the reference by 1.0e-02")


def test_every_model_of_the_options_is_known() -> None:
    assert tuple(accelerated.MODELS) == ACCELERATED_MODELS
    assert AccelerateOptions().passes == ("attention", "forward", "training")


@pytest.mark.slow  # minutes: eighteen processes, each with a whole model
@pytest.mark.timeout(1800)
def test_the_command_measures_every_model(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert cli.main(["bench", "accelerate", "--quick", "--seconds", "0.1", "--out", str(file)]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["failure"] for row in rows] == [None] * 18

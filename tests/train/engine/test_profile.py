"""A few steps under the profiler: its table, and its trace."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from msdeform.train.config.options import TrainOptions
from msdeform.train.engine.run import train

Change = Callable[..., TrainOptions]


def test_profile_writes_a_trace_and_prints_a_table(
    changed: Change, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = train(changed(out=tmp_path / "run", profile=1, progress=True))
    with gzip.open(out / "trace.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"stage: backward", "stage: loss"} <= names
    said = capfd.readouterr().err
    assert re.search(r"^backward +\d+\.\d +\d+\.\d%$", said, re.MULTILINE)
    assert "aten::" in said
    assert f"trace, for ui.perfetto.dev: {out / 'trace.json.gz'}" in said
    assert not list(out.glob("checkpoint-*"))  # a run that is profiled is not trained


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_too_short_to_profile_is_told(changed: Change, tmp_path: Path, steps: int) -> None:
    with pytest.raises(ValueError, match=f"profile: expected a run of more than 3 steps, which warm up, got {steps}"):
        train(changed(out=tmp_path / "run", profile=1, max_steps=steps))

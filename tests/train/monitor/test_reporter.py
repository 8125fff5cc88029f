"""What a run says as it starts, and how many evaluations it counts with."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from msdeform.train.config.options import TrainOptions
from msdeform.train.engine.run import _validation
from msdeform.train.engine.state import Training
from msdeform.train.monitor.reporter import Reporter

Change = Callable[..., TrainOptions]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "images keep their shape: at most 64 pixels on the longer side; padded only to the largest of a batch"),
        ({"image_size": None}, "shape: 800 pixels on the shorter side, at most 1333 pixels on the longer side; padded"),
        ({"bucket": True}, "padded only to the largest of a batch of like shape (--bucket)"),
        ({"square": True}, "images are stretched to 64 x 64 pixels, as this model's were (--square)"),
    ],
)
def test_a_run_says_what_becomes_of_rectangular_images(
    changed: Change, tmp_path: Path, capfd: pytest.CaptureFixture[str], fields: dict[str, object], sentence: str
) -> None:
    training = Training(changed(progress=True, **fields))
    with ExitStack() as stack:
        Reporter(training, _validation(training), tmp_path, stack).start()
    assert sentence in capfd.readouterr().err


@pytest.mark.parametrize(
    ("fields", "after"),
    # four steps an epoch; an evaluation right after the step counts
    [
        ({"epochs": 3}, {1: 3, 4: 3, 5: 2, 8: 2, 9: 1, 12: 1}),
        ({"epochs": 3, "eval_every": 2}, {1: 2, 8: 2, 9: 1, 12: 1}),
        ({"epochs": 3, "max_steps": 6}, {1: 2, 4: 2, 5: 1, 6: 1}),
    ],
)
def test_the_evaluations_to_come_are_counted(
    changed: Change, tmp_path: Path, fields: dict[str, int], after: dict[int, int]
) -> None:
    training = Training(changed(**fields))
    with ExitStack() as stack:
        report = Reporter(training, _validation(training), tmp_path, stack)
        assert {step: report._evaluations_after(step) for step in after} == after

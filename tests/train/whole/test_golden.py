"""The curve that training must take: kept in the repository, and had again however the work is divided."""

import dataclasses
import json
from pathlib import Path

import pytest

from msdeform.kernels.diagnostics.options import AttnBackend
from msdeform.train.config.options import Source
from msdeform.train.engine.run import run_steps, train
from msdeform.train.monitor.run_log import read_log
from tests.train.processes import run_processes
from tests.train.whole.golden import BOUND, SAME_MACHINE, STEPS, golden_losses, golden_options, start_weights


def logged(folder: Path) -> list[float]:
    return [event["loss"] for event in read_log(folder / "log.jsonl") if event["event"] == "step"]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_backend_takes_the_golden_curve(backend: AttnBackend, tmp_path: Path) -> None:
    losses = run_steps(golden_options(tmp_path, backend), STEPS)
    assert losses == pytest.approx(golden_losses(), rel=BOUND)
    assert min(losses) < losses[0] - 1  # it learns


def test_twenty_steps_on_real_images_have_the_same_losses(coco_mini: Path, tmp_path: Path) -> None:
    losses = []
    for backend in ("reference", "cpu"):
        options = golden_options(tmp_path, backend)
        start = start_weights(tmp_path / "coco.pt", 80)
        real = dataclasses.replace(
            options,
            source=Source(data=coco_mini),
            model=dataclasses.replace(options.model, init_from=start),
            batch=dataclasses.replace(options.batch, total_batch_size=1, max_steps=20),
        )
        losses.append(run_steps(real, 20))
    assert losses[1] == pytest.approx(losses[0], rel=SAME_MACHINE)


def test_the_golden_curve_does_not_depend_on_how_the_work_is_divided(tmp_path: Path) -> None:
    options = golden_options(tmp_path)
    divided = dataclasses.replace(
        options,
        batch=dataclasses.replace(options.batch, batch_size=1),
        compute=dataclasses.replace(options.compute, checkpointing="all", channels_last=True),
    )
    assert run_steps(divided, STEPS) == pytest.approx(golden_losses(), rel=BOUND)
    ended = run_processes(2, train, divided)
    assert [end.code for end in ended] == [0, 0], [end.error for end in ended]
    assert logged(tmp_path / "run") == pytest.approx(golden_losses(), rel=BOUND)


def test_the_golden_curve_tells_a_learning_rate_a_thousandth_off(tmp_path: Path) -> None:
    options = golden_options(tmp_path)
    off = dataclasses.replace(options, optim=dataclasses.replace(options.optim, lr=1.001e-3))
    assert run_steps(off, STEPS) != pytest.approx(golden_losses(), rel=BOUND)


def test_the_golden_file_is_as_its_command_writes_it() -> None:
    content = json.loads(Path(__file__).with_name("golden.json").read_text())
    assert content.keys() == {"torch", "losses"}
    assert len(content["losses"]) == STEPS

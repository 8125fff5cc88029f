"""The run on the terminal: what is shown, how often, and nothing where nothing is to be."""

import io
import re
import sys

import pytest

from msdeform.train.monitor.display import Display, loss_words, peak_memory_mb

LOSSES = {"loss": 7.123, "loss_ce": 1.0, "loss_bbox": 0.5, "loss_giou": 1.25, "loss_ce_0": 3.0, "class_error": 9.0}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_file_gets_a_line_of_everything_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Display(0, 1000, clock=clock)
    for step in range(1, 1001):
        lines.step(step, "1/2", LOSSES, 97.33, data_share=0.4)
        clock.now += 0.5
    shown = capsys.readouterr().err.splitlines()
    # pauses of 5, 10, 20, 40 seconds, then of a minute, two steps a second; and the last step
    assert [int(re.findall(r"step (\d+)/1000", line)[0]) for line in shown] == [
        *(1, 11, 31, 71, 151, 271, 391, 511, 631, 751, 871, 991, 1000)
    ]
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  epoch 1/2  step 151/1000  loss 7\.12  class 1\.000  L1 0\.500  GIoU 1\.250  "
        r"97\.3 images/s  \d+\.\d GiB  data 40%  ETA 0:07:0[45]",
        shown[4],
    )
    assert shown[0].endswith("ETA -")
    assert shown[-1].endswith("ETA 0:00:00")


def test_data_is_spoken_of_where_it_is_slow(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Display(0, 1, clock=Clock())
    for share in (0.2, 0.0, 0.21):
        lines.step(1, "1/1", LOSSES, 1.0, data_share=share)
    assert [line.count("data") for line in capsys.readouterr().err.splitlines()] == [0, 0, 1]


def test_the_time_left_counts_pauses_but_not_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Display(0, 100, clock=clock)
    clock.now = 500.0  # compiling
    lines.step(1, "1/1", LOSSES, 1.0)
    clock.now += 60.0  # of which an evaluation takes most
    lines.step(11, "1/1", LOSSES, 1.0)
    assert capsys.readouterr().err.splitlines()[-1].endswith("ETA 0:08:54")


def test_the_time_left_has_the_evaluations_as_measured(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Display(0, 100, clock=clock, evaluations=lambda step: (100 - step) // 10 + 1)

    def left(step: int) -> str:
        lines._due = 0  # a line of every step
        lines.step(step, "1/1", LOSSES, 1.0)
        return capsys.readouterr().err.strip().partition("ETA ")[2]

    assert left(1) == "-"
    clock.now = 50.0
    lines.expect(2.0)
    assert left(1) == "0:03:18 + evaluations"  # as estimated
    clock.now = 59.0
    assert left(10) == "0:09:50 + evaluations"  # of 59 / 9 s a step
    lines.evaluated(30.0)
    clock.now += 31.0
    # 60 s of 10 steps, and 9 evaluations
    assert left(11) == "0:13:24"
    lines.evaluated(10.0)
    clock.now += 10.0
    assert left(11) == "0:11:54"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_the_numbers_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    out, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", out)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    with Display(0, 40, clock=clock) as bar:
        bar.say("[a] line :smile:")
        for step in (1, 11):
            bar.step(step, "3/9", LOSSES, 97.33, data_share=0.1)
            clock.now += 10.0
        bar.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    last = [line.strip() for line in text.splitlines() if line.strip()][-2:]
    assert last[0].startswith("epoch 3/9")
    assert "11/40" in last[0]
    assert last[0].endswith("ETA 0:00:29")
    assert re.fullmatch(r"loss 7.12  class 1.000  L1 0.500  GIoU 1.250  97.3 images/s  \d+\.\d GiB", last[1])
    assert "[a] line :smile:" in text


def test_a_detector_with_other_losses_shows_those() -> None:
    assert loss_words({"loss": 2.0, "loss_objectness": 0.5, "loss_box_reg": 1.0, "grad_norm": 3.0}) == [
        *("loss 2.00", "objectness 0.500", "box_reg 1.000"),
    ]


def test_what_is_not_shown_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(0, 10, shown=False) as bar:
        bar.step(10, "1/1", LOSSES, 1.0, data_share=0.9)
        bar.say("a line")
    assert capsys.readouterr() == ("", "")


def test_a_file_is_no_terminal_even_where_colours_are_forced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Display(0, 10) as bar:
        bar.step(10, "1/1", LOSSES, 1.0)
        bar.say("a line")
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert shown.splitlines()[1] == "a line"


@pytest.mark.parametrize(("kind", "moves"), [("dumb", False), ("xterm", True)])
def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, kind: str, moves: bool) -> None:
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr(sys, "stderr", out := Terminal())
    with Display(0, 10) as bar:
        assert bar.moves is moves
        bar.step(10, "1/1", LOSSES, 1.0)
    assert ("step 10/10" in out.getvalue()) is not moves


def test_memory_is_that_of_this_process() -> None:
    peak = peak_memory_mb()
    assert peak is not None
    assert 50 < peak < 100_000  # torch alone takes a few hundred

"""Ratios between two commits, machines or backends: intervals, flags, and what a noisy or failed row becomes."""

from pathlib import Path
from typing import Any

import pytest

from msdeform.bench.harness import records
from msdeform.bench.operator.jobs import Operator
from msdeform.bench.report.compare import compare, report, select
from msdeform.cli import main


def row(
    backend: str, median: float | None, commit: str = "aaaa11", device: str = "NVIDIA H200", **more: Any
) -> dict[str, Any]:
    blank = Operator("odd", "grid", "float32", "ms_deform_attn", backend).unmeasured(
        "crashed" if median is None else None
    )[0]
    known = (
        {} if median is None else {"median_us": median, "median_low_us": median * 0.99, "median_high_us": median * 1.01}
    )
    place = {"commit": commit, "code": commit, "device": device, "host_cpu": "Xeon"}
    return {**blank, **known, "ours": backend in ("triton", "cuda", "reference"), **place, **more}


def write(folder: Path, *rows: dict[str, Any]) -> list[str]:
    records.append(folder / "rows.jsonl", rows)
    return ["--results", str(folder)]


def test_a_slower_commit_is_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = write(tmp_path, row("triton", 100.0), row("triton", 120.0, "bbbb22"))
    assert main(["bench", "compare", "aaaa", "bbbb22", *words]) == 1
    printed = capsys.readouterr().out
    assert "odd grid float32 ms_deform_attn forward triton" in printed
    assert "1.20" in printed
    assert "1.18-1.22" in printed  # 1% and 1% add up as squares
    assert "slower REGRESSION" in printed
    assert main(["bench", "compare", "bbbb", "aaaa", *words]) == 0
    assert "faster" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("after", "verdict"), [(103.0, "same"), (107.0, "slower REGRESSION"), (93.0, "faster"), (106.0, "same")]
)
def test_only_what_the_whole_interval_says_counts(after: float, verdict: str) -> None:
    (change,) = compare([row("triton", 100.0), row("triton", after, "bbbb22")], "commit", "aaaa11", "bbbb22")
    assert change.verdict(0.05) == verdict


def test_noisy_rows_flag_nothing() -> None:
    rows = [row("triton", 100.0), row("triton", 150.0, "bbbb22", noisy="it spread")]
    (change,) = compare(rows, "commit", "aaaa11", "bbbb22")
    assert change.verdict(0.05) == "slower? (noisy)"


def test_a_cell_that_fails_now_is_a_regression() -> None:
    (change,) = compare([row("triton", 100.0), row("triton", None, "bbbb22")], "commit", "aaaa11", "bbbb22")
    assert change.verdict(0.05) == "REGRESSION: crashed"
    (change,) = compare([row("triton", None), row("triton", 100.0, "bbbb22")], "commit", "aaaa11", "bbbb22")
    assert change.verdict(0.05) == "measured now"


def test_backends_that_alternated_are_compared_by_their_pairs() -> None:
    against = {"baseline": "reference", "ratio": 0.5, "ratio_low": 0.49, "ratio_high": 0.51, "noisy": "very"}
    rows = [
        row("reference", 100.0),
        row("triton", 90.0, **against),
        row("cuda", 80.0, **{**against, "ratio": 0.6, "ratio_low": 0.588, "ratio_high": 0.612}),
    ]
    (change,) = compare(rows, "backend", "reference", "triton")
    assert (change.ratio, change.low, change.high) == (0.5, 0.49, 0.51)  # not 90 / 100
    (back,) = compare(rows, "backend", "triton", "reference")
    assert (back.ratio, back.low) == (2.0, pytest.approx(1 / 0.51))
    (through,) = compare(rows, "backend", "triton", "cuda")
    assert through.ratio == pytest.approx(1.2)
    assert through.low == pytest.approx(1.2 * 0.972, abs=0.002)
    assert "REGRESSION" in through.verdict(0.05)


def test_backends_are_compared_on_one_machine_and_code() -> None:
    rows = [row("reference", 100.0), row("triton", 10.0, device="NVIDIA A100"), row("triton", 10.0, "bbbb22")]
    assert compare(rows, "backend", "reference", "triton") == []


def test_the_last_row_of_a_cell_counts() -> None:
    rows = [row("triton", 500.0), row("triton", 100.0), row("triton", 100.0, "bbbb22")]
    (change,) = compare(rows, "commit", "aaaa11", "bbbb22")
    assert change.ratio == 1.0


def test_others_code_tells_of_the_machine() -> None:
    rows = [
        row(name, time, commit)
        for name in ("triton", "core")
        for time, commit in ((100.0, "aaaa11"), (130.0, "bbbb22"))
    ]
    text = report(compare(rows, "commit", "aaaa11", "bbbb22"), 0.05, "commit", ("aaaa11", "bbbb22"))
    assert "code that is not this project's takes 1.30 times as long in B: 1 cells" in text
    assert "the machine itself changed" in text


@pytest.mark.parametrize(
    ("words", "heads"),
    [
        (["aaaa", "bbbb22"], ["A: commit aaaa (aaaa11)", "B: commit bbbb22"]),
        (["h200", "a100"], ["A: machine h200 (NVIDIA H200)", "B: machine a100 (NVIDIA A100)"]),
        (["triton", "cuda"], ["A: backend triton", "B: backend cuda"]),
    ],
)
def test_it_says_which_is_a_and_which_is_b(
    words: list[str], heads: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row("triton", 100.0), row("triton", 100.0, "bbbb22"), row("triton", 100.0, device="NVIDIA A100")]
    main(["bench", "compare", *words, *write(tmp_path, *rows, row("cuda", 100.0))])
    assert capsys.readouterr().out.splitlines()[:2] == heads


def test_machines() -> None:
    rows = [row("triton", 100.0), row("triton", 300.0, device="NVIDIA A100")]
    assert select(rows, "h200", "a100") == "device"
    (change,) = compare(rows, "device", "h200", "a100")
    assert change.ratio == 3.0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["tritn", "reference"],
            "no backend, commit or machine in the results is called 'tritn'; did you mean triton?",
        ),
        (
            ["triton", "aaaa"],
            "expected two backends, two commits or two machines, got a backend, triton, and a commit, aaaa",
        ),
        (["triton", "reference"], "triton and reference: the results have no cell of both"),
    ],
)
def test_slips(words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = write(tmp_path, row("triton", 1.0), row("reference", 1.0, "bbbb22"))
    assert main(["bench", "compare", *words, *where]) == 1
    assert capsys.readouterr().err == f"msdeform bench compare: {sentence}\n"


def test_a_broken_line_is_named_and_the_rest_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = write(tmp_path, row("triton", 1.0), row("triton", 1.0, "bbbb22"))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("{broken\n")
    assert main(["bench", "compare", "aaaa", "bbbb", *where]) == 0
    assert capsys.readouterr().err == "rows.jsonl, line 3: not JSON; the line is left out\n"

"""The benchmark's options: the names they take are those of the tables, and each wrong value is one sentence."""

import os
from pathlib import Path
from typing import get_args

import pytest

from msdeform.bench import options
from msdeform.bench.models.training import steps
from msdeform.bench.static import instructions
from msdeform.cli import main
from msdeform.common.command_line import parse
from msdeform.common.fields import spelled
from msdeform.kernels import registry
from msdeform.kernels.diagnostics.checks import DTYPES as TENSOR_DTYPES
from msdeform.kernels.diagnostics.options import BACKENDS, DTYPES


def test_names_without_pytorch_are_those_of_the_tables() -> None:
    assert tuple(registry.BACKENDS) == BACKENDS
    assert tuple(TENSOR_DTYPES) == DTYPES
    assert tuple(steps.OPTIONS) == options.STEP_OPTIONS
    assert tuple(steps.PRECISIONS) == options.STEP_DTYPES
    assert tuple(instructions.CASES) == options.COUNTED_CASES
    assert tuple(instructions._OURS) == options.COUNTED_IMPLEMENTATIONS
    assert {*options.CPU_ONLY_IMPLEMENTATIONS} < {*options.CPU_IMPLEMENTATIONS} < {*options.IMPLEMENTATIONS}
    assert {*options.FUNCTIONS} - {*get_args(options.AloneName)} == {"MSDeformAttn"}


ROWS = (
    *(
        "bench",
        "bench cpu",
        "bench deploy",
        "bench explain",
        "bench exports",
        "bench first-call",
        "bench seeds",
        "bench startup",
    ),
    *("bench serve", "bench training", "table --flops"),
)


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [
        ("info", ["--B", "two"], "--B: expected a whole number, got 'two'"),
        ("info", ["--B", "0"], "--B: expected at least 1, got 0"),
        ("info", ["--device", "toaster"], "--device: expected auto, cpu, cuda or cuda:N, got 'toaster'"),
        ("verify", ["--backend", "auto"], "--backend: expected reference, gather, cpu, triton or cuda, got 'auto'"),
        ("verify", ["--levels", "8x"], "--levels: expected sizes such as 8x10,4x5, got '8x'"),
        ("verify", ["--levels", "8x0"], "--levels: expected sizes of at least 1, got '8x0'"),
        ("verify", ["--seed", "-1"], "--seed: expected a number from 0 to "),
        (
            "verify",
            ["--dtype", "float16", "--compiled"],
            "--compiled: expected right after verify, as in ",
        ),
        (
            "verify --compiled",
            ["--arch", "sm_900"],
            "--arch: expected a compute capability times ten",
        ),
        ("bench", ["--seconds", "nan"], "--seconds: expected a finite number, at least 0, got nan"),
        ("bench", ["--limit", "0"], "--limit: expected a number above 0, got 0"),
        ("bench", ["--functions", "msdeform"], "--functions: expected ms_deform_attn, fused_ms_deform_attn or MSDef"),
        ("bench cpu", ["--threads", "0"], "--threads: expected at least 1, got 0"),
        ("bench cpu", ["--rounds", "1"], "--rounds: expected at least 2, got 1"),
        ("bench cpu", ["--backends", "openvno"], "--backends: no backend is called 'openvno'; did you mean openvino"),
        ("bench cpu", ["--functions", "MSDeformAttn"], "--functions: expected fused_ms_deform_attn or ms_deform_attn"),
        ("bench first-call", ["--case", "od"], "--case: no case is called 'od'; did you mean odd"),
        ("bench first-call", ["--times", "0"], "--times: expected at least 1, got 0"),
        ("bench compare", ["reference"], "expected B: another of the same kind"),
        ("bench compare", ["a", "b", "--threshold", "-1"], "--threshold: expected at least 0, got -1"),
        ("bench compare", ["a", "b", "--results", "none"], "--results: expected a file or folder; none does not exist"),
        ("bench explain", ["--minutes", "-1"], "--minutes: expected at least 0, got -1"),
        ("bench deploy", ["--engines", "tensorrt"], "--engines: no engine is called 'tensorrt'"),
        (
            "bench exports",
            ["--image", "16x64"],
            "--image: expected HEIGHTxWIDTH of at least 32 pixels, such as 800x1066",
        ),
        ("bench serve", ["--broken", "2"], "--broken: expected a share from 0 to 1, got 2"),
        ("bench serve", ["--image", "16x64"], "--image: expected HEIGHTxWIDTH of at least 32 pixels, such as 800x1066"),
        ("bench serve", ["--clients", "0"], "--clients: expected at least 1, got 0"),
        ("bench instructions", ["--official", "."], "--official: expected a file, got the folder ."),
        ("bench render", ["--root", "file"], "--root: expected a folder, got the file file"),
        ("bench render", ["--root", "."], "--root: expected a checkout, with README.md and docs/, got ."),
        ("bench roofline", ["--out", "file/x"], "--out: expected a place that can be written; "),
        ("bench roofline", ["--out", "."], "--out: expected a file to write, got the folder ."),
        ("bench dispatch", ["--out", "file"], "--out: expected a folder to write into, got the file file"),
        ("bench seeds", ["--runs", "file"], "--runs: expected a folder to write into, got the file file"),
        *((command, ["--out", "file"], "--out: expected a folder, got the file file") for command in ROWS),
        *((command, ["--out", "file/x"], "--out: expected a place that can be written; ") for command in ROWS),
        *((command, ["--out", "/proc/x"], "--out: expected a place that can be written; ") for command in ROWS),
    ],
)
def test_a_wrong_value_is_one_sentence(
    command: str,
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith(f"msdeform {command.removesuffix(' --flops')}: {sentence}")
    assert error.count("\n") == 1
    assert os.listdir() == ["file"]


def test_rows_may_go_to_a_file_of_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    words = ["--out", str(tmp_path / "rows.jsonl")]
    assert parse(options.ExplainOptions, words, "x").out == tmp_path / "rows.jsonl"


@pytest.mark.parametrize(
    ("words", "out"),
    [
        ([], None),
        (["--out"], options.RESULTS),
        (["--out", "--rounds", "7"], options.RESULTS),
        (["--out", "there"], Path("there")),
        (["--out=there"], Path("there")),
    ],
)
def test_an_option_that_may_stand_without_a_value(words: list[str], out: Path | None) -> None:
    assert parse(options.DispatchOptions, words, "x").out == out
    again = spelled(parse(options.DispatchOptions, words, "x"))
    assert parse(options.DispatchOptions, again, "x") == parse(options.DispatchOptions, words, "x")
    assert spelled(options.DispatchOptions(rounds=7, out=out), without=("out",)) == ["--rounds", "7"]

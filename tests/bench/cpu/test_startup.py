"""`msdeform bench startup`: what it runs, what a row holds, and a command that answers wrongly."""

import sys
from pathlib import Path

import pytest

from msdeform.bench.cpu import startup, tables
from msdeform.bench.harness import records
from msdeform.cli import main

PROGRAMS = ("bench compare", "table", "version")


def test_rows_of_each_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "startup", "--commands", *PROGRAMS, "--times", "1", "--out", str(tmp_path)]) == 0
    rows = records.read(tmp_path).rows
    assert [(row["program"], row["way"]) for row in rows] == [
        (startup.PYTHON, "--help"),
        *(
            (program, way)
            for program in PROGRAMS
            for way in tables.WAYS
            if (program, way) != ("version", "out of range")
        ),
    ]
    assert {row["failure"] for row in rows} == {None}
    assert all(0 < row["cpu_ms"] < 10_000 and len(row["cpu_ms_each"]) == 1 for row in rows)
    assert min(rows, key=lambda row: row["cpu_ms"])["program"] == startup.PYTHON
    assert str(tmp_path) not in rows[0]["command"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4].startswith(startup.PYTHON)
    assert lines[-1].split()[0] == "version"


def test_what_is_run_is_a_mistake_in_an_option_of_the_command() -> None:
    words = {(one.program, one.way): one.words[2:] for one in startup.tries(["info", "bench compare"])}
    assert words["info", "typo"] == ["info", "--dtyp"]
    assert words["info", "out of range"] == ["info", "--B", "-1"]
    assert words["bench compare", "out of range"] == ["bench", "compare", "word", "word", "--threshold", "-1"]


def test_nothing_loads_pytorch_to_answer() -> None:
    tried = list(startup.tries(["info", "verify", "verify --compiled", "bench", "bench training", "table"]))
    for one in tried[1:]:
        code = (
            "import sys\nfrom msdeform.cli import main\n"
            f"try: main({one.words[2:]!r})\nexcept SystemExit: pass\n"
            "heavy = {'torch', 'numpy', 'PIL', 'scipy', 'yaml', 'matplotlib', 'triton', 'torchvision'}\n"
            "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
        )
        _, status, last = startup.cpu_seconds([sys.executable, "-c", code])
        assert status == 0, (one, last)


def test_a_command_that_answers_wrongly_is_a_failed_row() -> None:
    code = "import sys; print('this is no help'); sys.exit(3)"
    row = startup.measured(startup.Try("other", "--help", ["-c", code], 0), 2)
    assert row["failure"] == "ended with status 3, expected 0: this is no help"
    assert row["cpu_ms"] is None
    assert tables.startup_table([row])[1] == ("other", "failed", "-", "-")


def test_cpu_time_is_that_of_the_process_not_of_the_clock() -> None:
    asleep, _, _ = startup.cpu_seconds([sys.executable, "-c", "import time; time.sleep(1)"])
    busy, _, _ = startup.cpu_seconds([sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"])
    assert asleep < 0.7
    assert busy >= 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--commands", "trian"], "--commands: no command is called 'trian'; did you mean train"),
        (["--times", "0"], "--times: expected at least 1, got 0"),
    ],
)
def test_slips(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "startup", *words])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"msdeform bench startup: {sentence}")

"""The command: every tool listed, slips answered with the nearest right word, mistakes with one sentence."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from msdeform import cli
from msdeform.cli import COMMANDS, help_text, main
from msdeform.common.files import atomic_file
from msdeform.kernels import registry

ROOT = Path(__file__).parents[3]


def test_help_lists_every_command_in_a_line_each() -> None:
    lines = help_text().splitlines()
    for name, command in COMMANDS.items():
        assert [line for line in lines if line.startswith(f"  {name} ") and line.endswith(command.summary)]
    assert {
        "info",
        "verify",
        "verify --compiled",
        "train",
        "replay",
        "eval",
        "predict",
        "serve",
        "explain",
        "explain-eval",
        "explore",
        "plot",
        "convert",
        "export",
        "data check",
        "data convert",
        "data show",
        "data synth",
        "bench",
        "bench accelerate",
        "bench compare",
        "bench cpu",
        "bench cpu-code",
        "bench deploy",
        "bench dispatch",
        "bench explain",
        "bench explain-eval",
        "bench exports",
        "bench first-call",
        "bench instructions",
        "bench model",
        "bench recipes",
        "bench render",
        "bench roofline",
        "bench seeds",
        "bench serve",
        "bench startup",
        "bench training",
        "ablate",
        "table",
        "demo",
        "version",
    } == COMMANDS.keys()
    assert max(map(len, lines)) <= 110


def test_every_command_is_in_one_group_of_the_help() -> None:
    assert sorted(name for group in cli.GROUPS.values() for name in group) == sorted(COMMANDS)


def test_help_of_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--help"]) == 0
    out = capsys.readouterr().out
    assert "  data show " in out
    assert "  data synth " in out
    assert "  train " not in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_where_it_is_said_to_be(name: str) -> None:
    """Told from the source, so that no command's module has to be imported."""
    module, _, function = COMMANDS[name].run.partition(":")
    source = importlib.util.find_spec(f"msdeform.{module}")
    assert source is not None
    assert source.origin is not None
    kind = COMMANDS[name].options.partition(":")[2]
    pattern = rf"^def {function}\(options: (options\.)?{kind}\) -> int:"
    assert re.search(pattern, Path(source.origin).read_text(), re.M)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["synth"], "unknown command 'synth'; did you mean data synth?"),
        (["data"], "'data' is followed by show, check, convert or synth; got nothing after it"),
        (["data", "snyth"], "'data' is followed by show, check, convert or synth; got 'data snyth'"),
        (["qqq"], "unknown command 'qqq'; msdeform --help lists the commands"),
        (
            ["bench", "comapre", "a"],
            "'bench' is followed by accelerate, compare, cpu, cpu-code, deploy, dispatch, explain, explain-eval, "
            "exports, first-call, instructions, model, recipes, render, roofline, seeds, serve, startup or training; "
            "got 'bench comapre'",
        ),
    ],
)
def test_a_misspelt_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"msdeform: {sentence}\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--bath-size", "2"], "msdeform train: unknown option --bath-size; did you mean --batch-size"),
        (["eval", "--checkpont", "x"], "msdeform eval: unknown option --checkpont; did you mean --checkpoint"),
        (["predict", "a.jpg", "--confidance=1"], "msdeform predict: unknown option --confidance; did you mean --conf"),
        (["data", "synth", "--sed", "1"], "msdeform data synth: unknown option --sed; did you mean --seed"),
        (
            ["info", "--dtyp", "float32", "--divice", "cpu"],
            "msdeform info: unknown option --dtyp; did you mean --dtype",
        ),
        (
            ["verify", "--level", "4x4", "--chanels", "3"],
            "msdeform verify: unknown option --level; did you mean --levels",
        ),
        (["bench", "--qick"], "msdeform bench: unknown option --qick; did you mean --quick"),
        (["version", "now"], "msdeform version: unexpected argument 'now'; msdeform version --help lists the options"),
        (["demo", "--zzzzzz"], "msdeform demo: unknown option --zzzzzz; msdeform demo --help lists the options"),
    ],
)
def test_a_misspelt_flag_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--epochs", "many"], "--epochs: expected a whole number, got 'many'"),
        (["--lr", "fast"], "--lr: expected a number, got 'fast'"),
        (["--lr", "nan"], "--lr: expected a finite number, at least 0, got nan"),
        (["--lr"], "--lr: expected NUMBER after it"),
        (["--progress=no"], "--progress: expected no value, got 'no'"),
        (
            ["--attn-backend", "tritn"],
            "--attn-backend: expected auto, reference, gather, cpu, triton or cuda, got 'tritn'; did you",
        ),
        (["--batch-size", "-1"], "--batch-size: expected at least 1, or auto, got -1"),
        (["--eval"], "--eval: expected --resume CHECKPOINT beside it, to say what to evaluate"),
        (["--data", "nowhere"], "--data: expected a file or folder; nowhere does not exist"),
        (["--model", "deformable_detr_r5"], "--model: no model is called 'deformable_detr_r5'; did you mean deform"),
        (["--override", "num_queries"], "--override: expected NAME=VALUE, such as num_queries=100, got 'num_queries'"),
        (["--override", "num_querys=3"], "--override: num_querys: not a field of the configuration of deformable_detr"),
        (["--override", "nheads=3"], "--override: hidden_dim: expected a multiple of nheads=3"),
        (["--device", "toaster"], "--device: expected auto, cpu, cuda or cuda:N, got 'toaster'"),
        (["--resume", "nowhere.pt"], "--resume: expected a file or folder; nowhere.pt does not exist"),
        (["--init-from", "nowhere.pt"], "--init-from: expected a file or folder; nowhere.pt does not exist"),
        (["--val-images", "nowhere"], "--val-images: expected a folder; nowhere does not exist"),
        (["--backbone-weights", "nowhere.pth"], "--backbone-weights: expected a file; nowhere.pth does not exist"),
        (["--out", "/dev/null/run"], "--out: expected a place that can be written; /dev/null is a file"),
    ],
)
def test_a_value_no_run_could_have_ends_with_status_2(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", *words])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"msdeform train: {sentence}")
    assert error.count("\n") == 1


Small = list[str]


@pytest.fixture
def small(shapes: Path, tmp_path: Path) -> Small:
    """Flags of a run of one step."""
    flags = "--model deformable_detr_tiny --image-size 64 --augment flip --batch-size 2 --max-steps 1 --workers 0"
    flags += " --device cpu --attn-backend reference --no-tensorboard --no-progress"
    return [*flags.split(), "--data", str(shapes), "--out", str(tmp_path / "run")]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--workers", "1000000"], "--workers: expected at most "),
        (["--device", "cuda:9"], "--device: cuda:9 is not there"),
        (["--attn-backend", "cuda"], "backend 'cuda' cannot run"),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence(
    small: Small, capsys: pytest.CaptureFixture[str], change: list[str], sentence: str
) -> None:
    assert main(["train", *small, *change]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("msdeform train: ")
    assert error.count("\n") == 1
    assert not Path(small[small.index("--out") + 1]).exists()


def test_the_traceback_is_there_for_those_who_ask(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSDEFORM_DEBUG", "1")
    with pytest.raises(ValueError, match="cuda:9 is not there"):
        main(["train", *small, "--device", "cuda:9"])


def test_a_missing_package_names_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: cli.Command) -> Callable[[object], int]:
        raise ModuleNotFoundError("No module named 'rich'", name="rich")

    monkeypatch.setattr(cli.Command, "load", absent)
    assert main(["train"]) == 1
    assert "pip install 'msdeform[train]'" in capsys.readouterr().err


def test_the_sentence_on_an_optional_package_is_told_and_an_import_of_ours_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ImportError("videos need the package av, which is not installed")

    def absent(self: cli.Command) -> Callable[[object], int]:
        raise error

    monkeypatch.setattr(cli.Command, "load", absent)
    assert main(["train"]) == 1
    assert capsys.readouterr().err == f"msdeform train: {error}\n"
    error = ImportError("cannot import name 'draw'", name="msdeform.train")
    with pytest.raises(ImportError, match="cannot import name"):
        main(["train"])


def test_sigterm_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: cli.Command) -> Callable[[object], int]:
        def work(options: object) -> int:
            with atomic_file(tmp_path / "results.json"):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            return 0

        return work

    monkeypatch.setattr(cli.Command, "load", load)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["version"])
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
    assert not list(tmp_path.iterdir())


def test_train_resume_eval_and_predict_from_the_command_line(
    small: Small, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", *small]) == 0
    # resuming takes the run's settings from its checkpoint, but for what is given
    assert main(["train", "--resume", str(run), "--max-steps", "2"]) == 0
    assert sorted(file.name for file in run.glob("*.pt")) == [
        "best.pt",
        "checkpoint-00000001.pt",
        "checkpoint-00000002.pt",
    ]
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--eval"]) == 0
    inside = capsys.readouterr().out
    results = tmp_path / "results.json"
    words = ["eval", "--data", str(shapes), "--checkpoint", str(run), "--out", str(results), "--workers", "0"]
    assert main([*words, "--device", "cpu", "--no-progress", "--batch-size", "4"]) == 0
    outside = capsys.readouterr().out
    assert inside.startswith(" Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = ")
    assert inside.strip() in outside  # the same twelve numbers
    assert f"{registry.resolve_for('cpu')} on cpu, 4 images" in outside
    assert json.loads(results.read_text())[0].keys() == {"image_id", "category_id", "bbox", "score"}
    images = str(shapes / "val2017")
    words = ["predict", images, "--checkpoint", str(run), "--confidence", "0", "--out", str(tmp_path / "seen")]
    assert main([*words, "--device", "cpu", "--no-progress"]) == 0
    assert len(list((tmp_path / "seen").glob("*.jpg"))) == 4
    assert main(["eval", "--data", str(shapes), "--checkpoint", str(results)]) == 1
    assert "is damaged or not a checkpoint" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    """``msdeform train --help | head -1``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "msdeform", "train", "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141


def test_the_systems_errors_are_told_without_their_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: cli.Command) -> Callable[[object], int]:
        raise OSError(28, "No space left on device", "runs/x/best.pt")

    monkeypatch.setattr(cli.Command, "load", full)
    assert main(["train"]) == 1
    assert capsys.readouterr().err == "msdeform train: runs/x/best.pt: no space left on device\n"


def test_python_m_runs_the_same_command() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "msdeform", "trian"], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (2, "msdeform: unknown command 'trian'; did you mean train?\n")

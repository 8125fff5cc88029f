"""The command: every tool listed, slips answered with the nearest right word, mistakes with one sentence."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import msdeform
from msdeform import cli
from msdeform.cli import COMMANDS, help_text, main

ROOT = Path(__file__).parents[2]


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
        "explain",
        "explain-eval",
        "explore",
        "plot",
        "convert",
        "export",
        "data show",
        "data synth",
        "bench",
        "bench compare",
        "bench dispatch",
        "bench explain",
        "bench instructions",
        "bench model",
        "bench render",
        "bench roofline",
        "bench seeds",
        "bench training",
        "ablate",
        "table",
        "demo",
        "version",
    } == COMMANDS.keys()
    assert max(map(len, lines)) <= 110


def test_help_is_quick_because_it_imports_nothing() -> None:
    code = (
        "import sys; from msdeform.cli import main; main(['--help']); main(['version'])\n"
        "heavy = {'torch', 'torchvision', 'triton', 'tyro', 'rich', 'numpy', 'PIL'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{msdeform.__version__}\n")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "version"])
def test_every_command_is_where_it_is_said_to_be(name: str) -> None:
    command = COMMANDS[name]
    source = importlib.util.find_spec(f"msdeform.{command.module}")
    assert source is not None
    assert source.origin is not None
    assert re.search(rf"^def {command.function}\(argv: .* = None\) -> int:", Path(source.origin).read_text(), re.M)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["synth"], "unknown command 'synth'; did you mean data synth?"),
        (["data"], "'data' is followed by show or synth; got nothing after it"),
        (["data", "snyth"], "'data' is followed by show or synth; got 'data snyth'"),
        (["qqq"], "unknown command 'qqq'; msdeform --help lists the commands"),
        (
            ["bench", "comapre", "a"],
            "'bench' is followed by compare or dispatch or explain or instructions or model or render or "
            "roofline or seeds or training; got 'bench comapre'",
        ),
        (["version", "now"], "version: takes no arguments, got now"),
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
        (["eval", "--checkpont", "x"], "msdeform eval: unknown option --checkpont; did you mean --checkpoint?"),
        (["predict", "a.jpg", "--confidance=1"], "msdeform predict: unknown option --confidance; did you mean --conf"),
        (["data", "synth", "--sed", "1"], "msdeform data synth: unknown option --sed; did you mean --seed"),
        (
            ["info", "--dtyp", "float32", "--divice", "cpu"],
            "msdeform info: unknown option --divice cpu; did you mean --device",
        ),
        (
            ["verify", "--level", "4x4", "--chanels", "3"],
            "msdeform verify: unknown option --chanels 3; did you mean --channels",
        ),
        (["bench", "--qick"], "msdeform bench: unknown option --qick; did you mean --quick"),
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
        (["--epochs", "many"], "epochs"),
        (["--attn-backend", "cudnn"], "attn-backend"),
        (["--batch-size", "0"], "batch-size: expected at least 1, got 0"),
        (["--eval"], "eval: expected --resume CHECKPOINT beside it, to say what to evaluate"),
    ],
)
def test_a_value_no_run_could_have_ends_with_status_2(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", *words])
    assert caught.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


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
        (["--data", "nowhere"], "data directory nowhere does not exist"),
        (
            ["--model", "deformable_detr_r5"],
            "no model is called 'deformable_detr_r5'; did you mean deformable_detr_r50",
        ),
        (["--override", "num_querys=3"], "num_querys: not a field of the configuration of deformable_detr"),
        (["--override", "num_queries"], "override: expected NAME=VALUE, such as num_queries=100, got 'num_queries'"),
        (["--workers", "1000000"], "workers: expected at most "),
        (["--device", "cuda:9"], "device: cuda:9 is not there"),
        (["--device", "toaster"], "device: expected auto, cpu, cuda or cuda:N, got 'toaster'"),
        (["--attn-backend", "cuda"], "backend 'cuda' cannot run"),
        (["--resume", "nowhere.pt"], "checkpoint nowhere.pt does not exist"),
        (["--init-from", "nowhere.pt"], "checkpoint nowhere.pt does not exist"),
        (["--val-images", "nowhere"], "image folder nowhere does not exist"),
        (["--backbone-weights", "nowhere.pth"], "found no file nowhere.pth"),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence(
    small: Small, capsys: pytest.CaptureFixture[str], change: list[str], sentence: str
) -> None:
    for flag in change[:1]:  # a flag given twice is tyro's to refuse
        if flag in small:
            del small[small.index(flag) : small.index(flag) + 2]
    assert main(["train", *small, *change]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("msdeform train: ")
    assert error.count("\n") == 1
    assert not Path(small[small.index("--out") + 1]).exists()


def test_the_traceback_is_there_for_those_who_ask(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSDEFORM_DEBUG", "1")
    small[small.index("--data") + 1] = "nowhere"
    with pytest.raises(FileNotFoundError):
        main(["train", *small])


def test_a_missing_package_names_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: cli.Command) -> Callable[[list[str] | None], int]:
        raise ModuleNotFoundError("No module named 'tyro'", name="tyro")

    monkeypatch.setattr(cli.Command, "load", absent)
    assert main(["train"]) == 1
    assert "pip install 'msdeform[train]'" in capsys.readouterr().err


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
    assert "reference on cpu, 4 images" in outside
    assert json.loads(results.read_text())[0].keys() == {"image_id", "category_id", "bbox", "score"}
    images = str(shapes / "val2017")
    words = ["predict", images, "--checkpoint", str(run), "--confidence", "0", "--out", str(tmp_path / "seen")]
    assert main([*words, "--device", "cpu", "--no-progress"]) == 0
    assert len(list((tmp_path / "seen").glob("*.jpg"))) == 4
    assert main(["eval", "--data", str(shapes), "--checkpoint", str(results)]) == 1
    assert "is damaged or not a checkpoint" in capsys.readouterr().err


def test_python_m_runs_the_same_command() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "msdeform", "trian"], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (2, "msdeform: unknown command 'trian'; did you mean train?\n")

"""What wins: defaults, preset, file, flags, a checkpoint; and what is kept and told of the result."""

import dataclasses
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msdeform.train.config.options import Recipe, Run, TrainOptions, merged
from msdeform.train.config.resolve import OPTIONS, resolve, save_settings, settings_lines

ROOT = Path(__file__).parents[3]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 3e-4\noptim: {weight_decay: 0.01}\nepochs: 7\n")
    return path


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A folder that looks like a run's."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoint-00000004.pt").touch()
    return folder


def checkpoint(**settings: Any) -> Callable[[Path], TrainOptions]:
    """A run whose settings were these."""
    return lambda path: merged(TrainOptions(), settings)


def test_without_anything_the_defaults() -> None:
    assert resolve([]) == TrainOptions()


def test_flags_win_over_the_file_the_file_over_the_preset_the_preset_over_the_defaults(file: Path) -> None:
    words = ["--preset", "detr-300", "--config", str(file), "--epochs", "9"]
    options = resolve(words)
    assert options.batch.epochs == 9  # flag
    assert (options.optim.lr, options.optim.weight_decay) == (3e-4, 0.01)  # file
    assert (options.optim.lr_backbone, options.schedule.lr_drop) == (1e-5, 200)  # preset
    assert options.optim.clip == 0.1  # default
    assert options.recipe == Recipe("detr-300", file)


def test_a_file_may_name_a_preset_and_a_flag_another(file: Path) -> None:
    file.write_text("preset: detr-300\nlr: 3e-4\n")
    options = resolve(["--config", str(file)])
    assert (options.schedule.lr_drop, options.optim.lr, options.recipe.preset) == (200, 3e-4, "detr-300")
    options = resolve(["--config", str(file), "--preset=detr-500"])
    assert (options.schedule.lr_drop, options.optim.lr, options.recipe.preset) == (400, 3e-4, "detr-500")


def test_a_flag_takes_back_what_a_preset_sets() -> None:
    options = resolve(["--preset", "finetune", "--ema", "None", "--patience", "None", "--init-from", "None"])
    assert (options.optim.ema, options.run.patience, options.model.init_from) == (None, None, None)


def test_an_empty_preset_is_none() -> None:  # as a script's unset variable gives
    assert dataclasses.replace(resolve(["--preset", ""]), recipe=Recipe()) == resolve([])


def test_a_resumed_run_has_its_own_settings_but_for_flags(run_folder: Path) -> None:
    load = checkpoint(lr=7e-4, epochs=3, out="elsewhere", resume="before")
    options = resolve(["--resume", str(run_folder), "--epochs", "5"], load=load)
    assert (options.optim.lr, options.batch.epochs) == (7e-4, 5)
    # not where the run was when it began
    assert options.run == Run(resume=run_folder)


@pytest.mark.parametrize("flag", ["--preset", "--config"])
def test_preset_and_file_beside_resume_are_refused(run_folder: Path, flag: str) -> None:
    with pytest.raises(ValueError, match=rf"^{flag}: expected none beside --resume, which continues"):
        resolve(["--resume", str(run_folder), flag, __file__], load=checkpoint())


def test_resume_auto_starts_a_run_where_there_is_none(tmp_path: Path, file: Path) -> None:
    words = ["--resume", "auto", "--out", str(tmp_path / "new"), "--preset", "detr-300", "--config", str(file)]
    options = resolve(words, load=checkpoint(lr=7e-4))
    assert (options.run.resume, options.run.out) == (None, tmp_path / "new")
    assert (options.optim.lr, options.schedule.lr_drop) == (3e-4, 200)


def test_resume_auto_goes_on_where_there_is_one(run_folder: Path, file: Path) -> None:
    words = ["--resume", "auto", "--out", str(run_folder), "--preset", "detr-300", "--config", str(file), "--epochs=9"]
    options = resolve(words, load=checkpoint(lr=7e-4, lr_drop=2, epochs=3, out="elsewhere"))
    assert (options.run.resume, options.run.out) == (run_folder, run_folder)
    # the checkpoint wins over preset and file, which the same command line repeats; flags win over it
    assert (options.optim.lr, options.schedule.lr_drop, options.batch.epochs) == (7e-4, 2, 9)


def test_resume_auto_takes_the_folder_from_the_file(run_folder: Path, file: Path) -> None:
    file.write_text(f"out: {run_folder}\n")
    options = resolve(["--resume=auto", "--config", str(file)], load=checkpoint(lr=7e-4))
    assert (options.run.resume, options.run.out, options.optim.lr) == (run_folder, run_folder, 7e-4)


def test_resume_auto_needs_a_folder() -> None:
    with pytest.raises(ValueError, match=r"^resume: auto resumes the run in --out; name that folder with --out"):
        resolve(["--resume", "auto"])


def test_eval_under_auto_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^eval: expected --resume CHECKPOINT beside it"):
        resolve(["--resume", "auto", "--out", str(tmp_path), "--eval"])


def test_a_missing_value_is_told_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        resolve(["--resume"])
    assert caught.value.code == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--lr", "-1"], "lr: expected at least 0, got -1.0"),
        (["--lr", "nan"], "lr: expected a finite number, at least 0, got nan"),
        (["--clip", "inf"], "clip: expected a finite number, at least 0, got inf"),
        (["--total-batch-size", "0"], "total-batch-size: expected at least 1, got 0"),
        (["--timeout", "nan"], "timeout: expected minutes above 0, got nan"),
        (["--timeout", "inf"], "timeout: expected minutes above 0 and finite, got inf"),
        (["--ema", "1"], "ema: expected a decay such as 0.9997, above 0 and below 1, got 1"),
        (["--ema", "nan"], "ema: expected a decay such as 0.9997, above 0 and below 1, got nan"),
        (["--image-size", "8"], "image-size: expected at least 32, got 8"),
        (["--epochs", "1.5"], "epochs"),
    ],
)
def test_an_impossible_value_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit) as caught:
        resolve(words)
    assert caught.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_a_wrong_flag_is_told_before_a_checkpoint_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        resolve(["--resume", "nowhere", "--epoch", "3"])
    assert "unknown option --epoch; did you mean --epochs" in capsys.readouterr().err


def test_help_shows_the_values_that_would_be_taken_and_examples(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        resolve(["--help", "--preset", "detr-300", "--resume", "nowhere"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "Passes over the training images. (default: 300)" in text
    assert "{None}" not in text
    for flag in ("--preset", "--resume", "--tensorboard, --no-tensorboard", "--precision {fp32,bf16,fp16,fp64}"):
        assert re.search(rf"^\W* {flag}\s", text, re.M), flag
    for example in ("torchrun", "sbatch", "--resume", "finetune", "--config"):
        assert example in text.split("examples:")[1]


def test_a_run_is_repeated_exactly_by_its_config(tmp_path: Path, file: Path) -> None:
    words = ["--preset", "finetune", "--config", str(file), "--override", "num_queries=7", "dropout=0", "--wandb", "no"]
    words += ["--lr-backbone", "1.2345678901234567e-5", "--data", str(tmp_path), "--compile", "--out", "there"]
    options = resolve(words)
    path = tmp_path / "run" / "config.yaml"
    save_settings(options, path)
    assert not [name for name in os.listdir(path.parent) if name != path.name]
    again = resolve(["--config", str(path), "--out", "there"])
    assert dataclasses.replace(again, recipe=options.recipe) == options
    text = path.read_text()
    assert text.startswith(f"# Every setting of this run; to repeat it: msdeform train --config {path} --out FOLDER\n")
    assert f"# From preset finetune, file {file}, and flags." in text
    assert not {"out:", "resume:", "eval:", "preset:"} & {*text.split()}
    order = [line[:-1] for line in text.splitlines() if line.endswith(":") and line[0].isalpha()]
    assert order == [field.name for field in dataclasses.fields(TrainOptions)][1:]


def test_the_config_of_a_resumed_run_starts_a_new_one(tmp_path: Path) -> None:
    options = merged(TrainOptions(), {"resume": "somewhere", "eval": True, "out": "there"})
    save_settings(options, tmp_path / "mine.yaml")
    assert resolve(["--config", str(tmp_path / "mine.yaml")]).run == Run()


def test_only_what_is_not_usual_is_told() -> None:
    options = resolve(["--lr", "3e-5", "--override", "num_queries=7", "dropout=0", "--no-tensorboard"])
    assert settings_lines(options, Path("runs/x/config.yaml")) == [
        "settings that are not the defaults; all are in runs/x/config.yaml:",
        "  model: override=num_queries=7 dropout=0",
        "  optim: lr=3e-05",
        "  logging: tensorboard=False",
    ]
    assert settings_lines(TrainOptions(), Path("x.yaml")) == ["all settings are the defaults; all are in x.yaml"]


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (0, False), (1, False)])
def test_the_slurm_job_is_requeued_when_a_signal_stopped_it(tmp_path: Path, status: int, requeued: bool) -> None:
    said = tmp_path / "said"
    for name, answer in (("srun", status), ("scontrol", 0)):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {said}\nexit {answer}\n')
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12"}
    command = ["bash", str(ROOT / "train" / "slurm.sbatch"), "--preset", "debug", "--out", "there"]
    done = subprocess.run(command, env=environment, check=False)
    assert done.returncode == status
    lines = said.read_text().splitlines()
    assert lines[0].startswith("srun --cpus-per-task=1 msdeform train --resume auto")
    assert lines[1:] == (["scontrol requeue 12"] if requeued else [])
    # the job's own flags are legal, and the user's later --out wins
    words = lines[0].split()[4:]
    assert resolve(words).run.out == Path("there")


def test_the_slurm_file_asks_for_a_signal_and_for_requeueing() -> None:
    text = (ROOT / "train" / "slurm.sbatch").read_text()
    assert "#SBATCH --signal=USR1@180\n" in text
    assert "#SBATCH --requeue\n" in text


def test_the_manual_names_every_flag_and_no_other() -> None:
    manual = (ROOT / "docs" / "training.md").read_text().split("| official | here |")[0]
    named = {flag.replace("-", "_") for flag in re.findall(r"(?<![\w-])--([a-z][a-z-]+)", manual)}
    # of msdeform data show, eval and convert, and of torchrun, srun and sbatch
    others = {"gaussian", "sigma", "results", "to"}
    others |= {"help", "nproc_per_node", "ntasks_per_node", "gpus_per_node", "nodes", "time"}
    assert named - others - OPTIONS.keys() == {"no_tensorboard", "no_progress"}
    assert OPTIONS.keys() - named == {"tensorboard", "progress"}

"""Files of settings: every way to write one, and a sentence for every way to get it wrong."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msdeform.train.config.options import Logging, TrainOptions, from_plain
from msdeform.train.config.resolve import read_settings, resolve, save_settings

Write = Callable[..., Path]

# each line nine times as many values as the one above
BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def test_groups_and_plain_names_with_either_dash(write: Write) -> None:
    text = """
    optim:
      lr: 1e-4
      weight-decay: 1E-2
    total-batch-size: 16
    schedule: cosine
    model:
      model: detr_r50
    batch:
    """
    assert read_settings(write(text)) == {
        "lr": 1e-4,
        "weight_decay": 0.01,
        "total_batch_size": 16,
        "schedule": "cosine",
        "model": "detr_r50",
    }


def test_toml_says_the_same(write: Write) -> None:
    text = "total-batch-size = 16\noptim.lr = 1e-4\n[model]\noverride = ['num_queries=7']\n"
    assert read_settings(write(text, "mine.toml")) == {
        "total_batch_size": 16,
        "lr": 1e-4,
        "override": ("num_queries=7",),
    }


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("lr: 1e-4", 1e-4),  # text, to YAML
        ("lr: 1", 1.0),
        ("epochs: 1e2", 100),
        ("max_steps: 90000.0", 90000),
        ("max_steps: null", None),
        ("ema: ~", None),
        ("augment: none", "none"),
        ("compile: yes", True),
        ("data: data/coco", Path("data/coco")),
        ("override: []", ()),
        ("wandb: my project", "my project"),
        ("out: there", Path("there")),
    ],
)
def test_values_become_what_their_setting_is(write: Write, line: str, value: Any) -> None:
    (read,) = read_settings(write(line)).values()
    assert read == value
    assert type(read) is type(value)


def test_a_group_is_read_by_its_former_name(write: Write) -> None:
    assert read_settings(write("seeing:\n  log_every: 5")) == {"log_every": 5}


def test_the_home_folder_is_written_out(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/of-mine")
    assert read_settings(write("data: ~/coco")) == {"data": Path("/of-mine/coco")}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lrr: 1", "unknown setting lrr; did you mean lr?"),
        ("optim: {wieght_decay: 1}", "unknown setting wieght_decay; did you mean weight_decay?"),
        ("optimizer: {lr: 1}", "unknown setting optimizer; did you mean optim?"),
        ("coco_path: x", "unknown setting coco_path; the official --coco_path is --data here"),
        ("zzzzz: 1", "unknown setting zzzzz; msdeform train --help lists the settings"),
        ("1: 2", "unknown setting 1; msdeform train --help lists the settings"),
        ("batch: {lr: 1e-4}", "lr belongs to the group optim, not to batch"),
        ("lr: 1\noptim: {lr: 2}", "lr is given twice, in its group and outside"),
        ("lr: 1\nlr: 2", " is not YAML: line 2: lr is given twice"),
        ("optim: {lr: 1, lr: 2}", " is not YAML: line 1: lr is given twice"),
        ("optim: 3", "optim: expected settings of this group (lr, lr_backbone, "),
        ("lr: fast", "lr: expected a number, got 'fast'"),
        ("lr: true", "lr: expected a number, got True"),
        ("lr: null", "lr: expected a number, got None"),
        ("lr: [1]", "lr: expected a number, got [1]"),
        ("lr: {a: 1}", "lr: expected a number, got {'a': 1}"),
        ("ema: often", "ema: expected a number, got 'often'"),
        ("epochs: 1.5", "epochs: expected a whole number, got 1.5"),
        ("epochs: .inf", "epochs: expected a whole number, got inf"),
        ("augment: all", "augment: expected official, light, turns, strong, flip, none or a .yaml file, got 'all'"),
        ("compile: 1", "compile: expected true or false, got 1"),
        ("data: 3", "data: expected text, got 3"),
        ("model: 3", "model: expected text, got 3"),
        ("override: num_queries=7", "override: expected a list, got 'num_queries=7'"),
        ("override: [hidden_dim=" + "9" * 5000 + "]", "override: hidden_dim: expected int, got '999"),
        ("override: [7]", "override: expected text, got 7"),
        ("resume: runs/x", "resume belongs on the command line, not in a file of settings"),
        ("run: {eval: true}", "eval belongs on the command line, not in a file of settings"),
        ("recipe: {config: x.yaml}", "config belongs on the command line, not in a file of settings"),
        ("preset: detr-30", "preset: none is called 'detr-30'; did you mean detr-300?"),
        ("epochs: 0", "epochs: expected at least 1, got 0"),
        ("lr: .nan", "lr: expected a finite number, at least 0, got nan"),
        ("optim: {ema: 2}", "ema: expected a decay such as 0.9997, above 0 and below 1, got 2"),
        ("", " holds no settings; expected lines such as lr: 1e-4"),
        ("# nothing yet", " holds no settings; expected lines such as lr: 1e-4"),
        ("- lr\n- 3", "expected settings by name, such as lr: 1e-4, got ['lr', 3]"),
        ("hello", "expected settings by name, such as lr: 1e-4, got 'hello'"),
        ("lr: [1", " is not YAML: line 1: "),
        ("lr: 'x", " is not YAML: line 1: "),
        ("lr:\t1\n\t- x", " is not YAML: line "),
        ("lr: \x01", " is not YAML: "),
        ("? [a, b]\n: 1", " is not YAML: line 1: "),
        ("lr: " + "[" * 1000 + "]" * 1000, " is not YAML: it is nested too deeply"),
        ("lr: !!timestamp x", " is not YAML: "),
        ("lr: 2024-13-45", " is not YAML: month must be in 1..12"),
        (
            BOMB,
            " is not YAML: its al",
        ),
        ('"\\e[31m": 1', "unknown setting \\x1b[31m; msdeform train --help"),
        ("when: !!python/object:os.system {}", " is not YAML: line 1: could not determine a constructor"),
    ],
)
def test_a_wrong_file_is_told_in_one_sentence(write: Write, text: str, sentence: str) -> None:
    path = write(text)
    start = f"{path}{sentence}" if sentence[0] == " " else f"{path}: {sentence}"
    with pytest.raises(ValueError, match=rf"^{re.escape(start)}.*\Z"):  # in one line
        resolve(["--config", str(path)])


def test_text_like_a_number_is_read_back_as_text(tmp_path: Path) -> None:
    options = TrainOptions(logging=Logging(wandb="1e-4"))
    save_settings(options, tmp_path / "config.yaml")
    assert read_settings(tmp_path / "config.yaml")["wandb"] == "1e-4"


@pytest.mark.parametrize(
    ("recorded", "sentence"),
    [
        ({"keep": "3"}, "keep: expected a whole number, got '3'"),
        ({"batch_size": "auto"}, "batch_size: expected a whole number, got 'auto'"),
        ({"override": 0}, "override: expected a list, of each text, got 0"),
        ({"override": [1]}, "override: expected a list, of each text, got (1,)"),
        ({"train_annotations": 1e308}, "train_annotations: expected a path or nothing, got 1e+308"),
        ({"compile": 1}, "compile: expected true or false, got 1"),
        ({"epochs": True}, "epochs: expected a whole number, got True"),
        ({"model": [1]}, "model: expected text, got (1,)"),
        ({"augment": [{}]}, "augment: expected text, got ({},)"),
        ({"schedule": {"schedule": 3}}, "schedule: expected step, cosine or constant, got 3"),
    ],
)
def test_recorded_settings_of_another_type_are_refused_by_name(recorded: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        from_plain(TrainOptions, recorded)


def test_what_is_no_file_of_settings(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^config file nowhere\.yaml does not exist$"):
        read_settings(Path("nowhere.yaml"))
    with pytest.raises(
        ValueError, match=r"^config: expected a file that ends in \.yaml, \.yml or \.toml, got .*mine\.json$"
    ):
        read_settings(write("{}", "mine.json"))
    with pytest.raises(ValueError, match=r"mine\.toml is not TOML: .*line 1"):
        read_settings(write("lr = fast", "mine.toml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"binary\.yaml is not YAML: "):
        read_settings(tmp_path / "binary.yaml")

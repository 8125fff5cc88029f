"""Command lines out of dataclasses."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest

from msdeform.common.command_line import check, command, parse
from msdeform.common.fields import options_of, spelled
from msdeform.common.options import (
    Above,
    AtLeast,
    Between,
    Checked,
    Device,
    Known,
    Metavar,
    Options,
    Positional,
    ProgressOption,
    ReadPath,
    Reads,
    Repeated,
    WriteFolder,
)
from msdeform.common.text import suggest
from tests.house.project import ROOT


@dataclass(frozen=True)
class Rates(Options):
    """How fast. What follows is not in the title."""

    lr: Annotated[float, AtLeast(0)] = 1e-3
    """Learning rate: 100% of it."""
    drops: Annotated[tuple[int, ...], Repeated()] = ()
    """Epochs of drops."""


@dataclass(frozen=True)
class Words:
    """Do a thing."""

    epilog: ClassVar[str] = "examples: none"

    files: Annotated[tuple[ReadPath, ...], Positional("FILE")]
    """What to read."""
    start: Annotated[Path, Reads("file", ("auto",))] | None = None
    """Where to start, or auto."""
    rates: Rates = field(default_factory=Rates)
    out: WriteFolder | None = None
    """Folder to write."""
    image_size: int | None = 64
    """Longest side."""
    kind: Literal["red", "green"] = "red"
    """Which."""
    bar: bool = True
    """Show a bar."""
    device: Device = "auto"
    """Where."""
    seeds: tuple[int, ...] = (1, 2)
    """Numbers."""
    name: Annotated[str, Metavar("NAME")] = "x"
    """A name."""


def read(*words: str, **more) -> Words:
    return parse(Words, [*words], "msdeform do", **more)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        read(*words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_words_become_values(tmp_path: Path) -> None:
    words = [
        str(tmp_path),
        "--lr",
        "2",
        "--drops",
        "3",
        "--drops",
        "4",
        "--no-bar",
        "--kind=green",
        "--seeds",
        "5",
        "-6",
    ]
    got = read(*words, "--image_size", "None", "--out", str(tmp_path / "new" / "er"), "--start", "auto", "--name=-x")
    assert got == Words(
        (tmp_path,),
        Path("auto"),
        Rates(2.0, (3, 4)),
        tmp_path / "new" / "er",
        None,
        "green",
        False,
        "auto",
        (5, -6),
        "-x",
    )
    assert not (tmp_path / "new").exists()


def test_the_default_is_what_is_not_given(tmp_path: Path) -> None:
    base = Words((tmp_path,), rates=Rates(0.5), kind="green")
    assert read("--lr", "0.25", default=base) == Words((tmp_path,), rates=Rates(0.25), kind="green")


def test_what_an_instance_says_can_be_typed_again(tmp_path: Path) -> None:
    rates = Rates(2.0, (3, 4))
    for words in (
        Words((tmp_path,)),
        Words((tmp_path, tmp_path), Path("auto"), rates, tmp_path / "x", 32, "green", False, "cpu", (5,), "y"),
        Words((tmp_path,), image_size=None),
    ):
        assert read(*spelled(words)) == words


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "expected FILE: what to read"),
        (("nowhere",), "FILE: expected a file or folder; nowhere does not exist"),
        ((".", "--lrr", "1"), "unknown option --lrr; did you mean --lr or --bar?"),
        ((".", "-x"), "unknown option -x; msdeform do --help lists the options"),
        ((".", "--lr"), "--lr: expected NUMBER after it"),
        ((".", "--lr", "--bar"), "--lr: expected NUMBER after it"),
        ((".", "--lr", "-1"), "--lr: expected at least 0, got -1.0"),
        ((".", "--lr", "x"), "--lr: expected a number, got 'x'"),
        ((".", "--image-size", "1.5"), "--image-size: expected a whole number, got '1.5'"),
        ((".", "--kind", "gren"), "--kind: expected red or green, got 'gren'; did you mean green?"),
        ((".", "--bar=1"), "--bar: expected no value, got '1'"),
        ((".", "--device", "gpu"), "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ((".", "--start", "."), "--start: expected a file, got the folder ."),
        ((".", "--out", "/dev/null"), "--out: expected a folder to write, got the device /dev/null"),
        (("",), "FILE: expected a path, got nothing"),
        (("nowhere", "--lr", "-1"), "--lr: expected at least 0, got -1.0"),
    ],
)
def test_a_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str) -> None:
    assert refused(capsys, *words) == f"msdeform do: {sentence}\n"


def test_a_word_too_many_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class One:
        """One."""

        file: Annotated[str, Positional("FILE")]
        """A file."""
        many: tuple[int, ...] = ()
        """Numbers."""

    assert parse(One, ["a", "--many", "1", "2"], "x").many == (1, 2)
    with pytest.raises(SystemExit):
        parse(One, ["--many", "1", "--", "a", "b"], "x")
    assert capsys.readouterr().err == "x: unexpected argument 'b'; x --help lists the options\n"


def test_advice_for_an_option_of_another_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check(Words, ["--lr", "x", "--sgd"], "p", lambda flag: "AdamW only" if flag == "--sgd" else None)
    assert capsys.readouterr().err == "p: unknown option --sgd; AdamW only\n"


def test_help_has_every_option_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        read("--lr", "nonsense", "--help")
    assert not stopped.value.code
    text = capsys.readouterr().out
    for words in (
        *("usage: msdeform do FILE ... [OPTIONS]", "Do a thing.", "How fast:", "examples: none", "(required)"),
        *("--kind {red,green}", "(default: red)", "--bar, --no-bar", "(default: on)", "100% of it", "(default: 1 2)"),
        *("--out DIR", "--device DEVICE", "--seeds N [N ...]", "--name NAME"),
    ):
        assert words in text
    assert "not in the title" not in text
    assert {option.name for option in options_of(Words)} >= {"files", "lr", "bar"}


def test_a_command_is_told_as_it_can_be_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / ".venv" / "bin" / "msdeform"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(script), "demo"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert command("predict", Path("my photos")) == ".venv/bin/msdeform predict 'my photos'"
    monkeypatch.setenv("PATH", str(script.parent))
    assert command("predict", 1) == "msdeform predict 1"
    monkeypatch.setattr("sys.argv", ["-m"])
    monkeypatch.setattr("sys.executable", str(tmp_path / "python3"))
    assert command("info") == "python3 -m msdeform info"


def even(name: str, value: int) -> None:
    if value % 2:
        raise ValueError(f"{name}: expected an even number, got {value}")


@dataclass(frozen=True)
class Ranges(ProgressOption):
    """Numbers."""

    size: Annotated[int, AtLeast(8, "pixels"), Checked(even)] = 8
    """Pixels."""
    decay: Annotated[float, Above(0, below=1)] | None = None
    """A decay."""
    shares: tuple[Annotated[float, Between(0, 1)], ...] = ()
    """Shares."""
    colour: Annotated[str, Known("colour", ("red", "green"))] = "red"
    """A colour."""
    must: int = field(kw_only=True)
    """A number."""


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"size": 6}, "size: expected at least 8 pixels, got 6"),
        ({"size": 9}, "size: expected an even number, got 9"),
        ({"decay": 1.0}, "decay: expected a number above 0 and below 1, got 1"),
        ({"decay": math.nan}, "decay: expected a number above 0 and below 1, got nan"),
        ({"shares": (0.5, 1.5)}, "shares: expected a number from 0 to 1, got 1.5"),
        ({"colour": "gren"}, "colour: no colour is called 'gren'; did you mean green?"),
    ],
)
def test_every_instance_is_in_the_ranges_of_its_fields(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Ranges(must=1, **values)


def test_shared_options_come_last_and_required_ones_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert [option.name for option in options_of(Ranges)] == ["size", "decay", "shares", "colour", "must", "progress"]
    with pytest.raises(SystemExit):
        parse(Ranges, ["--help"], "x")
    flags = re.findall(r"^  (--[a-z]+)", capsys.readouterr().out, re.MULTILINE)
    assert flags == ["--must", "--size", "--decay", "--shares", "--colour", "--progress"]


def test_a_name_is_suggested_by_likeness_or_as_a_part() -> None:
    assert suggest("no", "rde", ["red", "green"], "ask") == "no; did you mean red?"
    assert suggest("no", "synth", ["data synth"]) == "no; did you mean data synth?"
    assert suggest("no", "qqq", ["red"], "ask") == "no; ask"
    assert suggest("no", "qqq", ["red"]) == "no"


def test_names_are_suggested_in_one_way() -> None:
    folders = ("msdeform", "kernels", "models", "train", "explain", "bench")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    told = [str(file.relative_to(ROOT)) for file in files if "difflib" in file.read_text(encoding="utf-8")]
    assert told == ["msdeform/common/text.py"]

"""Command lines out of dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest

from msdeform.common.options import (
    AtLeast,
    Device,
    Metavar,
    Options,
    Positional,
    ReadPath,
    Reads,
    Repeated,
    WriteFolder,
    check,
    command,
    options_of,
    parse,
    spelled,
)


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

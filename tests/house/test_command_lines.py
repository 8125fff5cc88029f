"""Every option of every command is tried with what it cannot take: one sentence that names it, status 2, at once."""

import dataclasses
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from msdeform.cli import COMMANDS, main
from msdeform.common.fields import Option
from msdeform.common.options import Bare, Form, Positional, Reads, Writes
from tests.house.project import ROOT

HEAVY = ("torch", "torchvision", "triton", "numpy", "PIL", "scipy", "matplotlib", "transformers", "rich")

# what has to be said beside an option, or beside any option of a command, for it to mean something
BESIDE = {
    ("ablate", ""): ["--matrix"],
    ("eval", ""): ["--results", str(ROOT / "README.md")],
    ("eval", "results"): [],
    ("eval", "compare"): [],
    ("eval", "checkpoint"): [],
    ("explain", ""): ["--model", "owner/name"],
    ("explain", "checkpoint"): [],
    ("explain", "model"): [],
    ("explain-eval", ""): ["--model", "owner/name"],
    ("explain-eval", "checkpoint"): [],
    ("explain-eval", "model"): [],
    ("predict", ""): ["--webcam", "0"],
    ("predict", "webcam"): [],
    ("table", ""): ["--flops"],
}


def options() -> Iterator[tuple[str, Option]]:
    for name, command in COMMANDS.items():
        for option in command.known_options():
            yield name, option


def said(option: Option, word: str) -> list[str]:
    return [word] if option.mark(Positional) else [f"{option.flag}={word}"]


def line(name: str, option: Option, word: str, tmp_path: Path) -> list[str]:
    """A command line that is right but for one option."""
    words = []
    for other in COMMANDS[name].known_options():
        if other.name == option.name:
            words += said(option, word)
        elif other.default is dataclasses.MISSING:
            words += said(other, good(other, tmp_path))
    return [*words, *BESIDE.get((name, option.name), BESIDE.get((name, ""), []))]


def good(option: Option, tmp_path: Path) -> str:
    """A word that an option takes."""
    reads, kind = option.mark(Reads), option.kinds[0]
    if reads is not None:
        (tmp_path / "file").touch()
        return str(tmp_path if reads.kind == "folder" else tmp_path / "file")
    if option.mark(Writes) is not None:
        return str(tmp_path / "new.onnx")
    if typing.get_origin(kind) is Literal:
        return str(typing.get_args(kind)[0])
    return {int: "1", float: "1", str: "detr_tiny"}[kind]


def refused(name: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence that a command line is answered with: one line, and status 2."""
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), *words])
    assert stopped.value.code == 2, (name, words)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"msdeform {name}: ")
    assert told.err.count("\n") == 1
    assert "[Errno" not in told.err
    return told.err.removeprefix(f"msdeform {name}: ").rstrip()


def test_every_option_has_a_sentence_of_help() -> None:
    assert [(name, option.flag) for name, option in options() if not option.help.endswith((".", ")", "?"))] == []


def test_every_path_says_whether_it_is_read_or_written() -> None:
    paths = [(name, option) for name, option in options() if Path in option.kinds]
    assert len(paths) > 40
    assert [(name, one.flag) for name, one in paths if not (one.mark(Reads) or one.mark(Writes))] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_word_of_another_type_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in COMMANDS[name].known_options():
        kind = option.kinds[0]
        if kind in (int, float) or typing.get_origin(kind) is Literal or option.mark(Form):
            sentence = refused(name, said(option, "qqqq"), capsys)
            assert sentence.startswith(f"{option.flag}: expected "), sentence
            assert "'qqqq'" in sentence


@pytest.mark.parametrize("name", COMMANDS)
def test_a_number_out_of_range_is_refused(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for option in COMMANDS[name].known_options():
        kind = option.kinds[0]
        for wrong in {int: ("-1",), float: ("-1", "nan")}.get(kind, ()):
            sentence = refused(name, line(name, option, wrong, tmp_path), capsys)
            assert sentence.startswith(f"{option.flag}: expected "), sentence


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_without_its_value_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in COMMANDS[name].known_options():
        if not option.switch and not option.mark(Positional) and not option.mark(Bare):
            assert refused(name, [option.flag], capsys) == f"{option.flag}: expected {option.metavar} after it"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_path_that_is_not_there_is_refused(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for option in COMMANDS[name].known_options():
        if option.mark(Reads):
            sentence = refused(name, line(name, option, str(tmp_path / "absent"), tmp_path), capsys)
            assert re.match(rf"{option.flag}: expected .*; {tmp_path}/absent does not exist$", sentence), sentence


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_for_a_folder_or_a_folder_for_a_file_is_refused(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ending = ".onnx" if name == "export" else ".png"
    (tmp_path / f"a-file{ending}").touch()
    (tmp_path / f"a-folder{ending}").mkdir()
    for option in COMMANDS[name].known_options():
        mark = option.mark(Reads) or option.mark(Writes)
        if mark is None or mark.kind == "path":
            continue
        wrong = tmp_path / f"a-{'file' if mark.kind == 'folder' else 'folder'}{ending}"
        sentence = refused(name, line(name, option, str(wrong), tmp_path), capsys)
        assert sentence.startswith(f"{option.flag}: expected a {mark.kind}"), sentence
        assert str(wrong) in sentence


@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_that_cannot_be_written_is_refused(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "taken").touch()
    place = tmp_path / "taken" / "deeper" / ("out.onnx" if name == "export" else "out.png")
    for option in COMMANDS[name].known_options():
        if option.mark(Writes):
            sentence = refused(name, line(name, option, str(place), tmp_path), capsys)
            expected = f"{option.flag}: expected a place that can be written; {tmp_path}/taken is a file"
            assert sentence.startswith(expected), sentence


def test_nothing_heavy_is_imported_to_answer() -> None:
    """Modules are counted, as seconds depend on the machine."""
    code = f"""
import contextlib, io, sys
from msdeform.cli import COMMANDS, main
before = len(sys.modules)
for name in COMMANDS:
    numbers = [option.flag for option in COMMANDS[name].known_options() if option.kinds[0] in (int, float)]
    for words in (["--help"], ["--hlep"], *([number + "=-1"] for number in numbers[:1])):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                main([*name.split(), *words])
            except SystemExit:
                pass
print(sorted(set({HEAVY!r}) & set(sys.modules)), len(sys.modules) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    found, _, count = done.stdout.strip().rpartition(" ")
    assert found == "[]"
    assert int(count) < 150

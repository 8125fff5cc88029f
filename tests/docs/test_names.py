"""The pages for readers: the names, commands, flags and links that they mention are there."""

import importlib
import re
import shlex
from functools import reduce

import pytest

import msdeform
from msdeform.cli import COMMANDS
from tests.house.project import ROOT

DOCS = ROOT / "docs"
START = ("start/model.md", "start/photographs.md", "start/explain.md", "start/kernels.md")
PAGES = (*START, "migration.md", "troubleshooting.md", "architecture.md", "features.md", "glossary.md")


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def code_of(page: str) -> list[str]:
    """Inline code, and each line of blocks of Python and of commands."""
    text = text_of(page)
    blocks = re.findall(r"```(?:python|py|sh)\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + inline


def resolve(name: str) -> object:
    """What a dotted name stands for; raises ImportError or AttributeError if nothing does."""
    words = name.split(".")
    for length in range(len(words), 0, -1):
        try:
            module = importlib.import_module(".".join(words[:length]))
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        return reduce(getattr, words[length:], module)
    raise ImportError(name)


@pytest.mark.parametrize("page", PAGES)
def test_each_dotted_name_is_there(page: str) -> None:
    for code in code_of(page):
        for name in re.findall(r"(?<![\w/.-])msdeform(?:\.[A-Za-z_]\w*)+", code):
            resolve(name)


def test_a_name_that_is_not_there_is_noticed() -> None:
    assert resolve("msdeform.ms_deform_attn") is msdeform.ms_deform_attn
    for name in ("msdeform.nothing", "msdeform.kernels.compat.Nothing", "msdeform.kernels.nothing.at_all"):
        with pytest.raises((AttributeError, ImportError)):
            resolve(name)


def commands_of(page: str) -> list[list[str]]:
    """Every use of the command, in words; what follows a pipe or a semicolon is another."""
    return [
        shlex.split(use, comments=True)[1:]
        for code in code_of(page)
        for use in re.split(r"[|;]", code)
        if use.strip().startswith("msdeform ")
    ]


def is_a_command(words: list[str]) -> bool:
    """Whether there is such a command, with these flags."""
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), None)
    if name is None:
        return False
    known = {flag for option in COMMANDS[name].known_options() for flag in option.flags} | {"--help"}
    rest = words[len(name.split()) :]  # "verify --compiled" is a command
    return {word.partition("=")[0] for word in rest if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES)
def test_each_command_takes_its_flags(page: str) -> None:
    assert [words for words in commands_of(page) if not is_a_command(words)] == []


def test_commands_are_found_and_wrong_ones_noticed() -> None:
    assert {words[0] for page in PAGES for words in commands_of(page)} >= {"data", "train", "eval", "explain", "verify"}
    assert is_a_command(["train", "--data", "DIR"])
    assert not is_a_command(["train", "--no-such-flag"])
    assert not is_a_command(["trian"])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    here = DOCS / page
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text_of(page)):
        path, _, anchor = link.partition("#")
        target = (here.parent / path).resolve() if path else here
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            text = re.sub(r"```.*?```", "", target.read_text(encoding="utf-8"), flags=re.DOTALL)
            headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page} links to {link}"


@pytest.mark.parametrize("page", START)
def test_a_start_page_is_short_and_begins_with_a_result(page: str) -> None:
    """A block to type in under ten lines before anything else, what a command printed, and a picture."""
    lines = text_of(page).splitlines()
    assert 60 <= len(lines) <= 160
    opened = next(number for number, line in enumerate(lines) if line.startswith("```"))
    closed = next(number for number, line in enumerate(lines) if number > opened and line == "```")
    assert opened <= 4
    assert closed - opened <= 10
    assert "```text" in text_of(page)
    assert "![" in text_of(page)

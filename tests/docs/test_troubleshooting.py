"""docs/troubleshooting.md: each message that it quotes is still one of the code's."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.house.project import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
FILLED_IN = "…"  # in the page, where the program fills in something
PACKAGES = ("msdeform", "kernels", "integrations", "models", "train", "explain")
_HOLE = "\0"  # the same in a message of the code


def quoted(page: str) -> list[str]:
    """The messages of a page: each line of its blocks of text, and the reasons in its tables."""
    blocks = re.findall(r"^```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def texts(source: str) -> list[str]:
    """Every text of a module, an f-string's with a hole for each value."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else _HOLE for part in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


@cache
def of_the_code() -> tuple[str, ...]:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return tuple(text for file in files for text in texts(file.read_text(encoding="utf-8")))


def is_said(message: str, said: tuple[str, ...]) -> bool:
    """Whether one text has all fixed words of a message, in order, with nothing filled in within them."""
    fixed = re.compile(".*".join(map(re.escape, message.split(FILLED_IN))), re.DOTALL)
    return any(fixed.search(text) for text in said)


@pytest.mark.parametrize("message", quoted(PAGE))
def test_each_message_is_one_of_the_code(message: str) -> None:
    assert len(message.replace(FILLED_IN, "").split()) >= 2, f"{message!r} has too few words to be told from others"
    assert is_said(message, of_the_code()), f"docs/troubleshooting.md quotes {message!r}, which no code says"


def test_each_reason_in_a_table_is_one_of_the_code() -> None:
    reasons = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
    assert len(reasons) >= 4
    assert [reason for reason in reasons if not is_said(reason, of_the_code())] == []


def test_another_wording_is_noticed() -> None:
    said = ("backend: expected one of \0, got \0",)
    assert is_said("backend: expected one of …, got …", said)
    assert not is_said("backend: expected one out of …, got …", said)
    assert not is_said("backend: expected one of auto, got …", said)  # what a program fills in is no fixed word
    assert not is_said("got …, expected one of …", said)


def test_the_page_is_in_order() -> None:
    """No symptom stands there twice, and none without something to do about it."""
    parts = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    headings = [part.splitlines()[0] for part in parts]
    assert len(set(headings)) == len(headings) >= 25
    for part in parts:
        without_quotes = re.sub(r"```.*?```", "", part.split("\n## ")[0], flags=re.DOTALL)
        assert len(without_quotes.split()) >= 10, part


def test_every_package_is_read() -> None:
    assert all((ROOT / package).is_dir() for package in PACKAGES)
    assert Path(ROOT, "msdeform", "common", "device.py").exists()
    assert len(of_the_code()) > 1000

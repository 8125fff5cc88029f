"""The pages of the manual, found on disk, and their fenced blocks: shell lines, Python, and the rest."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from tests.house.project import ROOT

FENCE = re.compile(
    r"^(?P<indent>[ \t]*)```(?P<words>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```[ \t]*$", re.MULTILINE | re.DOTALL
)


def pages() -> list[str]:
    """README.md, CONTRIBUTING.md and every page in docs/, by their path from the root."""
    found = sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *found]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    """the first word after the fence; empty for a block that is only shown"""
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, language: str | None = None) -> Iterator[Block]:
    """The blocks of a page in order, of one language or of any."""
    text = (ROOT / page).read_text()
    for found in FENCE.finditer(text):
        words = found["words"].split()
        block = Block(page, text.count("\n", 0, found.start()) + 2, words[0] if words else "", _dedented(found))
        if language in (None, block.language):
            yield block


def _dedented(found: re.Match[str]) -> str:
    return textwrap.dedent(found["text"]) if found["indent"] else found["text"]

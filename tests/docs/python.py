"""Python of the pages: how the blocks of a page are run, one after the other in one process."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.docs.pages import Block, blocks, pages
from tests.house.project import ROOT

RULES: dict[str, Any] = tomllib.loads((Path(__file__).parent / "python.toml").read_text())

# a traceback names the page and its line; names are those of __main__, as if the blocks were typed
_RUN = """
import json, sys
for page, line, text in json.load(sys.stdin):
    exec(compile("\\n" * (line - 1) + text, page, "exec"), vars(sys.modules["__main__"]))
"""


@dataclass(frozen=True)
class Rule:
    """What a page's Python needs beside itself."""

    page: str
    files: Sequence[str] = ()
    """of the prepared folder, which the reader has"""
    first: Sequence[str] = ()
    """commands of the page that come before"""
    setup: str = ""
    """names that the reader has"""
    replace: Mapping[str, str] = field(default_factory=dict)
    """words that stand for the reader's own, or would take long or a network"""
    check: str = ""
    """Python that looks at what the blocks left"""
    prints: Sequence[str] = ()
    shows_output: bool = False
    """the page's text blocks are what its Python prints"""
    slow: bool = False


@dataclass(frozen=True)
class Unrun:
    """A block marked py, which is not run: one of a page that begins so, or all of a folder's pages."""

    page: str
    begins: str
    reason: str

    def holds(self, block: Block) -> bool:
        return block.page.startswith(self.page) and block.text.startswith(self.begins)


PAGE_RULES = {each["page"]: Rule(**each) for each in RULES["page"]}
UNRUN = [Unrun(**each) for each in RULES["unrun"]]


def rule_of(page: str) -> Rule:
    return PAGE_RULES.get(page, Rule(page))


def with_python(*, slow: bool) -> list[str]:
    return [page for page in pages() if rule_of(page).slow == slow and any(blocks(page, "python"))]


def printed_by(page: str, folder: Path, port: int = 0) -> str:
    """What the blocks of a page print. Raises AssertionError with the traceback where one fails."""
    rule = rule_of(page)
    given = [(page, 1, rule.setup)]
    replaced = set()
    for block in blocks(page, "python"):
        text = block.text
        for old, new in rule.replace.items():
            replaced |= {old} if old in text else set()
            text = text.replace(old, new)
        given.append((page, block.line, text.replace("127.0.0.1:8000", f"127.0.0.1:{port}") if port else text))
    given.append(("python.toml", 1, rule.check))
    assert replaced == rule.replace.keys(), f"python.toml replaces what is not in {page}"
    done = subprocess.run(
        [sys.executable, "-c", _RUN],
        input=json.dumps(given),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

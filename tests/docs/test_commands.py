"""Every command of the manual is run as the pages have it, or stands in commands.toml with the reason why not.

A page is read from top to bottom in a folder with small data and a small run under the names that the pages use. What
commands.toml adds to a line makes it small, or takes a local file in the place of a download.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.pages import blocks, pages
from tests.docs.shell import ASSIGNMENT, BEGINNINGS, LINES, LISTED, Failed, Reader, every_line, lines
from tests.house.project import ROOT

# what a fence may say; commands are in sh, so that they are found
LANGUAGES = {"", "html", "json", "mermaid", "py", "python", "sh", "text", "toml", "yaml"}


def read_page(page: str, data: Path, checkout: Path, *, slow: bool) -> None:
    """Types the commands of a page, and tells of all that failed at once."""
    failures = []
    with Reader(data, checkout) as reader:
        for line in lines(page):
            rule = line.rule()
            if rule.reason or (rule.slow != slow and not ASSIGNMENT.fullmatch(line.text)):
                continue
            try:
                reader.type(line)
            except Failed as failed:
                failures.append(f"{line.place}: {failed}")
    assert not failures, "\n\n".join(failures)


def with_lines(*, slow: bool) -> list[str]:
    wanted = {page: [line.rule() for line in lines(page)] for page in pages()}
    return [page for page, rules in wanted.items() if any(not rule.reason and rule.slow == slow for rule in rules)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", with_lines(slow=False))
def test_the_commands_of_a_page_run(page: str, data: Path, tmp_path: Path) -> None:
    read_page(page, data, tmp_path / "checkout", slow=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", with_lines(slow=True))
def test_the_slow_commands_of_a_page_run(page: str, data: Path, tmp_path: Path) -> None:
    read_page(page, data, tmp_path / "checkout", slow=True)


def test_every_line_is_run_or_listed() -> None:
    assert [f"{line.place}: {line.text}" for line in every_line() if not line.is_known()] == []


def test_what_is_said_of_a_line_is_of_a_line_that_is_there() -> None:
    typed = {line.text for line in every_line()}
    assert (LINES.keys() | LISTED.keys()) - typed == set()
    unused = [rule.line for rule in BEGINNINGS.values() if not any(rule == line.rule() for line in every_line())]
    assert unused == []


def test_a_line_that_is_not_run_has_a_reason() -> None:
    assert [rule.line for rule in LISTED.values() if len(rule.reason.split()) < 4] == []
    assert LINES.keys() & LISTED.keys() == set()
    named = {name for rule in LISTED.values() for name in re.findall(r"tests/[\w/]+\.py", rule.reason)}
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_blocks_say_what_they_hold() -> None:
    found = {(block.place, block.language) for page in pages() for block in blocks(page)}
    assert {each for each in found if each[1] not in LANGUAGES} == set()
    shown = [block for page in pages() for block in blocks(page) if block.language in ("", "text")]
    typed = [block.place for block in shown if re.match(r"(\$ |msdeform (?!\()|pip |python |make )", block.text)]
    assert typed == [], "commands belong into a block marked sh"


def test_most_lines_are_run() -> None:
    kinds = Counter(bool(line.rule().reason) for line in every_line())
    assert kinds[False] > 5 * kinds[True]

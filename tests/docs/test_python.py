"""Every Python block of the manual runs, page by page in order; blocks marked py stand in python.toml with a reason."""

from pathlib import Path

import pytest

from tests.docs.pages import blocks, pages
from tests.docs.prepared import copy
from tests.docs.python import PAGE_RULES, UNRUN, printed_by, rule_of, with_python
from tests.docs.shell import Reader, lines


def run_page(page: str, tmp_path: Path, prepared: Path) -> None:
    rule, folder = rule_of(page), tmp_path / "here"
    folder.mkdir()
    for name in rule.files:
        copy(prepared / name, folder / name)
    with Reader(folder, tmp_path / "checkout") as reader:
        commands = {line.text: line for line in lines(page)}
        for text in rule.first:
            reader.type(commands[text])
        said = printed_by(page, folder, reader.port)
    for text in rule.prints:
        assert text in said
    if rule.shows_output:
        for block in blocks(page, "text"):
            assert block.text in said


@pytest.mark.parametrize("page", with_python(slow=False))
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, prepared: Path) -> None:
    run_page(page, tmp_path, prepared)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", with_python(slow=True))
def test_the_slow_python_of_a_page_runs(page: str, tmp_path: Path, prepared: Path) -> None:
    run_page(page, tmp_path, prepared)


def test_a_block_that_is_not_run_has_a_reason() -> None:
    found = [block for page in pages() for block in blocks(page, "py")]
    assert [block.place for block in found if sum(each.holds(block) for each in UNRUN) != 1] == []
    assert [each.reason for each in UNRUN if len(each.reason.split()) < 4] == []


def test_what_is_said_of_a_page_is_of_a_page_with_python() -> None:
    assert PAGE_RULES.keys() <= {*with_python(slow=False), *with_python(slow=True)}
    found = [block for page in pages() for block in blocks(page, "py")]
    single = [each for each in UNRUN if each.begins]
    assert [each.begins for each in single if not any(each.holds(block) for block in found)] == []

"""The course of docs/course: every step runs and prints what its page shows; the code on a page is that of its step."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.house.project import ROOT

COURSE = ROOT / "docs" / "course"
STEPS = sorted(COURSE.glob("step*.py"))
PAGES = {step: next(COURSE.glob(f"{step.name[4:6]}-*.md")) for step in STEPS}
PICTURES = [page.with_suffix(".svg") for page in PAGES.values()]
WITH_TRITON = STEPS[6:]
COUNTED = STEPS[9]
each_step = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.stem)


def answer_of(file: Path, *arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    """A file run as a reader runs it: on its own, from any folder."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(file), *arguments]
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)


def run(file: Path, *arguments: str, where: Path) -> str:
    """What a file prints."""
    answer = answer_of(file, *arguments, where=where)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)\n```$", page, re.DOTALL | re.MULTILINE)


def holds(whole: str, part: str, indented: bool = False) -> bool:
    """Whether these lines follow each other in a text; code may stand deeper in its file than on a page."""
    lines, wanted = whole.rstrip().splitlines(), part.splitlines()
    windows = (lines[k : k + len(wanted)] for k in range(len(lines) - len(wanted) + 1))
    if indented:
        return any(textwrap.dedent("\n".join(window)) == part for window in windows)
    return any(window == wanted for window in windows)


def texts(picture: Path) -> list[str]:
    """The words and numbers in a picture, which matplotlib notes beside the letters that it draws."""
    return re.findall(r"<!-- (.*?) -->", picture.read_text(), re.DOTALL)


def pinned(package: str) -> str:
    return re.findall(rf"^{package}==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]


def need_triton(step: Path) -> None:
    if step in WITH_TRITON and importlib.util.find_spec("triton") is None:
        pytest.skip("this step needs Triton, which is not installed")


def test_there_are_ten_steps_and_the_index_lists_them() -> None:
    assert [step.name[:6] for step in STEPS] == [f"step{k:02}" for k in range(1, 11)]
    index = (COURSE / "index.md").read_text()
    listed = re.findall(r"^\| \d+ \| \[.+\]\((.+)\) \| .+ \| \[(.+)\]\((.+)\) \|$", index, re.MULTILINE)
    assert listed == [(page.name, step.name, step.name) for step, page in PAGES.items()]


@each_step
def test_a_step_runs_and_prints_what_its_page_shows(step: Path, tmp_path: Path) -> None:
    need_triton(step)
    printed = run(step, where=tmp_path)
    assert list(tmp_path.iterdir()) == [], "a step writes no files"
    assert "Traceback" not in printed
    # a step compares its result with another's, and says so; step 9 shows one comparison that has to fail
    assert re.findall(r"\b(True|False)\b", printed).count("False") == (step.name[4:6] == "09")
    if step == COUNTED and version("triton") != pinned("triton"):
        pytest.skip(f"runs, but another compiler than Triton {pinned('triton')} makes other instructions")
    shown = blocks(PAGES[step].read_text(), "text")
    assert shown
    for block in shown:
        assert holds(printed, block), f"{step.name} does not print\n{block}\nbut\n{printed}"


@each_step
def test_the_code_on_a_page_is_that_of_its_step(step: Path) -> None:
    page = PAGES[step].read_text()
    shown = blocks(page, "py")
    assert shown
    for block in shown:
        assert holds(step.read_text(), block, indented=True), f"{step.name} does not hold\n{block}"
    assert len(blocks(page, r"\w*")) == len(shown) + len(blocks(page, "text")), "a block of another kind is not checked"


@each_step
def test_a_step_is_short_and_opens_with_its_idea(step: Path) -> None:
    text = step.read_text()
    assert text.startswith(f'"""Step {int(step.name[4:6])}: ')
    assert len(text.splitlines()) <= 95


@pytest.mark.parametrize("page", [COURSE / "index.md", *PAGES.values()], ids=lambda page: page.stem)
def test_links_and_pictures_of_a_page_are_there(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\((?!https?://)([^)\s#]+)(?:#[^)\s]*)?\)", text)
    assert [link for link in links if not (COURSE / link).exists()] == []
    assert re.search(r"!\[[^\]]{20,}\]\(\d\d-[\w-]+\.svg\)", text), "a picture, with words for those who do not see it"
    if page.stem != "index":
        assert text.count("<details markdown><summary>Answer</summary>") == text.count("</details>") >= 2
        after = [*PAGES.values(), COURSE / "index.md"][list(PAGES.values()).index(page) + 1]
        assert f"]({after.name})" in text, "it leads to the next page"


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_pictures_are_small(picture: Path) -> None:
    assert picture.stat().st_size < 100_000
    assert len(texts(picture)) >= 5


def redrawn(names: list[str], folder: Path) -> None:
    run(COURSE / "pictures.py", str(folder), *names, where=folder)
    for name in names:
        assert texts(folder / f"{name}.svg") == texts(COURSE / f"{name}.svg"), f"draw {name} again with pictures.py"


def test_pictures_show_the_numbers_of_the_steps(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    redrawn([picture.stem for picture in PICTURES[:9]], tmp_path)


@pytest.mark.slow
def test_the_picture_of_counts_shows_those_of_step_10(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    need_triton(COUNTED)
    if version("triton") != pinned("triton"):
        pytest.skip(f"another compiler than Triton {pinned('triton')} makes other instructions")
    redrawn([PICTURES[9].stem], tmp_path)


@pytest.mark.slow
def test_step_10_stops_at_a_load_outside_as_its_page_says(tmp_path: Path) -> None:
    need_triton(COUNTED)
    change = re.findall(r"Delete `(.+?)` in \[(.+?)\]", PAGES[COUNTED].read_text())
    assert len(change) == 1
    mask, name = change[0]
    shutil.copytree(COURSE, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / name).read_text()
    assert text.count(mask) == 1
    (tmp_path / name).write_text(text.replace(mask, ""))
    answer = answer_of(tmp_path / COUNTED.name, where=tmp_path)
    assert answer.returncode != 0
    sentence = answer.stderr.splitlines()[-1]
    assert "reads 4 bytes out of bounds" in sentence
    assert re.search(rf"program \(.+\) thread \d+, instruction .+{name}:\d+", sentence), sentence


def test_a_changed_line_is_found() -> None:
    text = "def f():\n    a = 1\n    b = 2\n"
    assert holds(text, "a = 1\nb = 2", indented=True)
    for wrong in ("a = 1\nb = 3", "b = 2\na = 1", "a = 1\n\nb = 2", "a = 1\n    b = 2"):
        assert not holds(text, wrong, indented=True), wrong
    assert holds("one\ntwo\nthree\n", "two\nthree")
    for wrong in ("one\nthree", "tw", "two\nthree\nfour", " two"):
        assert not holds("one\ntwo\nthree\n", wrong), wrong

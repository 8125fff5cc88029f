"""What README and the pages beside it promise: their Python runs as it stands, their commands take the flags given."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import msdeform
from msdeform.cli import COMMANDS
from tests.house.project import FOLDERS, ROOT

WITH_PYTHON = (
    *("README.md", "docs/operator.md", "docs/integrations.md", "docs/models.md", "docs/prediction.md"),
    "docs/python.md",
)
PAGES = {name: (ROOT / name).read_text() for name in WITH_PYTHON}
SHELL = "\n".join(block for page in PAGES.values() for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL))

EXAMPLE = re.search(r"```text\n(.*?)\n```", PAGES["docs/integrations.md"], re.DOTALL)[1].splitlines()  # type: ignore[index]


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)


def run(*arguments: str, where: Path = ROOT) -> str:
    command, environment = [sys.executable, *arguments], {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False, env=environment)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.parametrize(
    ("page", "blocks", "printed"),
    [
        ("README.md", 1, "torch.Size([2, 100, 256]) torch.Size([2, 1600, 8, 32])"),
        ("docs/operator.md", 3, ""),
        ("docs/integrations.md", 3, "\n".join(EXAMPLE)),
        ("docs/models.md", 4, "torch.Size([1, 300, 3]) torch.Size([1, 300, 4])"),
        ("docs/prediction.md", 4, "100 torch.Size([100, 4])"),
        ("docs/python.md", 6, "['ball', 'box']"),
    ],
)
def test_the_python_blocks_run_in_order(tmp_path: Path, page: str, blocks: int, printed: str) -> None:
    assert len(python_of(page)) >= blocks
    # elsewhere, as they write files
    assert printed in run("-c", "\n".join(python_of(page)), where=tmp_path)


def test_the_first_screen_is_short() -> None:
    """Who it is for, how to install it, the operator in ten lines, a picture and a table: in this order, and short."""
    readme = PAGES["README.md"]
    table = re.compile(r"<!-- rendered ([\w-]+) -->.*?<!-- end of \1 -->", re.DOTALL)
    assert len(readme.splitlines()) <= 150
    assert len(table.sub("", readme).split()) < 850
    order = ["| you |", "pip install", "```python", "![", "<!-- rendered cpu-short", "make demo"]
    places = [readme.index(text) for text in order]
    assert places == sorted(places)
    [block] = python_of("README.md")
    assert len([line for line in block.splitlines() if not line.startswith("import")]) <= 10


DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/results/README.md")


def anchors(page: Path) -> set[str]:
    """What a link into a page can name: its headings in GitHub's spelling."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", [*DOCUMENTS, *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{name} links to {link}"
    # a link whose text is a path leads there
    for text, link in re.findall(r"\[((?:\w+/)+[\w.]*)\]\((?!https?://)([^)\s#]+)\)", page.read_text()):
        assert (page.parent / link).resolve() == (ROOT / text.rstrip("/")), f"{name}: [{text}]({link})"


def test_contributing_lists_every_folder() -> None:
    listed = re.findall(r"^\| \[([\w/]+)/\]\(", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    rooms = {folder for folder in FOLDERS.values() if folder.count("/") <= 1}
    assert sorted(listed) == sorted(rooms | {"bench/results", "tests"})


def uses() -> list[tuple[str, tuple[str, ...]]]:
    """Every use of the command in a shell block: its name and the flags given."""
    found = []
    shell = SHELL.replace("\\\n", " ").replace("python -m msdeform.train", "msdeform train")
    for line in shell.splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0].split("/")[-1] == "msdeform":
            name = " ".join(words[1:3]) if " ".join(words[1:3]) in COMMANDS else words[1]
            found.append((name, tuple(word for word in words[1 + len(name.split()) :] if word.startswith("--"))))
    return found


def test_commands_are_found() -> None:
    assert {name for name, _ in uses()} >= {"info", "verify", "convert", "export", "table"}


def test_each_command_takes_its_flags() -> None:
    for name, flags in uses():
        known = {flag for option in COMMANDS[name].known_options() for flag in option.flags}
        assert {flag.partition("=")[0] for flag in flags} <= known, (name, flags)


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == msdeform.__version__

"""README and the pages beside it: the first screen is short, links lead somewhere, folders and versions are named."""

import re
from pathlib import Path

import pytest

import msdeform
from tests.docs.pages import blocks, pages
from tests.house.project import FOLDERS, ROOT


def test_the_first_screen_is_short() -> None:
    """A picture, how to install it, the operator in ten lines, speed, features: in this order, and short."""
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    assert len(re.sub(r"^\|.*$", "", readme, flags=re.MULTILINE).split()) < 800  # outside of tables
    order = ["![", "pip install", "```python", "<!-- rendered cpu-short", "| | MSDeform |", "make demo"]
    places = [readme.index(text) for text in order]
    assert places == sorted(places)
    first, block = (found.text for found in blocks("README.md", "python"))
    assert len(first.splitlines()) == 1
    assert len([line for line in block.splitlines() if not line.startswith("import")]) <= 10


DOCUMENTS = ("CHANGELOG.md", "bench/results/README.md", *pages())


def anchors(page: Path) -> set[str]:
    """What a link into a page can name: its headings in GitHub's spelling."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
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


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == msdeform.__version__

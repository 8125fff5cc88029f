"""What docs/versions.md promises to keep stands in recorded.txt, and nothing of it goes away unnoticed."""

import re

import pytest

import msdeform
from tests.house.project import ROOT
from tests.house.public.surface import NOT_COVERED, broken, recorded, surface, unannounced
from tests.house.supply.closure import pinned
from tests.house.test_dependencies import NEWEST, OLDEST, PYTHONS


def test_nothing_public_was_removed_against_the_rules() -> None:
    version_then, then = recorded()
    assert len(then) > 500
    assert broken(surface(), then, msdeform.__version__, version_then) == []


def test_the_record_is_up_to_date() -> None:
    """A new name is a promise from the version that has it: recording it is a decision, too."""
    version_then, then = recorded()
    now = surface()
    assert version_then == msdeform.__version__, "run `python -m tests.house.public.surface`"
    assert sorted(now - then.keys()) == [], "run `python -m tests.house.public.surface`"
    assert sorted(then.keys() - now) == [], "run `python -m tests.house.public.surface`"


def test_what_is_deprecated_is_in_the_changelog() -> None:
    assert unannounced(recorded()[1], (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")) == []
    then = {"command train --old": "1.1", "argument f x= at 1": "1.1", "name g": ""}
    changelog = "## [1.1]\n\n### Deprecated\n\n- `--old`: use `--new`.\n\n### Fixed\n\n- `x` was wrong.\n"
    assert unannounced(then, changelog) == ["argument f x= at 1"]
    assert unannounced(then, changelog.replace("use", "and `x` of `f`: use")) == []


def test_the_page_names_the_versions_that_are_tested() -> None:
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    rows = {
        name: (old, new) for name, old, new in re.findall(r"^\| (Python|PyTorch) \| (\S+) \| (\S+) \|$", page, re.M)
    }
    torches = [".".join(map(str, pinned(pins["torch"]).release[:2])) for pins in (OLDEST, NEWEST)]
    assert rows == {"Python": (PYTHONS[0], PYTHONS[-1]), "PyTorch": tuple(torches)}
    for command in NOT_COVERED:
        assert f"`msdeform {command}`" in page


F, X, Y = "name f", "argument f x at 1", "argument f y= at 2"
THEN = {F: "", X: "", Y: "", "command train --a": "", "command train --old": "1.1"}


@pytest.mark.parametrize(
    ("now", "version", "lost"),
    [
        (set(THEN), "1.2.0", []),
        ({*THEN, "name g", "argument g z at 1", "command train --b", "argument f z= at 3"}, "1.2.0", []),
        (set(THEN) - {"command train --a"}, "1.2.0", ["command train --a"]),
        (set(THEN) - {"command train --a"}, "2.0.0", []),
        (set(THEN) - {"command train --old"}, "1.1.3", ["command train --old"]),
        (set(THEN) - {"command train --old"}, "1.2.0", []),
        # an argument that may be left out now, and one that may not any more
        (set(THEN) - {X} | {"argument f x= at 1"}, "1.2.0", []),
        (set(THEN) - {Y} | {"argument f y at 2"}, "1.2.0", [Y]),
        # another place, another name, and one more that must be given
        (set(THEN) - {Y} | {"argument f y= at 3"}, "1.2.0", [Y]),
        (set(THEN) - {Y} | {"argument f w= at 2"}, "1.2.0", [Y]),
        ({*THEN, "argument f z at 3"}, "1.2.0", ["argument f z must be given now"]),
        ({*THEN, "argument f z"}, "1.2.0", ["argument f z must be given now"]),
        ({*THEN, "argument f *more"}, "1.2.0", []),
    ],
)
def test_the_rules(now: set[str], version: str, lost: list[str]) -> None:
    assert broken(now, THEN, version, "1.1.0") == lost

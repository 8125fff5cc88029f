"""The pins of constraints.txt, and which distributions the requirements bring, as far as they are installed here."""

from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.house.project import PYPROJECT, ROOT

# what users install: `pip install msdeform` and each extra, without what tests need
GROUPS: dict[str, list[str]] = {
    "base": PYPROJECT["project"]["dependencies"],
    **{name: lines for name, lines in PYPROJECT["project"]["optional-dependencies"].items() if name != "dev"},
}


def pins(name: str) -> dict[str, Requirement]:
    """Canonical name -> `name==version; marker` of each line of a constraints file in the root."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and line[0] != "#"]
    return {canonicalize_name(pin.name): pin for pin in map(Requirement, lines)}


def pinned(pin: Requirement) -> Version:
    """The version in a pin; raises ValueError for a requirement that is none."""
    (specifier,) = pin.specifier
    if specifier.operator != "==":
        raise ValueError(f"expected name==version, got {pin}")
    return Version(specifier.version)


def closure(requirements: Iterable[Requirement]) -> dict[str, set[str]]:
    """Every distribution that these bring, themselves among them, and which others each of them asks for."""
    asks: dict[str, set[str]] = defaultdict(set)
    seen: set[tuple[str, str]] = set()
    queue = [("", requirement, "") for requirement in requirements]
    while queue:
        asker, requirement, extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            requires = distribution(requirement.name).requires or []
        except PackageNotFoundError:
            continue
        name = canonicalize_name(requirement.name)
        asks[asker].add(name)
        for wanted_extra in ["", *requirement.extras]:
            if (name, wanted_extra) not in seen:
                seen.add((name, wanted_extra))
                queue += [(name, Requirement(line), wanted_extra) for line in requires]
    return {name: asks[name] - {name} for name, _ in seen}


def wanted_by() -> dict[str, list[str]]:
    """Every distribution that users install, by name: ``base``, or the extras that bring it."""
    found = {group: closure(map(Requirement, lines)) for group, lines in GROUPS.items()}
    names = sorted(set().union(*found.values()))
    return {
        name: ["base"] if name in found["base"] else [group for group, brought in found.items() if name in brought]
        for name in names
    }

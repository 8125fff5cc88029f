"""Which distributions the requirements of pyproject.toml bring, direct and indirect, as far as installed here."""

from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.project import PYPROJECT

# what users install: `pip install msdeform` and each extra, without what tests need
GROUPS: dict[str, list[str]] = {
    "base": PYPROJECT["project"]["dependencies"],
    **{name: lines for name, lines in PYPROJECT["project"]["optional-dependencies"].items() if name != "dev"},
}


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

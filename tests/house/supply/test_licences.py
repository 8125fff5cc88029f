"""docs/licences.md lists every package that MSDeform runs on, with a licence that is known and accepted."""

from email.message import Message

import pytest

from tests.house.supply import licences
from tests.house.supply.closure import wanted_by
from tests.house.test_dependencies import NEWEST, PINS


def test_the_table_says_what_the_metadata_say() -> None:
    if PINS is not NEWEST:
        pytest.skip("the table is that of constraints.txt, and this environment has other versions")
    here = {name: (licences.licence(name), ", ".join(groups)) for name, groups in wanted_by().items()}
    assert len(here) > 50
    assert {name: row for name, row in licences.table().items() if name in here} == here


def test_every_row_is_pinned_and_accepted() -> None:
    table = licences.table()
    assert set(table) - set(NEWEST) == set(), "not in constraints.txt"
    unknown = {
        name: expression for name, (expression, _) in table.items() if licences.parts(expression) - licences.ACCEPTED
    }
    assert unknown == {}, "a licence that docs/licences.md does not speak of"
    used = set().union(*(licences.parts(expression) for expression, _ in table.values()))
    assert used == licences.ACCEPTED, "accepted, and used by nothing"


def test_only_what_metadata_leave_open_was_read_by_hand() -> None:
    assert set(licences.READ) <= set(licences.table())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License-Expression": "mit"}, "MIT"),
        ({"License": "Apache-2.0", "Classifier": "License :: OSI Approved :: BSD License"}, "Apache-2.0"),
        ({"License": "Apache 2.0", "Classifier": "License :: OSI Approved :: Apache Software License"}, "Apache-2.0"),
        ({"License": "BSD", "Classifier": "License :: OSI Approved :: BSD License"}, None),
        ({"License": "the text of some licence"}, None),
        ({}, None),
    ],
)
def test_unclear_metadata_are_no_licence(fields: dict[str, str], expected: str | None) -> None:
    package = Message()
    for name, value in fields.items():
        package[name] = value
    assert licences.stated(package) == expected  # type: ignore[arg-type]


def test_expressions_are_taken_apart() -> None:
    assert licences.parts("MPL-2.0 AND (Apache-2.0 OR MIT)") == {"MPL-2.0", "Apache-2.0", "MIT"}
    assert licences.parts("BSD-2-Clause AND Apache-2.0 WITH LLVM-exception") == {
        "BSD-2-Clause",
        "Apache-2.0 WITH LLVM-exception",
    }

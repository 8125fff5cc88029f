"""What a file says, as part of a sentence."""

import pytest

from msdeform.common.text import shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cat, 猫 🦓", "cat, 猫 🦓"),
        ("a\nb\x1b[31m\x7f\x85\u2028\ud800", "a\\nb\\x1b[31m\\x7f\\x85\\u2028\\ud800"),
        (3.5, "3.5"),
        ("x" * 200, "x" * 200),
        ("x" * 5000 + "y" * 100, "x" * 100 + "..." + "y" * 100),
    ],
)
def test_it_stands_on_one_line_and_is_short(text: object, line: str) -> None:
    assert shown(text) == line

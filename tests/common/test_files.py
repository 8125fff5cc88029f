"""Reading YAML and lists of names that others wrote."""

from pathlib import Path

import pytest

from msdeform.common.files import MOST_VALUES, list_of_names, read_yaml

BOMB = "- &a0 [1, 1]\n" + "".join(f"- &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))


def test_yaml_is_read() -> None:
    assert read_yaml("a: &x [1, two]\nb: *x") == {"a": [1, "two"], "b": [1, "two"]}
    assert read_yaml("") is None
    assert len(read_yaml("[" + "1," * (MOST_VALUES - 1) + "]")) == MOST_VALUES - 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1", "line 1: expected"),
        ("a: !!python/object:os.system {}", "line 1: could not determine a constructor"),
        ("[" * 1000 + "]" * 1000, "nested too deeply"),
        ("&a [*a]", "nested too deeply, or refers to itself"),
        ("[" + "1," * MOST_VALUES + "]", f"unfold to {MOST_VALUES + 1} values"),
        (BOMB, "aliases unfold to"),
        ("0b_", "invalid literal"),
        ("2024-13-45", "month"),
        ("!!timestamp x", "kind that its tag says"),
        ("\x1b", "special characters"),
        ("? [a]\n: b", "unhashable key"),
    ],
)
def test_hostile_yaml_is_refused_on_one_line(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^[ -~]*{sentence}[ -~]*$"):
        read_yaml(text)


def test_names_are_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffone\r\n\n two words \n".encode())
    assert list_of_names(path) == ["one", "two words"]
    path.write_bytes(b"one\ntwo\x1b[31m")
    with pytest.raises(ValueError, match=r"names\.txt, line 2: expected a name, got control characters in 'two"):
        list_of_names(path)

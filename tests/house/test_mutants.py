"""The mutation runner on a toy whose outcomes are known, and the real list held against the code."""

from pathlib import Path

import pytest

from tests.house.mutants.run import LIST, Mutation, exit_status, main, read_list, run_all, table
from tests.house.project import ROOT

CODE = "def double(x: int) -> int:\n    return 2 * x\n\n\ndef unused(x: int) -> int:\n    return 3 * x\n"
TEST = "from toy import double\n\n\ndef test_double():\n    assert double(4) == 8\n"

# (name, old, new, tests) -> the verdict, and what the runner says
TOY = {
    ("tripled", "return 2 * x", "return 3 * x", "test_toy.py"): ("killed", ""),
    ("untested", "return 3 * x", "return 4 * x", "test_toy.py"): ("SURVIVED", "1 passed"),
    ("gone", "return 7 * x", "return x", "test_toy.py"): ("ERROR", "holds the old text 0 times, expected once"),
    ("ambiguous", "(x: int)", "(y: int)", "test_toy.py"): ("ERROR", "holds the old text 2 times, expected once"),
    ("same", "return 2 * x", "return 2 * x", "test_toy.py"): ("ERROR", "old and new text are the same"),
    ("no test", "return 2 * x", "return x", "test_gone.py"): ("ERROR", "test_gone.py does not exist"),
    ("no python", "return 2 * x", "return (", "test_toy.py"): ("ERROR", "ERROR test_toy.py"),
    ("red anyway", "return 2 * x", "return x", "test_red.py"): ("ERROR", "before any mutation"),
    ("unselected", "return 2 * x", "return x", "test_toy.py -k nothing"): ("ERROR", "before any mutation"),
}


def test_every_verdict_on_a_toy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "toy.py").write_text(CODE)
    (tmp_path / "test_toy.py").write_text(TEST)
    (tmp_path / "test_red.py").write_text("def test_red():\n    assert False\n")
    mutations = [Mutation(name, "toy.py", old, new, tests) for name, old, new, tests in TOY]
    outcomes = run_all(mutations, tmp_path, jobs=2)
    for outcome, (verdict, detail) in zip(outcomes, TOY.values(), strict=True):
        assert outcome.verdict == verdict, outcome
        assert detail in outcome.detail
    assert (tmp_path / "toy.py").read_text() == CODE, "the tree itself is never touched"
    assert "9 mutations: 1 killed, 1 survived, 7 errors" in table(outcomes)
    assert "SURVIVED: untested in toy.py" in table(outcomes)
    assert [exit_status(outcomes[:end]) for end in (1, 2, 3)] == [0, 1, 2]
    assert len([line for line in capsys.readouterr().out.splitlines() if " s  " in line]) == len(TOY), "progress"


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    entry = "[[mutation]]\nname = 'a'\nfile = 'f'\nold = 'x'\nnew = 'y'\ntests = 't.py'\n"
    (tmp_path / "list.toml").write_text(2 * entry)
    with pytest.raises(ValueError, match=r"list\.toml: expected every name once, got twice: a"):
        read_list(tmp_path / "list.toml")


def test_an_unknown_name_gets_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "no such mutation"])
    assert "no mutation is called 'no such mutation'" in capsys.readouterr().err


def test_every_listed_mutation_applies() -> None:
    mutations = read_list(LIST)
    assert len(mutations) > 300
    assert {mutation.name: stale for mutation in mutations if (stale := mutation.why_stale(ROOT))} == {}

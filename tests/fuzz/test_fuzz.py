"""Every kind of input, many times: each answer is right or one sentence; nothing crashes, hangs or grows."""

import pytest

from tests.fuzz.fuzzing import FULL, SAMPLE, fuzz, kinds

KINDS = kinds()
COUNTS = [SAMPLE, pytest.param(FULL, marks=[pytest.mark.slow, pytest.mark.timeout(4 * 3600)])]


@pytest.mark.parametrize("inputs", COUNTS)
@pytest.mark.parametrize("name", KINDS)
def test_answers_are_right_or_one_sentence(name: str, inputs: int) -> None:
    counts = fuzz(KINDS[name], inputs)
    print(
        f"{KINDS[name].name}: {counts.total():,} inputs, {counts['answered']:,} answered, {counts['refused']:,} refused"
    )
    assert counts.total() >= inputs * 0.9  # where a small space of inputs is exhausted, fewer are drawn
    assert counts["answered"], "every input was refused: nothing was tried"
    assert counts["refused"], "no input was refused: nothing was wrong"

"""Decisions read off a row of bytes: an input is made of few draws, so that a hundred thousand of them take minutes.

Hypothesis draws the row in one go, shrinks it towards zeros, and a coverage-guided fuzzer changes single bytes of it.
So a generator's first option is the plainest one.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


class Choices:
    """Reads decisions off bytes, one after another; where they end, each is the first option."""

    def __init__(self, row: bytes) -> None:
        self._row, self._at = row, 0

    def byte(self) -> int:
        at, self._at = self._at, self._at + 1
        return self._row[at] if at < len(self._row) else 0

    def below(self, count: int) -> int:
        """A number from 0 to ``count`` - 1."""
        number = self.byte()
        for _ in range((count - 1).bit_length() // 8):
            number = number << 8 | self.byte()
        return number % count

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def chance(self, one_in: int) -> bool:
        """True once in so many times."""
        return self.below(one_in) == one_in - 1

    def bytes(self, count: int) -> bytes:
        return bytes(self.byte() for _ in range(count))


def made_of(make: Callable[[Choices], T], size: int) -> SearchStrategy[T]:
    """Inputs that ``make`` builds of so many drawn bytes."""
    return st.binary(min_size=size, max_size=size).map(lambda row: make(Choices(row)))


def mutated(content: bytes, choices: Choices, times: int) -> bytes:
    """``content`` with so many of its bytes changed, removed, repeated or put in, or cut off."""
    changed = bytearray(content)
    for _ in range(times):
        place = choices.below(len(changed) + 1)
        kind = choices.below(6)
        if kind == 0:
            changed[place : place + 1] = choices.bytes(1)
        elif kind == 1:
            del changed[place : place + choices.between(1, 16)]
        elif kind == 2:
            changed[place:place] = changed[place : place + choices.between(1, 32)]
        elif kind == 3:
            changed[place:place] = choices.bytes(choices.between(1, 4))
        elif kind == 4 and place < len(changed):
            changed[place] ^= 1 << choices.below(8)
        elif kind == 5:
            del changed[place:]
    return bytes(changed)

"""Fuzzing: inputs drawn by Hypothesis, or found by a coverage-guided fuzzer, into one check of each kind.

A kind of input is a file ``kind_*.py`` beside this one with a `Kind` named ``KIND``. Its check gives an input to the
code and returns ``"answered"`` or ``"refused"``; it raises where an answer is wrong, or a refusal is not one sentence.
What it lets through is a fault: any other exception, a crash, a hang, memory that grows.
"""

import functools
import gc
import importlib
import signal
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

Outcome = Literal["answered", "refused"]

SAMPLE = 300  # inputs of a kind in `make test`
FULL = 100_000  # in `make test-full`
ROUND = 2_000  # Hypothesis remembers what it drew; a new round forgets it
HANG_S = 60  # no input may take as long
GROWTH_MIB = 100  # of the process, after the first rounds


@dataclass(frozen=True)
class Kind:
    """One kind of input: its name, how it is drawn, and the check that an input is given to."""

    name: str
    inputs: SearchStrategy[Any]
    check: Callable[[Any], Outcome]


def kinds() -> dict[str, Kind]:
    """Every kind, by the name of its file: ``kind_images.py`` is ``images``."""
    files = sorted(Path(__file__).parent.glob("kind_*.py"))
    return {file.stem.removeprefix("kind_"): load(file.stem.removeprefix("kind_")) for file in files}


def load(name: str) -> Kind:
    return importlib.import_module(f"tests.fuzz.kind_{name}").KIND


def is_a_sentence(error: BaseException) -> bool:
    """Whether an error says what was wrong in one sentence a user can read."""
    text = str(error)
    return 10 < len(text) < 2000 and is_one_line(text) and "Traceback" not in text


def is_one_line(text: str) -> bool:
    """Whether a terminal shows it as a line: no control characters, ends of lines, or halves of characters."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text)


def refused(error: BaseException, *, why: object = True, names: tuple[str, ...] = ()) -> Outcome:
    """The outcome of an input that was refused by this error, which must be a sentence.

    Args:
        error: what was raised.
        why: what is wrong with the input; nothing where it had to be answered.
        names: the sentence must hold one of these, if there are any.
    """
    if not why:
        raise AssertionError(f"a right input was refused: {type(error).__name__}: {error}") from error
    if not is_a_sentence(error):
        raise AssertionError(f"no sentence: {type(error).__name__}: {str(error)!r:.2000}") from error
    if names and not any(name in str(error) for name in names):
        raise AssertionError(f"names none of {names}: {error}") from error
    return "refused"


def fuzz(kind: Kind, inputs: int, *, first: int = 0) -> Counter[Outcome]:
    """Give that many inputs to a kind's check, count its outcomes, and see that memory does not grow.

    ``first``: the number of the first input, by which several processes try different ones.
    """
    counts: Counter[Outcome] = Counter()
    sizes: list[float] = []
    for start in range(first, first + inputs, ROUND):
        budget = min(ROUND, first + inputs - start)

        def check(one: Any) -> None:
            with no_hang(one):
                counts[kind.check(one)] += 1

        configured = settings(
            max_examples=budget,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        configured(seed(start)(given(kind.inputs)(check)))()
        gc.collect()
        sizes.append(resident_mib())
    settled = sizes[min(4, len(sizes) // 2) :]
    growth = settled[-1] - settled[0]
    assert growth < GROWTH_MIB, f"{kind.name}: the process grew by {growth:.0f} MiB over {inputs:,} inputs"
    return counts


def with_bytes(content: bytes, changes: Iterable[tuple[float, int]]) -> bytes:
    """The content with a byte put at each share of its length; one beyond 255 cuts it there."""
    changed = bytearray(content)
    for share, byte in changes:
        at = int(share * len(changed))
        if byte > 255:
            del changed[at:]
        elif changed:
            changed[at] = byte
    return bytes(changed)


@functools.cache
def folder() -> tuple[Path, "tempfile.TemporaryDirectory[str]"]:
    """A folder in memory, where there is such, and what removes it at the end."""
    memory = Path("/dev/shm")
    kept = tempfile.TemporaryDirectory(prefix="msdeform-fuzz-", dir=memory if memory.is_dir() else None)
    return Path(kept.name), kept


@contextmanager
def no_hang(one: Any) -> Iterator[None]:
    """Fail where one input takes more than `HANG_S` seconds."""

    def late(signum: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no answer in {HANG_S} seconds to {one!r:.500}")

    if sys.platform == "win32":
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def resident_mib() -> float:
    """Memory that the process holds now; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 / 2**20 if status.exists() else 0.0

"""Fuzz one kind of input, guided by coverage: ``python -m tests.fuzz.guided KIND --seconds 600``, with atheris.

Atheris changes bytes so that more branches of our code are reached, and Hypothesis makes an input of the bytes. What is
found is kept in ``.fuzz/KIND`` and tried first the next time.
"""

import argparse
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path


def main() -> None:
    from tests.fuzz import fuzzing

    names = sorted(file.stem.removeprefix("kind_") for file in Path(__file__).parent.glob("kind_*.py"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], prog="python -m tests.fuzz.guided")
    parser.add_argument("kind", choices=names)
    parser.add_argument("--seconds", type=int, default=600, help="how long (default: 600)")
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris (it has wheels for some versions of Python only)")
    from hypothesis import HealthCheck, given, settings

    corpus = Path(".fuzz", options.kind)
    corpus.mkdir(parents=True, exist_ok=True)
    begin(corpus)
    counts: Counter[fuzzing.Outcome] = Counter()
    started = time.monotonic()

    # around the whole run: much of our code is imported by the function that needs it
    with atheris.instrument_imports(include=["msdeform"]):
        kind = fuzzing.load(options.kind)

        @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(kind.inputs)
        def check(one: object) -> None:
            counts[kind.check(one)] += 1

        def one(row: bytes) -> None:
            check.hypothesis.fuzz_one_input(row)  # type: ignore[attr-defined]
            seconds = time.monotonic() - started
            if seconds > options.seconds:
                # atheris ends a process without what Python does at its end
                told = f"{counts.total():,} inputs, {counts['answered']:,} answered, {counts['refused']:,} refused"
                print(f"{kind.name}: {told}, {seconds:.0f} s", flush=True)
                os._exit(0)

        words = [sys.argv[0], str(corpus), f"-timeout={fuzzing.HANG_S}", "-max_len=8192", "-rss_limit_mb=8192"]
        atheris.Setup([*words, f"-artifact_prefix={corpus}-"], one)
        atheris.Fuzz()


def begin(corpus: Path) -> None:
    """Puts some rows of random bytes where nothing was found yet, each long enough for an input."""
    if not any(corpus.iterdir()):
        for number in range(64):
            (corpus / f"random-{number}").write_bytes(random.Random(number).randbytes(1024))


if __name__ == "__main__":
    main()

"""Fuzz one kind of input, guided by coverage: ``python -m tests.fuzz.guided KIND --seconds 600``, with atheris.

Atheris changes bytes so that more branches of our code are reached, and Hypothesis makes an input of the bytes. What is
found is kept in ``.fuzz/KIND`` and tried first the next time.
"""

import argparse
import sys
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

    with atheris.instrument_imports(include=["msdeform"]):
        kind = fuzzing.load(options.kind)
    counts = {"answered": 0, "refused": 0}

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(kind.inputs)
    def check(one: object) -> None:
        counts[kind.check(one)] += 1

    corpus = Path(".fuzz", options.kind)
    corpus.mkdir(parents=True, exist_ok=True)
    words = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={options.seconds}",
        f"-timeout={fuzzing.HANG_S}",
        "-max_len=8192",
    ]
    atheris.Setup(words, check.hypothesis.fuzz_one_input)  # type: ignore[attr-defined]
    import atexit

    atexit.register(lambda: print(f"{kind.name}: {counts}", flush=True))
    atheris.Fuzz()


if __name__ == "__main__":
    main()

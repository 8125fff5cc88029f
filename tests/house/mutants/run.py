"""Break the code in every way listed in mutations.toml, one at a time, and see the named tests go red.

    python tests/house/mutants/run.py [--only NAME ...] [--jobs N]

A mutation is a replacement of one exact piece of text in one file, with the tests that must notice. Each runs in a
scratch copy of the tree, never in the checkout. Before anything is broken, every selection of tests must pass in that
copy: a test that is red anyway proves nothing. Exit status: 0 when every mutation was noticed, 1 when one survived,
2 when the list itself is wrong (text gone or not unique, no such test, a mutation that does not even import).
"""

import argparse
import difflib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

ROOT = Path(__file__).resolve().parents[3]
LIST = Path(__file__).with_name("mutations.toml")

Verdict = Literal["killed", "SURVIVED", "ERROR"]


def _not_copied(folder: str, names: list[str]) -> set[str]:
    """What a scratch copy does without: hidden files, caches, and what building and running left in the checkout."""
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")(folder, names)
    return left_out | ({"build", "data", "dist", "runs"} if Path(folder).samefile(ROOT) else set())


@dataclass(frozen=True)
class Mutation:
    """One way to break one file, and the tests (pytest arguments) that must go red.

    `interpreter` runs them under TRITON_INTERPRET=1; such tests need it, ahead-of-time ones must not have it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    interpreter: bool = False

    def why_stale(self, root: Path) -> str | None:
        """Why the mutation no longer applies to the tree at `root`, or None."""
        path = root / self.file
        if not path.is_file():
            return f"{self.file} does not exist"
        times = path.read_text().count(self.old)
        if times != 1:
            return f"{self.file} holds the old text {times} times, expected once: {self.old!r}"
        if self.old == self.new:
            return "old and new text are the same"
        missing = [word for word in shlex.split(self.tests) if word.endswith(".py") and not (root / word).is_file()]
        return f"{missing[0]} does not exist" if missing else None


@dataclass(frozen=True)
class Outcome:
    mutation: Mutation
    verdict: Verdict
    seconds: float
    detail: str = ""


def read_list(path: Path) -> list[Mutation]:
    """The mutations of a TOML file. Raises ValueError for two of one name, TypeError for a field amiss."""
    mutations = [Mutation(**entry) for entry in tomllib.loads(path.read_text())["mutation"]]
    names = [mutation.name for mutation in mutations]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path.name}: expected every name once, got twice: {', '.join(twice)}")
    return mutations


def run_tests(tree: Path, tests: str, interpreter: bool) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    if interpreter:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def gist(answer: subprocess.CompletedProcess[str]) -> str:
    """The line of pytest's output that says most: the first failure, or the last line."""
    lines = (answer.stdout + answer.stderr).strip().splitlines() or ["no output"]
    return next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])


def why_not_green(tree: Path, tests: str, interpreter: bool) -> str | None:
    """Why the tests prove nothing in the unbroken tree, or None where at least one runs and all pass."""
    answer = run_tests(tree, tests, interpreter)
    if answer.returncode != 0 or " passed" not in answer.stdout:
        return f"before any mutation, `pytest {tests}` said: {gist(answer)}"
    return None


def attempt(mutation: Mutation, tree: Path) -> Outcome:
    """Apply one mutation to a scratch tree, run its tests, and put the file back."""
    path = tree / mutation.file
    whole = path.read_text()
    start = time.monotonic()
    path.write_text(whole.replace(mutation.old, mutation.new))
    try:
        answer = run_tests(tree, mutation.tests, mutation.interpreter)
    finally:
        path.write_text(whole)
    verdicts: dict[int, Verdict] = {
        0: "SURVIVED",
        1: "killed",
    }  # pytest: 0 all passed, 1 tests failed, others: no test ran
    verdict = verdicts.get(answer.returncode, "ERROR")
    return Outcome(mutation, verdict, time.monotonic() - start, "" if verdict == "killed" else gist(answer))


def run_all(mutations: Sequence[Mutation], root: Path, jobs: int) -> list[Outcome]:
    """Outcomes in the order of the list; progress is printed as they come."""
    stale = {mutation.name: reason for mutation in mutations if (reason := mutation.why_stale(root))}
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for job in range(jobs):
            trees.put(Path(shutil.copytree(root, Path(scratch) / f"tree{job}", ignore=_not_copied)))

        def selection(key: tuple[str, bool]) -> str | None:
            tree = trees.get()
            try:
                return why_not_green(tree, *key)
            finally:
                trees.put(tree)

        keys = list(dict.fromkeys((m.tests, m.interpreter) for m in mutations if m.name not in stale))
        print(f"{len(keys)} selections of tests must pass before anything is broken", flush=True)
        red = dict(zip(keys, pool.map(selection, keys), strict=True))

        def outcome(mutation: Mutation) -> Outcome:
            problem = stale.get(mutation.name) or red[mutation.tests, mutation.interpreter]
            tree = trees.get()
            try:
                found = Outcome(mutation, "ERROR", 0.0, problem) if problem else attempt(mutation, tree)
            finally:
                trees.put(tree)
            print(f"{found.verdict:9}{found.seconds:6.1f} s  {mutation.name}  {found.detail}".rstrip(), flush=True)
            return found

        return list(pool.map(outcome, mutations))


def table(outcomes: Sequence[Outcome]) -> str:
    """A line per mutation that was not noticed, and the totals."""
    count = {verdict: sum(o.verdict == verdict for o in outcomes) for verdict in ("killed", "SURVIVED", "ERROR")}
    lines = [
        f"{o.verdict}: {o.mutation.name} in {o.mutation.file}: {o.detail}" for o in outcomes if o.verdict != "killed"
    ]
    total = (
        f"{len(outcomes)} mutations: {count['killed']} killed, {count['SURVIVED']} survived, {count['ERROR']} errors"
    )
    return "\n".join([*lines, total])


def exit_status(outcomes: Sequence[Outcome]) -> int:
    verdicts = {outcome.verdict for outcome in outcomes}
    return 2 if "ERROR" in verdicts else 1 if "SURVIVED" in verdicts else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Break the code in each listed way and see the tests go red.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="just these mutations")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once (default 2)")
    parser.add_argument("--list", type=Path, default=LIST, help="another list of mutations")
    parser.add_argument("--root", type=Path, default=ROOT, help="another tree")
    options = parser.parse_args(arguments)
    mutations = read_list(options.list)
    if options.only:
        unknown = sorted(set(options.only) - {mutation.name for mutation in mutations})
        if unknown:
            near = difflib.get_close_matches(unknown[0], [mutation.name for mutation in mutations], 3, 0.3)
            parser.error(f"no mutation is called {unknown[0]!r}; near it are {', '.join(map(repr, near)) or 'none'}")
        mutations = [mutation for mutation in mutations if mutation.name in options.only]
    outcomes = run_all(mutations, options.root, options.jobs)
    print(table(outcomes))
    return exit_status(outcomes)


if __name__ == "__main__":
    sys.exit(main())

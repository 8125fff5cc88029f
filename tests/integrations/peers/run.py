"""Run the tests that other projects have of this operator, with ours in the place of theirs; print a table.

    python tests/integrations/peers/run.py [SUITE ...] [--clones .peers] [--only WORD] [--jobs N]

A suite needs a clone of its project at CLONES/OWNER/NAME, and what its tests import: mmcv's the package mmengine, those
of transformers parameterized and a clone of the installed version. Their files are not changed, but for the device if
there is no GPU (TO_CPU in peer_suites.py). Those of transformers run a second time without ours, which tells what fails
by itself. What each test did is left as JSON, and what pytest printed beside it, in CLONES/results. Exit status: 1 if a
suite could not be run, or a test fails that does not fail without ours, or was not run without.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer_suites import SUITES, Suite, edited  # by this name: their folders of tests are called tests, too

ROOT = Path(__file__).resolve().parents[3]

Outcomes = dict[str, dict[str, Any]]


@dataclass
class Result:
    """Of one suite: what became of each test, with ours and, where that was tried, without."""

    ours: Outcomes = field(default_factory=dict)
    theirs: Outcomes | None = None

    def failed(self) -> list[str]:
        return [name for name, found in self.ours.items() if found.get("outcome") == "failed"]

    def parts(self, name: str) -> "dict[str, Result]":
        """What each line of the table is of: the suite, or an architecture of transformers, whose tests are a file."""
        if self.theirs is None:
            return {name: self}
        parts: dict[str, Result] = {}
        for test, found in self.ours.items():
            model = Path(test.partition("::")[0]).parent.name
            parts.setdefault(f"{name}: {model}", Result(theirs=self.theirs)).ours[test] = found
        return parts

    def failed_by_ours(self) -> list[str]:
        without = self.theirs or {}
        return [name for name in self.failed() if without.get(name, {}).get("outcome") != "failed"]


def run_file(name: str, clones: Path, test: str, *, with_ours: bool) -> Outcomes:
    """Runs the tests of one file in a process of its own.

    Raises RuntimeError if pytest ended without having run any.
    """
    suite = SUITES[name]
    clone, results = clones / suite.repository, clones / "results"
    results.mkdir(exist_ok=True)
    stem = results / f"{name}-{Path(test).stem}-{'ours' if with_ours else 'theirs'}"
    with tempfile.TemporaryDirectory() as scratch:
        folder, file = Path(scratch), Path(test)
        if suite.in_place:
            folder, file = clone, clone / test
        else:
            file = folder / ("official.py" if suite.run_by else file.name)
            file.write_text(edited((clone / test).read_text()))
            if suite.run_by:
                file = Path(__file__).with_name(suite.run_by)
        imported = [folder, *(clone / path for path in suite.paths), Path(__file__).parent, ROOT]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*map(str, imported), os.environ.get("PYTHONPATH", "")]),
            "PEER_SUITE": name,
            "PEER_CLONE": str(clone),
            "PEER_RESULTS": f"{stem}.json",
            "PEER_WITH_OURS": "yes" if with_ours else "no",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "peer_plugin", f"--rootdir={folder}"]
        command += ["-p", "no:cacheprovider", "-c", os.devnull, "-W", "ignore", "--import-mode=importlib", str(file)]
        Path(f"{stem}.json").unlink(missing_ok=True)
        with Path(f"{stem}.log").open("w") as log:
            subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    written = Path(f"{stem}.json")
    outcomes: Outcomes = json.loads(written.read_text()) if written.exists() else {}
    if not outcomes:
        raise RuntimeError(f"{name}: {test} ran no test; what pytest says is in {stem}.log")
    return {f"{test}::{node.partition('::')[2]}": found for node, found in outcomes.items()}


def run_suite(name: str, clones: Path, only: str, jobs: int) -> Result:
    """Raises FileNotFoundError where a clone is not there, RuntimeError where its tests do not start."""
    suite, result = SUITES[name], Result()
    if not (clones / suite.repository).is_dir():
        raise FileNotFoundError(f"{name}: expected a clone of {suite.repository} at {clones / suite.repository}")
    files = [one for one in suite.tests if only in one and (clones / suite.repository / one).exists()]
    ways = (True, False) if suite.in_place else (True,)
    with ThreadPoolExecutor(jobs) as pool:
        runs = {(file, way): pool.submit(run_file, name, clones, file, with_ours=way) for file in files for way in ways}
    for (_, way), future in runs.items():
        if way:
            result.ours |= future.result()
        else:
            result.theirs = (result.theirs or {}) | future.result()
    return result


def version_of(suite: Suite, clones: Path) -> str:
    """The clone's commit, and the version of the installed package that its tests are about, where they are."""
    clone = (clones / suite.repository).resolve()
    command = ["git", "-C", str(clone), "describe", "--always", "--dirty", "--exclude=*"]
    inside = os.environ | {"GIT_CEILING_DIRECTORIES": str(clone.parent)}  # of a folder without one, not our own commit
    git = subprocess.run(command, env=inside, capture_output=True, text=True, check=False)
    commit = git.stdout.strip() or "no commit known"
    return f"{importlib.metadata.version('transformers')}, tests of {commit}" if suite.in_place else commit


def line_of(name: str, result: Result, suite: Suite, version: str) -> str:
    count = Counter(found.get("outcome") for found in result.ours.values())
    ran = count["passed"] + count["failed"]
    by_itself = "" if result.theirs is None else str(len(result.failed()) - len(result.failed_by_ours()))
    reached = "" if result.theirs is None else str(sum(bool(found.get("reached")) for found in result.ours.values()))
    cells = (name, version, suite.ours, ran, count["passed"], count["failed"], by_itself, reached)
    return "| " + " | ".join(map(str, (*cells, count["skipped"]))) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; all if left out")
    parser.add_argument("--clones", type=Path, default=ROOT / ".peers", help="folder of OWNER/NAME (default: .peers)")
    parser.add_argument("--only", default="", metavar="WORD", help="files of tests with this in their path")
    parser.add_argument("--jobs", type=int, default=1, help="files run at the same time (default: 1)")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.suites if name not in SUITES]:
        parser.error(f"unknown suite {unknown[0]}; expected one of {', '.join(SUITES)}")
    lines, notes, failed = [], [], False
    for name in options.suites or SUITES:
        try:
            result = run_suite(name, options.clones.resolve(), options.only, options.jobs)
        except (FileNotFoundError, RuntimeError) as error:
            failed = True
            notes.append(f"not run: {error}")
            continue
        version = version_of(SUITES[name], options.clones)
        lines += [line_of(line, part, SUITES[name], version) for line, part in result.parts(name).items()]
        failed |= bool(result.failed_by_ours())
        for test in result.failed():
            alone = "" if test in result.failed_by_ours() else "fails without ours too: "
            notes.append(f"{name}: {test}: {alone}{result.ours[test].get('why')}")
    heads = (
        "suite",
        "version",
        "ours in it",
        "ran",
        "passed",
        "failed",
        "also without ours",
        "reached ours",
        "skipped",
    )
    print(f"| {' | '.join(heads)} |\n| --- | --- | --- |{' ---: |' * 6}")
    print("\n".join(lines + [""] * bool(notes) + notes))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

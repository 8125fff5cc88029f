"""``make gpu``: all checks and measurements on a GPU, in calls of under ten minutes, the most important first.

    python -m msdeform.bench.gpu --out DIR    # go on where the last call stopped; rows and logs in DIR
    python -m msdeform.bench.gpu --quick      # small shapes, on a CPU too; the default where there is no GPU

Each stage is a process with a limit of its own. What is recorded already, of this code on this device, is not done
again; what failed is tried again after all the rest, in another call: run it until nothing is left. It needs PyTorch,
Triton, cuda-core and numpy; a stage that needs more says so and is left out. DIR gets one file of rows and six logs;
bench/results keeps rows, once they are copied there.
"""

import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import torch

from ...common.command_line import parse
from ...common.fields import spelled
from ...common.options import AtLeast, Checked, Metavar, Options, ReadPath, WriteFolder
from ...common.text import nearest
from ..harness import records
from ..harness.isolate import Stopped, logged
from ..harness.provenance import command_line, device_name, provenance, usual_device
from ..harness.results_file import ResultsFile
from ..operator.runner import Settings
from . import stages
from .stages import Run, Stage

ROWS = "rows.jsonl"
_LEAST_SECONDS = 20.0  # below this a stage does nothing but start
_GRACE = 20.0  # that a stage may take longer than it was told, to end what it has begun
_OUT_OF_TIME = "not done after"
PROGRAM = "python -m msdeform.bench.gpu"


def _check_stage(option: str, name: str) -> None:
    names = [stage.name for stage in stages.STAGES]
    if name not in names:
        raise ValueError(f"{option}: {nearest('stage', name, names)}")


@dataclass(frozen=True)
class GpuOptions(Options):
    """All checks and measurements on a GPU, in calls of under ten minutes, the most important first."""

    quick: bool = False
    """Small shapes; the default where there is no GPU."""
    minutes: Annotated[float, AtLeast(0)] = 9.0
    """Minutes of this call, the stage under way included."""
    out: WriteFolder = Path("gpu-results")
    """Folder for rows and logs."""
    known: ReadPath | None = None
    """File or folder with rows of earlier calls, if --out has none."""
    runs: WriteFolder = Path("runs/seeds")
    """Folder for training runs and their data."""
    seconds: Annotated[float, AtLeast(0)] = 0.3
    """About how long each measurement of the operator lasts, in seconds."""
    only: tuple[Annotated[str, Checked(_check_stage), Metavar("STAGE")], ...] = ()
    """Some of the stages, by name."""
    again: bool = False
    """Do what is recorded already, too."""


@dataclass(frozen=True)
class StageOptions(GpuOptions):
    """Options of the process that runs one stage."""

    stage: str = ""
    """The stage to run in this process."""
    limit: float = 0.0
    """Seconds that it may take."""
    retry: bool = False
    """Do again what failed."""


def main(argv: list[str] | None = None) -> int:
    """Runs the stages, or one of them in this process; returns 1 if one failed in this call."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parse(StageOptions if "--stage" in words else GpuOptions, words, PROGRAM)
    device = usual_device()
    options = replace(options, quick=options.quick or device.type == "cpu")
    if isinstance(options, StageOptions):
        return _run_here(options, device)
    form = " (reduced form)" if options.quick else ""
    print(f"{device_name(device)}{form}, rows and logs in {options.out}", flush=True)
    deadline = time.monotonic() + 60 * options.minutes
    rows = options.out / ROWS
    source = provenance(device, command_line(PROGRAM, options))
    if options.known is not None and not rows.exists():
        # whatever their code: other benchmarks' rows have one of their own, and are looked for by it
        known = records.read(options.known).rows
        records.append(rows, [row for row in known if "code" in row and row["device"] == source["device"]])
    results = ResultsFile(rows, source, again=True)
    # the last row of each stage, of this code on this device
    last = {
        row["stage"]: row
        for row in (records.at(records.read(rows).rows, source) if rows.exists() else ())
        if row["kind"] == "stage"
    }
    chosen = [stage for stage in stages.STAGES if not options.only or stage.name in options.only]
    new, failed = chosen, []
    if not options.again:
        new = [stage for stage in chosen if stage.name not in last or last[stage.name].get("skipped") is not None]
        failed = [stage for stage in chosen if stage.name in last and last[stage.name]["failure"] is not None]
        if done := len(chosen) - len(new) - len(failed):
            print(f"{done} stages passed before, with this code on this device (--again does them again)")
    left: list[str] = []
    failures: list[str] = []
    for stage in [*new, *failed]:
        reason = stage.unavailable(device)
        seconds = min(stage.seconds, deadline - time.monotonic())
        row = {"kind": "stage", "stage": stage.name, "failure": None, "skipped": reason, "seconds": 0.0}
        if reason is not None:
            print(f"{stage.name}: {reason}", flush=True)
            if last.get(stage.name, {}).get("skipped") != reason:
                results.add(row)
        elif seconds < _LEAST_SECONDS:
            left.append(stage.name)
        else:
            print(f"== {stage.name}, at most {seconds:.0f} s", flush=True)
            begun = time.monotonic()
            failure = _run_in_process(stage, options, seconds, retry=stage in failed)
            took = time.monotonic() - begun
            if failure is not None and seconds < stage.seconds and failure.startswith(_OUT_OF_TIME):
                left.append(f"{stage.name} ({failure})")  # the call's time, not its own
                continue
            print(f"{stage.name}: {failure or 'done'}, {took:.0f} s", flush=True)
            failures += [f"{stage.name}: {failure}"] if failure is not None else []
            results.add(row | {"failure": failure, "seconds": took})
    for title, lines in (("FAILED", failures), ("left for the next call of this command", left)):
        if lines:
            print("\n".join(["", title, *(f"  {line}" for line in lines)]))
    return 1 if failures else 0


def _run_in_process(stage: Stage, options: GpuOptions, seconds: float, *, retry: bool) -> str | None:
    """Run a stage in a process of its own; returns its failure in a sentence."""
    options_of_stage = StageOptions(**vars(options), stage=stage.name, limit=round(seconds), retry=retry)
    command = [sys.executable, "-m", "msdeform.bench.gpu", *spelled(options_of_stage)]
    try:
        status, last = logged(command, options.out / stage.log, seconds + _GRACE, title=stage.name)
    except Stopped:
        return f"{_OUT_OF_TIME} {seconds:.0f} s: stopped"
    return None if status == 0 else last or f"ended with status {status}"


def _run_here(options: StageOptions, device: torch.device) -> int:
    """Run one stage in this process, within its limit; its last line is its failure, if it has one."""
    deadline = time.monotonic() + options.limit
    [stage] = [stage for stage in stages.STAGES if stage.name == options.stage]
    of_user = GpuOptions(**{field.name: getattr(options, field.name) for field in fields(GpuOptions)})
    source = provenance(device, command_line(PROGRAM, of_user))
    results = ResultsFile(options.out / ROWS, source, again=options.again, retry=options.retry)
    settings = Settings(device, seconds=options.seconds, deadline=deadline, threads=torch.get_num_threads())
    run = Run(settings, results, options.quick, options.runs)
    stage.function(run)
    results.report()
    sys.stdout.flush()
    for failure in run.failures:
        print(failure)
    if run.unfinished:
        print(f"{_OUT_OF_TIME} {options.limit:.0f} s: {'; '.join(run.unfinished)}")
    elif len(run.failures) > 1:
        print(f"{len(run.failures)} failures, the first: {run.failures[0]}")
    return 1 if run.failures or run.unfinished else 0

"""The stages of ``python -m msdeform.bench.gpu``, the most important first; each runs in a process of its own.

A stage has a time limit, adds rows to one file as they come, and reports failures and what it had no time for. It does
not repeat what the file holds of this code on this device.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module, metadata
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ...kernels.diagnostics.options import BackendName
from ..cpu import host_time
from ..harness import records
from ..harness.records import Records, Row
from ..harness.results_file import ResultsFile
from ..harness.tables import Column, aligned, fields, lines_of, operator_table
from ..models.published import MODELS, REDUCED_MODELS
from ..operator import cases, implementations, jobs
from ..operator.jobs import plan
from ..operator.runner import Settings, measure
from ..options import (
    COMPILED_IMPLEMENTATIONS,
    CPU_ONLY_IMPLEMENTATIONS,
    FUNCTIONS,
    IMPLEMENTATIONS,
    PEERS,
    ExplainOptions,
    SeedsOptions,
    TrainingOptions,
)
from . import counters, kernels, search

_BACKENDS: tuple[BackendName, ...] = ("triton", "cuda", "reference")  # of a detector on a GPU, ours first
ROOT = Path(__file__).resolve().parents[2]
MAIN = ("encoder-800x1066-b2", "decoder-800x1066")
ODD = ("odd", "odd-wide-head")
_ORDER = ("triton", jobs.NO_BACKEND, "cuda", "reference")  # a process each
DETECTOR = "deformable_detr_r50"
"""measured before all others"""
PROCESSES = 12  # at a time, of what is not timed
TESTS = ("tests/kernels",)
TIMING_TESTS = ("tests/bench/harness/test_measure.py",)  # which nothing else may run beside
DETECTOR_TESTS = (
    "tests/bench/models/test_flops.py",
    "tests/explain/core/test_on_gpu.py",
    "tests/integrations/test_training.py",
    "tests/train/whole/test_overfit.py",
)
_OURS = ("cuda", "triton", "triton-sorted", "triton-tiles")  # the one that compiles in a second first
_EAGER = [name for name in IMPLEMENTATIONS if name not in (*COMPILED_IMPLEMENTATIONS, *CPU_ONLY_IMPLEMENTATIONS)]
_LATER = ("gather", "triton-deterministic")  # measured with the other cases: for exported files; sorted and its checks
_BOTH, _EVERY = ["float32", "bfloat16"], ["float32", "bfloat16", "float16", "float64"]
_LEAST_MINUTES = 1.0  # below this a command of its own does nothing but start
_COUNTING = 90.0  # seconds, of one call under ncu; a third is usual
_ENDING = 30.0  # seconds that pytest may take to end


@dataclass
class Run:
    """One stage's run: its settings, its rows, and what went wrong."""

    settings: Settings
    results: ResultsFile
    quick: bool
    runs: Path = Path("runs/seeds")
    """folder for training runs and their data"""
    failures: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    """what there was no time for"""

    @property
    def seconds_left(self) -> float:
        return self.settings.deadline - time.monotonic()

    def measure(self, planned: Sequence[jobs.Job], table: Callable[[list[Row]], str], processes: int = 1) -> None:
        """Measure what is not recorded yet, as long as there is time, and print all rows of these kinds.

        Rows of our own backends that failed are failures of the stage, those of an earlier call too.
        """
        left = measure(planned, self.settings, self.results, processes)
        print(file=sys.stderr)
        if left:
            self.unfinished.append(f"{left} measurements")
        rows = [row for kind in {job.kind for job in planned} for row in self.rows(kind)]
        if rows:
            print(table(rows))
        cells = {cell for job in planned for cell in job.cells()}
        self.failures += [
            f"{', '.join(map(str, records.key(row)[1:]))}: {row['failure']}"
            for row in rows
            if records.key(row) in cells and row.get("ours") and row["failure"] is not None
        ]

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.results.add(row)

    def rows(self, kind: str) -> list[Row]:
        """What there is of a kind, of this code on this device; of rows with one key the last."""
        file = self.results.path
        found = records.at(records.read(file).rows, self.results.source) if file is not None and file.exists() else []
        return Records([*found, *self.results.rows]).of(kind)

    def run(self, command: list[str], name: str, environment: dict[str, str] | None = None) -> None:
        """Run a command in what time is left, and print what it says at its end; a failure is the stage's."""
        limit = max(1.0, self.seconds_left)
        try:
            answer = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired as error:
            said: Any = error.stdout or ""  # text or bytes, whatever was asked for
            print((said if isinstance(said, str) else said.decode(errors="replace"))[-4000:])
            self.failures.append(f"{name}: not done after {limit:.0f} s")
            return
        failed = answer.returncode != 0
        lines = (answer.stdout + answer.stderr).strip().splitlines() or [""]
        status = f"{name}: exit status {answer.returncode}"
        print("\n".join([f"-- {status}", *lines[-200 if failed else -1 :]]), flush=True)
        if failed and any("session-timeout: " in line for line in lines) and " failed" not in lines[-1]:
            self.unfinished.append(f"{name}: {lines[-1]}")  # pytest's own limit, and nothing wrong until then
        elif failed:
            self.failures.append(f"{status}: {lines[-1]}")


@dataclass(frozen=True)
class Stage:
    """One stage, and what it needs."""

    name: str
    function: Callable[[Run], None]
    log: str
    """the file that what it prints is appended to; stages share one, since few files come back from some machines"""
    seconds: float
    """that it may take"""
    packages: tuple[str, ...] = ()
    """that it imports, by their names"""
    program: str | None = None
    """that it runs"""
    gpu: bool = True
    """whether it needs a CUDA device"""

    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot be done here, in a sentence, or None."""
        if self.gpu and device.type != "cuda":
            return "not run: needs a CUDA device, and torch finds none"
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if self.program is not None and shutil.which(self.program) is None:
            missing.append(f"{self.program}, which comes with the CUDA toolkit")
        return f"not run: needs {' and '.join(missing)}" if missing else None


def versions(run: Run) -> None:
    """The first row that a call leaves behind; clocks and driver are in its provenance, as in every row's."""
    names = ("torch", "triton", "cuda-core", "cuda-bindings", "numpy", "transformers", "torchvision")
    found = {one.name: one.version for one in metadata.distributions() if one.name in names}
    machine = {"packages": found, "system": platform.platform(), "threads": os.cpu_count()}
    run.results.add({"kind": "stage", "stage": "machine", "failure": None, **machine})
    for name, value in (machine | run.results.source).items():
        print(f"{name}: {value}")


def correctness(run: Run) -> None:
    """Each kernel of ours against the reference in float64, in many processes; that compiles what is timed later."""
    backends = ("reference",) if run.quick else _OURS
    main = [(name, function) for name in (cases.REDUCED if run.quick else MAIN) for function in FUNCTIONS[:2]]
    odd = [] if run.quick else [(name, FUNCTIONS[1]) for name in ODD]
    planned = [
        jobs.Correctness(name, "grid", dtype, function, backend)
        for dtypes, calls in ((_BOTH, main), (_BOTH, odd), (_EVERY[2:], main))
        for dtype in dtypes
        for name, function in calls
        for backend in backends
        if jobs.takes(backend, name, dtype)
    ]
    run.measure(planned, _errors, min(PROCESSES, os.cpu_count() or 1))
    # a backend of ours that is not here was not checked, which must not pass for right
    run.failures += [f"{row['backend']} was not checked: {row['reason']}" for row in run.results.of("missing")]


def _errors(rows: Sequence[Row]) -> str:
    columns: dict[str, Column] = {
        **fields(*records.KEYS["correctness"]),
        "error": lambda row: "-" if row["error"] is None else f"{row['error']:.2e}, bound {row['bound']:.2e}",
        "failure": lambda row: row["failure"] or "-",
    }
    return aligned(lines_of(rows, columns), len(columns))


def kernel_times(run: Run) -> None:
    """The kernels of forward and backward, by atomics and sorted, and those of peers, by the profiler."""
    names = cases.REDUCED[:1] if run.quick else MAIN
    backends = ("reference",) if run.quick else (*_OURS, *PEERS)
    planned = [jobs.Kernels(name, dtype, one) for name in names for dtype in _BOTH for one in backends]
    run.measure(planned, kernels.table)
    _beside_predictions(run)


def _beside_predictions(run: Run) -> None:
    text = kernels.beside_predictions(Records(run.rows("operator") + run.rows("kernels")))
    print(f"\n{text}" if text else "\nno prediction is recorded of what was measured")


def operator_main(run: Run) -> None:
    """The operator with its peers at the main shapes."""
    if run.quick:  # of the peers only what PyTorch runs anywhere
        eager = [name for name in _EAGER if name != "transformers"]
        run.measure(plan(cases.REDUCED, ["grid"], ["float32"], eager), operator_table)
        return
    # ours first; the reference runs beside each of them anyway
    eager = sorted(_EAGER, key=lambda name: (not name.startswith(("triton", "cuda")), name == "reference"))
    eager = [name for name in eager if name not in _LATER]
    run.measure(plan(MAIN, ["grid"], _BOTH, eager), operator_table)
    _beside_predictions(run)


def operator_others(run: Run) -> None:
    """The other shapes, what was left for later at the main ones, and uniform locations."""
    run.measure(plan(cases.FULL, ["grid"], _EVERY[:3], _EAGER), operator_table)
    run.measure(plan(MAIN, ["uniform"], _BOTH, _EAGER, FUNCTIONS[:2]), operator_table)


def operator_compiled(run: Run) -> None:
    """The peers under torch.compile."""
    run.measure(plan(MAIN, ["grid"], _BOTH, COMPILED_IMPLEMENTATIONS), operator_table)


def hardware_counters(run: Run, names: Sequence[str] = MAIN) -> None:
    """Counters by ncu; the first refusal or hang ends it, since the next would be the same."""
    recorded = {(row["case"], row["dtype"], row["backend"]) for row in run.rows("counters")}
    for case, dtype, backend in product(names, _BOTH, _OURS):
        if (case, dtype, backend) in recorded:
            continue
        if run.seconds_left < _COUNTING / 3:
            run.unfinished.append(f"counters of {case}, {dtype}, {backend}")
            continue
        try:
            found = counters.count(case, dtype, backend, min(_COUNTING, run.seconds_left))
        except counters.NotCounted as error:
            run.failures.append(str(error))
            return
        run.add(found)
        print(counters.table(found), flush=True)


def variants(run: Run) -> None:
    """Queries in bands or as they lie, points of a walk, and tiles, side by side."""
    compared = ((search.FORWARD, search.BANDS), (search.TILED, search.TILES), (search.SORTED, search.WALKS))
    for (kernel, choices), dtype in product(compared, _BOTH):
        if run.results.has(*(("variant", MAIN[0], dtype, kernel, search.described(choice)) for choice in choices)):
            continue
        if run.seconds_left < 30:
            run.unfinished.append(f"{kernel}, {dtype}")
            continue
        run.add(search.rows(MAIN[0], dtype, kernel, choices, run.settings.device, run.settings.seconds))
        print(search.table(run.rows("variant")), flush=True)
    run.failures += [
        f"{row['kernel']}, {row['choice']}: {row['failure']}" for row in run.rows("variant") if row["failure"]
    ]


def verify(run: Run) -> None:
    """The verify table, a process for each backend and dtype."""
    with ThreadPoolExecutor(PROCESSES) as pool:
        for backend, dtype in product(("reference",) if run.quick else ("triton", "cuda"), _EVERY):
            words = ["verify", "--backend", backend, "--dtype", dtype]
            pool.submit(run.run, [sys.executable, "-m", "msdeform", *words], " ".join(words))


def _tests(run: Run, paths: Sequence[str], processes: int = 12) -> None:
    # pytest's own settings here ask for plug-ins that a bare machine lacks
    options = ["-o", "addopts=--import-mode=importlib --strict-markers", "-p", "no:cacheprovider"]
    if run.quick:  # no device: do they import here?
        options.append("--collect-only")
    elif processes > 1 and importlib.util.find_spec("xdist") is not None:
        options += ["-n", str(processes)]
    if importlib.util.find_spec("pytest_timeout") is not None:  # ends with what it has found
        options += [f"--session-timeout={max(1.0, run.seconds_left - _ENDING):.0f}"]
    chosen = [path for path in paths if (ROOT / path).exists()]
    if not chosen:
        print("no tests here: an installed package has none")
        return
    left_out = [f"--ignore={path}" for path in _importing_hypothesis(chosen)]
    if left_out:
        print(f"hypothesis is not installed; {len(left_out)} files of tests are left out: {' '.join(left_out)}")
    run.run([sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-ra", *options, *left_out, *chosen], "pytest -m gpu")


def _importing_hypothesis(paths: Sequence[str]) -> list[str]:
    """Files of tests that import hypothesis, or another such file, where it is not installed."""
    if importlib.util.find_spec("hypothesis") is not None:
        return []
    files = [file for path in paths for file in (ROOT / path, *(ROOT / path).rglob("*.py")) if file.suffix == ".py"]
    names, found = ["hypothesis"], set[Path]()
    for name in names:  # which grows meanwhile
        imports = re.compile(rf"^(from|import) ([a-z_.]+\.)?{name}\b", re.MULTILINE)
        more = {file for file in files if imports.search(file.read_text())} - found
        names += [file.stem for file in more]
        found |= more
    return sorted(str(file.relative_to(ROOT)) for file in found)


def gpu_tests(run: Run) -> None:
    """The operator's tests that need the device."""
    _tests(run, TIMING_TESTS, processes=1)
    _tests(run, TESTS)


def memcheck(run: Run) -> None:
    """The verify table under compute-sanitizer, which sees accesses beyond what was allocated, and slows all by a
    multiple: a process for each backend and dtype."""
    words = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m", "msdeform"]
    # PyTorch's cache of memory would hide an access to a neighbour's
    uncached = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with ThreadPoolExecutor(PROCESSES) as pool:
        for dtype, backend in product(_EVERY, ("triton", "cuda")):
            command = [*words, "verify", "--backend", backend, "--dtype", dtype]
            pool.submit(run.run, command, f"memcheck of {backend}, {dtype}", uncached)


def host_times(run: Run) -> None:
    """What a call costs the host, kernels left out, and its wall time with them."""
    keys = ("dispatch", host_time.CASE, "float32", "fused_ms_deform_attn", "forward", "triton", "function")
    if run.results.has(keys) or implementations.absent("triton", run.settings.device) is not None:
        return
    found = host_time.measure(run.settings.device, 200, 3)
    run.add(found)
    print(aligned(host_time.table(found), 3))


def _speed(
    run: Run,
    models: Sequence[str] = MODELS,
    batches: Sequence[int] = (1, 4),
    mode: str = "eager",
    method: str = "published",
) -> None:
    from ..models import table

    run.settings.limit = 300.0
    reduced = run.quick
    what = (REDUCED_MODELS[:1], ("reference",), ["float32"]) if reduced else (models, _BACKENDS, _BOTH)
    if method == "training":
        planned: list[Any] = table.training_jobs(*what, (2,) if reduced else batches, reduced=reduced)
    else:
        planned = [*table.model_jobs(*what, (1,) if reduced else batches, (mode,), reduced=reduced)]
    chosen = [job for job in planned if method in job.method]
    run.measure(sorted(chosen, key=lambda job: _ORDER.index(job.backend)), table.speed_table)


def profiles(run: Run) -> None:
    """Where the time of one detector, and of its training step, goes."""
    from . import profile

    model = REDUCED_MODELS[0] if run.quick else DETECTOR
    backends = ("reference",) if run.quick else _BACKENDS
    for backend, what in product(backends, (model + profile.STEP, model)):
        absent = implementations.absent(backend, run.settings.device)
        if absent is not None or run.results.has(("profile", what, backend)):
            continue
        if run.seconds_left <= 0:
            run.unfinished.append(f"profile of {what}, {backend}")
            continue
        row = profile.profile(what, backend, run.settings.device)
        run.results.add(row)
        print(profile.text(row), flush=True)
        run.failures += [f"{what}, {backend}: {row['failure']}"] if row["failure"] is not None else []


def detectors_others(run: Run) -> None:
    """Detectors end to end, and under torch.compile."""
    _speed(run, method="end to end")
    _speed(run, mode="compiled")


def command(
    run: Run,
    module: str,
    options: ExplainOptions | SeedsOptions | TrainingOptions,
    quick: dict[str, Any],
    saving: float = 0.0,
) -> None:
    """Another benchmark, in what time is left but for `saving` minutes; its rows go beside these, and are known again
    there. `quick` are options that show that it runs where there is no GPU."""
    parts = module.removesuffix(".benchmark").removesuffix(".cost").split(".")
    name, minutes = parts[-1], run.seconds_left / 60 - saving
    if minutes < _LEAST_MINUTES:
        run.unfinished.append(f"{name}: less than a minute was left")
        return
    more = quick if run.quick else {}
    options = replace(options, quick=run.quick, minutes=round(minutes, 1), out=run.results.path, **more)
    if isinstance(options, SeedsOptions):
        options = replace(options, runs=run.runs)
    left = import_module(f"..models.{module}", __package__).measure_rows(options)
    if left:
        run.unfinished.append(f"{name}: {left}")


_FEW: dict[str, Any] = {"model": REDUCED_MODELS[0], "backends": ("reference",), "dtypes": ("float32",), "batch": (1,)}
_FEW |= {"image": "64x96", "workers": (0,), "caches": ("none",), "options": ("baseline",)}
_training = partial(command, module="training.benchmark", quick=_FEW)
_parts = partial(_training, options=TrainingOptions(parts=("step",), options=("baseline",), backends=_BACKENDS))
_options = partial(_training, options=TrainingOptions(parts=("step", "loading"), backends=_BACKENDS))
_explanations = partial(
    command,
    module="explanations.cost",
    options=ExplainOptions(backends=_BACKENDS),
    quick={"models": REDUCED_MODELS[:1], "images": ("64x96",), "backends": ("reference",)},
)
# whole runs; one under way is stopped when the time is over, saves, and goes on in the next call where the disk lasts
_seeds = partial(command, module="training.seeds", quick={"backends": ("reference",), "seeds": (0,)}, saving=1.0)
_runs = partial(_seeds, options=SeedsOptions(backends=_BACKENDS))
# nine that fit a call, of a detector that learns in a minute
_SMALL = SeedsOptions(model="deformable_detr_mini", image_size=96, images=400, epochs=8, lr=2e-3, backends=_BACKENDS)
_small_runs = partial(_seeds, options=_SMALL)

_DETECTORS = ("torchvision",)
_TRAINING = ("torchvision", "scipy", "yaml")
_COMMANDS = (*_TRAINING, "rich", "PIL", "matplotlib", "faster_coco_eval", "tensorboard")

# By estimate the first four take one call of under ten minutes, those to the profiles the second, and those to the
# small training runs the third.
STAGES = (
    Stage("versions", versions, "correctness.log", 60, gpu=False),
    Stage("correctness", correctness, "correctness.log", 240, gpu=False),
    Stage("operator", operator_main, "operator.log", 400, gpu=False),
    Stage("kernels", kernel_times, "kernels.log", 150, gpu=False),
    Stage("counters", partial(hardware_counters, names=MAIN[:1]), "kernels.log", 200, program="ncu"),
    Stage("detector", partial(_speed, models=(DETECTOR,)), "detectors.log", 240, _DETECTORS, gpu=False),
    Stage(
        "detector, compiled",
        partial(_speed, models=(DETECTOR,), batches=(1,), mode="compiled"),
        *("detectors.log", 300, _DETECTORS),
    ),
    Stage("profiles", profiles, "detectors.log", 150, _TRAINING, gpu=False),
    Stage(
        "training step",
        partial(_speed, models=(DETECTOR,), batches=(2, 4), method="training"),
        *("detectors.log", 240, _TRAINING),
        gpu=False,
    ),
    Stage("tests", gpu_tests, "tests.log", 300, ("pytest",), gpu=False),
    Stage("variants", variants, "kernels.log", 150),
    Stage("dispatch", host_times, "operator.log", 60),
    Stage("counters, decoder", hardware_counters, "kernels.log", 200, program="ncu"),
    Stage("memcheck", memcheck, "tests.log", 240, program="compute-sanitizer"),
    Stage("small training runs", _small_runs, "training.log", 550, _COMMANDS),
    Stage("verify", verify, "tests.log", 120, gpu=False),
    Stage("detectors", _speed, "detectors.log", 550, _DETECTORS),
    Stage("training steps", partial(_speed, batches=(2, 4), method="training"), "detectors.log", 550, _TRAINING),
    Stage("operator, other cases", operator_others, "operator.log", 550),
    Stage("detector tests", partial(_tests, paths=DETECTOR_TESTS), "tests.log", 400, (*_COMMANDS, "pytest")),
    Stage("detectors, other ways", detectors_others, "detectors.log", 550, _DETECTORS),
    Stage("operator, compiled", operator_compiled, "operator.log", 550),
    Stage("parts of a training step", _parts, "training.log", 400, _TRAINING),
    Stage("explanations", _explanations, "training.log", 300, _DETECTORS, gpu=False),
    Stage("training options and loading", _options, "training.log", 550, _TRAINING, gpu=False),
    Stage("training runs", _runs, "training.log", 590, _COMMANDS, gpu=False),
)

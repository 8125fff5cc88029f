"""``make gpu``: all that a machine with a GPU has to say, in runs of under ten minutes, the most important first.

    python -m msdeform.bench.gpu            # go on where the last run stopped; rows appended to bench/results/
    python -m msdeform.bench.gpu --quick    # small shapes, on a CPU too; the default where there is no GPU

Correctness first: the verify table of every backend, and the tests marked ``gpu`` (in a checkout). Then the operator
with its peers, the detectors, what takes the time inside them, training steps, and what has to be compiled; at last
``msdeform bench training``, ``msdeform bench explain`` and ``msdeform bench seeds``, whole training runs that tell the
backends apart by AP. What is recorded already, of this code on this device, is not done again: run it until nothing is
left. It needs nothing but this project; peers that are installed are measured too, and the others named.

What training should show on an H200, written before anybody measured it. A step of deformable_detr_r50 at 800x1066: 15
to 40 images a second in float32 with `triton` or `cuda` (the paper's 325 hours on a V100 are 5), half as many again to
twice as many in bfloat16; `reference` slowest, with the highest peak memory; backbone and backward pass most of the
time, and of the options only `compile` more than a tenth faster, `checkpointing` slower and at least a fifth smaller.
Loading: kept pixels fastest, and images a second that grow with workers. Seeds: the backends' mean APs closer together
than the seeds of one backend, since all of them train in the same numbers but for the order of sums. Explanations at
800x1333: relevance within a second, most of it the host's, which multiplies the sparse rows; less than 1 GB added.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..kernels.arguments import Parser
from . import cases, dispatch, explain, jobs, peers, profile, seeds, table, training
from .operators import plan
from .provenance import device_name, provenance
from .published import MODELS
from .records import Row
from .runner import Book, Settings, folder, measure, public, usual_device
from .tables import aligned, operator_table

_ROOT = Path(__file__).resolve().parent.parent
_TEST_SECONDS = 300
_MAIN = ("encoder-800x1066-b2", "decoder-800x1066")
_MAIN_MODEL = "deformable_detr_r50"
_LEAST_MINUTES = 1.0  # below this a command of its own does nothing but start


class Run:
    """One run: its settings, its book, and what went wrong."""

    def __init__(
        self, settings: Settings, book: Book, *, quick: bool, again: bool = False, runs: Path = Path("runs/seeds")
    ) -> None:
        self.settings, self.book, self.quick = settings, book, quick
        self.again, self.runs = again, runs
        self.failures: list[str] = []
        self.left: list[str] = []

    def once(self, stage: str, act: Callable[[], str | None]) -> None:
        """Do something that passes or fails, unless it is recorded that it passed."""
        if self.book.has(("stage", stage)):
            print(f"{stage}: passed before, with this code on this device")
            return
        if time.monotonic() >= self.settings.deadline:
            self.left.append(stage)
            return
        print(f"== {stage}", flush=True)
        failure = act()
        if failure is None:
            self.book.add({"kind": "stage", "stage": stage})
        else:
            self.failures.append(failure)

    def measure(self, stage: str, planned: list[jobs.Job]) -> None:
        """Measure what is not recorded yet, as long as there is time."""
        print(f"== {stage}", flush=True)
        left = measure(planned, self.settings, self.book)
        print(file=sys.stderr)
        if left:
            self.left.append(f"{stage}: {left} measurements")

    def profile(self, what: str, backend: str) -> None:
        """Record where the time of a model goes."""
        if self.book.has(("profile", what, backend)) or peers.absent(backend, self.settings.device) is not None:
            return
        if time.monotonic() >= self.settings.deadline:
            self.left.append(f"profile of {what}, {backend}")
            return
        print(f"== profile of {what}, {backend}", flush=True)
        row = profile.profile(what, backend, self.settings.device)
        self.book.add(row)
        print(profile.text(row))

    def command(self, stage: str, act: Callable[[list[str]], int], words: list[str]) -> None:
        """Run another benchmark's command in what time is left; its rows go beside these, and are known again there."""
        minutes = (self.settings.deadline - time.monotonic()) / 60
        if minutes < _LEAST_MINUTES:
            self.left.append(stage)
            return
        print(f"== {stage}", flush=True)
        places = [] if self.book.path is None else ["--out", str(self.book.path.parent)]
        left = act([*words, *(["--quick"] if self.quick else []), "--minutes", f"{minutes:.1f}", *places])
        if left:
            self.left.append(f"{stage}: {left}")

    def training(self, stage: str, words: list[str]) -> None:
        """Loaders and steps of ``msdeform bench training``."""
        self.command(stage, training.run, [*words, *(["--again"] if self.again else [])])

    def explanations(self, words: list[str]) -> None:
        """Relevance beside the model's own passes, of ``msdeform bench explain``."""
        self.command("explanations", explain.run, [*words, *(["--again"] if self.again else [])])

    def seeds(self, words: list[str]) -> None:
        """Whole runs of ``msdeform bench seeds``; one under way is stopped when the time is over, and goes on later."""
        self.command("training runs by backend and seed", seeds.run, [*words, "--runs", str(self.runs)])

    def dispatch(self, rounds: int) -> None:
        """Record what a call costs the host, kernels left out, and its wall time with them."""
        keys = ("dispatch", dispatch.CASE, "float32", "fused_ms_deform_attn", "forward", "triton", "function")
        if self.book.has(keys) or peers.absent("triton", self.settings.device) is not None:
            return
        if time.monotonic() >= self.settings.deadline:
            self.left.append("dispatch")
            return
        print("== dispatch: microseconds of the host", flush=True)
        rows = dispatch.measure(self.settings.device, rounds, 3)
        for row in rows:
            self.book.add(row)
        print(aligned(dispatch.table(rows), 3))


def main(argv: list[str] | None = None) -> int:
    """Run it; returns 1 if verification, a test, or the check of one of our own backends failed."""
    arguments = sys.argv[1:] if argv is None else argv
    options = _parse(arguments)
    device = usual_device()
    quick = options.quick or device.type == "cpu"
    print(f"device: {device_name(device)}{' (reduced form)' if quick else ''}")
    source = provenance(device, ["python", "-m", "msdeform.bench.gpu", *public(arguments)])
    book = Book(folder(options.out, keep=not quick), source, again=options.again)
    if device.type != "cuda":
        book.skipped.append("speeds on a GPU: torch finds no CUDA device here")
    deadline = time.monotonic() + 60 * options.minutes
    settings = Settings(device, seconds=options.seconds, deadline=deadline, threads=torch.get_num_threads())
    run = Run(settings, book, quick=quick, again=options.again, runs=options.runs)

    if not options.no_verify:
        run.once("msdeform verify", _verify)
    if not options.no_tests:
        _gpu_tests(run)
    (_reduced if quick else _full)(run)

    book.report()
    rows = [row for row in book.rows if row["kind"] == "operator"]
    print(operator_table(rows))
    measured = [row for row in book.rows if row["kind"] in ("model", "training")]
    if measured:
        print(f"\n{table.speed_table(measured)}")
    run.failures += [_wrong(row) for row in rows if row["ours"] and row["failure"] is not None]
    for title, lines in (("FAILED", run.failures), ("left for the next run of this command", run.left)):
        if lines:
            print("\n".join(["", title, *(f"  {line}" for line in lines)]))
    return 1 if run.failures else 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m msdeform.bench.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes; the default where there is no GPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="nothing is begun after so long (default: 8)")
    parser.add_argument("--out", type=Path, help="folder for the rows (default: bench/results; none in reduced form)")
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"), help="folder for training runs and their data")
    parser.add_argument(
        "--seconds", type=float, default=0.3, help="about how long each measurement of the operator lasts"
    )
    parser.add_argument("--again", action="store_true", help="do what is recorded already, too")
    parser.add_argument("--no-verify", action="store_true", help="leave out the verify table")
    parser.add_argument("--no-tests", action="store_true", help="leave out the tests marked gpu")
    return parser.parse_args(arguments)


def _full(run: Run) -> None:
    """Everything, the most important first."""
    eager = [name for name in peers.PEERS if name not in peers.COMPILED]
    both, every = ["float32", "bfloat16"], ["float32", "bfloat16", "float16"]
    run.measure("operator, main cases", [*plan(_MAIN, ["grid"], both, eager)])
    for backend in ("triton", "triton-cells"):
        run.profile(_MAIN[0], backend)
    run.dispatch(200)
    speeds = table.plan_models(MODELS, peers.OURS, both, (1, 4), ("eager",), reduced=False)
    run.measure("detectors, published method", [job for job in speeds if job.method == "published"])
    for backend in ("triton", "cuda", "reference"):
        run.profile(_MAIN_MODEL, backend)
    run.measure("operator, other cases", [*plan(cases.FULL, ["grid"], every, eager)])
    run.measure("operator, uniform locations", [*plan(_MAIN, ["uniform"], both, eager, jobs.FUNCTIONS[:2])])
    run.measure("detectors, end to end", [*speeds])
    for backend in ("triton", "cuda", "reference"):
        run.profile(_MAIN_MODEL + profile.STEP, backend)
    run.measure("training steps", [*table.plan_training(MODELS, peers.OURS, both, (2, 4), reduced=False)])
    run.measure("operator, compiled", [*plan(_MAIN, ["grid"], both, peers.COMPILED)])
    compiled = table.plan_models(MODELS, peers.OURS, both, (1, 4), ("compiled",), reduced=False)
    run.measure("detectors, compiled", [job for job in compiled if job.method == "published"])
    _memcheck(run)
    run.training("stages of a training step", ["--parts", "step", "--options", "baseline"])
    run.explanations([])
    run.seeds([])
    run.training("options of a training step, and loading", ["--parts", "step", "loading"])


def _reduced(run: Run) -> None:
    """A little of everything, at small sizes; of the peers only what PyTorch runs anywhere."""
    named = [name for name in peers.PEERS if name not in (*peers.COMPILED, "transformers")]
    run.measure("operator, reduced", [*plan(cases.REDUCED, ["grid"], ["float32"], named)])
    ours = ("reference",) if run.settings.device.type == "cpu" else peers.OURS
    tiny = table.REDUCED_MODELS[:1]
    models = table.plan_models(tiny, ours, ["float32"], (1,), ("eager",), reduced=True)
    training = table.plan_training(tiny, ours, ["float32"], (2,), reduced=True)
    run.measure("detectors and training steps, reduced", [*models, *training])
    for what in (tiny[0], tiny[0] + profile.STEP, cases.REDUCED[0]):
        run.profile(what, "reference")
    some = ["--model", tiny[0], "--backends", "reference", "--dtypes", "float32", "--options", "baseline"]
    few = ["--batch", "1", "--image", "64x96", "--workers", "0", "--caches", "none"]
    run.training("stages of a training step and loading, reduced", ["--parts", "step", "loading", *some, *few])
    run.explanations(["--models", tiny[0], "--images", "64x96", "--backends", "reference"])
    run.seeds(["--backends", "reference", "--seeds", "0"])


def _wrong(row: Row) -> str:
    return f"{row['backend']}, {row['case']}, {row['dtype']}, {row['function']}, {row['direction']}: {row['failure']}"


def _verify() -> str | None:
    """Print the verify table; returns what failed."""
    from ..kernels import verify

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = verify.main([])
    lines = printed.getvalue().strip().splitlines()
    # every number of it where one is wrong
    print("\n".join(lines if status else lines[-1:]))
    return None if status == 0 else "msdeform verify"


def _gpu_tests(run: Run) -> None:
    """Run the tests that need the device."""
    reason = None
    if run.settings.device.type != "cuda":
        reason = "torch finds no CUDA device"
    elif not (_ROOT / "tests").is_dir():
        reason = "this is no checkout: an installed package has no tests"
    elif importlib.util.find_spec("pytest") is None:
        reason = "pytest is not installed"
    if reason is not None:
        run.book.skipped.append(f"tests marked gpu: {reason}")
        return

    def act() -> str | None:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "tests"]
        try:
            status = subprocess.run(command, cwd=_ROOT, timeout=_TEST_SECONDS, check=False).returncode
        except subprocess.TimeoutExpired:
            return f"pytest -m gpu: not done after {_TEST_SECONDS} s"
        return None if status == 0 else f"pytest -m gpu: exit status {status}"

    run.once("pytest -m gpu", act)


def _memcheck(run: Run) -> None:
    """Run the verify table under compute-sanitizer, which sees accesses beyond what was allocated."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        run.book.skipped.append("memcheck: compute-sanitizer is not installed (it comes with the CUDA toolkit)")
        return

    def act() -> str | None:
        command = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m", "msdeform", "verify"]
        # PyTorch's cache of memory would hide an access to a neighbour's
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        try:
            status = subprocess.run(command, cwd=_ROOT, env=environment, timeout=_TEST_SECONDS, check=False).returncode
        except subprocess.TimeoutExpired:
            return f"memcheck: not done after {_TEST_SECONDS} s"
        return None if status == 0 else f"memcheck: exit status {status}"

    run.once("memcheck", act)


if __name__ == "__main__":
    sys.exit(main())

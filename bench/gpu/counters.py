"""Counters of the hardware for each kernel of a call, by Nsight Compute (``ncu``), where it is installed and allowed.

``python -m msdeform.bench.gpu.counters CASE DTYPE BACKEND`` is the program that ncu runs: after a warm-up, one pass
of the fused function, forward and backward, between the two calls that ncu waits for.
"""

import contextlib
import csv
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence

import torch

from ...kernels.diagnostics.checks import DTYPES
from ..harness.provenance import usual_device
from ..harness.records import Row
from ..harness.tables import aligned, fields, lines_of, number
from ..operator import cases, implementations, workloads
from ..operator.inputs import make_inputs

# by the names that `msdeform bench instructions` has for what it counts
METRICS = {
    "us": "gpu__time_duration.sum",
    "cycles": "sm__cycles_elapsed.max",
    "warp_instructions": "smsp__inst_executed.sum",
    "issue_active_pct": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "warps_active_pct": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "lsu_wavefronts": "l1tex__data_pipe_lsu_wavefronts.sum",
    "lsu_wavefronts_pct": "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed",
    "l1_sectors_loaded": "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "l1_hit_pct": "l1tex__t_sector_hit_rate.pct",
    "l2_sectors": "lts__t_sectors.sum",
    "l2_sectors_reduced": "lts__t_sectors_op_red.sum",
    "l2_hit_pct": "lts__t_sector_hit_rate.pct",
    "dram_bytes": "dram__bytes.sum",
    "shared_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "registers": "launch__registers_per_thread",
}
# to the units of the names above, should a release of ncu scale numbers all the same
_SCALES = {"nsecond": 1e-3, "ns": 1e-3, "usecond": 1.0, "us": 1.0, "msecond": 1e3, "ms": 1e3, "second": 1e6, "s": 1e6}
_SCALES |= {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


class NotCounted(Exception):
    """ncu is not here, is not allowed to count, or failed; the message says which."""


def count(case: str, dtype: str, backend: str, limit: float) -> list[Row]:
    """A row for each kernel: ``launches``, and the sum (of percentages and registers the mean) of each of METRICS.

    Raises:
        NotCounted: in a sentence.
    """
    ncu = shutil.which("ncu")
    if ncu is None:
        raise NotCounted("ncu is not installed (it comes with the CUDA toolkit)")
    # The clocks are left alone. Before each pass ncu empties the caches: a kernel finds nothing in L2 that the last one
    # left there. The compilers that Triton starts are not watched, and numbers come in whole units.
    options = ["--csv", "--page", "raw", "--print-units", "base", "--profile-from-start", "off"]
    options += ["--clock-control", "none", "--target-processes", "application-only"]
    target = [sys.executable, "-m", "msdeform.bench.gpu.counters", case, dtype, backend]
    command = [ncu, *options, "--metrics", ",".join(METRICS.values()), *target]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise NotCounted(f"ncu was not done after {limit:.0f} s") from None
    lines = answer.stdout.splitlines()
    if answer.returncode != 0 or not any(line.startswith('"ID"') for line in lines):
        said = [line for line in [*lines, *answer.stderr.splitlines()] if line.strip()]
        errors = [line for line in said if "ERROR" in line] or said[-1:] or ["nothing was said"]
        raise NotCounted(f"ncu, status {answer.returncode}: {errors[-1].strip()}")
    lead = {"kind": "counters", "case": case, "dtype": dtype, "backend": backend}
    return [{**lead, **kernel, "failure": None} for kernel in parse(lines)]


def parse(lines: Iterable[str]) -> list[Row]:
    """What ncu printed with ``--csv --page raw``: the names, their units, and a line for each launch; of one kernel's
    launches, sums. A counter that the device does not have is left out."""
    launches = csv.DictReader(line for line in lines if line.startswith('"'))
    units = next(launches)
    kernels: dict[str, list[dict[str, str]]] = {}
    for launch in launches:
        kernels.setdefault(launch["Kernel Name"][:100], []).append(launch)
    found: list[Row] = []
    for name, records in kernels.items():
        row: Row = {"kernel": name, "launches": len(records)}
        for ours, metric in METRICS.items():
            numbers = []
            for record in records:
                with contextlib.suppress(ValueError):  # n/a
                    numbers.append(float(record.get(metric, "n/a").replace(",", "")))
            if numbers:
                mean = ours.endswith("_pct") or ours == "registers"
                row[ours] = sum(numbers) * _SCALES.get(units[metric], 1.0) / (len(numbers) if mean else 1)
        found.append(row)
    return found


def table(found: Sequence[Row]) -> str:
    """Rows of counters as aligned text."""
    names = ("us", "warp_instructions", "lsu_wavefronts", "l1_hit_pct", "l2_sectors_reduced", "dram_bytes")
    columns = {**fields("case", "dtype", "backend"), "kernel": lambda row: row["kernel"][:40]}
    columns |= {name: lambda row, name=name: number(row.get(name)) for name in names}
    return aligned(lines_of(found, columns), 4)


def main(argv: list[str] | None = None) -> int:
    """One pass for ncu to count."""
    case_name, dtype, backend = sys.argv[1:] if argv is None else argv
    device, case = usual_device(), cases.find(case_name)
    inputs = make_inputs(case, DTYPES[dtype], device, seed=0)
    work = workloads.operator(case, implementations.find(backend, device), [inputs], fused=True)
    for _ in range(2):
        work.both(0)
    if device.type == "cpu":
        return 0
    torch.cuda.synchronize(device)
    with torch.cuda.profiler.profile():
        work.both(0)
        torch.cuda.synchronize(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())

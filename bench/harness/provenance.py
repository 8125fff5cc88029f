"""Where a number comes from: what is written beside every result, so that a row stands by itself."""

import datetime
import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
from pathlib import Path
from typing import Any

import torch

from ...common.fields import spelled

_ROOT = Path(__file__).resolve().parents[2]
# what decides a measurement: the implementations, and the files here that say what is run and how it is timed
_MEASURED = (
    *("kernels/**/*.py", "kernels/**/*.cu", "models/**/*.py", "bench/harness/measure.py", "bench/models/speed.py"),
    *(f"bench/operator/{name}.py" for name in ("cases", "inputs", "workloads", "implementations", "graphs")),
)
# packages of other implementations, whose versions a row names
OTHERS = (
    *("deformops", "mmcv", "mmcv-lite", "DCNv4", "MultiScaleDeformableAttention", "transformers"),
    *("deformable-detr", "onnxruntime", "openvino"),
)


def provenance(device: torch.device, command: list[str]) -> dict[str, Any]:
    """Commit, machine, versions, date and command, as JSON-serialisable values; None where something is unknown.

    ``clocks`` are those of the multiprocessors, the memory, and the highest of the former, as found; ``host_load`` is
    how many threads wanted to run in the last minute, this program's among them.
    """
    commit, dirty = _commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "code": code(),
        "device": device_name(device),
        "driver": _smi(device, "driver_version"),
        "clocks": _smi(device, "clocks.sm,clocks.mem,clocks.max.sm"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "llvmlite": _version("llvmlite"),
        "peers": {name: version for name in OTHERS if (version := _version(name)) is not None},
        "python": platform.python_version(),
        "host_cpu": host_cpu(),
        "host_threads": torch.get_num_threads(),
        "host_load": host_load(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
    }


@functools.cache
def code(*more: str) -> str:
    """Digest of the sources that decide a measurement, and of `more`, patterns of files: the same in a checkout and in
    an installed package."""
    digest = hashlib.sha256()
    for pattern in (*_MEASURED, *more):
        for file in sorted(_ROOT.glob(pattern)):
            name = file.relative_to(_ROOT).as_posix().removeprefix("msdeform/")  # of a checkout only
            digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def command_line(program: str, options: Any) -> list[str]:
    """The command of a row's provenance: a place on someone's disk is no part of a result, so that folders for rows and
    runs are left out, and of other paths only the name is kept."""
    words = spelled(options, without=("out", "runs", "known"))
    return [*program.split(), *(Path(word).name if os.sep in word else word for word in words)]


def usual_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def host_load() -> float | None:
    """How many threads wanted to run in the last minute, on average; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def host_cpu() -> str:
    """The processor's name, and how many of its threads this process may use."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {usable} threads"


def _commit() -> tuple[str | None, bool | None]:
    """The checkout's commit, and whether tracked files differ from it; results being appended do not count. Of a tree
    that travelled without git, the commit that MSDEFORM_COMMIT names; whether files differ is unknown then."""
    if not (_ROOT / ".git").exists():  # nor what git finds in a folder above
        return os.environ.get("MSDEFORM_COMMIT") or None, None
    commit = _output(["git", "-C", str(_ROOT), "rev-parse", "HEAD"])
    status = ["git", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results"]
    changes = _output(status)
    return commit, None if commit is None or changes is None else bool(changes)


def _smi(device: torch.device, query: str) -> str | None:
    if device.type != "cuda":
        return None
    answer = _output(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"])
    return answer.splitlines()[0] if answer else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(command: list[str]) -> str | None:
    """What a command prints, or None where it is missing or fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None

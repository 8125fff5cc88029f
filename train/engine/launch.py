"""Which of several processes this is, by what torchrun or Slurm's srun say in the environment."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

# srun names no port: all tasks take the same one of these, another for each job; Linux gives out those from 32768 on
_FIRST_PORT, _PORTS = 12000, 20000


@dataclass(frozen=True)
class Place:
    """This process among all that train together."""

    rank: int
    size: int
    local_rank: int
    """Among those of this machine."""
    local_size: int
    address: str
    """Of the machine of rank 0, where all meet."""
    port: int


def place(environment: Mapping[str, str] | None = None) -> Place | None:
    """Where the environment says this process stands; None for one that was started alone.

    torchrun's variables count before Slurm's, whose tasks may each be a torchrun. Of Slurm only a step that srun
    started counts: the script of an sbatch job has a rank and a number of tasks as well, and is alone. So is the shell
    that salloc opens, which is a step of one task whatever the job's.

    Raises:
        ValueError: variables that are missing, or contradict each other.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env or "WORLD_SIZE" in env:
        found = Place(
            rank=_number(env, "RANK"),
            size=_number(env, "WORLD_SIZE"),
            local_rank=_number(env, "LOCAL_RANK", default="0" if _number(env, "WORLD_SIZE") == 1 else None),
            local_size=_number(env, "LOCAL_WORLD_SIZE", default=env.get("WORLD_SIZE")),
            address=env.get("MASTER_ADDR", "127.0.0.1"),
            port=_number(env, "MASTER_PORT", default="29500"),
        )
    elif "SLURM_STEP_ID" in env and _number(env, "SLURM_STEP_NUM_TASKS", default="1") > 1:
        found = _of_slurm(env)
    else:
        return None
    if not 0 <= found.rank < found.size or not 0 <= found.local_rank < found.local_size:
        raise ValueError(
            f"launch: expected ranks below the number of processes, got rank {found.rank} of {found.size}, "
            f"{found.local_rank} of {found.local_size} on this machine"
        )
    return found


def _of_slurm(env: Mapping[str, str]) -> Place:
    job, step, node = (_number(env, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NODEID"))
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    # 2(x3),1 says: two tasks on each of three nodes, one on the fourth
    text = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "")
    if not re.fullmatch(r"(\d+(\(x\d+\))?(,(?!$)|$))+", text):
        raise ValueError(f"launch: expected SLURM_STEP_TASKS_PER_NODE such as 2(x3),1, got {text!r}")
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    counts = [int(count) for count, times in parts for _ in range(int(times or 1))]
    if node >= len(counts):
        raise ValueError(f"launch: SLURM_STEP_TASKS_PER_NODE={text!r} has {len(counts)} nodes, and this is node {node}")
    return Place(
        rank=_number(env, "SLURM_PROCID"),
        size=_number(env, "SLURM_STEP_NUM_TASKS"),
        local_rank=_number(env, "SLURM_LOCALID"),
        local_size=counts[node],
        address=env.get("MASTER_ADDR") or first_host(nodes),
        # steps of a job may run at once
        port=_number(env, "MASTER_PORT", default=str(_FIRST_PORT + (job + 97 * step) % _PORTS)),
    )


def first_host(nodes: str) -> str:
    """The first machine of a list as Slurm writes it: ``gpu[03-07,9],login1`` begins with ``gpu03``."""
    host = re.sub(r"\[(\w+)[^]]*\]", r"\1", nodes).partition(",")[0]  # of what brackets list, the first
    if not host:
        raise ValueError(f"launch: expected SLURM_STEP_NODELIST to list nodes, such as gpu[03-07], got {nodes!r}")
    return host


def _number(env: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = env.get(name) or default
    if text is None:
        raise ValueError(f"launch: expected the environment to hold {name}, as torchrun and srun set it; it is absent")
    if not text.strip().isdecimal():
        raise ValueError(f"launch: expected a number in the environment's {name}, got {text!r}")
    return int(text)

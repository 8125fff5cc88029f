"""Several processes that train one model: how they meet, what they tell each other, and who is late.

Gradients go through DistributedDataParallel, over NCCL or gloo. Everything else (counts, losses, metrics, wishes to
stop) are small Python values, which travel over a group of their own on the CPU: it neither waits for the device nor
makes it wait. Each process also leaves a note of what it is doing where all can read it, so that those who wait in vain
can say for whom.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...common.device import choose_device
from ..config.options import Compute
from .launch import Place, place

T = TypeVar("T")

# up to the first step, and for an evaluation, whose parts may be uneven, others are given so much more time
_PATIENCE = 4
# seconds for a lost process's last note, and for others to fail, before somebody says who it was
_GRACE = 2.0


class LateError(RuntimeError):
    """Another process did not come, or is gone; the sentence says which."""


class ProcessGroup:
    """The processes of a run; a single one is a group, too, that never waits.

    ``rank``, ``size``: among all; ``local_rank``, ``local_size``: among those of this machine; ``device``: its own.
    """

    rank, size, local_rank, local_size = 0, 1, 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_main(self) -> bool:
        """Is this the process that prints and writes?"""
        return self.rank == 0

    def note(self, doing: str, step: int = 0) -> None:
        """Leaves word of what this process is doing."""

    def gather(self, value: T, *, patient: bool = False) -> list[T]:
        """What every process gave, by rank. Raises LateError if one does not come in time."""
        return [value]

    def broadcast(self, value: T) -> T:
        """What rank 0 gave."""
        return self.gather(value, patient=True)[0]

    @contextmanager
    def all_or_none(self, doing: str) -> Iterator[None]:
        """If the block fails in one process, it fails in all, and rank 0 tells what was wrong, once."""
        yield

    def share(self, tensors: list[torch.Tensor]) -> None:
        """Gives tensors the values that they have in rank 0."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward pass adds up gradients over all processes."""
        return model

    def no_sync(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """A block in which backward passes keep gradients to themselves."""
        return getattr(model, "no_sync", contextlib.nullcontext)()


class _DistributedGroup(ProcessGroup):
    """Processes that met by `torch.distributed`."""

    def __init__(self, where: Place, compute: Compute) -> None:
        self.rank, self.size = where.rank, where.size
        self.local_rank, self.local_size = where.local_rank, where.local_size
        super().__init__(_own_device(where, compute))
        backend = compute.dist_backend
        if backend == "auto":
            backend = "nccl" if self.device.type == "cuda" else "gloo"
        if backend == "nccl" and self.device.type != "cuda":
            raise ValueError(f"dist-backend: nccl expects CUDA devices, and this runs on {self.device}; expected gloo")
        self.minutes = compute.timeout
        prompt, patient = timedelta(minutes=compute.timeout), timedelta(minutes=_PATIENCE * compute.timeout)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        try:
            # torchrun keeps a store of its own at this address, which outlives the processes that it starts again
            main = self.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            store = dist.TCPStore(where.address, where.port, self.size, main, patient, wait_for_workers=False)
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = dist.PrefixStore(f"attempt {attempt}", store)
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("gradients", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=patient,
                device_id=self.device if backend == "nccl" else None,
            )
            self._patient = dist.new_group(backend="gloo", timeout=patient)
            self._prompt = dist.new_group(backend="gloo", timeout=prompt)
        except (RuntimeError, ValueError) as error:
            raise LateError(
                f"launch: {self.size} processes were to meet at {where.address}:{where.port}, and did not within "
                f"{_PATIENCE * compute.timeout:g} minutes: {str(error).splitlines()[0]}"
            ) from error
        self._first_done, self._step = False, 0

    def note(self, doing: str, step: int = 0) -> None:
        self._step = max(self._step, step)
        self._first_done |= step > 1
        word = {"doing": doing, "step": step, "host": socket.gethostname(), "time": time.time()}
        with contextlib.suppress(RuntimeError):  # whoever keeps the notes may be gone; the next gather tells
            self._store.set(f"note/{self.rank}", json.dumps(word))

    def gather(self, value: T, *, patient: bool = False) -> list[T]:
        self.note("waiting for the others", self._step)
        values: list[Any] = [None] * self.size
        slow = patient or not self._first_done
        try:
            dist.all_gather_object(values, value, group=self._patient if slow else self._prompt)
        except RuntimeError as error:
            raise LateError(self._who_is_late(self.minutes * (_PATIENCE if slow else 1), str(error))) from error
        return values

    @contextmanager
    def all_or_none(self, doing: str) -> Iterator[None]:
        self.note(doing)
        failure: Exception | None = None
        try:
            yield
        except LateError:
            raise
        except Exception as error:
            failure = error
        said = self.gather(None if failure is None else f"{failure}", patient=True)
        sentences: dict[str, list[str]] = {}
        for rank, sentence in enumerate(said):
            if sentence is not None:
                sentences.setdefault(sentence, []).append(str(rank))
        if not sentences:
            return
        # a defect, whose traceback is wanted, is no wrong setting
        defect = not isinstance(failure, ValueError | TypeError | OSError | NotImplementedError | RuntimeError)
        if failure is not None and (defect or os.environ.get("MSDEFORM_DEBUG") == "1"):
            raise failure
        if not self.is_main:
            raise SystemExit(1)  # rank 0 speaks for all
        told = []
        for sentence, ranks in sentences.items():
            of = f" (in {'process' if len(ranks) == 1 else 'processes'} {', '.join(ranks)} of {self.size})"
            told.append(sentence + (of if len(ranks) < self.size else ""))
        raise ValueError("; ".join(told)) from failure

    def share(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            dist.broadcast(tensor, 0)

    def wrap(self, model: nn.Module) -> nn.Module:
        config = getattr(model, "config", None)
        return DistributedDataParallel(
            model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            # without losses at every layer, the heads before the last see no gradient
            find_unused_parameters=not getattr(config, "aux_loss", True) or getattr(model, "leaves_unused", False),
            gradient_as_bucket_view=True,
        )

    def _who_is_late(self, minutes: float, error: str) -> str:
        time.sleep(_GRACE)
        notes: dict[int, dict[str, Any]] = {}
        for rank in range(self.size):
            with contextlib.suppress(RuntimeError):  # no such note, or nobody left who keeps it
                if self._store.check([f"note/{rank}"]):
                    notes[rank] = json.loads(self._store.get(f"note/{rank}"))
        if not notes:
            return "another process was lost, and with it what the others were doing: process 0, where all met, is gone"
        failed = [rank for rank, note in notes.items() if note["doing"].startswith("failed")]
        if failed:
            told = "; ".join(f"process {rank} on {notes[rank]['host']} {notes[rank]['doing']}" for rank in failed)
            return f"another process ended: {told}"
        furthest = max(note["step"] for note in notes.values())
        late = [rank for rank, note in notes.items() if not note["doing"].startswith("waiting")]
        late = late or [rank for rank, note in notes.items() if note["step"] < furthest]
        seen = [
            f"process {rank} of {self.size} on {notes[rank]['host']} was last seen {notes[rank]['doing']}, "
            f"step {notes[rank]['step']}, {time.time() - notes[rank]['time']:.0f} s ago"
            for rank in late
        ]
        gone = [f"process {rank} of {self.size} was never seen" for rank in range(self.size) if rank not in notes]
        reason = "was lost" if "onnection" in error else f"did not come within {minutes:g} minutes"
        return f"another process {reason}: {'; '.join(seen + gone) or 'none is behind'} (--timeout {self.minutes:g})"


@contextmanager
def process_group(compute: Compute) -> Iterator[ProcessGroup]:
    """The processes that were started together, met and ready; a process by itself is a group of one.

    Raises:
        ValueError: devices or a launch that cannot be.
        LateError: they did not all come.
    """
    where = place()
    if where is None or where.size == 1:
        yield ProcessGroup(choose_device(compute.device))
        return
    group = _DistributedGroup(where, compute)
    try:
        yield group
    except BaseException as error:
        if not isinstance(error, SystemExit | LateError):  # word for those who will wait for this process
            group.note(f"failed: {str(error) or type(error).__name__}")
        raise  # without leaving in good order, which the others may no longer answer
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()


def _own_device(where: Place, compute: Compute) -> torch.device:
    if compute.device in ("auto", "cuda") and torch.cuda.is_available():
        count = torch.cuda.device_count()
        # srun may show each task its own device alone
        if count != 1 and where.local_size > count:
            raise ValueError(
                f"device: {where.local_size} processes on this machine, and {count} CUDA devices; start {count}, "
                "or run on --device cpu"
            )
        return torch.device("cuda", where.local_rank if count > 1 else 0)
    if compute.device.startswith("cuda:"):
        raise ValueError(f"device: expected auto, cuda or cpu for {where.size} processes, got {compute.device}")
    return choose_device(compute.device)

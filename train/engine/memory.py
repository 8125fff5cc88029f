"""What a run will take, from a few steps that change nothing: memory on its largest images, time on its first."""

import bisect
import contextlib
import ctypes
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...common.text import counted
from ..config.options import AUTO, with_batch_size
from ..data.cache import process_memory
from ..data.dataset import Sample
from .checkpoint import random_state, set_random_state
from .state import Training, running_statistics

# of the memory there is, what a run may fill: allocators need some room to move
_FULL = 0.95
# of the host's, what a batch size that is found may fill: other programs come and go, and swapping stops them all
_FULL_HOST = 0.7
_GIB = 2**30
# augmentations that change no image's height over width; the others may turn it, or crop to as much as one to two
_KEEP_SHAPE = ("none", "flip", "light")
_CROPS = np.array([[2000, 1000], [1000, 2000]])


@dataclass(frozen=True)
class Estimate:
    """What a run takes, of one process.

    ``largest``: height and width of the largest padded batch, of ``batch`` images. ``peak`` and ``room``: bytes in use
    at once, the optimizer's state included, and those there are on ``device``. ``step_s``: seconds of a step, of as
    many passes as it has, without loading; ``load_s``: of loading one image by one of ``workers``. ``images``: to a
    step, over all ``processes``; ``steps_per_epoch``, and ``steps`` in all.
    """

    largest: tuple[int, int]
    batch: int
    peak: int
    room: int
    device: torch.device
    step_s: float
    load_s: float
    workers: int
    images: int
    processes: int
    steps_per_epoch: int
    steps: int

    def refuse_what_cannot_fit(self) -> None:
        """Raises ValueError, naming what to lower, if the run would run out of memory."""
        if self.room and self.peak > _FULL * self.room:
            raise ValueError(
                f"batch-size: {self._images} take about {self.peak / _GIB:.1f} GiB on {self.device}, which has "
                f"{self.room / _GIB:.1f} GiB for this process; {what_to_lower(self.batch)}"
            )

    def sentence(self) -> str:
        """Memory and time, and whether loading keeps up."""
        needed = self.images / self.step_s / self.processes  # by each process
        loaded = max(1, self.workers) / self.load_s
        keeps_up = "" if loaded > needed else ", which is less: loading will be waited for"
        epoch, run = (_span(self.step_s * steps) for steps in (self.steps_per_epoch, self.steps))
        return (
            f"estimate: {self.peak / _GIB:.2f} of {self.room / _GIB:.1f} GiB for {self._images}; {self.step_s:.3g} s a "
            f"step, {epoch} an epoch, {run} in all. It trains {needed:.1f} images/s on each process and loads about "
            f"{loaded:.1f} with {counted(self.workers, 'worker')}{keeps_up}"
        )

    @property
    def _images(self) -> str:
        return f"{self.batch} images of up to {self.largest[0]}x{self.largest[1]}"


def dry_run(training: Training, steps: int) -> Estimate:
    """Does ``steps`` passes on images of the largest size, and as many on the first of the data, and forgets them.

    Raises:
        ValueError: the device ran out of memory, naming what to lower.
    """
    order, options, device = training.order, training.options, training.device
    images = min(order.total, order.n_images)
    mine = math.ceil(images / order.size)
    count = min(options.batch.batch_size, mine)
    samples = _largest(training, count)
    largest = _padded(samples)
    _forget_peak(device)
    with _unchanged(training):
        try:
            for _ in range(steps):
                _pass(training, samples)
        except RuntimeError as error:  # as torch.OutOfMemoryError is, too
            if not out_of_memory(error):
                raise
            sides = f"{largest[0]}x{largest[1]}"
            raise ValueError(
                f"batch-size: {count} images of up to {sides} do not fit on {device}; {what_to_lower(count)}"
            ) from error
    with _unchanged(training):
        begun = time.perf_counter()
        first = [training.data[index] for index in range(count)]
        load_s = (time.perf_counter() - begun) / count
        pass_s = min(_pass(training, first) for _ in range(steps))
    return Estimate(
        largest=largest,
        batch=count,
        peak=_peak(training),
        room=_room(device),
        device=device,
        step_s=pass_s * math.ceil(mine / count),
        load_s=load_s,
        workers=options.loading.workers,
        images=images,
        processes=order.size,
        steps_per_epoch=order.steps_per_epoch,
        steps=training.total_steps,
    )


def settle_batch_size(training: Training) -> str | None:
    """Where ``batch-size`` is auto, sets it to the largest that fits, the same in all processes; says it in a line.

    Of a process's images of a step, those sizes are tried that make as many equal passes as possible: 16, 8, 6, 4, 3, 2
    and 1 of 16. On CUDA passes are done for real. Elsewhere memory that runs out would be taken from other programs:
    there one and two images are tried, and more are estimated from them.

    Raises:
        ValueError: one image does not fit, naming what to lower; or the system does not tell how much memory there is.
    """
    order, group, device = training.order, training.group, training.device
    if training.options.batch.batch_size != AUTO:
        return None
    images = min(order.total, order.n_images)
    mine = math.ceil(images / order.size)
    sizes = sorted({math.ceil(mine / passes) for passes in range(1, mine + 1)})
    room = _room(device)
    if not room:
        raise ValueError(
            f"batch-size: auto needs to know the memory of {device}, which is not told here; give a number"
        )
    taken: dict[int, float]
    if device.type == "cuda":
        taken, limit = {}, _FULL * room

        def too_much(count: int) -> bool:
            taken[count] = _taken(training, count)
            return taken[count] > limit

        fitting = sizes[: bisect.bisect_left(sizes, True, key=too_much)]
    else:
        limit = _FULL_HOST * room / group.local_size
        one, two = (_taken(training, min(count, mine)) for count in (1, 2))
        taken = {count: one + (count - 1) * (two - one) for count in sizes}
        # whether one fits is for the dry run to say
        fitting = [count for count in sizes if count == 1 or taken[count] <= limit] if one < math.inf else []
    # one that does not fit makes all processes end together
    number = min(group.gather(max(fitting, default=0)))
    if number == 0:
        height, width = _padded(_largest(training, 1))
        raise ValueError(
            f"batch-size: one image of {height}x{width} does not fit on {device}, of whose memory this process may "
            f"fill {limit / _GIB:.1f} GiB; {what_to_lower(1)}"
        )
    training.options = with_batch_size(training.options, number)
    passes = counted(math.ceil(mine / number), "pass")
    about = f", about {taken[number] / _GIB:.1f} of {room / _GIB:.1f} GiB" if number in taken else ""
    return f"batch-size: {counted(number, 'image')} at a time on {device}{about}; {passes} to a step of {images}"


def _taken(training: Training, count: int) -> float:
    """Bytes in use at most in a pass of so many of the largest images; infinite if they do not fit."""
    device = training.device
    samples = _largest(training, count)
    _forget_peak(device)
    try:
        with _unchanged(training):
            _pass(training, samples)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return math.inf
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what a larger batch leaves would count
    return _peak(training)


def _peak(training: Training) -> int:
    """Bytes in use at once at most since they were forgotten, and those that AdamW's two moments will take."""
    parameters = sum(p.numel() * p.element_size() for p in training.model.parameters() if p.requires_grad)
    device = training.device
    return 2 * parameters + (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM"))


def out_of_memory(error: BaseException) -> bool:
    """Is it the error of a device, or of the host, that has no memory left?"""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def what_to_lower(batch: int) -> str:
    """When memory does not do for so many images at a time; the end of a sentence."""
    lower = "lower --batch-size, and gradients add up to the same total; or try " if batch > 1 else "try "
    return f"{lower}--checkpointing all, --precision bf16 or a smaller --image-size"


def _pass(training: Training, samples: list[Sample]) -> float:
    """Seconds of one forward and backward pass, done with on the device."""
    begun = time.perf_counter()
    training.try_pass(samples)
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
    return time.perf_counter() - begun


def _largest(training: Training, count: int) -> list[Sample]:
    """Grey images of the largest sizes that the data gives: the tallest and the widest, which pad each other."""
    options, annotations = training.options.input, training.data.annotations
    size, images, rows = options.size, annotations.images, np.unique(training.data.rows)
    sides = np.unique(np.stack([images.heights[rows], images.widths[rows]], 1), axis=0)
    if not options.overfit and (training.given.transform is not None or options.augment not in _KEEP_SHAPE):
        sides = np.concatenate([sides, _CROPS])
    fitted = [size.fit(height, width) for height, width in sides.tolist()]
    extremes = [max(fitted), max(fitted, key=lambda side: side[::-1])]
    if count == 1:
        extremes = [max(fitted, key=lambda side: side[0] * side[1])]
    boxes = int(np.diff(annotations.first).max())
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    target = {"labels": torch.zeros(boxes, dtype=torch.int64), "boxes": box.repeat(boxes, 1), "image_id": -1}
    sizes = itertools.islice(itertools.cycle(extremes), count)
    return [(torch.full((3, *size), 128, dtype=torch.uint8), target) for size in sizes]


def _padded(samples: list[Sample]) -> tuple[int, int]:
    """Height and width of the images as a batch."""
    heights, widths = zip(*(image.shape[-2:] for image, _ in samples), strict=True)
    return max(heights), max(widths)


@contextmanager
def _unchanged(training: Training) -> Iterator[None]:
    """Whatever the block trains leaves no trace: no gradients, no statistics, no random numbers drawn."""
    state, averages = random_state(), running_statistics(training.model)
    try:
        yield
    finally:
        set_random_state(state)
        training.optimizer.zero_grad(set_to_none=True)
        for buffer, saved in averages:
            buffer.copy_(saved)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError, AttributeError):  # neither Linux, nor glibc
        ctypes.CDLL(None).malloc_trim(0)  # or what earlier passes left would be filled before memory is asked for
        Path("/proc/self/clear_refs").write_text("5")


def _room(device: torch.device) -> int:
    """What there is for this process: free memory, and what it has already."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    limits = process_memory()  # of a container, what it may have
    return min(limits.values()) + _status("VmRSS") if limits else 0


def _status(name: str) -> int:
    """What Linux tells of this process, in bytes; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _span(seconds: float) -> str:
    if seconds < 6000:
        return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

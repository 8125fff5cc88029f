"""How fast detectors run and train.

``published`` is the method behind the published figures (Zhu et al. 2021): one image of 640x426 pixels, resized to
800x1201, replicated to the batch; forward only; synchronised; the first 5 of 300 iterations dropped (fewer where 300
take too long: the row says how many). ``end to end`` begins with the decoded image and ends with boxes in its pixels.
``training`` is a whole step: forward, losses, backward, clipping, AdamW. The ``reduced`` forms of these take a small
image and a few iterations: they show that a command works, and are no result of the method.

Pixels and weights are random: neither moves a time, but for what suppression leaves of Faster R-CNN's proposals.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ...kernels.diagnostics.checks import DTYPES
from ...models.catalog import config_of
from ...models.configs import DeformableDetrConfig
from ...models.inference.image_size import Size
from ...models.zoo import create_criterion, create_model
from ...train.config.options import Optim
from ...train.engine.acceleration import autocast
from ...train.engine.optim import make_optimizer
from ..harness.measure import peak_memory_mb, summary
from ..harness.records import Row
from ..operator import jobs
from ..operator.workloads import sentence

METHODS = ("published", "end to end")
TRAINING = "training"
REDUCED = "reduced "

_IMAGE = (426, 640)  # height and width of image 139 of val2017
_ITERATIONS, _DROPPED, _LONGEST = 300, 5, 10.0
_LEAST = {"cuda": 30, "cpu": 10}
_REDUCED_SIZE = Size(64, 96)
_REDUCED_ITERATIONS = 6
_BOXES = 7  # of an image of COCO's training set, about
_TRAINING_IMAGES = 118_287  # of train2017

Job = jobs.Model | jobs.Training
Call = Callable[[int], object]


def uses_attention(model: str) -> bool:
    """Does a detector have deformable attention, and so a backend?"""
    return isinstance(config_of(model), DeformableDetrConfig)


def guarded(row: Row, numbers: Callable[[], Row], device: torch.device) -> Row:
    """A row with its numbers, or with why they could not be measured here: the others are still to be."""
    try:
        row |= numbers()
    except torch.OutOfMemoryError:
        row["failure"] = "out of memory"
    except Exception as error:
        row["failure"] = sentence(error)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return row


def rows(job: Job, device: torch.device) -> Iterator[Row]:
    """The row of a job; a detector that cannot run here says why."""
    yield guarded(job.unmeasured(None)[0], lambda: _numbers(job, device), device)


def _numbers(job: Job, device: torch.device) -> Row:
    call, image = call_of(job, device)
    reduced = job.method.startswith(REDUCED)
    times = _times(call, device, reduced=reduced)
    rate = job.batch / (sum(times) / len(times)) * 1e6
    numbers: Row = {"fps": rate}
    if isinstance(job, jobs.Training):  # an epoch of small images is no epoch
        hours = None if reduced else _TRAINING_IMAGES / rate / 3600
        numbers = {"images_per_second": rate, "hours_per_epoch": hours}
    return {**asdict(summary(times)), "image": image, **numbers, "peak_mb": peak_memory_mb(call, device)}


def call_of(job: Job, device: torch.device) -> tuple[Call, list[int]]:
    """What a job measures, a forward pass or a whole step, and height and width of its images."""
    height, width = (_REDUCED_SIZE if job.method.startswith(REDUCED) else Size()).fit(*_IMAGE)
    torch.manual_seed(0)
    backend = "auto" if job.backend == jobs.NO_BACKEND else job.backend
    model = create_model(job.model, backbone_frozen=True, attn_backend=backend).to(device)
    images = torch.randn(job.batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.zeros(job.batch, height, width, dtype=torch.bool, device=device)
    make = _forward if isinstance(job, jobs.Model) else _step
    return make(job, model, images, mask), [height, width]  # type: ignore[arg-type]


def _forward(job: jobs.Model, model: Any, images: torch.Tensor, mask: torch.Tensor) -> Call:
    model.to(DTYPES[job.dtype]).eval()
    batch = images[:1].to(model.dtype).expand(job.batch, -1, -1, -1).contiguous()
    size = _REDUCED_SIZE if job.method.startswith(REDUCED) else Size()
    decoded = np.random.default_rng(0).integers(256, size=(*_IMAGE, 3), dtype=np.uint8)
    if job.mode == "compiled":
        model.forward = torch.compile(model.forward, dynamic=False)

    def forward(_: int) -> object:
        return model((batch, mask))

    def end_to_end(_: int) -> object:
        return model.predict([decoded] * job.batch, batch_size=job.batch, size=size, confidence=0.0)

    return torch.no_grad()(forward if job.method.endswith("published") else end_to_end)


def _step(job: jobs.Training, model: Any, images: torch.Tensor, mask: torch.Tensor) -> Call:
    options, device = Optim(), images.device
    criterion = create_criterion(model.train())
    optimizer = make_optimizer(model, options, backbone_trained=True)
    generator = torch.Generator().manual_seed(0)
    # cxcywh, normalised, inside the image
    boxes = torch.rand(job.batch, _BOXES, 4, generator=generator) * 0.3 + 0.2
    labels = torch.randint(1, 91, (job.batch, _BOXES), generator=generator)
    targets = [{"labels": l.to(device), "boxes": b.to(device)} for l, b in zip(labels, boxes, strict=True)]

    def step(_: int) -> None:
        with autocast(device, "bf16" if job.dtype == "bfloat16" else "fp32"):
            outputs = model((images, mask))
        losses = criterion(outputs, targets)
        sum(losses[name] * weight for name, weight in criterion.weight_dict.items()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _times(call: Call, device: torch.device, *, reduced: bool) -> list[float]:
    """Microseconds of each iteration that counts, each waited for."""
    most = _REDUCED_ITERATIONS if reduced else _ITERATIONS
    least = most if reduced else _LEAST[device.type]
    dropped = 2 if reduced else _DROPPED
    times: list[float] = []
    end = time.perf_counter() + _LONGEST
    while len(times) < most and (len(times) < least or time.perf_counter() < end):
        start = time.perf_counter()
        call(len(times))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - start) * 1e6)
    return times[dropped:]

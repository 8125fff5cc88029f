"""A training step by its stages, with and without each setting that should make it faster or smaller.

The step is the run's own (`train.engine.state.Training`): images as bytes on the host, to the device, through the
model, to losses, gradients, clipping and AdamW. Pixels and weights are random, and every image has seven boxes.
"""

import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ....train.config import options as train
from ....train.data.dataset import Sample
from ....train.engine.state import Training, by_shape
from ....train.engine.step_timer import STAGES
from ...harness.measure import peak_memory_mb
from ...harness.records import Row
from ..speed import guarded

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
_BOXES = 7  # of an image of COCO's training set, about
CLASSES = 5


@dataclass(frozen=True)
class Option:
    """One way to run a step."""

    compute: dict[str, Any] = field(default_factory=dict)
    passes: int = 1
    """Forward and backward passes, whose gradients add up."""
    mixed: bool = False
    """Every other image is turned, and pads its neighbour."""
    bucket: bool = False


OPTIONS = {
    "baseline": Option(),
    "channels_last": Option({"channels_last": True}),
    "compile": Option({"compile": True}),
    "checkpointing encoder": Option({"checkpointing": "encoder"}),
    "checkpointing all": Option({"checkpointing": "all"}),
    "accumulation": Option(passes=2),
    "mixed shapes": Option(passes=2, mixed=True),
    "mixed shapes, bucket": Option(passes=2, mixed=True, bucket=True),
}


@dataclass(frozen=True)
class Step:
    """What to measure."""

    model: str
    backend: str
    dtype: str
    """bfloat16: autocast"""
    batch: int
    """images to a pass"""
    image: str
    """HEIGHTxWIDTH"""
    option: str

    def key(self) -> tuple[object, ...]:
        """As of :func:`.records.key`."""
        return ("training-step", *asdict(self).values())


def measured(step: Step, data: Path, device: torch.device, *, times: int, warm_up: int = 3) -> Row:
    """The row of a step; one that cannot run here says why."""
    numbers = dict.fromkeys(("images_per_second", "step_us", "stages_us", "peak_mb", "steps"))
    row: Row = {"kind": "training-step", **asdict(step), **numbers, "failure": None}
    return guarded(row, lambda: _measure(step, data, device, times, warm_up), device)


def _measure(step: Step, data: Path, device: torch.device, times: int, warm_up: int) -> Row:
    option = OPTIONS[step.option]
    training = Training(_options(step, option, data, device))
    samples = _samples(step, option)

    def once(_: int = 0) -> float:
        """Seconds of a step."""
        begun = time.perf_counter()
        training.step(samples)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    median = statistics.median([once() for _ in range(warm_up + times)][warm_up:])
    training.step_timer.start()
    for _ in range(times):
        once()
    training.step_timer.stop()
    return {
        "images_per_second": len(samples) / median,
        "step_us": median * 1e6,
        "stages_us": {name: training.step_timer.seconds[name] / times * 1e6 for name in STAGES},
        "peak_mb": peak_memory_mb(once, device),
        "steps": times,
    }


def _options(step: Step, option: Option, data: Path, device: torch.device) -> train.TrainOptions:
    compute: dict[str, Any] = {"device": str(device), "precision": PRECISIONS[step.dtype], **option.compute}
    return train.TrainOptions(
        source=train.Source(data=data),
        loading=train.Loading(workers=0, bucket=option.bucket),
        model=train.Model(step.model, attn_backend=step.backend, backbone_weights="none"),  # type: ignore[arg-type]
        batch=train.Batch(epochs=10**6, total_batch_size=step.batch * option.passes, batch_size=step.batch),
        compute=train.Compute(**compute),
        run=train.Run(dry_steps=0),
        logging=train.Logging(tensorboard=False, progress=False, pictures=0),
    )


def _samples(step: Step, option: Option) -> list[Sample]:
    """Images of a whole batch, as a loader gives them."""
    height, width = map(int, step.image.split("x"))
    generator = torch.Generator().manual_seed(0)
    samples: list[Sample] = []
    for number in range(step.batch * option.passes):
        size = (width, height) if option.mixed and number % 2 else (height, width)
        target = {
            "image_id": number,
            "size": size,
            "labels": torch.randint(CLASSES, (_BOXES,), generator=generator),
            # cxcywh, normalised, inside the image
            "boxes": torch.rand(_BOXES, 4, generator=generator) * 0.3 + 0.2,
        }
        samples.append((torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8), target))
    return by_shape(samples) if option.bucket else samples

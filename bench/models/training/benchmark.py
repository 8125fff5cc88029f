"""``msdeform bench training``: how fast images are loaded, what a training step is made of, and what settings change.

loading: images a second of the loader alone, by workers and cache. memory: each worker's own memory early and late in
2,000 steps. step: images a second, peak memory and the stages of a step, with and without each setting; on a GPU a
published detector on 800x1066 images, on a CPU a tiny one on small images, which shows that a setting works, and is
no result for anything else.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product

import torch

from ....train.config.options import Loading
from ....train.engine.step_timer import STAGES
from ...harness import records
from ...harness.provenance import usual_device
from ...harness.records import Row
from ...harness.results_file import open_results
from ...harness.tables import Column, Line, aligned, fields, lines_of, number, numbers
from ...operator.implementations import usual_backends
from ...options import STEP_OPTIONS, TrainingOptions
from ..resumable import Planned, measure_missing
from . import loading, steps

_MARKS, _REDUCED_MARKS = (200, 2000), (20, 60)
_INDEX, _REDUCED_INDEX = 50_000, 500
_MODEL, _REDUCED_MODEL = "deformable_detr_r50", "deformable_detr_tiny"
_IMAGE, _REDUCED_IMAGE = "800x1066", "128x160"


def measure_rows(options: TrainingOptions) -> int:
    """Measures and prints; returns how many rows are left when the time is over."""
    device = usual_device()
    sources, keep = ("train/**/*.py", "bench/models/training/*.py"), not options.quick and device.type == "cuda"
    results = open_results("msdeform bench training", options, device, measured=sources, keep=keep)
    left = measure_missing(_planned(options, device), results, options.minutes)
    for kind, table in TABLES.items():
        if rows := [row for row in results.of(kind) if not row.get("failure")]:
            print(aligned(table(rows), 1) + "\n")
    return left


def _planned(options: TrainingOptions, device: torch.device) -> Planned:
    """What each row is of, and what measures it."""
    if "loading" in options.parts:
        with loading.data_set(options.data) as where:
            seconds = 0.2 if options.quick else options.seconds
            for cache, workers in product(options.caches, options.workers):
                how = Loading(workers=workers, cache_images=cache)
                yield loading.key(where, workers, cache), partial(loading.speed, where, how, seconds)
    if "memory" in options.parts:
        marks, index = (_REDUCED_MARKS, _REDUCED_INDEX) if options.quick else (_MARKS, _INDEX)
        workers = max(1, *options.workers)
        yield ("loading-memory", workers, index), partial(loading.memory, marks, workers, index)
    if "step" in options.parts:
        on_cpu = device.type == "cpu"
        model = options.model or (_REDUCED_MODEL if on_cpu else _MODEL)
        image = options.image or (_REDUCED_IMAGE if on_cpu else _IMAGE)
        batches = options.batch or ((2,) if on_cpu else (2, 4))
        backends = options.backends or usual_backends(device)
        # compiling takes minutes on a CPU
        ways = options.options or [name for name in STEP_OPTIONS if name != "compile" or not on_cpu]
        # images are made by hand; of the data set a run has its classes
        with loading.synthetic(4, 64, classes=steps.CLASSES) as data:
            times = 2 if options.quick else 10
            for dtype, batch, backend, option in product(options.dtypes, batches, backends, ways):
                step = steps.Step(model, backend, dtype, batch, image, option)
                yield step.key(), partial(steps.measured, step, data, device, times=times)


def loading_table(rows: Sequence[Row]) -> list[Line]:
    """Images a second, a line for each cache."""
    counts = sorted({row["workers"] for row in rows})
    speeds = {(row["data"], row["cache"], row["workers"]): number(row["images_per_second"]) for row in rows}
    lines: list[Line] = [("data", "cache", *(f"{count} workers" for count in counts))]
    for lead in dict.fromkeys(key[:2] for key in speeds):
        lines.append((*lead, *(speeds.get((*lead, count), "-") for count in counts)))
    return lines


def memory_table(rows: Sequence[Row]) -> list[Line]:
    """What each worker had to itself, early and late."""
    lines: list[Line] = [("images listed", "workers", "step", "MB of each", "step", "MB of each", "most growth")]
    for row in rows:
        early, late = (" ".join(map(number, row[name])) for name in ("early_mb", "late_mb"))
        first, last = map(str, row["steps"])
        grown = f"{max(row['grown_mb']):+.2f} MB"
        lines.append((str(row["entries"]), str(row["workers"]), first, early, last, late, grown))
    return lines


def step_table(rows: Sequence[Row]) -> list[Line]:
    """Milliseconds of each stage, and the whole without the stages being told apart."""
    columns: dict[str, Column] = {
        **fields(*records.KEYS["training-step"]),
        "images/s": numbers("images_per_second"),
        "peak MB": numbers("peak_mb"),
        "ms a step": numbers("step_us", 1e3),
    }
    spent = {stage: [row["stages_us"][stage] for row in rows] for stage in STAGES}
    head, *lines = lines_of(rows, columns)
    for stage, times in spent.items():
        if any(times):
            head = (*head, stage)
            lines = [(*line, number(us, 1e3)) for line, us in zip(lines, times, strict=True)]
    return [head, *lines]


TABLES = {"loading": loading_table, "loading-memory": memory_table, "training-step": step_table}

"""``msdeform bench training``: how fast images are loaded, what a training step is made of, and what settings change.

    msdeform bench training                          # all of it; reduced to small images on a CPU
    msdeform bench training --parts loading --data DIR    # the loader on real photographs
    msdeform bench training --parts step --options baseline compile --batch 4

loading: images a second of the loader alone, by workers and cache. memory: each worker's own memory early and late in
2,000 steps. step: images a second, peak memory and the stages of a step, with and without each setting; on a GPU a
published detector on 800x1066 images, on a CPU a tiny one on small images, which shows that a setting works, and is
no result for anything else.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch

from ..common.options import nearest
from ..kernels.arguments import Parser
from ..train.config import Loading
from ..train.stages import STAGES
from . import loading, peers, records, steps
from .provenance import code, provenance
from .published import check_model
from .records import Row
from .runner import Book, folder, public, usual_device
from .tables import Line, aligned, number

PARTS = ("loading", "memory", "step")
# what decides these measurements, beside what decides all
CODE = ("train/*.py", "bench/loading.py", "bench/steps.py")
_MARKS, _REDUCED_MARKS = (200, 2000), (20, 60)
_INDEX, _REDUCED_INDEX = 50_000, 500
_MODEL, _REDUCED_MODEL = "deformable_detr_r50", "deformable_detr_tiny"
_IMAGE, _REDUCED_IMAGE = "800x1066", "128x160"


def main(argv: list[str] | None = None) -> int:
    """Measures, and prints; returns the exit status."""
    run(list(sys.argv[1:] if argv is None else argv))
    return 0


def run(arguments: list[str]) -> int:
    """What a command line asks for; returns how many cells are left when its time is over."""
    device = usual_device()
    options = _parse(arguments, device)
    command = ["msdeform", "bench", "training", *public(arguments)]
    source = {**provenance(device, command), "code": code(*CODE)}
    book = Book(folder(options.out, keep=not options.quick and device.type == "cuda"), source, again=options.again)
    end = time.monotonic() + 60 * options.minutes
    left = 0
    for key, measure in _planned(options, device):
        if book.has(key):
            book.already += 1
        elif time.monotonic() > end:
            left += 1
        else:
            print(", ".join(map(str, key)), file=sys.stderr, flush=True)
            book.add(measure())
    book.report()
    if left:
        print(f"{left} cells are left: {options.minutes:g} minutes are over (--minutes; --out keeps what is done)\n")
    for kind, table in TABLES.items():
        rows = [row for row in book.rows if row["kind"] == kind and not row.get("failure")]
        if rows:
            print(aligned(table(rows), 1) + "\n")
    return left


def _parse(arguments: Sequence[str], device: torch.device) -> argparse.Namespace:
    on_cpu = device.type == "cpu"
    parser = Parser(prog="msdeform bench training", description=__doc__.split("\n\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--data", type=Path, metavar="DIR", help="what to load; default: synthetic images")
    parser.add_argument("--workers", nargs="+", type=int, default=list(loading.WORKERS), metavar="N")
    parser.add_argument("--caches", nargs="+", choices=loading.CACHES, default=list(loading.CACHES))
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of each loader (default: 5)")
    parser.add_argument("--model", default=_REDUCED_MODEL if on_cpu else _MODEL, metavar="NAME")
    parser.add_argument("--options", nargs="+", metavar="NAME", help=f"of steps: {', '.join(steps.OPTIONS)}")
    parser.add_argument("--backends", nargs="+", choices=peers.OURS, default=["reference"] if on_cpu else peers.OURS)
    parser.add_argument("--dtypes", nargs="+", choices=steps.PRECISIONS, default=list(steps.PRECISIONS))
    parser.add_argument("--batch", nargs="+", type=int, default=[2] if on_cpu else [2, 4], metavar="N")
    parser.add_argument("--image", default=_REDUCED_IMAGE if on_cpu else _IMAGE, metavar="HxW")
    parser.add_argument("--quick", action="store_true", help="a few steps of each: do the commands work?")
    parser.add_argument("--minutes", type=float, default=9.0, help="nothing begins after so many (default: 9)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the rows")
    parser.add_argument("--again", action="store_true", help="measure cells that are recorded already, too")
    options = parser.parse_args(arguments)
    if options.options is None:  # compiling takes minutes on a CPU
        options.options = [name for name in steps.OPTIONS if name != "compile" or not on_cpu]
    for name in options.options:
        if name not in steps.OPTIONS:
            parser.error(f"--options: {nearest('option', name, list(steps.OPTIONS))}")
    if min(options.workers) < 0 or min(options.batch) < 1 or options.seconds <= 0:
        parser.error("expected --workers of 0 or more, --batch of 1 or more, and --seconds above 0")
    sides = options.image.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) >= 32 for side in sides):
        parser.error(f"--image: expected HEIGHTxWIDTH of at least 32 pixels, such as 800x1066, got {options.image}")
    try:
        check_model(options.model)
    except ValueError as error:
        parser.error(f"--model: {error}")
    return options


Planned = Iterator[tuple[tuple[object, ...], Callable[[], Row]]]


def _planned(options: argparse.Namespace, device: torch.device) -> Planned:
    """What each row is of, and what measures it."""
    if "loading" in options.parts:
        with loading.data_set(options.data) as where:
            for cache in options.caches:
                for workers in options.workers:
                    how = Loading(workers=workers, cache_images=cache)
                    seconds = 0.2 if options.quick else options.seconds
                    yield loading.key(where, workers, cache), partial(loading.speed, where, how, seconds)
    if "memory" in options.parts:
        marks, index = (_REDUCED_MARKS, _REDUCED_INDEX) if options.quick else (_MARKS, _INDEX)
        workers = max(1, *options.workers)
        yield ("loading-memory", workers, index), partial(loading.memory, marks, workers, index)
    if "step" in options.parts:
        with steps.few_images() as data:
            times = 2 if options.quick else 10
            for dtype, batch, backend, option in product(
                options.dtypes, options.batch, options.backends, options.options
            ):
                step = steps.Step(options.model, backend, dtype, batch, options.image, option)
                yield step.key(), partial(steps.measured, step, data, device, times=times)


def loading_table(rows: Sequence[Row]) -> list[Line]:
    """Images a second, a line for each cache."""
    counts = sorted({row["workers"] for row in rows})
    lines: list[Line] = [("data", "cache", *(f"{count} workers" for count in counts))]
    for data, cache in dict.fromkeys((row["data"], row["cache"]) for row in rows):
        mine = {row["workers"]: row for row in rows if (row["data"], row["cache"]) == (data, cache)}
        speeds = (number(mine[count]["images_per_second"]) if count in mine else "-" for count in counts)
        lines.append((data, cache, *speeds))
    return lines


def memory_table(rows: Sequence[Row]) -> list[Line]:
    """What each worker had to itself, early and late."""
    lines: list[Line] = [("images listed", "workers", "step", "MB of each", "step", "MB of each", "most growth")]
    for row in rows:
        early, late = (" ".join(number(size) for size in row[name]) for name in ("early_mb", "late_mb"))
        first, last = map(str, row["steps"])
        grown = f"{max(row['grown_mb']):+.2f} MB"
        lines.append((str(row["entries"]), str(row["workers"]), first, early, last, late, grown))
    return lines


def step_table(rows: Sequence[Row]) -> list[Line]:
    """Milliseconds of each stage, and the whole without the stages being told apart."""
    shown = [name for name in STAGES if any(row["stages_us"][name] > 0 for row in rows)]
    names = records.KEYS["training-step"]
    lines: list[Line] = [(*names, "images/s", "peak MB", "ms a step", *shown)]
    for row in rows:
        stages = (number(row["stages_us"][name], 1e3) for name in shown)
        lead = (str(row[name]) for name in names)
        lines.append((*lead, *map(number, (row["images_per_second"], row["peak_mb"], row["step_us"] / 1e3)), *stages))
    return lines


TABLES = {"loading": loading_table, "loading-memory": memory_table, "training-step": step_table}


if __name__ == "__main__":
    sys.exit(main())

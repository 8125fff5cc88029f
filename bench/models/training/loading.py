"""What a data loader gives: images a second, and whether its workers' memory stays as it is.

Speed is of the loader alone, nobody waiting for a model: batches of training's own transforms, after those that were
loaded ahead while the clock did not run yet. Memory is what each worker has to itself (its unique set size, of Linux)
early in a long run and late in it; an index as long as COCO's is read by every worker, and copied by none.
"""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....train.config.options import Input, Loading, Source
from ....train.data.dataset import CocoDetection
from ....train.data.loader import Order, training_data, training_loader
from ....train.data.synthetic.options import SynthOptions
from ....train.data.synthetic.synth import make_dataset
from ...harness.records import Row

_BATCH = 2
_SYNTHETIC = (64, 320)  # images, and their sides in pixels: what a reduced run may take
_INDEX = 50_000  # images listed by the index of many, which share a few files
_SMALL = 64  # pixels
_MB = 1e6


@dataclass(frozen=True)
class DataSet:
    """A data set to load from, and what a row calls it."""

    source: Source
    name: str
    image_size: int | None
    """Longest side that training resizes to; the published sizes when None."""


@contextmanager
def data_set(folder: Path | None) -> Iterator[DataSet]:
    """The data in a folder, or a synthetic set for as long as the block runs."""
    if folder is not None:
        yield DataSet(Source(data=folder), folder.resolve().name, None)
        return
    count, side = _SYNTHETIC
    with synthetic(count, side) as out:
        yield DataSet(Source(data=out), f"synthetic {side}x{side}", side)


@contextmanager
def synthetic(images: int, side: int, **more: Any) -> Iterator[Path]:
    """A synthetic data set for as long as the block runs; `more` as of SynthOptions."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "shapes"
        make_dataset(SynthOptions(out, train=images, val=1, size=side, progress=False, **more))
        yield out


def key(data: DataSet, workers: int, cache: str) -> tuple[object, ...]:
    """As of :func:`.records.key`."""
    return ("loading", data.name, cache, workers)


def speed(where: DataSet, loading: Loading, seconds: float) -> Row:
    """The row of a loader that runs for some seconds."""
    data = training_data(where.source, Input(image_size=where.image_size), loading, seed=0, progress=False)
    order = Order(len(data), total=_BATCH, seed=0)
    # those that workers load before the clock runs are more than those that they load while it does, if it runs briefly
    ahead = 1 + loading.workers * loading.prefetch
    images, begun = 0, 0.0
    loader = training_loader(data, order, loading, start=0, end=10**6)
    for number, batch in enumerate(loader):
        now = time.perf_counter()
        if number < ahead:
            begun = now
            continue
        images += len(batch.samples)
        if now - begun >= seconds and number >= 2 * ahead:
            break
    return {
        "kind": "loading",
        "data": where.name,
        "cache": loading.cache_images,
        "workers": loading.workers,
        "prefetch": loading.prefetch,
        "images": len(data),
        "image_size": where.image_size,
        "images_per_second": images / (now - begun),
    }


def memory(steps: tuple[int, int], workers: int = 4, entries: int = _INDEX) -> Row:
    """The row of a long run of loading: each worker's own memory at one step and at a later one."""
    with synthetic(16, _SMALL) as out:
        _list_often(out / "annotations" / "instances_train2017.json", entries)
        loading = Loading(workers=workers)
        data = training_data(Source(data=out), Input(image_size=_SMALL), loading, seed=0, progress=False)
        early, late = own_memory(data, loading, steps)
    return {
        "kind": "loading-memory",
        "workers": workers,
        "entries": entries,
        "steps": list(steps),
        "batch": _BATCH,
        "early_mb": early,
        "late_mb": late,
        "grown_mb": [after - before for before, after in zip(early, late, strict=True)],
    }


def own_memory(data: CocoDetection, loading: Loading, steps: tuple[int, int]) -> tuple[list[float], list[float]]:
    """MB that each worker has to itself after so many steps, and after so many.

    Raises:
        RuntimeError: the system does not tell.
    """
    others = {process.pid for process in multiprocessing.active_children()}
    found: list[list[float]] = []
    loader = training_loader(data, Order(len(data), total=_BATCH, seed=0), loading, start=0, end=steps[1])
    for number, _ in enumerate(loader, start=1):
        if number in steps:
            pids = sorted({process.pid or 0 for process in multiprocessing.active_children()} - others)
            found.append([unique_set_mb(pid) for pid in pids])
    early, late = found
    return early, late


def unique_set_mb(pid: int) -> float:
    """What a process shares with no other, in MB (10^6 bytes)."""
    path = Path(f"/proc/{pid}/smaps_rollup")
    if not path.is_file():
        raise RuntimeError(f"memory of workers: expected Linux's {path}, which is not there")
    fields = (line.split() for line in path.read_text().splitlines()[1:])
    return sum(int(size) * 1024 for name, size, *_ in fields if name.startswith("Private_")) / _MB


def _list_often(path: Path, entries: int) -> None:
    """Makes an annotation file list its images again and again, under new ids."""
    content = json.loads(path.read_text())
    images, boxes = content["images"], content["annotations"]
    kept = {image["id"]: [box for box in boxes if box["image_id"] == image["id"]] for image in images}
    content["images"], content["annotations"] = [], []
    for number in range(entries):
        image = images[number % len(images)]
        content["images"].append({**image, "id": number + 1})
        for box in kept[image["id"]]:
            own = {name: box[name] for name in ("bbox", "area", "iscrowd", "category_id")}
            content["annotations"].append({**own, "id": len(content["annotations"]) + 1, "image_id": number + 1})
    path.write_text(json.dumps(content))

"""``msdeform table``: what the published table says of each detector, and ours beside it.

On a CPU, where detectors take seconds an image, speeds are those of a reduced form, a tiny detector on a small image,
unless ``--no-reduced`` is said.
"""

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import product

from ..harness.records import Row
from ..harness.results_file import ResultsFile
from ..harness.tables import aligned, number
from ..operator import jobs
from . import flops, speed
from .published import published_as


def _backends(model: str, backends: Iterable[str]) -> Iterable[str]:
    return backends if speed.uses_attention(model) else (jobs.NO_BACKEND,)


def model_jobs(
    models: Iterable[str],
    backends: Sequence[str],
    dtypes: Sequence[str],
    batches: Sequence[int],
    modes: Sequence[str],
    *,
    reduced: bool,
) -> list[jobs.Model]:
    """A job for each combination; those by the published method first, those under torch.compile last."""
    before = speed.REDUCED if reduced else ""
    return [
        jobs.Model(model, before + method, backend, dtype, mode, batch)
        for mode, method, dtype, batch, model in product(modes, speed.METHODS, dtypes, batches, models)
        for backend in _backends(model, backends)
    ]


def training_jobs(
    models: Iterable[str], backends: Sequence[str], dtypes: Sequence[str], batches: Sequence[int], *, reduced: bool
) -> list[jobs.Training]:
    """A job for each combination."""
    method = (speed.REDUCED if reduced else "") + speed.TRAINING
    return [
        jobs.Training(model, method, backend, dtype, batch)
        for dtype, batch, model in product(dtypes, batches, models)
        for backend in _backends(model, backends)
    ]


def count(names: Iterable[str], results: ResultsFile) -> str:
    """Counts models, adds their rows to the results file, and returns the table with its convention."""
    names, sizes = list(dict.fromkeys(names)), flops.published_sizes()
    proposals: set[int | None] = set()
    for i, name in enumerate(names, 1):
        print(f"counting {name} at {len(sizes)} sizes ({i} of {len(names)})", file=sys.stderr, flush=True)
        counted = flops.count(name, sizes)
        proposals.add(counted["proposals"])
        results.add({"kind": "flops", "model": name, **counted})
    return "\n".join([table(results.rows), "", *convention(sizes, proposals - {None})])


def convention(sizes: Counter[tuple[int, int]], proposals: Collection[int | None] = ()) -> list[str]:
    """What the counted columns mean, a line each; `proposals` are those of the two-stage convolutional detectors."""
    notes = [
        "Published: Zhu et al. 2021. Counted: this package's models, by torch.utils.flop_counter, from shapes alone.",
        f"FLOPs: a multiply-add is one; batch 1; the mean over the first {sizes.total()} images of COCO val2017,",
        f"  resized to 800 pixels, at most 1333, each of the {len(sizes)} sizes that this gives counted. Convolutions,",
        f"  matrix products, and for each deformable attention {flops.PER_SAMPLE} Q (L P) C: four to interpolate a",
        "  sample of a channel, one to weigh it. Normalisation, softmax and other elementwise work is left out.",
        "params: every weight, those of the fixed first layers too. The backbone's frozen batch norms have none.",
    ]
    if proposals:
        notes += [
            f"Faster R-CNN: with the box head of {', '.join(map(str, sorted(filter(None, proposals))))} proposals, the "
            "most it takes; how many suppression leaves depends",
            "  on weights and image. Choosing and pooling them is left out.",
        ]
    return notes


def table(rows: Iterable[Row]) -> str:
    """Rows of counts as aligned text."""
    lines = [
        ("", "", "params M", "", "FLOPs G", ""),
        ("model", "published as", "published", "counted", "published", "counted"),
    ]
    for row in rows:
        published = published_as(row["model"])
        title, parameters, flops_ = "-", "-", "-"
        if published is not None:
            title, parameters, flops_ = published.title, str(published.parameters_m), str(published.flops_g)
        counted = (f"{row['parameters'] / 1e6:.2f}", f"{row['multiply_adds'] / 1e9:.1f}")
        lines.append((row["model"], title, parameters, counted[0], flops_, counted[1]))
    return aligned(lines, 2)


def speed_table(rows: Iterable[Row]) -> str:
    """Rows of speeds as aligned text, the published figure beside those of its method."""
    lines: list[tuple[str, ...]] = [
        ("model", "method", "backend", "dtype", "mode", "batch", "images/s", "V100", "hours/epoch", "peak MB", "image")
    ]
    for row in rows:
        rest = ("failed", *"---", (row["failure"] or "").split(":")[0])
        if row["failure"] is None:
            rate, hours = row.get("fps", row.get("images_per_second")), row.get("hours_per_epoch")
            image = "x".join(map(str, row["image"]))
            rest = (number(rate), _published_fps(row), number(hours), number(row["peak_mb"]), image)
        lead = (row["model"], row["method"], row["backend"], row["dtype"], row.get("mode", "-"), str(row["batch"]))
        lines.append((*lead, *rest))
    return aligned(lines, 5)


def _published_fps(row: Row) -> str:
    """The published figure that a row may be held against: of the published method and nothing else."""
    published = published_as(row["model"])
    if published is None or row["method"] != "published":
        return "-"
    return {1: f"{published.fps}", 4: f"{published.fps_4}"}.get(row["batch"], "-")

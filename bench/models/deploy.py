"""``msdeform bench deploy``: one detector in every engine, in turn, in one process: latency, throughput, file size.

Each file is written by ``msdeform export``'s own code; its scores on what is timed are compared with the model's. What
is timed takes a normalised batch and gives logits and boxes; reading and resizing images is the same work for all.
Files take any batch of images of the one size.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.catalog import MODELS
from ...models.export.check import like_a_photograph
from ...models.export.export import write
from ...models.export.form import Form
from ...models.export.formats import FORMATS, open_openvino
from ...models.export.program import Call, exportable
from ...models.families.detector import Detector
from ...models.zoo import create_model, load_model
from ..harness import measure
from ..harness.records import Row
from ..harness.results_file import open_results
from ..harness.tables import Line, aligned, grouped
from ..options import DEPLOYED_ENGINES, DeployOptions
from .exports import SOURCES

CPU = torch.device("cpu")


def measure_rows(options: DeployOptions) -> list[Row]:
    """Measures, prints, and on request records; returns the rows."""
    torch.set_num_threads(options.threads)
    sources = (*SOURCES, "kernels/cpu/*.py", "bench/models/deploy.py")
    results = open_results("msdeform bench deploy", options, CPU, measured=sources)
    height, width = map(int, options.image.split("x"))
    model = _model(options.checkpoint, "cpu")
    name = options.checkpoint if options.checkpoint in MODELS else Path(options.checkpoint).name
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        made = [_made(engine, model, options, Path(folder)) for engine in options.engines or DEPLOYED_ENGINES]
        for batch in options.batches:
            images = torch.stack([like_a_photograph((height, width), seed) for seed in range(batch)])
            mask = torch.zeros(batch, height, width, dtype=torch.bool)
            cells = {"kind": "deployed", "model": name, "image": options.image, "batch": batch}
            for row in _timed(made, images, mask, options.seconds):
                results.add({**cells, "threads": options.threads, **row})
    results.report()
    print(aligned(deploy_table(results.rows), 1))
    return results.rows


class _Made:
    """An engine with the detector in it, or why there is none."""

    def __init__(self, engine: str, call: Call | None, size_mb: float | None, failure: str | None) -> None:
        self.engine, self.call, self.size_mb, self.failure = engine, call, size_mb, failure


def _model(source: str, backend: str) -> Detector:
    torch.manual_seed(0)
    make: Callable[..., Detector] = create_model if source in MODELS else load_model
    return make(source, attn_backend=backend).eval()


def _made(engine: str, model: Detector, options: DeployOptions, folder: Path) -> _Made:
    height, width = map(int, options.image.split("x"))
    runtime, _, sampling = engine.partition(" ")
    if runtime == "pytorch":
        own = model if not sampling else _model(options.checkpoint, sampling)

        def call(images: Tensor, mask: Tensor) -> list[Tensor]:
            found = own((images, mask))
            return [found["pred_logits"], found["pred_boxes"]]

        return _Made(engine, call, None, None)
    if runtime in ("onnxruntime", "openvino") and importlib.util.find_spec(runtime) is None:
        return _Made(engine, None, None, f"{runtime} is not installed")
    to = {"onnxruntime": "onnx", "openvino": "openvino"}.get(runtime, runtime)
    form = Form((height, width), dynamic=("batch",), sampling=sampling or "gather")
    file = folder / f"{runtime}-{form.sampling}{FORMATS[to].suffix}"
    try:
        write(model, exportable(model, form), file, to)
        opened = open_openvino(file, options.threads) if to == "openvino" else FORMATS[to].open(file, options.threads)
    except (ValueError, RuntimeError, ModuleNotFoundError) as error:
        return _Made(engine, None, None, str(error))
    size = sum(part.stat().st_size for part in folder.glob(f"{file.stem}.*")) / 1e6
    return _Made(engine, opened.call, size, None)


def _timed(made: Sequence[_Made], images: Tensor, mask: Tensor, seconds: float) -> list[dict[str, Any]]:
    """The numbers of each engine on one batch; the first is what the others are compared with."""
    there = [one for one in made if one.call is not None]
    answers = {one.engine: one.call(images, mask) for one in there if one.call is not None}
    calls = [lambda _, call=one.call: call(images, mask) for one in there]
    times = dict(zip(answers, measure.time_in_turn(calls, CPU, seconds), strict=True))
    first = next(iter(answers))
    rows: list[dict[str, Any]] = []
    for one in made:
        row: dict[str, Any] = {"engine": one.engine, "size_mb": one.size_mb, "failure": one.failure}
        if one.call is not None:
            row |= vars(measure.summary(times[one.engine])) | vars(measure.paired(times[one.engine], times[first]))
            row["difference"] = _scores_apart(answers[one.engine][0], answers[first][0])
        rows.append(row)
    return rows


def _scores_apart(one: Tensor, other: Tensor) -> float:
    """Largest difference of the sorted best logits: rounding decides the order of two stages' queries."""
    best = (logits.amax(-1).sort(dim=1).values for logits in (one, other))
    return float((next(best) - next(best)).abs().max())


def deploy_table(rows: Sequence[Row]) -> list[Line]:
    """A head, and a line for each engine: of each batch milliseconds, images a second, and times PyTorch's speed."""
    batches = sorted({row["batch"] for row in rows})
    head = ["engine", "file, MB"]
    for batch in batches:
        head += [f"batch {batch}, ms", "images/s", "times pytorch"]
    lines: list[Line] = [head]
    for (model, image, threads, engine), own in grouped(rows, "model", "image", "threads", "engine").items():
        by_batch = {row["batch"]: row for row in own}
        size = own[0]["size_mb"]
        cells = [f"{engine} ({model}, {image}, {threads} threads)", "-" if size is None else f"{size:.1f}"]
        for batch in batches:
            row = by_batch.get(batch)
            if row is None or row["failure"] is not None:
                cells += ["-", "-", "-"]
                continue
            ms = row["median_us"] / 1e3
            cells += [f"{ms:.1f}", f"{1e3 * batch / ms:.2f}", f"{1 / row['ratio']:.2f}"]
        lines.append(cells)
    return lines

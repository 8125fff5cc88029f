"""``msdeform eval``: how good the detections of a checkpoint or a file are, what errors they have, which are better."""

import importlib.metadata
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...common.device import choose_device
from ...common.files import in_use, write_json
from ...common.progress import progress_bar
from ...common.text import counted
from ...models.weights.formats import check_takes_thresholds, read_source, save_thresholds
from ..config.options import Input
from ..data.dataset import CocoDetection, data_line
from ..data.loader import validation_data
from ..engine.checkpoint import load_trained
from ..evaluation.analysis import Analysis, analyse, plain, resampled_precisions, sentences, threshold_table
from ..evaluation.coco_metrics import Evaluation, class_table, evaluate_boxes, summary
from ..evaluation.comparison import compare, comparison_table, verdict
from ..evaluation.detect import data_of, detect
from ..evaluation.report import write_report
from ..evaluation.results import DetectionResults, read_results, unpack_results, without_duplicates
from ..visual.boxes import save_picture
from ..visual.error_pictures import error_sheet
from .options import EvalOptions


def run(options: EvalOptions) -> int:
    """``msdeform eval``."""
    if options.compare:
        return _compare(options)
    if options.save_thresholds:
        assert options.checkpoint is not None
        check_takes_thresholds(read_source(options.checkpoint))  # before the work, not after it
    path = options.checkpoint or options.results
    assert path is not None
    one = _measure(options, path, detect_it=options.checkpoint is not None)
    data = one.data
    found = analyse(
        one.evaluation,
        one.rows,
        data.annotations,
        data.image_ids,
        intervals=options.intervals or options.report is not None,
        worst=options.worst,
    )
    if options.per_class:
        print(class_table(one.evaluation.classes))
    print(summary(one.evaluation.metrics))
    for sentence in sentences(found):
        print(sentence)
    if options.per_class:
        print(threshold_table(found))
    _warn(one)
    if options.out is not None:
        write_json(options.out, unpack_results(one.rows))
        print(f"detections: {options.out}")
    if options.json is not None:
        write_json(options.json, {**plain(found), **_origin(options, one)})
        print(f"all numbers: {options.json}")
    if options.report is not None:
        write_report(options.report, found, data, _origin(options, one), progress=options.progress)
        print(f"report: {options.report}")
    if options.pictures is not None:
        save_picture(error_sheet(found, data), options.pictures)
        print(f"pictures: {options.pictures}")
    if options.save_thresholds:
        _save_thresholds(options, found, one.category_ids)
    return 0


@dataclass
class _Measured:
    """Detections, in which images, how good, and what they are of."""

    rows: np.ndarray
    data: CocoDetection
    evaluation: Evaluation
    about: dict[str, Any]
    category_ids: Sequence[int | None]
    """Of the model's labels; none of a file of detections."""


def _measure(options: EvalOptions, path: Path, *, detect_it: bool) -> _Measured:
    found, data, about, ids = (_detect if detect_it else _read)(options, path)
    rows = found if isinstance(found, np.ndarray) else found.results
    if options.nms is not None:
        rows = without_duplicates(rows, options.nms)
        found = rows if isinstance(found, np.ndarray) else replace(found, results=rows)
    evaluation = evaluate_boxes(data.annotations.ground_truth(), found, data.image_ids, options.coco_eval)
    return _Measured(rows, data, evaluation, about, ids)


def _compare(options: EvalOptions) -> int:
    """A and B on the same resamples of the same images."""
    if len(options.compare) != 2:
        raise ValueError(f"compare: expected two, A and B, got {len(options.compare)}")
    both = [_measure(options, path, detect_it=path.suffix.lower() != ".json") for path in options.compare]
    data, classes = both[0].data, both[0].evaluation.classes
    first, second = (resampled_precisions(one.rows, data.annotations, data.image_ids) for one in both)
    compared = compare(first, second, classes)
    for name, path in zip("AB", options.compare, strict=True):
        print(f"{name}: {path}")
    print(comparison_table(compared))
    print(verdict(compared["metrics"]["AP"]))
    _warn(both[0])
    if options.json is not None:
        origins = {name: _origin(options, one) for name, one in zip("AB", both, strict=True)}
        write_json(options.json, {"verdict": verdict(compared["metrics"]["AP"]), **compared, **origins})
        print(f"all numbers: {options.json}")
    return 0


def _warn(one: _Measured) -> None:
    if one.about["images"] < one.about["of_images"]:
        print(f"of {_images(one.about)}: not the data set's numbers")


def _origin(options: EvalOptions, one: _Measured) -> dict[str, Any]:
    """Where the numbers come from."""
    engine = "faster-coco-eval" if options.coco_eval == "faster" else "pycocotools"
    versions = {name: importlib.metadata.version(name) for name in (engine, "torch", "torchvision", "numpy")}
    data = {"data": str(one.data.annotations.path), **one.about, "engine": engine}
    return {**data, "nms": options.nms, "versions": {"msdeform": __version__, **versions}}


def _save_thresholds(options: EvalOptions, found: Analysis, category_ids: Sequence[int | None]) -> None:
    """Writes the thresholds, by the model's labels; one that the data lacks has the overall one."""
    assert options.checkpoint is not None
    best = found.thresholds
    if best.overall is None or best.by_label is None:
        raise ValueError("save_thresholds: expected at least one right detection, found none; nothing was written")
    categories = found.matches.annotations.categories
    of: dict[int | None, float] = {kind.id: one for kind, one in zip(categories, best.by_label, strict=True)}
    thresholds = [of.get(known, best.overall.confidence) for known in category_ids]
    source = read_source(options.checkpoint)
    folder = source.path.parent
    with in_use(folder) if (folder / "config.yaml").is_file() else nullcontext():
        save_thresholds(source, thresholds)
    print(f"thresholds: {source.path}, {min(thresholds):.2f} to {max(thresholds):.2f}")


_Found = tuple[DetectionResults | np.ndarray, CocoDetection, dict[str, Any], Sequence[int | None]]


def _detect(options: EvalOptions, checkpoint: Path) -> _Found:
    """What a checkpoint finds, in which images, what it is, and the category ids of its labels."""
    trained = load_trained(checkpoint, choose_device(options.device), options.attn_backend, options.model)
    source = options.source.divided_as(trained.options.source)
    whole, size, ids = data_of(trained, source, options.image_size)
    data, images = _first(whole, options.limit)
    step = "" if trained.step is None else f" at step {trained.step}"
    print(f"{trained.name}{step}, {trained.attn_backend} on {trained.device}, {_images(images)}")
    print(data_line(source.data, None, whole))
    with progress_bar("detecting", len(data), shown=options.progress) as advance:
        found = detect(
            trained.model,
            data,
            trained.device,
            batch_size=options.batch_size,
            workers=min(options.workers, os.cpu_count() or 1),
            precision=options.precision,
            category_ids=ids,
            advance=advance,
        )
    about = {
        "checkpoint": str(checkpoint),
        "model": trained.name,
        "step": trained.step,
        "attn_backend": trained.attn_backend,
        "device": str(trained.device),
        "precision": options.precision,
        "batch_size": options.batch_size,
        "image_size": [size.short, size.longest],
    }
    return found, data, {**about, **images}, ids


def _read(options: EvalOptions, results: Path) -> _Found:
    """The detections of a file, the images that count, and where they are from."""
    whole = validation_data(options.source, Input(), None)
    rows = read_results(results, whole.annotations)
    data, images = _first(whole, options.limit)
    print(f"{results}: {counted(len(rows), 'detection')}, {_images(images)}")
    print(data_line(options.source.data, None, whole))
    return rows, data, {"results": str(results), **images}, ()


def _first(data: CocoDetection, limit: int | None) -> tuple[CocoDetection, dict[str, int]]:
    """The images that count, and how many of how many they are."""
    whole = len(data)
    if limit is not None:
        data.rows = data.rows[:limit]
        if not np.diff(data.annotations.first)[data.rows].any():
            raise ValueError(
                f"limit: expected a box in the first {limit} images of {data.annotations.path}, found none"
            )
    return data, {"images": len(data), "of_images": whole}


def _images(about: dict[str, Any]) -> str:
    some, whole = about["images"], about["of_images"]
    return counted(whole, "image") if some == whole else f"only the first {some} of {counted(whole, 'image')}"

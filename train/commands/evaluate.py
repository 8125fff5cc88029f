"""``msdeform eval``: COCO's metrics of a checkpoint, or of detections in a file."""

import dataclasses
import importlib.metadata
import os
from typing import Any

import numpy as np

from ... import __version__
from ...common.device import choose_device
from ...common.files import write_json
from ...common.progress import progress_bar
from ...common.text import counted
from ..config.options import Input
from ..data.dataset import CocoDetection, data_line
from ..data.loader import validation_data
from ..engine.checkpoint import load_trained
from ..evaluation.coco_metrics import class_table, evaluate_boxes, summary
from ..evaluation.detect import data_of, detect
from ..evaluation.results import DetectionResults, read_results, unpack_results
from .options import EvalOptions


def run(options: EvalOptions) -> int:
    """``msdeform eval``."""
    found, data, about = _read(options) if options.results is not None else _detect(options)
    evaluation = evaluate_boxes(data.annotations.ground_truth(), found, data.image_ids, options.coco_eval)
    if options.per_class:
        print(class_table(evaluation.classes))
    print(summary(evaluation.metrics))
    if about["images"] < about["of_images"]:
        print(f"of {_images(about)}: not the data set's numbers")
    if options.out is not None:
        write_json(options.out, unpack_results(found if isinstance(found, np.ndarray) else found.results))
        print(f"detections: {options.out}")
    if options.json is not None:
        engine = "faster-coco-eval" if options.coco_eval == "faster" else "pycocotools"
        versions = {name: importlib.metadata.version(name) for name in (engine, "torch", "torchvision", "numpy")}
        whole = {
            "metrics": evaluation.metrics,
            "classes": [dataclasses.asdict(one) for one in evaluation.classes],
            "data": str(data.annotations.path),
            **about,
            "engine": engine,
            "versions": {"msdeform": __version__, **versions},
        }
        write_json(options.json, whole)
        print(f"all numbers: {options.json}")
    return 0


def _detect(options: EvalOptions) -> tuple[DetectionResults, CocoDetection, dict[str, Any]]:
    """What the checkpoint finds, in which images, and what it is."""
    assert options.checkpoint is not None
    trained = load_trained(options.checkpoint, choose_device(options.device), options.attn_backend, options.model)
    whole, size, ids = data_of(trained, options.source, options.image_size)
    data, images = _first(whole, options.limit)
    step = "" if trained.step is None else f" at step {trained.step}"
    print(f"{trained.name}{step}, {trained.attn_backend} on {trained.device}, {_images(images)}")
    print(data_line(options.source.data, None, whole))
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
        "checkpoint": str(options.checkpoint),
        "model": trained.name,
        "step": trained.step,
        "attn_backend": trained.attn_backend,
        "device": str(trained.device),
        "precision": options.precision,
        "batch_size": options.batch_size,
        "image_size": [size.short, size.longest],
    }
    return found, data, {**about, **images}


def _read(options: EvalOptions) -> tuple[np.ndarray, CocoDetection, dict[str, Any]]:
    """The detections of a file, the images that count, and where they are from."""
    assert options.results is not None
    whole = validation_data(options.source, Input(), None)
    rows = read_results(options.results, whole.annotations)
    data, images = _first(whole, options.limit)
    print(f"{options.results}: {counted(len(rows), 'detection')}, {_images(images)}")
    print(data_line(options.source.data, None, whole))
    return rows, data, {"results": str(options.results), **images}


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

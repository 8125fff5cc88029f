"""``msdeform eval``, and the evaluation inside training: what a model finds in a data set, and its losses there."""

import contextlib
import copy
import dataclasses
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ... import __version__
from ...common.device import choose_device
from ...common.files import write_json
from ...common.progress import progress_bar
from ...common.text import counted
from ...models.families.detector import Detector
from ...models.layers.evaluation_mode import evaluating
from ...models.losses.criterion import SetCriterion
from ..config.options import Input
from ..data.dataset import Category, CocoDetection
from ..data.loader import evaluation_loader, to_device, validation_data
from ..engine.checkpoint import Trained, load_trained, num_classes
from ..evaluation.coco_metrics import Evaluation, class_table, evaluate_boxes, summary
from ..evaluation.results import Found, read_results, result_rows, unpack_results
from .options import EvalOptions

M = TypeVar("M", bound=nn.Module)

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16 or fp16, or nothing for fp32 and fp64."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, dtype=_AUTOCAST[precision])
    return contextlib.nullcontext()


def detect(
    model: Detector,
    data: CocoDetection,
    device: torch.device,
    *,
    batch_size: int = 1,
    workers: int = 0,
    precision: str = "fp32",
    category_ids: Sequence[int | None] | None = None,
    criterion: nn.Module | None = None,
    shard: tuple[int, int] = (0, 1),
    advance: Callable[[], None] = lambda: None,
) -> Found:
    """What a model finds in a data set: the best 100 of every image, unfiltered; boxes in pixels of the file.

    Args:
        model: left in the mode it was in.
        data: of validation_data.
        device: the model's.
        batch_size: images at once; padding them to one size moves AP a little.
        workers: processes that decode images.
        precision: of the run; bf16 and fp16 are autocast.
        category_ids: those of the model's labels, None for a label that is not in the data; by default a label is the
            category at this place.
        criterion: of create_criterion, for ``Found.losses``: each of its values and the weighted sum ``loss``, of all
            images as if they were one batch, so neither ``batch_size`` nor the number of processes changes them.
            Faster R-CNN has losses in training mode alone, and so none here.
        shard: (rank, world): of several processes, each looks at every world-th image from its rank on, no image
            twice; `results.merge` makes one of what they found.
        advance: called after every image.
    """
    rank, world = shard
    if not 0 <= rank < world:
        raise ValueError(f"shard: expected a rank from 0 to {world - 1} of {world} processes, got {rank}")
    part = copy.copy(data)
    part.rows = data.rows[rank::world]
    ids = [category.id for category in data.annotations.categories] if category_ids is None else category_ids
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    losses = _Losses(criterion, data) if isinstance(criterion, SetCriterion) else None
    image_ids: list[int] = []
    rows: list[np.ndarray] = []
    with evaluating(model), autocast(device, precision):
        for samples in evaluation_loader(part, batch_size, workers) if len(part) else ():
            images, targets = to_device(samples, device, dtype)
            sizes = torch.tensor([target["size"] for target in targets], device=device)
            outputs = model(images)
            if losses is not None:
                losses.add(outputs, targets)
            batch = [target["image_id"] for target in targets]
            rows.append(result_rows(batch, model.post_process(outputs, sizes), ids))
            image_ids += batch
            for _ in batch:
                advance()
    return Found(
        image_ids=np.asarray(image_ids, dtype=np.int64),
        results=np.concatenate([result_rows([], [], ids), *rows]),
        losses={} if losses is None else losses.sums(),
    )


class _Losses:
    """The losses of a data set, batch by batch: shares that add up to those of all its images as one batch."""

    def __init__(self, criterion: SetCriterion, data: CocoDetection) -> None:
        self.criterion = criterion
        self.box_counts = np.diff(data.annotations.first)[data.rows].tolist()
        self.total: dict[str, Tensor] = {}

    def add(self, outputs: dict[str, Any], targets: list[dict[str, Any]]) -> None:
        shares = self.criterion(outputs, targets, box_counts=self.box_counts)
        weighted = [shares[name] * weight for name, weight in self.criterion.weight_dict.items()]
        for name, share in {"loss": torch.stack(weighted).sum(), **shares}.items():
            self.total[name] = self.total.get(name, 0.0) + share.double()

    def sums(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.total.items()}


def match_categories(trained: Trained, data: list[Category]) -> list[int | None]:
    """The data's category id of each label of weights that ``msdeform train`` did not write; None where it has none.

    By name where the weights have names. Else a label is a place among the data's categories if there are as many,
    or, as the official code has it, a category id itself.

    Raises:
        ValueError: the data has a class that the model lacks.
    """
    names, count = trained.model.categories, num_classes(trained.model)
    if names is not None:
        missing = [category.name for category in data if category.name not in names]
        if missing:
            raise ValueError(
                f"{trained.name} has no class '{missing[0]}'; it lacks {len(missing)} of the data's {len(data)} classes"
            )
        ids = {category.name: category.id for category in data}
        return [ids.get(name) for name in names]
    if count == len(data):
        return [category.id for category in data]
    if count > max(category.id for category in data):
        return list(range(count))
    raise ValueError(f"{trained.name} has {count} classes without names, and the data has {len(data)} others")


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
        write_json(options.json, _report(options, evaluation, data, about))
        print(f"all numbers: {options.json}")
    return 0


def _detect(options: EvalOptions) -> tuple[Found, CocoDetection, dict[str, Any]]:
    """What the checkpoint finds, in which images, and what it is."""
    assert options.checkpoint is not None
    trained = load_trained(options.checkpoint, choose_device(options.device), options.attn_backend, options.model)
    size = Input(image_size=options.image_size).size
    if options.image_size is None:
        size = trained.model.input_size or size
    known = None if trained.step is None else trained.categories
    data, images = _first(validation_data(options.source, Input(), known, size), options.limit)
    ids = match_categories(trained, data.annotations.categories) if known is None else None
    step = "" if trained.step is None else f" at step {trained.step}"
    print(f"{trained.name}{step}, {trained.attn_backend} on {trained.device}, {_images(images)}")
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
    return (
        found,
        data,
        {
            "checkpoint": str(options.checkpoint),
            "model": trained.name,
            "step": trained.step,
            "attn_backend": trained.attn_backend,
            "device": str(trained.device),
            "precision": options.precision,
            "batch_size": options.batch_size,
            "image_size": [size.short, size.longest],
            **images,
        },
    )


def _read(options: EvalOptions) -> tuple[np.ndarray, CocoDetection, dict[str, Any]]:
    """The detections of a file, the images that count, and where they are from."""
    assert options.results is not None
    whole = validation_data(options.source, Input(), None)
    rows = read_results(options.results, whole.annotations)
    data, images = _first(whole, options.limit)
    print(f"{options.results}: {counted(len(rows), 'detection')}, {_images(images)}")
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


def _report(options: EvalOptions, evaluation: Evaluation, data: CocoDetection, about: dict[str, Any]) -> dict[str, Any]:
    """All numbers, and where they come from."""
    engine = "faster-coco-eval" if options.coco_eval == "faster" else "pycocotools"
    return {
        "metrics": evaluation.metrics,
        "classes": [dataclasses.asdict(one) for one in evaluation.classes],
        "data": str(data.annotations.path),
        **about,
        "engine": engine,
        "versions": {
            "msdeform": __version__,
            **{name: importlib.metadata.version(name) for name in (engine, "torch", "torchvision", "numpy")},
        },
    }

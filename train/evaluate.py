"""``msdeform eval``, and the evaluation inside training: detections of a model, and COCO's metrics of detections."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..models.detector import Detector
from .checkpoint import Trained, load_trained, num_classes
from .coco import Category, CocoDetection
from .commandline import parse, progress_bar
from .config import AttnBackend, Input, Source, choose_device
from .data import evaluation_loader, to_device, validation_data
from .files import write_json

Engine = Literal["faster", "pycocotools"]

# the order of both libraries' ``stats``
METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR1", "AR10", "AR100", "AR_S", "AR_M", "AR_L")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients while the block runs."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast, or nothing for fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
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
    advance: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """A model's detections as COCO results: image_id, category_id (the file's own), bbox xywh in pixels, score.

    The best 100 of every image, unfiltered. ``category_ids`` are those of the model's labels, None for a label that
    is not in the data; by default a label is the category at this place. ``advance`` is called after every image.
    """
    results: list[dict[str, Any]] = []
    ids = [category.id for category in data.annotations.categories] if category_ids is None else category_ids
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    with evaluating(model), autocast(device, precision):
        for samples in evaluation_loader(data, batch_size, workers):
            images, targets = to_device(samples, device, dtype)
            sizes = torch.tensor([target["size"] for target in targets], device=device)
            for target, found in zip(targets, model.post_process(model(images), sizes), strict=True):
                results += coco_results(target["image_id"], found, ids)
                advance()
    return results


def coco_results(
    image_id: int, found: dict[str, torch.Tensor], category_ids: Sequence[int | None]
) -> list[dict[str, Any]]:
    """One image's detections, as post_process gives them, in COCO's results format; none of a label without an id."""
    boxes = found["boxes"].double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for label, box, score in zip(
            found["labels"].tolist(), boxes.tolist(), found["scores"].double().tolist(), strict=True
        )
        if category_ids[label] is not None
    ]


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


def coco_metrics(
    annotations: Path, results: list[dict[str, Any]], image_ids: list[int], engine: Engine = "faster"
) -> dict[str, float]:
    """COCO's twelve numbers for boxes.

    Args:
        annotations: an ``instances_*.json``.
        results: in COCO's results format; may be empty.
        image_ids: the images to count.
        engine: faster-coco-eval, or pycocotools, the reference it agrees with.

    Returns:
        AP, AP50, ... in [0, 1]; -1 where nothing of that size is annotated.
    """
    results = [dict(result) for result in results]  # both libraries add fields of their own
    evaluator = _faster(annotations, results) if engine == "faster" else _pycocotools(annotations, results)
    evaluator.params.imgIds = sorted(image_ids)
    with _quiet():
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return {name: float(value) for name, value in zip(METRICS, evaluator.stats[: len(METRICS)], strict=True)}


def _faster(annotations: Path, results: list[dict[str, Any]]) -> Any:
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(_complete(annotations))
    return COCOeval_faster(truth, truth.loadRes(results), iouType="bbox", print_function=lambda *_: None)


def _pycocotools(annotations: Path, results: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with _quiet():
        truth = COCO()
        truth.dataset = _complete(annotations)
        truth.createIndex()
        if results:
            found = truth.loadRes(results)
        else:  # loadRes takes no empty list
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        return COCOeval(truth, found, iouType="bbox")


def _complete(annotations: Path) -> dict[str, Any]:
    """The annotation file, with the fields that both libraries need and other tools' files often lack."""
    import json

    content = json.loads(annotations.read_bytes())
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation.setdefault("id", number)
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    # both libraries print their progress and their tables
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@dataclass(frozen=True)
class EvalOptions:
    """COCO metrics of a checkpoint."""

    checkpoint: Path
    """A run's checkpoint, or its folder for the newest; or official, Hugging Face's or converted weights."""
    source: Source = field(default_factory=Source)
    batch_size: int = 1
    """1 is the published protocol; larger is faster, and padding then moves AP in the third digit."""
    image_size: int | None = None
    """Longest side in pixels; what the model was trained with when not given."""
    model: str | None = None
    """A name of msdeform.list_models(): what weights without a description are of."""
    attn_backend: AttnBackend = "auto"
    """Implementation of the deformable attention."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the model under autocast."""
    coco_eval: Engine = "faster"
    """faster-coco-eval, or pycocotools to check it."""
    workers: int = 2
    """Processes that decode images."""
    out: Path | None = None
    """Also write the detections to this JSON file, in COCO's results format."""
    progress: bool = True
    """Show a progress bar."""


def main(argv: list[str] | None = None) -> int:
    """``msdeform eval``."""
    options = parse(EvalOptions, argv, "msdeform eval")
    trained = load_trained(options.checkpoint, choose_device(options.device), options.attn_backend, options.model)
    size = trained.model.input_size if options.image_size is None else Input(image_size=options.image_size).size
    known = None if trained.step is None else trained.categories
    data = validation_data(options.source, Input(), known, size)
    ids = match_categories(trained, data.annotations.categories) if known is None else None
    step = "" if trained.step is None else f" at step {trained.step}"
    print(f"{trained.name}{step}, {trained.attn_backend} on {trained.device}, {len(data)} images")
    with progress_bar("detecting", len(data), shown=options.progress) as advance:
        results = detect(
            trained.model,
            data,
            trained.device,
            batch_size=options.batch_size,
            workers=min(options.workers, os.cpu_count() or 1),
            precision=options.precision,
            category_ids=ids,
            advance=advance,
        )
    metrics = coco_metrics(data.annotations.path, results, data.image_ids, options.coco_eval)
    print("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    if options.out is not None:
        write_json(options.out, results)
        print(f"detections: {options.out}")
    return 0

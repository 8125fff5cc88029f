"""What a model finds in a data set, and its losses there; which category of the data each of its labels is."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...models.inference.image_size import Size
from ...models.layers.evaluation_mode import evaluating
from ...models.losses.criterion import SetCriterion
from ..config.options import Input, Source
from ..data.annotations import Category, OtherClassesError
from ..data.dataset import CocoDetection
from ..data.loader import evaluation_loader, to_device, validation_data
from ..engine.acceleration import autocast
from ..engine.build import AnyDetector
from ..engine.checkpoint import Trained
from .results import DetectionResults, result_rows


def detect(
    model: AnyDetector,
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
) -> DetectionResults:
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
        criterion: of create_criterion, for ``DetectionResults.losses``: each of its values and their weighted sum
            ``loss``, of all images as if they were one batch, so neither ``batch_size`` nor the number of processes
            changes them. Faster R-CNN and detectors of transformers have losses in training alone, and so none here.
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
    # of the whole data set: what divides each batch's share of its losses
    box_counts = np.diff(data.annotations.first)[data.rows].tolist()
    losses: dict[str, Tensor] = {}
    image_ids: list[int] = []
    rows: list[np.ndarray] = []
    with evaluating(model), autocast(device, precision):
        for samples in evaluation_loader(part, batch_size, workers) if len(part) else ():
            images, targets = to_device(samples, device, dtype)
            sizes = torch.tensor([target["size"] for target in targets], device=device)
            outputs = model(images)
            if isinstance(criterion, SetCriterion):
                shares = criterion(outputs, targets, box_counts=box_counts)
                weighted = [shares[name] * weight for name, weight in criterion.weight_dict.items()]
                for name, share in {"loss": torch.stack(weighted).sum(), **shares}.items():
                    losses[name] = losses.get(name, 0.0) + share.double()
            batch = [target["image_id"] for target in targets]
            rows.append(result_rows(batch, model.post_process(outputs, sizes), ids))
            image_ids += batch
            for _ in batch:
                advance()
    results = np.concatenate([result_rows([], [], ids), *rows])
    numbers = {name: float(value) for name, value in losses.items()}
    return DetectionResults(np.asarray(image_ids, dtype=np.int64), results, numbers)


def data_of(
    trained: Trained, source: Source, image_size: int | None, *, progress: bool = True
) -> tuple[CocoDetection, Size, Sequence[int | None]]:
    """Validation images for a model, what they are resized to, and the data's category id of each of its labels.

    Args:
        image_size: longest side in pixels; None for what the model was trained with, or else the published size.

    Raises as `validation_data` and `match_categories`.
    """
    size = Input(image_size=image_size).size
    if image_size is None:
        size = trained.model.input_size or size
    source = source.divided_as(trained.options.source)
    if trained.step is not None:
        try:
            data = validation_data(source, Input(), trained.categories, size, progress=progress)
            return data, size, [category.id for category in trained.categories]
        except OtherClassesError:  # such as YOLO's, which count from 0, of a run on Pascal VOC's, which count from 1
            pass
    data = validation_data(source, Input(), None, size, progress=progress)
    return data, size, match_categories(trained, data.annotations.categories)


def match_categories(trained: Trained, data: list[Category]) -> list[int | None]:
    """The data's category id of each of the model's labels; None where it has none.

    By name where the weights have names. Else a label is a place among the data's categories if there are as many,
    or, as the official code has it, a category id itself.

    Raises:
        ValueError: the data has a class that the model lacks.
    """
    names = trained.model.categories
    if names is not None:
        missing = [category.name for category in data if category.name not in names]
        if missing:
            raise ValueError(
                f"{trained.name} has no class '{missing[0]}'; it lacks {len(missing)} of the data's {len(data)} classes"
            )
        ids = {category.name: category.id for category in data}
        return [ids.get(name) for name in names]
    count = trained.model.require_config().num_classes
    if count == len(data):
        return [category.id for category in data]
    if count > max(category.id for category in data):
        return list(range(count))
    raise ValueError(f"{trained.name} has {count} classes without names, and the data has {len(data)} others")

"""A detector run over a data set under many interventions: what comes before the changed layers is computed once.

What a pass found is kept in a folder under a name that its settings make, so that a run that was stopped goes on, and
one with more masks runs those alone.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from ...common.files import atomic_file
from ...models.families.detector import Detector
from ...models.layers.boxes import cxcywh_to_xyxy
from ...models.layers.evaluation_mode import evaluating
from ...models.layers.geometry import at_least_float32
from ...train.data.dataset import CocoDetection
from ...train.data.loader import evaluation_loader, to_device
from ...train.engine.acceleration import autocast
from ...train.evaluation.results import result_rows
from ..core.interventions import intervene, mean_outputs
from ..core.masks import Mask, Masks
from ..core.sites import find_sites
from .effects import QueryPredictions

TOGETHER = 16
"""AblationRuns that share one sweep over the images; what they found is written when it ends."""


@dataclass(frozen=True, eq=False)
class AblationRun:
    """What a model found in a data set under an intervention."""

    rows: np.ndarray
    """(N, 7), as `results.DetectionResults` has them."""
    predictions: QueryPredictions
    """Of the detections, and of the queries that are detections without any intervention."""


@dataclass(eq=False)
class AblationRuns:
    """AblationRuns of a model over a data set, each made once."""

    model: Detector
    data: CocoDetection
    device: torch.device
    category_ids: Sequence[int | None]
    """Of the model's labels."""
    folder: Path
    settings: Mapping[str, Any]
    """Whatever a pass depends on but its masks; part of its name."""
    confidence: float = 0.5
    batch_size: int = 1
    workers: int = 0
    precision: str = "fp32"
    mean_images: int = 100
    """Of how many images, the first, means are taken for masks of that mode."""

    def __post_init__(self) -> None:
        self._made: dict[str, AblationRun] = {}
        self._means: dict[str, Tensor] = {}

    def path(self, masks: Masks) -> Path:
        """Where a pass is kept."""
        content = {**self.settings, "masks": [[str(mask), mask.seed] for mask in masks]}
        if any(mask.mode == "mean" for mask in masks):
            content["mean_images"] = self.mean_images
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:24]}.npz"

    def missing(self, interventions: Sequence[Masks]) -> list[Masks]:
        """Those not yet made, each once."""
        return [masks for masks in dict.fromkeys(interventions) if self._kept(masks) is None]

    def run(self, interventions: Sequence[Masks], advance: Callable[[], None] = lambda: None) -> list[AblationRun]:
        """Makes what is not there yet, and returns all; `advance` is called after each image of each intervention.

        Raises ValueError for masks that do not fit the model, before anything runs.
        """
        wanted = self.missing([(), *interventions])
        for masks in wanted:
            check(self.model, masks)
        if () in wanted:
            self._sweep([()], advance)
            wanted.remove(())
        self.means([mask for masks in wanted for mask in masks])
        for first in range(0, len(wanted), TOGETHER):
            self._sweep(wanted[first : first + TOGETHER], advance)
        found = [self._kept(masks) for masks in interventions]
        return [one for one in found if one is not None]

    def _kept(self, masks: Masks) -> AblationRun | None:
        path = self.path(masks)
        if path.name not in self._made and path.is_file():
            try:
                with np.load(path) as held:
                    predictions = QueryPredictions(held["image"], held["query"], held["scores"], held["boxes"])
                    self._made[path.name] = AblationRun(held["rows"], predictions)
            except (BadZipFile, KeyError, ValueError, OSError):
                return None  # not ours: made again, and replaced
        return self._made.get(path.name)

    def _sweep(self, interventions: Sequence[Masks], advance: Callable[[], None]) -> None:
        """One turn over the images for all interventions, whose finds are then written."""
        base = self._kept(())
        confident = None if base is None else base.predictions.confident(self.confidence)
        rows: list[list[np.ndarray]] = [[] for _ in interventions]
        predictions: list[list[QueryPredictions]] = [[] for _ in interventions]
        for first, images, targets in self.batches():
            sizes = torch.tensor([target["size"] for target in targets], device=self.device)
            ids = [target["image_id"] for target in targets]
            numbers = np.arange(first, first + len(targets))
            with evaluating(self.model), autocast(self.device, self.precision), unchanged(self.model, interventions):
                for place, masks in enumerate(interventions):
                    with intervene(self.model, *masks, means=self._means):
                        outputs = self.model(images)
                    rows[place].append(result_rows(ids, self.model.post_process(outputs, sizes), self.category_ids))
                    predictions[place].append(self._sights(outputs, sizes, numbers, confident))
                    for _ in targets:
                        advance()
        for place, masks in enumerate(interventions):
            parts = predictions[place]
            columns = ("image", "query", "scores", "boxes")
            merged = QueryPredictions(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))
            made = AblationRun(np.concatenate(rows[place]), merged)
            path = self.path(masks)
            with atomic_file(path) as file:
                np.savez(file, rows=made.rows, **{name: getattr(merged, name) for name in columns})
            self._made[path.name] = made

    def batches(self, limit: int | None = None) -> Iterator[tuple[int, list[Tensor], list[dict[str, Any]]]]:
        """The images, on the device, with the place of each batch's first; of the first `limit` images."""
        first = 0
        dtype = self.model.dtype
        for loaded in evaluation_loader(self.data, self.batch_size, self.workers):
            samples = loaded if limit is None else loaded[: limit - first]
            images, targets = to_device(samples, self.device, dtype)
            yield first, images, targets
            first += len(samples)
            if limit is not None and first >= limit:
                return

    def _sights(
        self, outputs: dict[str, Tensor], sizes: Tensor, numbers: np.ndarray, known: QueryPredictions | None
    ) -> QueryPredictions:
        """Of the queries that are detections, now or among `known`."""
        logits = at_least_float32(outputs["pred_logits"])
        scores = logits.sigmoid() if self.model.focal else logits.softmax(-1)[..., :-1]
        wanted = scores.amax(-1) >= self.confidence
        if known is not None:
            mine = np.isin(known.image, numbers)
            wanted[known.image[mine] - numbers[0], known.query[mine]] = True
        row, query = wanted.nonzero(as_tuple=True)
        scale = sizes.flip(1).repeat(1, 2)[row]
        boxes = cxcywh_to_xyxy(at_least_float32(outputs["pred_boxes"])[row, query]) * scale
        return QueryPredictions(
            numbers[row.cpu().numpy()],
            query.cpu().numpy(),
            scores[row, query].cpu().numpy(),
            boxes.cpu().numpy(),
        )

    def means(self, masks: Sequence[Mask]) -> dict[str, Tensor]:
        """The heads' mean outputs (H, D), over the first `mean_images` images, by site, for masks of that mode."""
        sites = {site.name for mask in masks if mask.mode == "mean" for site in find_sites(self.model, mask.sites)}
        if sites - self._means.keys():
            with (
                evaluating(self.model),
                autocast(self.device, self.precision),
                mean_outputs(self.model, ",".join(sorted(sites))) as found,
            ):
                for _, images, _ in self.batches(self.mean_images):
                    self.model(images)
            self._means |= found
        return self._means


def check(model: nn.Module, masks: Masks) -> None:
    """Raises ValueError for masks that do not fit the model."""
    places = {site.name: torch.empty(0) for mask in masks for site in find_sites(model, mask.sites)}
    with intervene(model, *masks, means=places):
        pass


@contextmanager
def unchanged(model: nn.Module, interventions: Sequence[Masks]) -> Iterator[None]:
    """What no intervention changes is computed once, for one batch, while the block runs: backbone and encoder."""
    stacks = {site.stack for masks in interventions for mask in masks for site in find_sites(model, mask.sites)}
    # the official names; DETR's backbone is a body and a position, the minimal DETR's the body
    names = ["backbone.0", "backbone", *(["transformer.encoder"] if stacks <= {"decoder"} else [])]
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for module in (modules[name] for name in names if name in modules):
            module.forward = functools.partial(_once, module, [])
            stack.callback(module.__dict__.pop, "forward")
        yield


def _once(module: nn.Module, held: list[Any], *args: Any, **kwargs: Any) -> Any:
    """The module's output, computed at the first call."""
    if not held:
        held.append(type(module).forward(module, *args, **kwargs))
    return held[0]

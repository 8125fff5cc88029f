"""A detector run over a data set under many interventions: what comes before the changed layers is computed once.

What a run found is kept in a folder under a name that its settings make, so that an ablation that was stopped goes on,
and one with more masks runs those alone.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from ...common.files import atomic_file
from ...common.progress import progress_bar
from ...common.text import counted
from ...models.layers.evaluation_mode import evaluating
from ...train.data.loader import evaluation_loader, to_device
from ...train.engine.acceleration import autocast
from ...train.evaluation.results import result_rows
from ..core.interventions import intervene, mean_outputs
from ..core.masks import Mask, Masks
from ..core.sites import find_sites
from ..options import AblateOptions
from ..quality.measures import probabilities_and_boxes
from ..workspace import DetectorOnData, digest_of, digest_of_weights
from .effects import QueryPredictions

TOGETHER = 16
"""Runs that share one sweep over the images; what they found is written when it ends."""


class AblationRun(NamedTuple):
    """What a model found in a data set under an intervention."""

    rows: np.ndarray
    """(N, 7), as `results.DetectionResults` has them."""
    predictions: QueryPredictions
    """Of the detections, and of the queries that are detections without any intervention."""


class AblationRuns:
    """Runs of a model over a data set, each made once.

    Attributes:
        settings: whatever a run depends on but its masks; part of its name.
    """

    def __init__(self, detector: DetectorOnData, options: AblateOptions, folder: Path) -> None:
        self.detector, self.options, self.folder = detector, options, folder
        self.model, self.device, self.data = detector.trained.model, detector.trained.device, detector.data
        self.settings = {
            "weights": digest_of_weights(self.model),
            "annotations": digest_of(self.data.annotations.path),
            "images": [str(self.data.folder.resolve()), len(self.data)],
            "image_size": detector.about["image_size"],
            "backend": detector.trained.attn_backend,
            "device": self.device.type,
            **{name: getattr(options, name) for name in ("batch_size", "precision", "confidence")},
        }
        self._made: dict[Path, AblationRun] = {}
        self._means: dict[str, Tensor] = {}

    def path(self, masks: Masks, suffix: str = ".npz", **more: Any) -> Path:
        """Where a run is kept, or something else that depends on `more`."""
        content = {**self.settings, **more, "masks": [[str(mask), mask.seed] for mask in masks]}
        if any(mask.mode == "mean" for mask in masks):
            content["mean_images"] = self.options.mean_images
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:24]}{suffix}"

    def missing(self, interventions: Sequence[Masks]) -> list[Masks]:
        """Those not yet made, each once; the model as it is among them."""
        return [masks for masks in dict.fromkeys([(), *interventions]) if self._kept(masks) is None]

    def run(self, interventions: Sequence[Masks], what: str = "") -> list[AblationRun]:
        """Makes what is not there yet, and returns all; where `what` names them, prints how many and shows a bar.

        Raises ValueError for masks that do not fit the model, before anything runs.
        """
        wanted = self.missing(interventions)
        for masks in wanted:
            check(self.model, masks)
        rest = [masks for masks in wanted if masks]
        forwards, shown = len(wanted) * len(self.data), bool(what and wanted and self.options.progress)
        if what:
            told = f"{counted(len(wanted), 'pass')} still to run over {counted(len(self.data), 'image')}"
            once = f"the backbone, and an encoder that no mask changes, run once for {TOGETHER} of them"
            print(f"{what}: {told}, {forwards} forward passes; {once}", flush=True)
        with progress_bar(what, forwards, shown=shown) as advance:
            self.means([mask for masks in rest for mask in masks])
            # first the model as it is, whose detections the others keep the queries of
            if len(rest) < len(wanted):
                self._sweep([()], advance)
            for first in range(0, len(rest), TOGETHER):
                self._sweep(rest[first : first + TOGETHER], advance)
        return [run for masks in interventions if (run := self._kept(masks)) is not None]

    def _kept(self, masks: Masks) -> AblationRun | None:
        path = self.path(masks)
        if path not in self._made and path.is_file():
            try:
                with np.load(path) as held:
                    predictions = QueryPredictions(*(held[name] for name in QueryPredictions._fields))
                    self._made[path] = AblationRun(held["rows"], predictions)
            except (BadZipFile, KeyError, ValueError, OSError):
                return None  # not ours: made again, and replaced
        return self._made.get(path)

    def _sweep(self, interventions: Sequence[Masks], advance: Callable[[], None]) -> None:
        """One turn over the images for all interventions, whose finds are then written."""
        base = self._kept(())
        confident = None if base is None else base.predictions.confident(self.options.confidence)
        found: dict[Masks, list[AblationRun]] = {masks: [] for masks in interventions}
        for first, images, targets in self.batches():
            sizes = torch.tensor([target["size"] for target in targets], device=self.device)
            image_ids = [target["image_id"] for target in targets]
            numbers = np.arange(first, first + len(targets))
            with (
                evaluating(self.model),
                autocast(self.device, self.options.precision),
                unchanged(self.model, interventions),
            ):
                for masks in interventions:
                    with intervene(self.model, *masks, means=self._means):
                        outputs = self.model(images)
                    detections = self.model.post_process(outputs, sizes)
                    rows = result_rows(image_ids, detections, self.detector.category_ids)
                    found[masks].append(AblationRun(rows, self._predictions(outputs, sizes, numbers, confident)))
                    for _ in targets:
                        advance()
        for masks, parts in found.items():
            columns = zip(*(part.predictions for part in parts), strict=True)
            merged = QueryPredictions(*map(np.concatenate, columns))
            made = AblationRun(np.concatenate([part.rows for part in parts]), merged)
            with atomic_file(self.path(masks)) as file:
                np.savez(file, rows=made.rows, **merged._asdict())
            self._made[self.path(masks)] = made

    def batches(self, limit: int | None = None) -> Iterator[tuple[int, list[Tensor], list[dict[str, Any]]]]:
        """The images, on the device, with the place of each batch's first; of the first `limit` images."""
        first = 0
        workers = min(self.options.workers, os.cpu_count() or 1)
        for loaded in evaluation_loader(self.data, self.options.batch_size, workers):
            samples = loaded if limit is None else loaded[: limit - first]
            images, targets = to_device(samples, self.device, self.model.dtype)
            yield first, images, targets
            first += len(samples)
            if limit is not None and first >= limit:
                return

    def _predictions(
        self, outputs: dict[str, Tensor], sizes: Tensor, numbers: np.ndarray, known: QueryPredictions | None
    ) -> QueryPredictions:
        """Of the queries that are detections, now or among `known`."""
        scores, boxes = probabilities_and_boxes(self.model, outputs)
        wanted = scores.amax(-1) >= self.options.confidence
        if known is not None:
            mine = np.isin(known.image, numbers)
            wanted[known.image[mine] - numbers[0], known.query[mine]] = True
        row, query = wanted.nonzero(as_tuple=True)
        pixels = boxes[row, query] * sizes.flip(1).repeat(1, 2)[row]
        columns = (query, scores[row, query], pixels)
        return QueryPredictions(numbers[row.cpu().numpy()], *(column.cpu().numpy() for column in columns))

    def means(self, masks: Sequence[Mask]) -> dict[str, Tensor]:
        """The heads' mean outputs (H, D), over the first `mean_images` images, by site, for masks of that mode."""
        sites = {site.name for mask in masks if mask.mode == "mean" for site in find_sites(self.model, mask.sites)}
        if sites - self._means.keys():
            with (
                evaluating(self.model),
                autocast(self.device, self.options.precision),
                mean_outputs(self.model, ",".join(sorted(sites))) as found,
            ):
                for _, images, _ in self.batches(self.options.mean_images):
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

"""What interventions do to a detector over a data set: each alone, head by head, in growing sets, and in pruning."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...common.files import write_json
from ..core.masks import Mode
from ..options import ScreenBy
from .effects import Effects, Pairing, QueryPredictions, effects
from .head_sets import Head, heads_of, switched_off
from .resampling import Change, changes, match, weighted_metrics
from .runs import AblationRun, AblationRuns, Masks
from .screening import head_gradients, logits_of, loss_of

Advance = Callable[[], None]


@dataclass(frozen=True)
class Measured:
    """What one intervention did."""

    masks: Masks
    changes: dict[str, Change]
    """By metric, of `resampling.METRICS`."""
    effects: Effects

    @property
    def name(self) -> str:
        """What ``--mask`` takes."""
        return "+".join(map(str, self.masks))

    @property
    def change(self) -> float:
        """Of AP."""
        return self.changes["AP"].change or 0.0

    @property
    def ap(self) -> float:
        return self.changes["AP"].after or 0.0


@dataclass(frozen=True)
class Screening:
    """First-order importance of heads: of dy/dm, over images, the mean absolute value and the mean."""

    importance: dict[Head, float]
    slope: dict[Head, float]
    """A positive one says that y falls, to first order, when the head goes."""


@dataclass(frozen=True)
class Step:
    """One head more switched off."""

    head: Head
    importance: float
    """Of the screening that chose it, made with those before it off."""
    measured: Measured


@dataclass(eq=False)
class Ablation:
    """A detector, a data set, and what has been measured of them."""

    passes: AblationRuns
    weights: np.ndarray
    """Of `resampling.resample`, (1 + samples, I)."""
    pairing: Pairing = "iou"
    mode: Mode = "zero"
    seed: int = 0
    screen_by: ScreenBy = "loss"
    screen_images: int = 50
    _measured: dict[Masks, Measured] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = self.passes.data
        self._truth = data.annotations.ground_truth()
        labels = {known: label for label, known in enumerate(self.passes.category_ids) if known is not None}
        # the data's labels as the model's
        self._labels = np.array([labels[category.id] for category in data.annotations.categories], dtype=np.int64)
        self._annotated = self._truth_sights()
        self._base: tuple[AblationRun, dict[str, np.ndarray]] | None = None

    def _truth_sights(self) -> QueryPredictions:
        """The annotated boxes, of labels of the model."""
        notes, rows = self.passes.data.annotations, self.passes.data.rows
        places = [np.arange(notes.first[row], notes.first[row + 1]) for row in rows]
        chosen = np.concatenate(places)
        scores = np.eye(len(self.passes.category_ids))[self._labels[notes.labels[chosen]]]
        image = np.repeat(np.arange(len(rows)), [len(part) for part in places])
        return QueryPredictions(image, np.full(len(chosen), -1), scores, notes.boxes[chosen])

    def measure(self, interventions: Sequence[Masks], advance: Advance = lambda: None) -> list[Measured]:
        """What each did, those not yet known after running the model."""
        found = self.passes.run(interventions, advance)
        if self._base is None:
            (base,) = self.passes.run([()])
            self._base = base, self._metrics(base)
        base, metrics = self._base
        for masks, one in zip(interventions, found, strict=True):
            if masks not in self._measured:
                self._measured[masks] = Measured(
                    masks,
                    changes(metrics, self._metrics(one)),
                    effects(
                        base.predictions,
                        one.predictions,
                        self._annotated,
                        confidence=self.passes.confidence,
                        pairing=self.pairing,
                    ),
                )
        return [self._measured[masks] for masks in interventions]

    def _metrics(self, one: AblationRun) -> dict[str, np.ndarray]:
        return weighted_metrics(match(self._truth, one.rows, self.passes.data.image_ids), self.weights)

    def off(self, heads: Sequence[Head]) -> Masks:
        """The intervention on these heads, in this study's mode."""
        return switched_off(heads, self.mode, self.seed)

    def matrix(self, sites: str, advance: Advance = lambda: None) -> dict[Head, Measured]:
        """Each head off alone."""
        heads = heads_of(self.passes.model, sites)
        return dict(zip(heads, self.measure([self.off([head]) for head in heads], advance), strict=True))

    def screen(self, sites: str, masks: Masks = (), advance: Advance = lambda: None) -> Screening:
        """First-order importance of heads over the first `screen_images` images, while masks act; kept in the folder.

        `advance` is called for each image.
        """
        asked = {
            **self.passes.settings,
            "screen": [sites, self.screen_by, self.screen_images],
            "masks": [[str(mask), mask.seed, self.passes.mean_images] for mask in masks],
        }
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        path = self.passes.folder / f"screen-{digest[:24]}.json"
        if path.is_file():
            held: dict[str, Any] = json.loads(path.read_text())
        else:
            held = {name: values.tolist() for name, values in self._slopes(sites, masks, advance).items()}
            write_json(path, held)
        slopes = {name: np.array(values) for name, values in held.items()}  # (I, H)
        heads = heads_of(self.passes.model, sites)
        return Screening(
            {(site, head): float(np.abs(slopes[site][:, head]).mean()) for site, head in heads},
            {(site, head): float(slopes[site][:, head].mean()) for site, head in heads},
        )

    def _slopes(self, sites: str, masks: Masks, advance: Advance) -> dict[str, np.ndarray]:
        found: dict[str, list[np.ndarray]] = {}
        model, means = self.passes.model, self.passes.means(masks)
        labels = torch.from_numpy(self._labels).to(self.passes.device)
        for _, images, targets in self.passes.batches(self.screen_images):
            mine = [{**target, "labels": labels[target["labels"]]} for target in targets]
            y = loss_of(model, mine) if self.screen_by == "loss" else logits_of(model, self.passes.confidence)
            for site, slope in head_gradients(model, sites, images, y, masks, means).items():
                found.setdefault(site, []).append(slope.numpy())
            for _ in targets:
                advance()
        return {site: np.concatenate(parts) for site, parts in found.items()}

    def prune(self, sites: str, count: int, budget: float | None = None, advance: Advance = lambda: None) -> list[Step]:
        """Switches heads off one by one, each the least important with those before it off, and measures every step.

        Ends after `count` heads, or before the one that makes AP fall by more than `budget`.
        """
        steps: list[Step] = []
        remaining = heads_of(self.passes.model, sites)
        while len(steps) < count:
            gone = [step.head for step in steps]
            importance = self.screen(sites, self.off(gone)).importance
            head = min(remaining, key=importance.__getitem__)
            (measured,) = self.measure([self.off([*gone, head])])
            advance()
            if budget is not None and -measured.change > budget:
                break
            steps.append(Step(head, importance[head], measured))
            remaining.remove(head)
        return steps

"""What interventions do to a detector over a data set: each alone, head by head, in growing sets, and in pruning."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from ...common.files import write_json
from ...common.progress import progress_bar
from ...models.families.detector import Detector
from ..core.masks import Mask, Masks, Mode
from ..core.sites import find_sites
from ..options import AblateOptions
from .effects import Effects, QueryPredictions, effects
from .resampling import Change, changes, resample, weighted_metrics
from .runs import AblationRuns, check
from .screening import head_gradients, logits_of, loss_of

Head = tuple[str, int]
"""A site's name and a head's number."""


def heads_of(model: nn.Module, pattern: str) -> list[Head]:
    """Every head of the sites that match, in the order of the layers."""
    return [(site.name, head) for site in find_sites(model, pattern) for head in range(site.heads)]


def switched_off(heads: Sequence[Head], mode: Mode = "zero", seed: int = 0) -> Masks:
    """The intervention on these heads: one mask a site."""
    sites = groupby(sorted(heads), key=lambda head: head[0])
    return tuple(Mask(site, heads=tuple(head for _, head in part), mode=mode, seed=seed) for site, part in sites)


def orders(
    importance: Mapping[str, Mapping[Head, float]], heads: Sequence[Head], count: int, seed: int = 0
) -> dict[str, list[Head]]:
    """Orders in which to switch heads off: by each importance the greatest first and the least first, and at random.

    Returns ``NAME``, ``NAME, reversed`` for each importance, and ``random 0`` to ``random count-1``.
    """
    found: dict[str, list[Head]] = {}
    for name, values in importance.items():
        greatest = sorted(heads, key=lambda head: -values[head])
        found |= {name: greatest, f"{name}, reversed": greatest[::-1]}
    draw = np.random.default_rng(seed)
    for number in range(count):
        found[f"random {number}"] = [heads[place] for place in draw.permutation(len(heads))]
    return found


def counts_of(heads: int, steps: int) -> list[int]:
    """How many heads are off at each of at most `steps` points of a curve beyond its first, from 0 to all."""
    return sorted({round(number) for number in np.linspace(0, heads, min(steps, heads) + 1).tolist()})


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


class Screening(NamedTuple):
    """First-order importance of heads: of dy/dm, over images, the mean absolute value and the mean."""

    importance: dict[Head, float]
    slope: dict[Head, float]
    """A positive one says that y falls, to first order, when the head goes."""


class Step(NamedTuple):
    """One head more switched off."""

    head: Head
    importance: float
    """Of the screening that chose it, made with those before it off."""
    measured: Measured


@dataclass(eq=False)
class Findings:
    """All that was asked for; what was not is empty."""

    about: dict[str, Any]
    base: Measured
    masks: list[Measured]
    matrix: dict[Head, Measured] = field(default_factory=dict)
    screening: Screening | None = None
    orders: dict[str, list[Head]] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, Measured]]] = field(default_factory=dict)
    """By order, how many heads are off and what that does."""
    pruned: list[Step] | None = None

    def rank_correlation(self) -> float | None:
        """Spearman's, of screening and the AP that each head costs; None without both, or where one is constant."""
        if self.screening is None or len(self.matrix) < 3:
            return None
        pairs = [(self.screening.importance[head], -one.change) for head, one in self.matrix.items()]
        one, two = zip(*pairs, strict=True)
        return float(spearmanr(one, two).statistic) if len(set(one)) > 1 and len(set(two)) > 1 else None


def check_fits(options: AblateOptions, model: Detector) -> None:
    """Raises ValueError for what does not fit the model, before anything runs."""
    heads = len(heads_of(model, options.sites))
    for masks in options.masks():
        check(model, masks)
    if options.prune is not None and options.prune > heads:
        raise ValueError(f"prune: expected at most the {heads} heads of {options.sites}, got {options.prune}")
    if options.pairing == "query" and getattr(getattr(model, "transformer", None), "two_stage", False):
        raise ValueError("pairing: a two-stage model chooses its queries anew at every pass; expected --pairing iou")


class Ablation:
    """A detector, a data set, and what has been measured of them.

    Raises ValueError where a limit leaves no annotated box.
    """

    def __init__(self, runs: AblationRuns) -> None:
        self.runs, self.options = runs, runs.options
        self.heads = heads_of(runs.model, self.options.sites)
        self.most_pruned = min(self.options.prune or len(self.heads), len(self.heads)) if self.options.prunes else 0
        self.screen_images = min(self.options.screen_images, len(runs.data))
        self._measured: dict[Masks, Measured] = {}
        self._base_metrics: dict[str, np.ndarray] = {}
        self._weights = resample(len(runs.data), self.options.samples, self.options.seed)

        notes, rows = runs.data.annotations, runs.data.rows
        self._truth = notes.ground_truth()
        ids = runs.detector.category_ids
        # the data's labels as the model's
        self._labels = np.array([ids.index(category.id) for category in notes.categories], dtype=np.int64)
        places = [np.arange(notes.first[row], notes.first[row + 1]) for row in rows]
        chosen = np.concatenate(places)
        if not len(chosen):
            raise ValueError(f"limit: expected a box in the first {len(rows)} images of {notes.path}, found none")
        self._annotated = QueryPredictions(
            np.repeat(np.arange(len(rows)), [len(part) for part in places]),
            np.full(len(chosen), -1),
            np.eye(len(ids))[self._labels[notes.labels[chosen]]],
            notes.boxes[chosen],
        )

    def find(self) -> Findings:
        """All that the options ask for."""
        options = self.options
        base, *masks = self.measure([(), *options.masks()], "masks" if options.mask else "no mask")
        about = {name: getattr(options, name) for name in ("sites", "screen_by", "pairing", "samples", "seed", "mode")}
        findings = Findings(self.runs.settings | self.runs.detector.about | about, base, masks)
        if options.matrix:
            alone = self.measure([self.off([head]) for head in self.heads], "matrix")
            findings.matrix = dict(zip(self.heads, alone, strict=True))
        if options.cumulative:
            findings.screening = self.screen(shown=options.progress)
            importance = {"screening": findings.screening.importance}
            if findings.matrix:
                importance["measurement"] = {head: -one.change for head, one in findings.matrix.items()}
            findings.orders = orders(importance, self.heads, options.random_orders, options.seed)
            counts = counts_of(len(self.heads), options.steps)
            sets = {name: [self.off(order[:count]) for count in counts] for name, order in findings.orders.items()}
            self.measure([masks for several in sets.values() for masks in several], "cumulative")
            findings.curves = {
                name: list(zip(counts, self.measure(several), strict=True)) for name, several in sets.items()
            }
        if options.prunes:
            findings.pruned = self.prune()
        return findings

    def off(self, heads: Sequence[Head]) -> Masks:
        """The intervention on these heads, in the mode of the options."""
        return switched_off(heads, self.options.mode, self.options.seed)

    def measure(self, interventions: Sequence[Masks], what: str = "") -> list[Measured]:
        """What each did, those not yet known after running the model; `what` is that of `AblationRuns.run`."""
        wanted: list[Masks] = [(), *interventions]
        base, *_ = found = self.runs.run(wanted, what)
        for masks, run in zip(wanted, found, strict=True):
            if masks not in self._measured:
                metrics = weighted_metrics(self._truth, run.rows, self.runs.data.image_ids, self._weights)
                if not masks:
                    self._base_metrics = metrics
                pair = (base.predictions, run.predictions, self._annotated)
                did = effects(*pair, confidence=self.options.confidence, pairing=self.options.pairing)
                self._measured[masks] = Measured(masks, changes(self._base_metrics, metrics), did)
        return [self._measured[masks] for masks in interventions]

    def screen(self, masks: Masks = (), *, shown: bool = False) -> Screening:
        """First-order importance of heads over the first `screen_images` images, under masks; kept in the folder."""
        sites, options = self.options.sites, self.options
        path = self.runs.path(masks, ".json", screen=[sites, options.screen_by, self.screen_images])
        if path.is_file():
            held: dict[str, Any] = json.loads(path.read_text())
        else:
            held = {name: values.tolist() for name, values in self._slopes(masks, shown).items()}
            write_json(path, held)
        slopes = {(site, head): np.array(held[site])[:, head] for site, head in self.heads}  # (I,) each
        return Screening(
            {head: float(np.abs(values).mean()) for head, values in slopes.items()},
            {head: float(values.mean()) for head, values in slopes.items()},
        )

    def _slopes(self, masks: Masks, shown: bool) -> dict[str, np.ndarray]:
        """dy/dm (I, H), by site."""
        found: dict[str, list[np.ndarray]] = {}
        model, means = self.runs.model, self.runs.means(masks)
        labels = torch.from_numpy(self._labels).to(self.runs.device)
        with progress_bar("screening", self.screen_images, shown=shown) as advance:
            for _, images, targets in self.runs.batches(self.screen_images):
                mine = [{**target, "labels": labels[target["labels"]]} for target in targets]
                by_loss = self.options.screen_by == "loss"
                y = loss_of(model, mine) if by_loss else logits_of(model, self.options.confidence)
                for site, slope in head_gradients(model, self.options.sites, images, y, masks, means).items():
                    found.setdefault(site, []).append(slope.numpy())
                for _ in targets:
                    advance()
        return {site: np.concatenate(parts) for site, parts in found.items()}

    def prune(self) -> list[Step]:
        """Switches heads off one by one, each the least important with those before it off, and measures every step.

        Ends after as many heads as the options name, or before the one that makes AP fall by more than the budget.
        """
        steps: list[Step] = []
        remaining = list(self.heads)
        with progress_bar("pruning", self.most_pruned, shown=self.options.progress) as advance:
            while len(steps) < self.most_pruned:
                gone = [step.head for step in steps]
                importance = self.screen(self.off(gone)).importance
                head = min(remaining, key=importance.__getitem__)
                (measured,) = self.measure([self.off([*gone, head])])
                advance()
                if self.options.budget is not None and -measured.change > self.options.budget:
                    break
                steps.append(Step(head, importance[head], measured))
                remaining.remove(head)
        return steps

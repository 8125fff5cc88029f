"""What interventions do to a detector over a data set: each alone, head by head, in growing sets, and in pruning."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from ... import __version__
from ...common.files import write_json
from ...common.progress import progress_bar
from ...common.text import counted
from ...models.families.detector import Detector
from ...train.evaluation.resampling import changes, resample, weighted_metrics
from ..core.masks import Mask, Masks, Mode
from ..core.sites import find_sites, makes_queries
from ..options import AblateOptions
from .effects import QueryPredictions, effects
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


def place(head: Head) -> dict[str, Any]:
    """A head for JSON."""
    return {"site": head[0], "head": head[1]}


def orders(
    importance: Mapping[str, Mapping[Head, float]], heads: Sequence[Head], options: AblateOptions
) -> dict[str, list[Head]]:
    """Orders in which to switch heads off: by each importance the greatest first and the least first, and at random.

    Returns ``NAME``, ``NAME, reversed`` for each importance, and ``random 0`` to as many as the options name.
    """
    found: dict[str, list[Head]] = {}
    for name, values in importance.items():
        greatest = sorted(heads, key=lambda head: -values[head])
        found |= {name: greatest, f"{name}, reversed": greatest[::-1]}
    draw = np.random.default_rng(options.seed)
    for number in range(options.random_orders):
        found[f"random {number}"] = [heads[place] for place in draw.permutation(len(heads))]
    return found


def counts_of(heads: int, steps: int) -> list[int]:
    """How many heads are off at each of at most `steps` points of a curve beyond its first, from 0 to all."""
    return sorted({round(number) for number in np.linspace(0, heads, min(steps, heads) + 1).tolist()})


Measured = dict[str, Any]
"""What one intervention did, ready for JSON: ``mask``, what ``--mask`` takes, ``metrics``, of `resampling.changes`, and
``effects``, the fields of `Effects`."""


def rank_correlation(one: Mapping[Head, float], two: Mapping[Head, float]) -> float | None:
    """Spearman's, of two importances of the same heads; None for fewer than three, or where one is constant."""
    enough = len(one) > 2 and len(set(one.values())) > 1 and len(set(two.values())) > 1
    return float(spearmanr([*one.values()], [two[head] for head in one]).statistic) if enough else None


def ap_change(one: Measured) -> float:
    """By how much an intervention changes AP."""
    return one["metrics"]["AP"]["change"] or 0.0


def check_fits(options: AblateOptions, model: Detector) -> None:
    """Raises ValueError for what does not fit the model, before anything runs."""
    heads = len(heads_of(model, options.sites))
    for masks in options.masks():
        check(model, masks)
    if options.prune is not None and options.prune > heads:
        raise ValueError(f"prune: expected at most the {heads} heads of {options.sites}, got {options.prune}")
    if options.pairing == "query" and makes_queries(model):
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

    def find(self) -> dict[str, Any]:
        """All that the options ask for, as ``ablation.json`` has it; what they do not ask for is empty."""
        options, heads = self.options, self.heads
        about = {name: getattr(options, name) for name in ("sites", "screen_by", "pairing", "samples", "seed", "mode")}
        base, *masks = self.measure([(), *options.masks()], "masks" if options.mask else "no mask")
        found: dict[str, Any] = {
            "about": self.runs.settings | self.runs.detector.about | about,
            "base": base,
            "masks": masks,
            "matrix": [],
            "screening": None,
            "rank_correlation": None,
            "cumulative": {},
            "pruned": None,
            "versions": {name: version(name) for name in ("torch", "numpy", "scipy")} | {"msdeform": __version__},
        }
        importance = {}
        if options.matrix:
            alone = self.measure([self.off([head]) for head in heads], "matrix")
            found["matrix"] = [place(head) | one for head, one in zip(heads, alone, strict=True)]
            importance["measurement"] = {head: -ap_change(one) for head, one in zip(heads, alone, strict=True)}
        if options.cumulative:
            screened = self.screen(shown=True)
            importance = {"screening": {head: one["importance"] for head, one in screened.items()}, **importance}
            found["screening"] = [place(head) | one for head, one in screened.items()]
            found["rank_correlation"] = rank_correlation(*importance.values()) if options.matrix else None
            counts, chosen = counts_of(len(heads), options.steps), orders(importance, heads, options)
            sets = {name: [self.off(order[:count]) for count in counts] for name, order in chosen.items()}
            self.measure([masks for several in sets.values() for masks in several], "cumulative")
            for name, several in sets.items():
                points = [{"off": count} | one for count, one in zip(counts, self.measure(several), strict=True)]
                found["cumulative"][name] = {"order": [place(head) for head in chosen[name]], "points": points}
        if options.prunes:
            found["pruned"] = self.prune()
        return found

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
                self._measured[masks] = {
                    "mask": "+".join(map(str, masks)),
                    "metrics": changes(self._base_metrics, metrics),
                    "effects": did._asdict(),
                }
        return [self._measured[masks] for masks in interventions]

    def screen(self, masks: Masks = (), *, shown: bool = False) -> dict[Head, dict[str, float]]:
        """First-order importance of heads over the first `screen_images` images, under masks; kept in the folder.

        Of dy/dm, over images, ``importance``, the mean absolute value, and ``slope``, the mean; where this is positive,
        y falls, to first order, when the head goes.
        """
        asked = [self.options.sites, self.options.screen_by, self.screen_images]
        path = self.runs.path(masks, ".json", screen=asked)
        if not path.is_file():
            if shown:
                print(f"screening: {self.screen_images} forward and backward passes", flush=True)
            write_json(path, {name: values.tolist() for name, values in self._slopes(masks, shown).items()})
        held = {site: np.array(values) for site, values in json.loads(path.read_text()).items()}  # (I, H) each
        return {
            (site, head): {"importance": float(np.abs(slopes).mean()), "slope": float(slopes.mean())}
            for site, head in self.heads
            for slopes in [held[site][:, head]]
        }

    def _slopes(self, masks: Masks, shown: bool) -> dict[str, np.ndarray]:
        """dy/dm (I, H), by site."""
        found: dict[str, list[np.ndarray]] = {}
        model, means = self.runs.model, self.runs.means(masks)
        labels = torch.from_numpy(self._labels).to(self.runs.device)
        with progress_bar("screening", self.screen_images, shown=shown and self.options.progress) as advance:
            for _, images, targets in self.runs.batches(self.screen_images):
                mine = [{**target, "labels": labels[target["labels"]]} for target in targets]
                by_loss = self.options.screen_by == "loss"
                y = loss_of(model, mine) if by_loss else logits_of(model, self.options.confidence)
                for site, slope in head_gradients(model, self.options.sites, images, y, masks, means).items():
                    found.setdefault(site, []).append(slope.numpy())
                for _ in targets:
                    advance()
        return {site: np.concatenate(parts) for site, parts in found.items()}

    def prune(self) -> list[dict[str, Any]]:
        """Switches heads off one by one, each the least important with those before it off, and measures every step.

        Ends after as many heads as the options name, or before the one that makes AP fall by more than the budget.
        Returns for each its ``site`` and ``head``, its importance, ``screening``, and what those off so far do.
        """
        steps: list[dict[str, Any]] = []
        gone: list[Head] = []
        cost = f"{self.screen_images} forward and backward passes to choose it, {len(self.runs.data)} to measure it"
        print(f"pruning: at most {counted(self.most_pruned, 'head')}, each with {cost}", flush=True)
        with progress_bar("pruning", self.most_pruned, shown=self.options.progress) as advance:
            while len(steps) < self.most_pruned:
                importance = {head: one["importance"] for head, one in self.screen(self.off(gone)).items()}
                head = min((head for head in self.heads if head not in gone), key=importance.__getitem__)
                gone.append(head)
                (measured,) = self.measure([self.off(gone)])
                advance()
                if self.options.budget is not None and -ap_change(measured) > self.options.budget:
                    break
                steps.append(place(head) | {"screening": importance[head]} | measured)
        return steps

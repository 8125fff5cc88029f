"""Explanations of every detection of a data set, scored beside maps that explain nothing."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ... import __version__
from ...common.files import write_json
from ...common.progress import progress_bar
from ...common.text import counted
from ...models.inference.image_size import Size
from ...models.inference.images import normalise
from ...models.inference.predictor import Predictor
from ...models.layers.boxes import match_boxes
from ...models.layers.evaluation_mode import evaluation_mode
from ...train.data.dataset import CocoDetection
from ..baselines.attribution import check_installed
from ..core.maps import heat_map
from ..core.trace import AttentionTrace, QueryPrediction
from ..options import MANY_PASSES, ExplainEvalOptions, Target
from ..workspace import DetectorOnData, any_trained_model, checked, digest_of, digest_of_weights, with_data
from . import faithfulness, measures, randomisation, robustness
from .masks import Masks, masks_of
from .measures import Array
from .road import road
from .scores import plain, summarise

BASELINES = ("random", "centre", "box")
IMPUTED = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of the pixels that ROAD fills in; an object is a small share of its image."""


def evaluate(options: ExplainEvalOptions, keep: Path | None = None) -> dict[str, Any]:
    """Scores of every detection of a data set, as ``scores.json`` has them.

    ``detections`` has for each its query's prediction, ``truth``, the box (xyxy) of the object that it is, None for a
    false one, and by method or baseline ``scores`` by measure and ``curves`` of deletion and insertion over ``shares``
    of the pixels; ``rank_correlations``, by method, with 1, 2, ... layers randomised or with the whole decoder.
    ``summary`` has what `summarise` says of the detections that are matched to an object, and of all where some are
    not.

    In the folder `keep` the scores of each image are written as they come, and those found there are taken from it
    where they are of the same detector, image, annotations, settings and code.

    Raises:
        FileNotFoundError, ValueError: as `msdeform eval`; or nothing was detected, or the model is no DETR.
    """
    check_installed(options.method_names)
    trained = any_trained_model(options)
    layers = len(randomisation.decoder_layers(trained.model))
    detector = with_data(trained, options)
    print(f"{detector}, {options.confidence} or better")
    whole = {"none": [], "whole": [layers], "smooth": [layers], "cascade": list(range(1, layers + 1))}
    depths = whole[options.randomise] if "sanity" in options.group_names else []
    scrambled = [randomisation.randomised(trained.model, layers=depth, seed=options.seed) for depth in depths]
    masks = masks_of(detector.data.annotations) if "place" in options.group_names else None
    kept = None if keep is None else checked(keep / _digest(detector, options))
    rows: list[dict[str, Any]] = []
    seconds, images = [], len(detector.data)
    with progress_bar("scoring", images, shown=options.progress) as advance:
        for place in detector.data.rows.tolist():
            file = None if kept is None else kept / f"{_digest_of_image(detector.data, place)}.json"
            found = _read(file)
            if found is None:
                start = time.perf_counter()
                found = list(_Image(detector, scrambled, place, options).rows(masks))
                seconds.append(time.perf_counter() - start)
                if file is not None:
                    write_json(file, {"rows": found})
            rows += found
            advance()
    if len(seconds) < images:
        print(f"{counted(images - len(seconds), 'image')} scored before, in {kept}")
    if not rows:
        raise ValueError(
            f"confidence: no detection of at least {options.confidence} in {images} images; lower it to judge more"
        )
    matched = [row for row in rows if row["truth"] is not None]
    parts = {f"{counted(len(matched), 'detection')}, matched to ground truth": matched} if matched else {}
    if len(matched) < len(rows):
        parts[f"all {counted(len(rows), 'detection')}, {len(matched)} of them matched to ground truth"] = rows
    said = ("confidence", "most", "target", "steps", "fill", "samples", "seed")
    return {
        **detector.about,
        "attn_backend": trained.attn_backend,
        "device": str(trained.device),
        "seconds_per_image": sum(seconds) / len(seconds) if seconds else None,
        "decoder_layers_randomised": depths,
        **{name: getattr(options, name) for name in said},
        "msdeform": __version__,
        "summary": {title: summarise(part, BASELINES, options.seed) for title, part in parts.items()},
        "shares": [(step / options.steps) ** 2 for step in range(options.steps + 1)],
        "detections": rows,
    }


def _digest(detector: DetectorOnData, options: ExplainEvalOptions) -> str:
    """Of what all images' scores depend on; versions of the code and of what it stands on among it."""
    settings = {
        name: getattr(options, name)
        for name in ("confidence", "most", "target", "steps", "fill", "randomise", "samples", "batch_size", "seed")
    }
    annotations = detector.data.annotations
    model: Any = detector.trained.model
    settings |= {
        "methods": options.method_names,
        "measures": options.group_names,
        "weights": digest_of_weights(model),
        "classes": [[one.id, one.name] for one in annotations.categories],
        # outlines are nowhere else
        "outlines": digest_of(annotations.path) if annotations.format == "coco" else None,
        "class_ids": list(detector.category_ids),
        "image_size": detector.about["image_size"],
        "backend": detector.trained.attn_backend,
        "device": detector.trained.device.type,
        # one of transformers is within ours
        "model": [str(getattr(one, "config", None)) for one in (model, getattr(model, "model", None))],
        "msdeform": __version__,
        "code": [digest_of(file) for file in sorted(Path(__file__).parents[1].rglob("*.py"))],
        "packages": [_version(name) for name in ("torch", "torchvision", "transformers", "captum")],
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]


def _digest_of_image(data: CocoDetection, place: int) -> str:
    """Of an image's pixels and boxes."""
    annotations = data.annotations
    own = slice(annotations.first[place], annotations.first[place + 1])
    found = hashlib.sha256(f"{annotations.images.ids[place]} {place}".encode())
    for array in (data.pixels(place).numpy(), annotations.boxes[own], annotations.labels[own]):
        found.update(f"{array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:24]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read(file: Path | None) -> list[dict[str, Any]] | None:
    """An image's scores; None where they are not there, or not whole."""
    if file is None or not file.is_file():
        return None
    try:
        found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    except (ValueError, LookupError, TypeError):
        return None
    return found


class _Image:
    """One image, `place` in the annotations: what its detections' maps are scored by, asked once for all of them."""

    def __init__(
        self, detector: DetectorOnData, scrambled: Sequence[Predictor], place: int, options: ExplainEvalOptions
    ) -> None:
        self.data, self.model, self.size, self.options = detector.data, detector.trained.model, detector.size, options
        self.scrambled, self.place = scrambled, place
        self.image_id = int(self.data.annotations.images.ids[place])
        self.trace = AttentionTrace(self.model, self.data.pixels(place), size=self.size)
        self.image = self.trace.image
        self.shape = (self.trace.height, self.trace.width)
        self.found = self.trace.detections(options.confidence)[: options.most]
        self.category_ids = detector.category_ids

    def rows(self, masks: Masks | None) -> Iterator[dict[str, Any]]:
        """Of every detection."""
        if not self.found:
            return
        annotations, options = self.data.annotations, self.options
        own = slice(annotations.first[self.place], annotations.first[self.place + 1])
        truths, classes = annotations.boxes[own], annotations.labels[own]
        # the detections' classes as the data number them
        known: dict[int | None, int] = {one.id: number for number, one in enumerate(annotations.categories)}
        labels = torch.tensor([known.get(self.category_ids[one.label], -1) for one in self.found])
        boxes = torch.tensor([one.box for one in self.found])
        matches = match_boxes(boxes, labels, torch.from_numpy(truths), torch.from_numpy(classes))
        regions = [None] * len(truths) if masks is None else masks(self.image_id, truths)
        removals = self._removals() if "removal" in options.group_names else [None] * len(self.found)
        for prediction, match, removed in zip(self.found, matches, removals, strict=True):
            maps = self._maps(prediction)
            again = _Again(self, prediction, [name for name in maps if name not in (*MANY_PASSES, "random", "centre")])
            others = {name: self._when_randomised(again, name, heat) for name, heat in maps.items()}
            row: dict[str, Any] = {
                "image_id": self.image_id,
                **{name: getattr(prediction, name) for name in ("query", "label", "name", "score")},
                "box": list(prediction.box),
                "truth": None if match is None else truths[match].tolist(),
                "scores": {},
                "curves": {},
                "rank_correlations": {name: found for name, found in others.items() if found},
            }
            box = prediction.box if match is None else truths[match]
            rest = [other for number, other in enumerate(truths) if number != match]
            mask = None if match is None else regions[match]
            for name, heat in maps.items():
                found: dict[str, float] = {}
                if "place" in options.group_names:
                    found |= self._by_place(heat, box, rest, mask)
                if "perturbation" in options.group_names:
                    scores, row["curves"][name] = self._by_perturbation(prediction, heat)
                    found |= scores
                if removed is not None:
                    found |= {
                        "sensitivity_n": faithfulness.sensitivity_n(removed[0], heat),
                        "infidelity": faithfulness.infidelity(removed[1], heat),
                    }
                if others[name]:
                    found["randomised"] = others[name][-1]
                if name not in BASELINES and "sanity" in options.group_names:
                    found |= self._by_sanity(prediction, again, name)
                if name in again.names and "noise" in options.group_names:
                    found |= self._by_noise(again, name)
                row["scores"][name] = {measure: plain(value) for measure, value in found.items()}
            yield row

    def _maps(self, prediction: QueryPrediction) -> dict[str, Array]:
        """By method, and by baseline."""
        names = self.options.method_names
        maps = {name: self.map(self.trace, prediction, name) for name in names}
        generator = np.random.default_rng([self.options.seed, self.place, prediction.query])
        maps["random"] = generator.random(self.shape)
        # where photographers put things; and what one knows of the detection without looking inside the model
        maps["centre"] = measures.box_map(self.shape, (0, 0, self.shape[1], self.shape[0]))
        maps["box"] = measures.box_map(self.shape, prediction.box)
        return maps

    def map(self, trace: AttentionTrace, prediction: QueryPrediction, name: str) -> Array:
        if name == "box":
            return measures.box_map(self.shape, prediction.box)
        return heat_map(trace, prediction, name, target=self.options.target).cpu().numpy()

    def _when_randomised(self, again: "_Again", name: str, heat: Array) -> list[float]:
        """Rank correlations with the maps of the randomised detectors; none of a method that takes too many passes."""
        if name in BASELINES or name not in again.names:
            return []
        others = [again.seen(model, self.image) for model in self.scrambled]
        return [randomisation.rank_correlation(heat, other.maps[name]) for other in others if other is not None]

    def _by_sanity(self, prediction: QueryPrediction, again: "_Again", name: str) -> dict[str, float]:
        def of_class(label: int) -> Array:
            return self.map(self.trace, self.trace.prediction(prediction.query, label), name)

        found, classes = {}, self.trace.layer_scores.shape[-1]
        if self.options.target == "class" and classes > 1 and name != "integrated-gradients":
            # of every detection another class
            seed = [self.options.seed, self.place, prediction.query]
            found["random_logit"] = randomisation.random_logit(of_class, prediction.label, classes, seed=seed)
        if self.options.randomise == "smooth" and name in again.names:

            def of_model(model: Predictor, image: Tensor) -> Array | None:
                seen = again.seen(model, image)
                return None if seen is None else seen.maps[name]

            noise: dict[str, Any] = {"samples": self.options.samples, "seed": self.options.seed}
            found["smooth"] = randomisation.smooth_mprt(of_model, self.model, self.scrambled, self.image, **noise)[-1]
        return found

    def _by_noise(self, again: "_Again", name: str) -> dict[str, float]:
        def explain(image: Tensor) -> tuple[Array, Array] | None:
            seen = again.seen(self.model, image)
            return None if seen is None else (seen.maps[name], seen.logits)

        found = robustness.stability(explain, self.image, samples=self.options.samples, seed=self.options.seed)
        return {
            "largest_change": found.maximum,
            "average_change": found.average,
            "input_stability": found.input,
            "output_stability": found.output,
        }

    def _by_place(self, heat: Array, box: Any, rest: Sequence[Any], mask: Array | None) -> dict[str, float]:
        region = measures.inside(box, self.shape)
        return {
            "pointing": measures.pointing(heat, region),
            "energy": measures.energy(heat, region),
            "elsewhere": measures.energy_elsewhere(heat, box, rest) if rest else np.nan,
            "rank": measures.rank_accuracy(heat, region) if region.any() else np.nan,
            "rank_mask": np.nan if mask is None else measures.rank_accuracy(heat, mask),
            "compactness": measures.compactness(heat),
        }

    def _by_perturbation(
        self, prediction: QueryPrediction, heat: Array
    ) -> tuple[dict[str, float], dict[str, list[float | None]]]:
        """Scores, and the curves that they are the areas of."""
        options, score = self.options, self._scorer([prediction])
        settings: dict[str, Any] = {name: getattr(options, name) for name in ("steps", "batch_size", "seed")}
        baseline, curves = measures.filled(self.image, options.fill), {}
        for kind in ("deletion", "insertion"):
            curves[kind] = measures.perturbation_curve(
                lambda images: score(images)[:, 0], self.image, heat, kind, baseline=baseline, **settings
            )
        # filling pixels in takes long, and the detector sees no more of them than it is given
        small = [min(pair) for pair in zip(self.size.fit(*self.shape), self.shape, strict=True)]
        image = F.resize(self.image, small, antialias=True)
        reduced = F.resize(torch.from_numpy(heat)[None], small, antialias=True)[0].clamp(min=0).numpy()
        settings = {"batch_size": options.batch_size, "seed": options.seed, "shares": IMPUTED}
        imputed = road(lambda images: score(images)[:, 0], image, reduced, **settings)
        found = {kind: curve.auc for kind, curve in curves.items()} | {"road": float(imputed.scores[1:].mean())}
        return found, {kind: [plain(value) for value in curve.scores] for kind, curve in curves.items()}

    def _removals(self) -> Sequence[tuple[faithfulness.Removals, faithfulness.Removals] | None]:
        """Of each detection what is lost with random patches, and with random squares; None in an image of one line."""
        options = self.options
        grid = min(14, *self.shape)
        if grid < 2:
            return [None] * len(self.found)
        patches = faithfulness.squares(self.shape, grid)
        count = grid * grid
        subsets = faithfulness.random_subsets(
            count, sorted({max(1, count // 16), count // 4, count // 2}), 12, options.seed
        )
        squares = faithfulness.random_squares(grid, 36, options.seed)
        settings: dict[str, Any] = {"baseline": measures.filled(self.image, options.fill)}
        settings["batch_size"] = options.batch_size
        ask = partial(faithfulness.remove, self._scorer(self.found), self.image, patches)
        either = ask(subsets, **settings), ask(squares, **settings)
        return [
            (either[0]._replace(drops=either[0].drops[:, one]), either[1]._replace(drops=either[1].drops[:, one]))
            for one in range(len(self.found))
        ]

    def _scorer(self, predictions: Sequence[QueryPrediction]) -> Callable[[Tensor], Tensor]:
        return scorer(self.model, self.size, self.shape, predictions, self.options.target)


class _Seen(NamedTuple):
    maps: dict[str, Array]
    """By method, and of the box."""
    logits: Array
    query: int
    """Which the detection is there."""


class _Again:
    """One detection in other models, and in its image with noise: looked at once, for all methods.

    Maps stay, and not the traces, each of which takes hundreds of MB.
    """

    def __init__(self, image: _Image, prediction: QueryPrediction, names: Sequence[str]) -> None:
        self.image, self.prediction, self.names = image, prediction, names
        self._seen: dict[tuple[int, bytes], _Seen | None] = {}

    def seen(self, model: Predictor, pixels: Tensor) -> _Seen | None:
        """None where the detector finds it no more; with random weights it is the query that the detector finds."""
        key = id(model), pixels.numpy().tobytes()
        if key not in self._seen:
            self._seen[key] = self._look(model, pixels)
        return self._seen[key]

    def _look(self, model: Predictor, pixels: Tensor) -> _Seen | None:
        of, label = self.image, self.prediction.label
        itself = torch.equal(pixels, of.image)
        trace = of.trace if itself and model is of.model else AttentionTrace(model, pixels, size=of.size)
        if itself:
            query = self.prediction.query
        elif model is of.model:
            found = same_detection(trace, self.prediction)
            if found is None:
                return None
            query = found.query
        else:
            # their encoders are the same, and so are their queries
            seen = self.seen(of.model, pixels)
            if seen is None:
                return None
            query = seen.query
        there = trace.prediction(query, label)
        maps = {name: of.map(trace, there, name) for name in self.names}
        return _Seen(maps, trace.outputs["pred_logits"][0, query].detach().double().cpu().numpy(), query)


def same_detection(trace: AttentionTrace, prediction: QueryPrediction) -> QueryPrediction | None:
    """The detection in another trace of nearly the same image; None where no query has half of its box and score."""
    left = measures.query_scores(trace.layer_scores[-1:], trace.layer_boxes[-1:], prediction.box, prediction.label)
    query = int(left.argmax())
    return trace.prediction(query, prediction.label) if left[0, query] >= prediction.score / 2 else None


def scorer(
    model: Predictor,
    size: Size,
    shape: tuple[int, int],
    predictions: Sequence[QueryPrediction],
    target: Target = "class",
) -> Callable[[Tensor], Tensor]:
    """A function of images (B, 3, H, W) uint8 that gives what is left of each detection in each, (B, detections)."""
    like = next(model.parameters())
    sides = (shape[1], shape[0]) * 2
    boxes = [[side / length for side, length in zip(one.box, sides, strict=True)] for one in predictions]

    @torch.no_grad()
    def score(images: Tensor) -> Tensor:
        inputs = normalise(F.resize(images.to(like.device), list(size.fit(*shape)), antialias=True)).to(like.dtype)
        with evaluation_mode(model):
            found = measures.probabilities_and_boxes(model, model(list(inputs)))
        every = zip(boxes, predictions, strict=True)
        return torch.stack([measures.detection_score(*found, box, one.label, target) for box, one in every], 1)

    return score

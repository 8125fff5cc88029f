"""``msdeform explain-eval``: over a data set, is what the methods say of detections better than saying nothing?"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from .. import __version__
from ..common.device import choose_device
from ..common.files import write_json
from ..common.progress import progress_bar
from ..common.text import counted
from ..models.inference.image_size import Size
from ..models.inference.images import normalise
from ..models.layers.boxes import match_boxes
from ..train.config.options import Input
from ..train.data.dataset import CocoDetection
from ..train.data.loader import validation_data
from ..train.engine.checkpoint import Trained, load_trained
from ..train.evaluation.detect import match_categories
from .core.maps import heat_map
from .core.trace import AttentionTrace, QueryPrediction
from .options import ExplainEvalOptions
from .quality.measures import (
    Array,
    Curve,
    box_map,
    centre_map,
    compactness,
    decoder_layers,
    detection_score,
    energy,
    energy_elsewhere,
    filled,
    inside,
    perturbation_curve,
    pointing,
    probabilities_and_boxes,
    random_map,
    randomised,
    rank_correlation,
)
from .quality.scores import MEASURES, Scores, save_chart, table, verdict
from .workspace import checked, default_folder

BASELINES = ("random", "centre", "box")
CURVES: tuple[Literal["deletion", "insertion"], ...] = ("deletion", "insertion")


@dataclass(frozen=True)
class ScoredDetection:
    """One detection, with a score and two curves for every method and baseline."""

    image_id: int
    prediction: QueryPrediction
    truth: tuple[float, ...] | None
    """The box (xyxy) of the object that it is; None for a false detection."""
    scores: dict[str, dict[str, float]]
    """By method or baseline, by measure."""
    curves: dict[str, dict[str, Curve]]
    """By method or baseline, "deletion" and "insertion"."""
    cascade: dict[str, list[float]]
    """By method: the rank correlation with 1, 2, ... layers randomised, or with the whole decoder alone."""


def judge(options: ExplainEvalOptions) -> tuple[list[ScoredDetection], dict[str, Any]]:
    """Scores of every detection, and where they come from.

    Raises:
        FileNotFoundError, ValueError: as `msdeform eval`; or nothing was detected, or the model is no DETR.
    """
    trained = load_trained(options.checkpoint, choose_device(options.device), options.attn_backend, options.model)
    layers = len(decoder_layers(trained.model))
    size = Input(image_size=options.image_size).size
    if options.image_size is None:
        size = trained.model.input_size or size
    known = None if trained.step is None else trained.categories
    data = validation_data(options.source, Input(), known, size, progress=options.progress)
    whole = len(data)
    data.rows = data.rows[: options.limit]
    depths = {"none": [], "whole": [layers], "cascade": range(1, layers + 1)}[options.randomise]
    scrambled = [randomised(trained.model, layers=depth, seed=options.seed) for depth in depths]
    scored: list[ScoredDetection] = []
    seconds = []
    with progress_bar("judging", len(data), shown=options.progress) as advance:
        for row in data.rows.tolist():
            start = time.perf_counter()
            scored += _judge_image(trained, scrambled, data, row, size, options)
            seconds.append(time.perf_counter() - start)
            advance()
    if not scored:
        raise ValueError(
            f"confidence: no detection of at least {options.confidence} in {len(data)} images; lower it to judge more"
        )
    about = {
        "checkpoint": str(options.checkpoint),
        "model": trained.name,
        "step": trained.step,
        "attn_backend": trained.attn_backend,
        "device": str(trained.device),
        "data": str(data.annotations.path),
        "images": len(data),
        "of_images": whole,
        "image_size": [size.short, size.longest],
        "seconds_per_image": float(np.mean(seconds)),
        "decoder_layers_randomised": list(depths),
        **{name: getattr(options, name) for name in ("confidence", "steps", "fill", "seed")},
        "msdeform": __version__,
    }
    return scored, about


def _judge_image(
    trained: Trained, scrambled: Sequence[Any], data: CocoDetection, row: int, size: Size, options: ExplainEvalOptions
) -> Iterator[ScoredDetection]:
    """Every detection of one image."""
    image_id = int(data.annotations.images.ids[row])
    trace = AttentionTrace(trained.model, data.pixels(row), size=size)
    found = trace.detections(options.confidence)
    if not found:
        return
    others = [AttentionTrace(model, trace.image, size=size) for model in scrambled]
    shape = (trace.image.shape[1], trace.image.shape[2])
    own = slice(data.annotations.first[row], data.annotations.first[row + 1])
    truths = data.annotations.boxes[own]
    matches = match_truths(found, _labels(trained, data, found), truths, data.annotations.labels[own])
    baseline = filled(trace.image, options.fill)
    for prediction, match in zip(found, matches, strict=True):
        generator = np.random.default_rng([options.seed, image_id, prediction.query])
        maps = {name: heat_map(trace, prediction, name).cpu().numpy() for name in options.method_names}
        after = {
            name: [heat_map(s, s.prediction(prediction.query, prediction.label), name) for s in others] for name in maps
        }
        cascade = {name: [rank_correlation(maps[name], again.cpu().numpy()) for again in after[name]] for name in maps}
        maps |= {
            "random": random_map(shape, generator),
            "centre": centre_map(shape),
            "box": box_map(shape, prediction.box),
        }
        box = prediction.box if match is None else truths[match]
        rest = [other for place, other in enumerate(truths) if place != match]
        scores: dict[str, dict[str, float]] = {}
        curves: dict[str, dict[str, Curve]] = {}
        score = scorer(trained.model, size, shape, prediction)
        for name, heat in maps.items():
            both: dict[str, Curve] = {
                kind: perturbation_curve(
                    score,
                    trace.image,
                    heat,
                    kind,
                    baseline=baseline,
                    steps=options.steps,
                    batch_size=options.batch_size,
                    seed=options.seed,
                )
                for kind in CURVES
            }
            curves[name] = both
            scores[name] = {
                **{kind: curve.auc for kind, curve in both.items()},
                "pointing": pointing(heat, inside(box, shape)),
                "energy": energy(heat, inside(box, shape)),
                "elsewhere": energy_elsewhere(heat, box, rest) if rest else np.nan,
                "compactness": compactness(heat),
                "randomised": cascade[name][-1] if cascade.get(name) else np.nan,
            }
        truth = None if match is None else tuple(truths[match].tolist())
        yield ScoredDetection(image_id, prediction, truth, scores, curves, cascade)


def scorer(model: Any, size: Size, shape: tuple[int, int], prediction: QueryPrediction) -> Callable[[Tensor], Tensor]:
    """A function of images (B, 3, H, W) uint8 that gives what is left of a detection in each, (B,)."""
    like = next(model.parameters())
    scale = torch.tensor([shape[1], shape[0]] * 2, dtype=torch.float64)
    box = (torch.tensor([float(value) for value in prediction.box], dtype=torch.float64) / scale).tolist()

    def score(images: Tensor) -> Tensor:
        inputs = normalise(F.resize(images.to(like.device), list(size.fit(*shape)), antialias=True)).to(like.dtype)
        with torch.no_grad():
            return detection_score(*probabilities_and_boxes(model, model(inputs)), box, prediction.label)

    return score


def match_truths(
    found: Sequence[QueryPrediction], labels: Sequence[int | None], truths: Array, classes: Array
) -> list[int | None]:
    """For each detection, the best first, the object that it is: of its class, IoU at least 0.5, none taken twice.

    `labels` are the detections' classes as the data number them; truths (N, 4) xyxy and classes (N,) are the objects.
    """
    boxes = torch.tensor([[float(value) for value in one.box] for one in found]).reshape(-1, 4)
    own = torch.tensor([-1 if label is None else label for label in labels])
    return match_boxes(boxes, own, torch.from_numpy(truths), torch.from_numpy(classes))


def _labels(trained: Trained, data: CocoDetection, found: Sequence[QueryPrediction]) -> list[int | None]:
    """The detections' classes as the data number them: those of a run are its own."""
    if trained.step is not None:
        return [prediction.label for prediction in found]
    ids = match_categories(trained, data.annotations.categories)
    place = {category.id: number for number, category in enumerate(data.annotations.categories)}
    return [None if (own := ids[prediction.label]) is None else place.get(own) for prediction in found]


def collect(scored: Sequence[ScoredDetection], names: tuple[str, ...], seed: int) -> Scores:
    """The scores of all detections, in arrays."""
    values = {
        measure: np.array([[one.scores[name][measure] for name in names] for one in scored]) for measure in MEASURES
    }
    return Scores(names, BASELINES, values, np.array([one.image_id for one in scored]), seed)


def mean_curves(scored: Sequence[ScoredDetection], names: tuple[str, ...]) -> dict[str, list[Curve]]:
    """Under "deletion" and "insertion", a curve for each name, over the image's shares in the mean."""
    return {
        kind: [
            Curve(
                np.mean([one.curves[name][kind].shares for one in scored], axis=0),
                np.mean([one.curves[name][kind].scores for one in scored], axis=0),
            )
            for name in names
        ]
        for kind in CURVES
    }


def run(options: ExplainEvalOptions) -> int:
    """``msdeform explain-eval``."""
    out = checked(options.out or default_folder(options.checkpoint, "explain-eval"))
    scored, about = judge(options)
    names = (*options.method_names, *BASELINES)
    scores = collect(scored, names, options.seed)
    matched = np.array([one.truth is not None for one in scored])
    parts = {f"{counted(matched.sum(), 'detection')}, matched to ground truth": matched} if matched.any() else {}
    if not matched.all():
        parts[f"all {counted(len(scored), 'detection')}, {matched.sum()} of them matched to ground truth"] = (
            np.ones_like(matched)
        )
    some = f"{about['images']} of {counted(about['of_images'], 'image')}"
    print(f"{about['model']}, {about['attn_backend']} on {about['device']}, {some}, {options.confidence} or better")
    print(f"{about['seconds_per_image']:.1f} s an image; means over detections, with 95% bootstrap intervals by image")
    for title, keep in parts.items():
        print("\n".join(("", title, *table(scores.of(keep)))))
    if options.randomise == "cascade":
        print("\nrank correlation with 1, 2, ... of the decoder's last layers randomised")
        for name in options.method_names:
            print(f"{name}: {', '.join(f'{mean:.3f}' for mean in np.mean([one.cascade[name] for one in scored], 0))}")
    title, keep = next(iter(parts.items()))
    print("\n".join(("", f"what beats what, over {title}:", *verdict(scores.of(keep)))))
    write_json(out / "scores.json", report(scored, scores, parts, about))
    chosen = [one for one, kept in zip(scored, keep, strict=True) if kept]
    curves = mean_curves(chosen, names)
    save_chart(out / "scores.png", scores.of(keep), curves, f"{about['model']}: {title}; 95% intervals")
    print(f"scores.json and scores.png in {out}")
    return 0


def report(
    scored: Sequence[ScoredDetection], scores: Scores, parts: dict[str, Array], about: dict[str, Any]
) -> dict[str, Any]:
    """All numbers; those that do not apply are null."""

    def plain(value: float) -> float | None:
        return None if np.isnan(value) else round(float(value), 6)

    def summary(part: Scores) -> dict[str, Any]:
        intervals = {name: {m: [plain(v) for v in part.interval(m, name)] for m in MEASURES} for name in part.names}
        gaps = {
            name: {
                other: {
                    m: [plain(v) for v in part.difference(m, name, other)] for m, it in MEASURES.items() if it.better
                }
                for other in part.baselines
            }
            for name in part.methods
        }
        return {"detections": len(part.images), "intervals": intervals, "differences": gaps}

    rows = [
        {
            "image_id": one.image_id,
            "query": one.prediction.query,
            "label": one.prediction.label,
            "name": one.prediction.name,
            "score": float(one.prediction.score),
            "box": [float(value) for value in one.prediction.box],
            "truth": None if one.truth is None else list(one.truth),
            "scores": {n: {m: plain(value) for m, value in of.items()} for n, of in one.scores.items()},
            "curves": {n: {k: [plain(v) for v in c.scores] for k, c in of.items()} for n, of in one.curves.items()},
            "rank_correlations": one.cascade,
        }
        for one in scored
    ]
    return {
        **about,
        "summary": {title: summary(scores.of(keep)) for title, keep in parts.items()},
        "shares": [(step / about["steps"]) ** 2 for step in range(about["steps"] + 1)],
        "detections": rows,
    }

"""Explanations of every detection of a data set, scored beside maps that explain nothing."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ... import __version__
from ...common.files import write_json
from ...common.progress import progress_bar
from ...common.text import counted
from ...models.families.detector import Detector
from ...models.inference.image_size import Size
from ...models.inference.images import normalise
from ...models.layers.boxes import match_boxes
from ..core.maps import heat_map
from ..core.trace import AttentionTrace, QueryPrediction
from ..options import ExplainEvalOptions
from ..workspace import DetectorOnData, trained_model, with_data
from . import measures
from .scores import MEASURES, Scores, plain, save_chart, table, verdict

BASELINES = ("random", "centre", "box")
CURVES: tuple[Literal["deletion", "insertion"], ...] = ("deletion", "insertion")


@dataclass(frozen=True)
class Evaluation:
    """What the methods' maps of detections are worth."""

    about: dict[str, Any]
    """The model, the data and the settings."""
    rows: list[dict[str, Any]]
    """Of each detection what ``scores.json`` has: the query's prediction, ``truth``, the box (xyxy) of the object that
    it is, None for a false detection, and by method or baseline ``scores`` by measure, ``curves``, deletion and
    insertion, and ``rank_correlations`` with 1, 2, ... layers randomised, or with the whole decoder alone."""
    parts: dict[str, Scores]
    """By title, of the detections that are matched to an object, and of all where some are not."""

    def summary(self) -> list[str]:
        """The lines to print."""
        title, first = next(iter(self.parts.items()))
        lines = [
            f"{self.about['seconds_per_image']:.1f} s an image; means over detections, with 95% bootstrap intervals by "
            "image"
        ]
        for name, scores in self.parts.items():
            lines += ["", name, *table(scores)]
        if len(self.about["decoder_layers_randomised"]) > 1:
            lines += ["", "rank correlation with 1, 2, ... of the decoder's last layers randomised"]
            for method in first.methods:
                means = np.mean([row["rank_correlations"][method] for row in self.rows], 0)
                lines.append(f"{method}: {', '.join(f'{mean:.3f}' for mean in means)}")
        return [*lines, "", f"what beats what, over {title}:", *verdict(first)]

    def write(self, folder: Path) -> None:
        """Writes all numbers, ``scores.json``, and their picture, ``scores.png``."""
        title, first = next(iter(self.parts.items()))
        steps = self.about["steps"]
        shares = [(step / steps) ** 2 for step in range(steps + 1)]
        summary = {name: scores.summary() for name, scores in self.parts.items()}
        write_json(
            folder / "scores.json", {**self.about, "summary": summary, "shares": shares, "detections": self.rows}
        )
        chosen = [row["curves"] for row in self.rows if row["truth"] is not None] or [
            row["curves"] for row in self.rows
        ]
        curves = {kind: np.mean([[of[name][kind] for name in first.names] for of in chosen], 0) for kind in CURVES}
        save_chart(folder / "scores.png", first, shares, curves, f"{self.about['model']}: {title}; 95% intervals")


def evaluate(options: ExplainEvalOptions) -> Evaluation:
    """Scores of every detection of a data set.

    Raises:
        FileNotFoundError, ValueError: as `msdeform eval`; or nothing was detected, or the model is no DETR.
    """
    trained = trained_model(options)
    layers = len(measures.decoder_layers(trained.model))
    detector = with_data(trained, options)
    print(f"{detector}, {options.confidence} or better")
    depths = {"none": [], "whole": [layers], "cascade": list(range(1, layers + 1))}[options.randomise]
    scrambled = [measures.randomised(trained.model, layers=depth, seed=options.seed) for depth in depths]
    rows: list[dict[str, Any]] = []
    start, images = time.perf_counter(), len(detector.data)
    with progress_bar("judging", images, shown=options.progress) as advance:
        for place in detector.data.rows.tolist():
            rows += _of_image(detector, scrambled, place, options)
            advance()
    if not rows:
        raise ValueError(
            f"confidence: no detection of at least {options.confidence} in {images} images; lower it to judge more"
        )
    about = {
        **detector.about,
        "attn_backend": trained.attn_backend,
        "device": str(trained.device),
        "seconds_per_image": (time.perf_counter() - start) / images,
        "decoder_layers_randomised": depths,
        **{name: getattr(options, name) for name in ("confidence", "steps", "fill", "seed")},
        "msdeform": __version__,
    }
    names = (*options.method_names, *BASELINES)
    values = {
        measure: np.array([[row["scores"][name][measure] for name in names] for row in rows], dtype=float)
        for measure in MEASURES
    }
    scores = Scores(names, BASELINES, values, np.array([row["image_id"] for row in rows]), options.seed)
    matched = np.array([row["truth"] is not None for row in rows])
    parts = {f"{counted(matched.sum(), 'detection')}, matched to ground truth": matched} if matched.any() else {}
    if not matched.all():
        parts[f"all {counted(len(rows), 'detection')}, {matched.sum()} of them matched to ground truth"] = matched >= 0
    return Evaluation(about, rows, {title: scores.of(keep) for title, keep in parts.items()})


def _of_image(
    detector: DetectorOnData, scrambled: Sequence[Detector], place: int, options: ExplainEvalOptions
) -> Iterator[dict[str, Any]]:
    """Rows of every detection of one image, `place` in the annotations."""
    data, model = detector.data, detector.trained.model
    image_id = int(data.annotations.images.ids[place])
    trace = AttentionTrace(model, data.pixels(place), size=detector.size)
    found = trace.detections(options.confidence)
    if not found:
        return
    others = [AttentionTrace(other, trace.image, size=detector.size) for other in scrambled]
    shape = (trace.image.shape[1], trace.image.shape[2])
    own = slice(data.annotations.first[place], data.annotations.first[place + 1])
    truths, classes = data.annotations.boxes[own], data.annotations.labels[own]
    # the detections' classes as the data number them
    known: dict[int | None, int] = {one.id: number for number, one in enumerate(data.annotations.categories)}
    labels = torch.tensor([known.get(detector.category_ids[one.label], -1) for one in found])
    boxes = torch.tensor([one.box for one in found])
    matches = match_boxes(boxes, labels, torch.from_numpy(truths), torch.from_numpy(classes))
    baseline = measures.filled(trace.image, options.fill)
    for prediction, match in zip(found, matches, strict=True):
        generator = np.random.default_rng([options.seed, image_id, prediction.query])
        maps = {name: heat_map(trace, prediction, name).cpu().numpy() for name in options.method_names}
        correlations = {
            name: [
                measures.rank_correlation(heat, heat_map(other, same, name).cpu().numpy())
                for other in others
                for same in [other.prediction(prediction.query, prediction.label)]
            ]
            for name, heat in maps.items()
        }
        maps["random"], maps["centre"] = generator.random(shape), measures.centre_map(shape)
        maps["box"] = measures.box_map(shape, prediction.box)
        box = prediction.box if match is None else truths[match]
        rest = [other for number, other in enumerate(truths) if number != match]
        score = scorer(model, detector.size, shape, prediction)
        settings: dict[str, Any] = {name: getattr(options, name) for name in ("steps", "batch_size", "seed")}
        scores: dict[str, dict[str, float | None]] = {}
        curves: dict[str, dict[str, list[float | None]]] = {}
        for name, heat in maps.items():
            both = {
                kind: measures.perturbation_curve(score, trace.image, heat, kind, baseline=baseline, **settings)
                for kind in CURVES
            }
            of_map = {
                **{kind: curve.auc for kind, curve in both.items()},
                "pointing": measures.pointing(heat, measures.inside(box, shape)),
                "energy": measures.energy(heat, measures.inside(box, shape)),
                "elsewhere": measures.energy_elsewhere(heat, box, rest) if rest else np.nan,
                "compactness": measures.compactness(heat),
                "randomised": correlations[name][-1] if correlations.get(name) else np.nan,
            }
            scores[name] = {measure: plain(value) for measure, value in of_map.items()}
            curves[name] = {kind: [plain(value) for value in curve.scores] for kind, curve in both.items()}
        yield {
            "image_id": image_id,
            **{name: getattr(prediction, name) for name in ("query", "label", "name", "score")},
            "box": list(prediction.box),
            "truth": None if match is None else truths[match].tolist(),
            "scores": scores,
            "curves": curves,
            "rank_correlations": correlations,
        }


def scorer(
    model: Detector, size: Size, shape: tuple[int, int], prediction: QueryPrediction
) -> Callable[[Tensor], Tensor]:
    """A function of images (B, 3, H, W) uint8 that gives what is left of a detection in each, (B,)."""
    like = next(model.parameters())
    box = [side / length for side, length in zip(prediction.box, (shape[1], shape[0]) * 2, strict=True)]

    @torch.no_grad()
    def score(images: Tensor) -> Tensor:
        inputs = normalise(F.resize(images.to(like.device), list(size.fit(*shape)), antialias=True)).to(like.dtype)
        return measures.detection_score(*measures.probabilities_and_boxes(model, model(inputs)), box, prediction.label)

    return score

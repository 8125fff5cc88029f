"""Explanations of every detection of a data set, scored beside maps that explain nothing."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ... import __version__
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
from .randomisation import decoder_layers, randomised, rank_correlation
from .scores import plain, summarise

BASELINES = ("random", "centre", "box")


def evaluate(options: ExplainEvalOptions) -> dict[str, Any]:
    """Scores of every detection of a data set, as ``scores.json`` has them.

    ``detections`` has for each its query's prediction, ``truth``, the box (xyxy) of the object that it is, None for a
    false one, and by method or baseline ``scores`` by measure and ``curves`` of deletion and insertion over ``shares``
    of the pixels; ``rank_correlations``, by method, with 1, 2, ... layers randomised or with the whole decoder.
    ``summary`` has what `summarise` says of the detections that are matched to an object, and of all where some are
    not.

    Raises:
        FileNotFoundError, ValueError: as `msdeform eval`; or nothing was detected, or the model is no DETR.
    """
    trained = trained_model(options)
    layers = len(decoder_layers(trained.model))
    detector = with_data(trained, options)
    print(f"{detector}, {options.confidence} or better")
    depths = {"none": [], "whole": [layers], "cascade": list(range(1, layers + 1))}[options.randomise]
    scrambled = [randomised(trained.model, layers=depth, seed=options.seed) for depth in depths]
    rows: list[dict[str, Any]] = []
    start, images = time.perf_counter(), len(detector.data)
    with progress_bar("scoring", images, shown=options.progress) as advance:
        for place in detector.data.rows.tolist():
            rows += _of_image(detector, scrambled, place, options)
            advance()
    if not rows:
        raise ValueError(
            f"confidence: no detection of at least {options.confidence} in {images} images; lower it to judge more"
        )
    matched = [row for row in rows if row["truth"] is not None]
    parts = {f"{counted(len(matched), 'detection')}, matched to ground truth": matched} if matched else {}
    if len(matched) < len(rows):
        parts[f"all {counted(len(rows), 'detection')}, {len(matched)} of them matched to ground truth"] = rows
    return {
        **detector.about,
        "attn_backend": trained.attn_backend,
        "device": str(trained.device),
        "seconds_per_image": (time.perf_counter() - start) / images,
        "decoder_layers_randomised": depths,
        **{name: getattr(options, name) for name in ("confidence", "steps", "fill", "seed")},
        "msdeform": __version__,
        "summary": {title: summarise(part, BASELINES, options.seed) for title, part in parts.items()},
        "shares": [(step / options.steps) ** 2 for step in range(options.steps + 1)],
        "detections": rows,
    }


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
    settings: dict[str, Any] = {name: getattr(options, name) for name in ("steps", "batch_size", "seed")}
    for prediction, match in zip(found, matches, strict=True):
        generator = np.random.default_rng([options.seed, image_id, prediction.query])
        maps = {name: heat_map(trace, prediction, name).cpu().numpy() for name in options.method_names}
        correlations = {
            name: [
                rank_correlation(heat, heat_map(other, same, name).cpu().numpy())
                for other in others
                for same in [other.prediction(prediction.query, prediction.label)]
            ]
            for name, heat in maps.items()
        }
        maps["random"] = generator.random(shape)
        # where photographers put things; and what one knows of the detection without looking inside the model
        maps["centre"] = measures.box_map(shape, (0, 0, shape[1], shape[0]))
        maps["box"] = measures.box_map(shape, prediction.box)
        box = prediction.box if match is None else truths[match]
        region = measures.inside(box, shape)
        rest = [other for number, other in enumerate(truths) if number != match]
        score = scorer(model, detector.size, shape, prediction)
        row: dict[str, Any] = {
            "image_id": image_id,
            **{name: getattr(prediction, name) for name in ("query", "label", "name", "score")},
            "box": list(prediction.box),
            "truth": None if match is None else truths[match].tolist(),
            "scores": {},
            "curves": {},
            "rank_correlations": correlations,
        }
        for name, heat in maps.items():
            both = (score, trace.image, heat)
            deletion = measures.perturbation_curve(*both, "deletion", baseline=baseline, **settings)
            insertion = measures.perturbation_curve(*both, "insertion", baseline=baseline, **settings)
            of_map = {
                "deletion": deletion.auc,
                "insertion": insertion.auc,
                "pointing": measures.pointing(heat, region),
                "energy": measures.energy(heat, region),
                "elsewhere": measures.energy_elsewhere(heat, box, rest) if rest else np.nan,
                "compactness": measures.compactness(heat),
                "randomised": correlations[name][-1] if correlations.get(name) else np.nan,
            }
            row["scores"][name] = {measure: plain(value) for measure, value in of_map.items()}
            curves = {"deletion": deletion.scores, "insertion": insertion.scores}
            row["curves"][name] = {kind: [plain(value) for value in curve] for kind, curve in curves.items()}
        yield row


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

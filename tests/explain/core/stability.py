"""Why one head off can multiply a relevance map: is it the method, or the model?

    python -m tests.explain.core.stability WEIGHTS IMAGES [LIMIT [CONFIDENCE]]

WEIGHTS is a run's folder or a folder of transformers, IMAGES a folder. Of the two surest detections of each of the
first LIMIT images, every head of the decoder's cross-attention is off in turn, in all layers; the ratio after / before
is taken of

    relevance   the total of the map
    kept        the sum of (A * G)+ over the queries' cross-attention: what the rules begin with
    steepness   the norm of dy/d(output of the heads) of the query, added up over layers
    effect      y less y with all cross-attention off: what the decoder takes from the image, measured
    logit       y itself, as a difference

and of each the spread is printed, with its rank correlation with that of the relevance. ``overlap`` is the share of the
map that stays where it was, both scaled to a total of 1.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from msdeform.explain.core.completeness import CROSS, completeness
from msdeform.explain.core.maps import token_map
from msdeform.explain.core.masks import Mask
from msdeform.explain.core.trace import AttentionTrace, QueryPrediction
from msdeform.explain.options import AnyDetectorOptions, of_transformers
from msdeform.explain.workspace import any_trained_model


def sizes(trace: AttentionTrace, prediction: QueryPrediction) -> dict[str, Any]:
    """What the ratios are of, and the map (S,)."""
    gradients = trace.gradients(prediction, heads=True)
    heat = token_map(trace, prediction, "relevance")
    slopes = [float(found.heads[0, prediction.query].norm()) for found in gradients.values() if found.heads is not None]
    (together,) = completeness(trace, prediction, patterns=[CROSS])
    return {
        "relevance": float(heat.sum()),
        "kept": together.kept,
        "steepness": sum(slopes),
        "effect": abs(together.change or 0.0),
        "logit": float(trace.y(prediction).detach()),
        "map": heat / heat.sum(),
    }


def main(weights: str, images: str, limit: int = 20, confidence: float = 0.5) -> None:
    torch.set_num_threads(1)
    where = {"model": weights} if of_transformers(weights) else {"checkpoint": Path(weights)}
    model = any_trained_model(AnyDetectorOptions(**where)).model
    ratios: dict[str, list[float]] = {name: [] for name in ("relevance", "kept", "steepness", "effect")}
    logits, overlaps, detections = [], [], 0
    for path in sorted(Path(images).glob("*.jpg"))[:limit]:
        trace = AttentionTrace(model, path)
        for prediction in trace.detections(confidence)[:2]:
            before, detections = sizes(trace, prediction), detections + 1
            for head in range(trace.sites[trace.cross_sites[0]].heads):
                masked = AttentionTrace(model, path, masks=[Mask(CROSS, heads=(head,))])
                after = sizes(masked, masked.prediction(prediction.query, prediction.label))
                for name, values in ratios.items():
                    values.append(after[name] / before[name])
                logits.append(after["logit"] - before["logit"])
                overlaps.append(float(torch.minimum(before["map"], after["map"]).sum()))
    print(f"{detections} detections, {len(overlaps)} heads off")
    print(f"{'ratio':12}{'5%':>8}{'50%':>8}{'95%':>8}{'most':>8}   rank correlation with relevance's")
    for name, values in ratios.items():
        low, middle, high = np.percentile(values, [5, 50, 95])
        order = spearmanr(values, ratios["relevance"]).statistic
        print(f"{name:12}{low:8.2f}{middle:8.2f}{high:8.2f}{max(values):8.2f}   {order:.2f}")
    print(f"{'logit':12}" + "".join(f"{value:+8.2f}" for value in np.percentile(logits, [5, 50, 95])))
    print(f"{'overlap':12}" + "".join(f"{value:8.2f}" for value in np.percentile(overlaps, [5, 50, 95])))
    extreme = int(np.argmax(ratios["relevance"]))
    shown = ", ".join(f"{name} x{values[extreme]:.1f}" for name, values in ratios.items())
    print(f"the largest: {shown}, logit {logits[extreme]:+.2f}, overlap {overlaps[extreme]:.2f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:4]), *map(float, sys.argv[4:5]))

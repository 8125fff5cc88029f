"""Two detectors on the same images: is one better, or would other images have said the opposite?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .coco_metrics import ClassMetrics
from .resampling import Change, change, changes, mean_metrics


def compare(first: np.ndarray, second: np.ndarray, classes: Sequence[ClassMetrics]) -> dict[str, Any]:
    """The change from A to B of AP, AP50 and AP by size, and of every class's AP and AP50, ready for JSON.

    The interval of a change is of paired resamples: both detectors are measured on the same drawn images, so what makes
    an image hard for both cancels.

    Args:
        first, second: of `analysis.resampled_precisions` for A and B, on the same images and annotations.
        classes: of the data set, in the order of their ids.
    """
    return {
        "metrics": changes(mean_metrics(first), mean_metrics(second)),
        "classes": [
            {
                "name": kind.name,
                "boxes": kind.boxes,
                **{
                    name: change(mean_metrics(first[label, None])[name], mean_metrics(second[label, None])[name])
                    for name in ("AP", "AP50")
                },
            }
            for label, kind in enumerate(classes)
        ],
    }


def better(one: Change) -> str | None:
    """``A`` or ``B``, whichever the whole interval says is better; None where it has zero in it."""
    low, high = one["low"], one["high"]
    if low is None or high is None or low <= 0 <= high:
        return None
    return "B" if low > 0 else "A"


def verdict(one: Change, metric: str = "AP") -> str:
    """In words: which is better and by how much, or that no difference can be told."""
    difference, low, high = one["change"], one["low"], one["high"]
    if difference is None:
        return f"nothing is annotated, so there is no {metric}"
    if low is None or high is None:
        return f"B - A is {difference:+.3f} {metric}, of too few images for an interval"
    winner = better(one)
    if winner is None:
        return f"no difference can be told: B - A is {difference:+.3f} {metric} (95%: {low:+.3f} to {high:+.3f})"
    ends = sorted((abs(low), abs(high)))
    return f"{winner} is better by {abs(difference):.3f} {metric} (95%: {ends[0]:.3f} to {ends[1]:.3f})"


def comparison_table(compared: dict[str, Any]) -> str:
    """A line for each metric, then for each class's AP, its boxes beside it: A, B, the difference and who is better."""
    rows: list[tuple[str, str, Change]] = [(name, "", one) for name, one in compared["metrics"].items()]
    rows += [(kind["name"], str(kind["boxes"]), kind["AP"]) for kind in compared["classes"]]
    width = max(len("AP of class"), *(len(name) for name, _, _ in rows))
    heading = f"{'boxes':>7}  {'A':>5}  {'B':>5}  {'B - A':>6}  {'95% interval':>16}  better"
    lines = [f"{'':<{width}}  {heading}"]
    for number, (name, boxes, one) in enumerate(rows):
        if number == len(compared["metrics"]):
            lines.append("AP of class")
        if one["change"] is None:
            lines.append(f"{name:<{width}}  {boxes:>7}  {'-':>5}  {'-':>5}  {'-':>6}  {'-':>16}")
            continue
        between = "-" if one["low"] is None else f"{one['low']:+.3f} to {one['high']:+.3f}"
        values = f"{one['before']:>5.3f}  {one['after']:>5.3f}  {one['change']:>+6.3f}  {between:>16}"
        lines.append(f"{name:<{width}}  {boxes:>7}  {values}  {better(one) or ''}".rstrip())
    return "\n".join(lines)

"""What every attention adds to a target: what relevance keeps of it and loses, beside what is lost without it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..core.completeness import CROSS, Contribution, completeness
from ..core.trace import AttentionTrace, QueryPrediction
from .drawing import Drawing, headline, in_words, target_in_words, told

_SIDES = {"x": "width", "w": "width", "y": "height", "h": "height"}
_KEPT, _LOST = "#2b7bba", "#e08214"


def draw_contributions(
    trace: AttentionTrace, prediction: QueryPrediction, target: str = "class", *, image: str = ""
) -> Drawing:
    """For each attention a bar of what relevance keeps and one of what it drops, their sum, and the measured change.

    Returns the drawing; numbers ``kept``, ``lost`` and ``change`` (NaN where it cannot be measured), (attentions + 1,),
    and their ``sites``; the last is the decoder's cross-attentions together. Errors as of `completeness`.
    """
    found = completeness(trace, prediction, target)
    numbers = {
        "sites": np.array([one.sites for one in found]),
        "kept": np.array([one.kept for one in found]),
        "lost": np.array([one.lost for one in found]),
        "change": np.array([np.nan if one.change is None else one.change for one in found]),
    }
    figure = Figure(figsize=(8.5, 1.95 + 0.27 * len(found)))
    figure.set_layout_engine(ConstrainedLayoutEngine())
    axes = figure.subplots()
    places = np.arange(len(found))
    axes.barh(places, numbers["kept"], 0.62, color=_KEPT, label="positive part: relevance keeps it")
    axes.barh(places, numbers["lost"], 0.62, color=_LOST, label="negative part: relevance drops it")
    mark: dict[str, Any] = {"marker": "D", "linestyle": "", "markersize": 5, "markeredgecolor": "black"}
    summed, without = "sum of both", "measured: the target falls by this without it"
    axes.plot(numbers["kept"] + numbers["lost"], places, **mark, markerfacecolor="white", label=summed)
    axes.plot(numbers["change"], places, **mark, markerfacecolor="black", label=without)
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_yticks(places, _names(found), fontsize=8)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(
        f"logit of {prediction.name}" if target == "class" else f"share of the image's {_SIDES[target]}", fontsize=8
    )
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    headline(figure, told(prediction, image), f"what each attention adds to {target_in_words(target, prediction)}")
    return Drawing(figure, numbers)


def _names(found: Sequence[Contribution]) -> list[str]:
    return ["all of the decoder's cross-attention" if one.sites == CROSS else in_words(one.sites) for one in found]

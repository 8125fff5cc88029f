"""Charts of an evaluation as SVG for a page, in the colour of its text, so that they suit light and dark alike."""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..evaluation.analysis import Analysis
from ..evaluation.thresholds import BINS, Curve
from .charts import COLOURS, as_written, dress, new_figure

MOST_COLOURS = len(COLOURS)
"""More classes than this are drawn in grey."""

# stands for the colour of the page's text until the figure is written
_INK = "#010203"
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "grid.color": _INK,
    "axes.titlecolor": _INK,
    "axes.facecolor": "none",
    "legend.framealpha": 0,
    "svg.fonttype": "none",
}
_SIZE = (4.6, 3.6)


def charts(analysis: Analysis) -> dict[str, str]:
    """SVG elements by name: ``precision-recall``, ``f1``, ``precision``, ``recall`` and ``calibration``."""

    def over_confidence(name: str) -> Callable[[Any], None]:
        return lambda axes: _over_confidence(axes, analysis, name)

    drawn = {name: _svg(name, over_confidence(name)) for name in ("f1", "precision", "recall")}
    return {
        "precision-recall": _svg("precision-recall", lambda axes: _precision_recall(axes, analysis)),
        **drawn,
        "calibration": _svg("calibration", lambda axes: _calibration(axes, analysis)),
    }


def _svg(name: str, draw: Callable[[Any], None]) -> str:
    """What draws on axes, as an SVG element without size or colours of its own for what is text or lines."""
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the page's reader brings the letters, and not this font
        figure = new_figure(*_SIZE)
        draw(figure.add_subplot())
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()
    svg = re.sub("<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace(_INK, "currentColor")
    # several elements of one page would share these names otherwise
    return svg.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')


def _lines(axes: Any, analysis: Analysis, draw: Callable[[Curve, dict[str, Any]], None]) -> None:
    """Draws the curve of every class that has objects, and that of all."""
    named = len(analysis.names) <= MOST_COLOURS
    counts = analysis.matches.object_counts
    for label, (name, of) in enumerate(zip(analysis.names, analysis.curves, strict=True)):
        if counts[label]:
            colour = _INK if COLOURS[label % MOST_COLOURS] == "#000000" else COLOURS[label % MOST_COLOURS]
            style = {"color": "0.6", "linewidth": 0.6}
            if named:
                style = {"color": colour, "linewidth": 1.4, "label": as_written(name)}
            draw(of, style)
    several = int((counts > 0).sum()) > 1
    if several:
        draw(analysis.overall, {"color": _INK, "linewidth": 2.4, "label": "all classes"})
    if named or several:
        axes.legend(fontsize=8, loc="best")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))


def _over_confidence(axes: Any, analysis: Analysis, name: str) -> None:
    def draw(of: Curve, style: dict[str, Any]) -> None:
        values = getattr(of, name)
        # between two scores the value is that of the higher: no detection comes in between
        ends = [0.0 if name != "precision" else np.nan, *values]
        axes.step([1.0, *of.scores], ends, where="post", **style)
        axes.step([of.scores[-1] if len(of.scores) else 1.0, 0.0], [ends[-1]] * 2, **{**style, "label": None})
        best = int(of.f1.argmax()) if of.f1.any() else None
        if name == "f1" and best is not None:
            axes.plot(of.scores[best], values[best], "o", color=style["color"], markersize=2 + 2 * style["linewidth"])

    _lines(axes, analysis, draw)
    title = {"f1": "F1", "precision": "Precision", "recall": "Recall"}[name]
    dress(axes, f"{title} over confidence", "least score of a detection", title)


def _precision_recall(axes: Any, analysis: Analysis) -> None:
    def draw(of: Curve, style: dict[str, Any]) -> None:
        axes.plot([0, *of.recall], [of.precision[0] if len(of.precision) else 0, *of.precision], **style)

    _lines(axes, analysis, draw)
    dress(axes, "Precision over recall", "recall: share of the objects found", "precision: share that is right")


def _calibration(axes: Any, analysis: Analysis) -> None:
    found = analysis.calibration
    centres = (np.arange(BINS) + 0.5) / BINS
    axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle="--", label="as sure as right")
    axes.bar(centres, np.nan_to_num(found.precision), width=0.9 / BINS, color=COLOURS[0], alpha=0.75, label="right")
    for centre, count in zip(centres, found.counts.tolist(), strict=True):
        if count:
            axes.text(centre, 0.02, f"{count}", ha="center", fontsize=7)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=8, loc="upper left")
    dress(axes, "Are scores probabilities?", "score of a detection", "share that is right", grid="none")

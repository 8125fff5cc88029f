"""The names of boxes in a matplotlib picture, placed when it is drawn: then the sizes of texts and axes are known."""

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.text import Text

from ...train.visual.label_placement import Rectangle, lead, place_labels

_PAD = 1.5
"""Points."""


class BoxLabels(Artist):
    """All names in one pair of axes; none covers another, and none leaves the picture (`labels.place_labels`).

    The last one added is placed first. A name that has no room left is left out; so is that of a box out of view. One
    that stands apart from its box is joined to it by a line.
    """

    def __init__(self) -> None:
        super().__init__()
        self._named: list[tuple[Sequence[float], str, Any]] = []
        self.placed: list[Rectangle] = []
        """Of the last drawing, in its pixels, with y downwards from 0 at the figure's lower edge."""
        self.set_zorder(6)
        self.set_in_layout(False)

    def add(self, box: Sequence[float], name: str, colour: Any) -> None:
        """A box's name; the box is xyxy in the units of the axes."""
        self._named.append((box, name, colour))

    def draw(self, renderer: Any) -> None:
        axes: Any = self.axes
        pad = renderer.points_to_pixels(_PAD)
        view = axes.get_window_extent(renderer)
        texts, boxes, sizes = list[Any](), list[Rectangle](), list[tuple[float, float]]()
        for box, name, colour in reversed(self._named):
            (x0, y0), (x1, y1) = axes.transData.transform([box[:2], box[2:]])
            if x0 > view.x1 or x1 < view.x0 or y1 > view.y1 or y0 < view.y0:
                continue
            red, green, blue = to_rgb(colour)
            ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.45 else "white"
            text = Text(0, 0, name, fontsize=9, color=ink, va="bottom")
            text.set_figure(self.figure)
            area = text.get_window_extent(renderer)
            text.set_bbox({"facecolor": colour, "edgecolor": "none", "pad": _PAD})
            texts.append(text)
            boxes.append((x0, -y0, x1, -y1))
            sizes.append((area.width + 2 * pad, area.height + 2 * pad))
        labels = place_labels(boxes, sizes, (view.x0, -view.y1, view.x1, -view.y0))
        placed = [
            (label, box, text) for label, box, text in zip(labels, boxes, texts, strict=True) if label is not None
        ]
        self.placed = [label for label, *_ in placed]
        for label, box, text in placed:
            if (line := lead(label, box)) is not None:
                joined = Line2D(line[::2], [-line[1], -line[3]], color=text.get_bbox_patch().get_fc(), linewidth=0.8)
                joined.set_figure(self.figure)
                joined.draw(renderer)
        for (x0, _, _, y1), _, text in placed:
            text.set_position((x0 + pad, -y1 + pad))
            text.draw(renderer)

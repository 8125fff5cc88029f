"""The names of boxes in a matplotlib picture, placed when it is drawn: then the sizes of texts and axes are known."""

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from ...train.visual.label_placement import Rectangle as Corners
from ...train.visual.label_placement import lead, place_labels

_FONT, _PAD = 8.0, 1.5
"""Points."""


class BoxLabels(Artist):
    """All names in one pair of axes; none covers another, and none leaves the picture (`labels.place_labels`).

    The last one added is placed first. A name that has no room left is left out; so is that of a box out of view. One
    that stands apart from its box is joined to it by a line.
    """

    def __init__(self) -> None:
        super().__init__()
        self._named: list[tuple[Sequence[float], str, Any]] = []
        self.placed: list[Corners] = []
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
        picture = (view.x0, -view.y1, view.x1, -view.y0)
        shown, boxes, sizes = [], [], []
        for box, name, colour in reversed(self._named):
            (x0, y0), (x1, y1) = axes.transData.transform([box[:2], box[2:]])
            if x0 > view.x1 or x1 < view.x0 or y1 > view.y1 or y0 < view.y0:
                continue
            text = Text(0, 0, name, fontsize=_FONT, color=readable_on(colour), va="bottom")
            text.set_figure(self.figure)
            area = text.get_window_extent(renderer)
            shown.append((text, colour))
            boxes.append((x0, -y0, x1, -y1))
            sizes.append((area.width + 2 * pad, area.height + 2 * pad))
        labels = place_labels(boxes, sizes, picture)
        self.placed = [label for label in labels if label is not None]
        for label, box, (_, colour) in zip(labels, boxes, shown, strict=True):
            if label is not None and (line := lead(label, box)) is not None:
                self._draw(Line2D(line[::2], [-line[1], -line[3]], color=colour, linewidth=0.8), renderer)
        for label, (text, colour) in zip(labels, shown, strict=True):
            if label is not None:
                x0, y0, x1, y1 = label
                self._draw(Rectangle((x0, -y1), x1 - x0, y1 - y0, facecolor=colour, edgecolor="none"), renderer)
                text.set_position((x0 + pad, -y1 + pad))
                text.draw(renderer)

    def _draw(self, artist: Any, renderer: Any) -> None:
        artist.set_figure(self.figure)
        artist.draw(renderer)


def readable_on(colour: Any) -> str:
    """Black or white, whichever stands out."""
    red, green, blue = to_rgb(colour)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.45 else "white"

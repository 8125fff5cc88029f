"""What all pictures share: the sheet, colours, and a few shapes."""

import contextlib
import importlib
import io
from collections.abc import Callable
from types import ModuleType

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path

INK, MUTED, LINE = "#1f2937", "#6b7280", "#94a3b8"
BLUE, ORANGE, GREEN, VIOLET, RED, GREY = "#2563eb", "#ea580c", "#059669", "#7c3aed", "#dc2626", "#cbd5e1"
PALE = {BLUE: "#dbeafe", ORANGE: "#ffedd5", GREEN: "#d1fae5", VIOLET: "#ede9fe", RED: "#fee2e2"}
WIDTH = 8.0  # inches

# a fixed salt names the parts of a file alike in every run; letters are drawn, as a reader may not have the font
plt.rcParams.update({"svg.hashsalt": "msdeform", "svg.fonttype": "path", "font.size": 10, "text.color": INK})


def canvas(height: float) -> Axes:
    """Axes in inches over a white sheet with round corners, which dark pages show, too."""
    figure = plt.figure(figsize=(WIDTH, height))
    figure.patch.set_alpha(0)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))  # y runs down, as rows do
    ax.axis("off")
    sheet = "round,pad=0,rounding_size=0.15"
    ax.add_patch(FancyBboxPatch((0.02, 0.02), WIDTH - 0.04, height - 0.04, sheet, fc="white", ec="none", zorder=-9))
    return ax


def box(
    ax: Axes, x: float, y: float, w: float, h: float, fill: str = "white", edge: str = LINE, width: float = 0.8
) -> None:
    ax.add_patch(Rectangle((x, y), w, h, fc=fill, ec=edge, lw=width))


def say(
    ax: Axes, x: float, y: float, text: str, color: str = INK, size: float = 10, ha: str = "center", **how: object
) -> None:
    ax.text(x, y, text, color=color, fontsize=size, ha=ha, va="center", **how)


def arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str = INK,
    width: float = 1.4,
    bend: float = 0.0,
) -> None:
    style = {"arrowstyle": "-|>", "color": color, "lw": width, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11}
    ax.annotate("", end, start, arrowprops=style | {"connectionstyle": f"arc3,rad={bend}"})


def cells(ax: Axes, x: float, y: float, w: float, h: float, columns: int, rows: int, color: str) -> None:
    """A rectangle divided by white lines: far fewer shapes than a rectangle for each cell."""
    box(ax, x, y, w, h, color, "none", 0)
    upright = [((x + w * k / columns, y), (x + w * k / columns, y + h)) for k in range(1, columns)]
    level = [((x, y + h * k / rows), (x + w, y + h * k / rows)) for k in range(1, rows)]
    ax.add_patch(PathPatch(Path.make_compound_path(*map(Path, upright + level)), ec="white", lw=1))


def squares(ax: Axes, corners: list[tuple[float, float]], side: float, color: str) -> None:
    """Squares of one colour, as one shape."""
    if corners:
        outlines = [[(x, y), (x + side, y), (x + side, y + side), (x, y + side), (x, y)] for x, y in corners]
        ax.add_patch(PathPatch(Path.make_compound_path(*map(Path, outlines)), fc=color, ec="none"))


def pixel_map(
    ax: Axes, x: float, y: float, cell: float, size: float = 8
) -> Callable[[float, float], tuple[float, float]]:
    """The map of step 1 with its corner at x, y; returns where a pixel's column and row are drawn."""
    for row in range(6):
        for column in range(8):
            box(ax, x + column * cell, y + row * cell, cell, cell)
            say(ax, x + (column + 0.5) * cell, y + (row + 0.5) * cell, f"{row}{column}", MUTED, size)
    return lambda column, row: (x + (column + 0.5) * cell, y + (row + 0.5) * cell)


def step(name: str) -> ModuleType:
    """A step, imported; what it prints is dropped."""
    with contextlib.redirect_stdout(io.StringIO()):
        return importlib.import_module(name)

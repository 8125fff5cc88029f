"""The objects of the synthetic data: outlines with names, drawn with soft edges.

An outline is a polygon (K, 2) of xy around the origin, of radius 1 before it is scaled, stretched and turned.
"""

import numpy as np
from PIL import Image, ImageDraw

Array = np.ndarray

# edges are drawn at this multiple of the image's resolution, then averaged down
SUPERSAMPLING = 4


def _ring(radii: list[float], start: float = -90.0) -> Array:
    """Corners at equal angles, at the given radii in turn."""
    angles = np.radians(start + 360.0 / len(radii) * np.arange(len(radii)))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.asarray(radii)[:, None]


def _cross(arm: float = 0.3) -> Array:
    quarter = np.array([[arm, -1.0], [arm, -arm], [1.0, -arm]])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, times) for times in range(4)])


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1) / 17.0


def _crescent() -> Array:
    outer = np.radians(np.linspace(40, 320, 28))
    inner = np.radians(np.linspace(300, 60, 20))
    rim = np.stack([np.cos(outer), np.sin(outer)], 1)
    bite = np.stack([0.28 + 0.8 * np.cos(inner), 0.8 * np.sin(inner)], 1)
    return np.concatenate([rim, bite])


def _arrow() -> Array:
    return np.array([[-1, -0.25], [0.1, -0.25], [0.1, -0.7], [1, 0], [0.1, 0.7], [0.1, 0.25], [-1, 0.25]])


# the first five are the default; every one convex or star-like enough to be told apart at twelve pixels
CLASSES: dict[str, Array] = {
    "disc": _ring([1.0] * 40),
    "square": _ring([1.0] * 4, start=-45.0),
    "triangle": _ring([1.0] * 3),
    "star": _ring([1.0, 0.4] * 5),
    "cross": _cross(),
    "heart": _heart(),
    "arrow": _arrow(),
    "crescent": _crescent(),
}

# drawn as clutter, never labelled, and never a class: open strokes come on top of these, see synth.py
DISTRACTORS: tuple[Array, ...] = (
    np.array([[-1, -1], [-0.4, -1], [-0.4, 0.4], [1, 0.4], [1, 1], [-1, 1]]),  # an L
    np.array([[-1.0, -0.12], [1.0, -0.12], [1.0, 0.12], [-1.0, 0.12]]),  # a bar
    np.array([[-1, -0.3], [0, 0.4], [1, -0.3], [1, 0.1], [0, 0.9], [-1, 0.1]]),  # a chevron
)


def place(outline: Array, centre: Array, radius: float, stretch: float, degrees: float) -> Array:
    """The outline in pixels: stretched along its own axis at constant area, turned, scaled and moved.

    Args:
        outline: (K, 2) around the origin.
        centre: (2,) xy in pixels.
        radius: pixels that 1 stands for.
        stretch: width over height.
        degrees: turn, clockwise as seen in the image.
    """
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    root = np.sqrt(stretch)
    return (outline * radius * np.array([root, 1 / root])) @ turn.T + centre


def coverage(polygon: Array, height: int, width: int) -> tuple[Array, tuple[slice, slice]]:
    """How much of each pixel the polygon covers.

    Args:
        polygon: (K, 2) xy in pixels, corners of pixel (0, 0) at 0 and 1.
        height, width: of the image.

    Returns:
        (h, w) float32 in [0, 1] over the window of the image that the polygon touches, and that window.
    """
    low = np.maximum(np.floor(polygon.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(polygon.max(0)).astype(int), [width, height])
    w, h = np.maximum(high - low, 1)
    canvas = Image.new("L", (int(w) * SUPERSAMPLING, int(h) * SUPERSAMPLING))
    # pillow's coordinates are pixel centres
    corners = (polygon - low) * SUPERSAMPLING - 0.5
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in corners], fill=255)
    alpha = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255.0
    return alpha, (slice(low[1], low[1] + h), slice(low[0], low[0] + w))

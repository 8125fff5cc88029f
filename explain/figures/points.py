"""Sampling points of deformable attention over the image."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.trace import AttentionTrace, QueryPrediction
from .drawing import (
    ALONE,
    BESIDE,
    Array,
    Drawing,
    around,
    array,
    canvas,
    chosen,
    colour_bar,
    colour_of,
    draw_box,
    headline,
    in_words,
    listed,
    outlined,
    root_scale,
    show_outside,
    target_in_words,
    told,
    zoom,
)

# of levels, the finest first
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
WEIGHT = "attention weight (square-root scale)"


def draw_points(
    trace: AttentionTrace,
    prediction: QueryPrediction,
    site: str,
    *,
    heads: Sequence[int] | None = None,
    levels: Sequence[int] | None = None,
    most: float = 1.0,
    slopes: str | None = None,
    image: str = "",
) -> Drawing:
    """The points that one query sampled: coloured and sized by weight, marked by level, with their reference and box.

    Args:
        trace: of a deformable detector.
        seen: whose query.
        site: of the decoder's cross-attention, such as ``decoder.5.cross``.
        heads, levels: those drawn; None for all.
        most: weight at the end of the colour scale, which starts at 0 and is the same in every picture. It goes with
            the square root: the weights of a head add up to 1 over all its points, most are some hundredths.
        slopes: of a target (`trace.TARGETS`), an arrow at each point: where it would raise the target, as long as it
            would raise it by a pixel. Weights tell how much a sample counts, not whether it is in the right place.
        image: the image's name, for the title.

    Returns:
        The drawing; numbers ``xy`` (H, L, P, 2), ``weights`` (H, L, P), ``reference`` (2,) or (4,) cxcywh, ``box``
        (4,), ``heads`` (H,), ``levels`` (L,): of those drawn; with `slopes`, ``slopes`` (H, L, P, 2): by a pixel.

    Raises:
        ValueError: the site is not known or attends to every key, or a head or level is out of range.
    """
    numbers = sampled(trace, prediction, site)
    if slopes is not None:
        numbers["slopes"] = array(trace.slopes(site, prediction, slopes))
    count, of_levels = numbers["weights"].shape[:2]
    head_numbers, level_numbers = chosen("head", heads, count, site), chosen("level", levels, of_levels, site)
    for name in {"xy", "weights", "slopes"} & numbers.keys():
        numbers[name] = numbers[name][head_numbers][:, level_numbers]
    numbers |= {"heads": array(head_numbers), "levels": array(level_numbers)}

    corners = numbers["box"].reshape(-1, 2)
    window = around(trace, np.concatenate([corners, reference_corners(numbers["reference"])]), margin=0.3)
    figure, [axes] = canvas(trace, 1, 1 if window is None else 2, largest=ALONE if window is None else BESIDE)
    norm = root_scale(most)
    far = show_outside(axes[0], trace, numbers["xy"][..., 0], numbers["xy"][..., 1])
    for number, one in enumerate(axes):
        draw_box(
            one,
            prediction.box,
            colour_of(prediction.label),
            name="" if number else f"{prediction.name} {prediction.score:.2f}",
        )
        scatter(one, numbers["xy"], numbers["weights"], norm, level_numbers)
        draw_reference(one, numbers["reference"])
        if slopes is not None:
            draw_slopes(one, numbers["xy"], numbers["slopes"])
    if window is not None:
        zoom(axes[1], window)
        axes[1].set_title("around the detection", fontsize=9, pad=4)
        axes[0].set_title("the whole image", fontsize=9, pad=4)
    colour_bar(figure, axes, norm, point_colours(), WEIGHT, beyond=bool((numbers["weights"] > most).any()))
    draw_key(figure, trace, level_numbers, boxed=len(numbers["reference"]) == 4)
    what = f"{in_words(site)}, {listed('head', head_numbers, count)}, {listed('level', level_numbers, of_levels)}"
    outside = f", {far} of them outside the picture" if far else ""
    arrows = "" if slopes is None else _arrows_in_words(trace, prediction, slopes, numbers["slopes"])
    headline(figure, told(prediction, image), f"{what}: {numbers['weights'].size} sampled points{outside}", arrows)
    return Drawing(figure, numbers)


def _arrows_in_words(trace: AttentionTrace, prediction: QueryPrediction, target: str, slopes: Array) -> str:
    """What the arrows of slopes mean; a coordinate of the box, which the model has in [0, 1], in pixels."""
    pixels = {"x": trace.width, "w": trace.width, "y": trace.height, "h": trace.height}
    longest = float(np.linalg.norm(slopes, axis=-1).max()) * pixels.get(target, 1)
    rises = f"by {longest:.2g} pixels" if target in pixels else f"its logit by {longest:.2g}"
    what = target_in_words(target, prediction)
    return (
        f"arrows: the direction in which moving a sampled point increases {what}, along the longest arrow "
        f"{rises} for each pixel that the point moves"
    )


def sampled(trace: AttentionTrace, prediction: QueryPrediction, site: str) -> dict[str, Array]:
    """What a query sampled at a site, and its box, as `draw_points` returns them.

    Raises ValueError for a site that is not known or attends to every key.
    """
    points = trace.points(site, prediction.query)
    return {
        "xy": array(points.xy),
        "weights": array(points.weights),
        "reference": array(points.reference),
        "box": array(prediction.box),
    }


def point_colours() -> Any:
    """From violet to yellow, without the darkest, which an image hides."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["plasma"](np.linspace(0.12, 1, 256)))


def scatter(axes: Any, xy: Array, weights: Array, norm: Any, levels: Sequence[int], *, largest: float = 110.0) -> None:
    """Points xy (H, L, P, 2) by weights (H, L, P), the heaviest on top, one collection a level.

    `largest`: area in square points of the weight at the end of the scale; a quarter of the weight has half of it.
    """
    for place, level in enumerate(levels):
        where, weight = xy[:, place].reshape(-1, 2), weights[:, place].reshape(-1)
        order = weight.argsort(kind="stable")
        share = norm(weight[order]).clip(0, 1)
        axes.scatter(
            *where[order].T,
            c=weight[order],
            s=largest * (0.08 + 0.92 * share),
            marker=MARKERS[level % len(MARKERS)],
            cmap=point_colours(),
            norm=norm,
            edgecolors="white",
            linewidths=0.3 + 0.3 * (largest > 60),
            zorder=4,
        )


def stack_references(references: Sequence[Array]) -> Array:
    """References (..., 2 or 4) of several layers, (N, ..., 4) with NaN for the size of points among boxes.

    A detector that refines boxes begins with points, unless it has two stages. Where all are points, (N, ..., 2).
    """
    most = max(reference.shape[-1] for reference in references)
    padded = np.full((len(references), *references[0].shape[:-1], most), np.nan, references[0].dtype)
    for one, reference in zip(padded, references, strict=True):
        one[..., : reference.shape[-1]] = reference
    return padded


def draw_slopes(axes: Any, xy: Array, slopes: Array) -> None:
    """Arrows from points xy (H, L, P, 2) along slopes (H, L, P, 2), the longest of 28 points (of 1/72 inch)."""
    where, arrow = xy.reshape(-1, 2), slopes.reshape(-1, 2)
    longest = float(np.linalg.norm(arrow, axis=-1).max())
    if longest == 0:
        return
    axes.quiver(
        *where.T,
        *(arrow / longest * 28 / 72).T,
        angles="xy",
        scale_units="inches",
        scale=1,
        width=1.6,
        units="dots",
        color="white",
        edgecolor="black",
        linewidth=0.4,
        headwidth=4,
        zorder=5,
    )


def reference_corners(reference: Array) -> Array:
    """Of a reference box its corners (2, 2), else the point (1, 2)."""
    if len(reference) == 2 or np.isnan(reference[2]):
        return reference[None, :2]
    return np.stack([reference[:2] - reference[2:] / 2, reference[:2] + reference[2:] / 2])


def draw_reference(axes: Any, reference: Array, *, size: float = 11.0) -> None:
    """Its middle as a cross and, of 4 coordinates, its box dotted."""
    axes.plot(
        *reference[:2],
        marker="+",
        markersize=size,
        markeredgewidth=1.6,
        color="white",
        linestyle="none",
        path_effects=outlined(1.6),
        zorder=5,
    )
    if len(reference_corners(reference)) == 2:
        draw_box(axes, reference_corners(reference).ravel().tolist(), "white", style=":", width=1.2)


def draw_key(
    figure: Any, trace: AttentionTrace, levels: Sequence[int], *, boxed: bool = False, place: str = "reference"
) -> None:
    """What each marker means, below the picture; `place` is what the cross marks, if anything."""
    from matplotlib.lines import Line2D

    def mark(marker: str, label: str, **rest: Any) -> Any:
        return Line2D([], [], marker=marker, linestyle="none", color="0.45", label=label, **rest)

    sizes = [trace.shapes[level] for level in levels]
    handles = [
        mark(MARKERS[level % len(MARKERS)], f"level {level} ({h} x {w})")
        for level, (h, w) in zip(levels, sizes, strict=True)
    ]
    if place:
        handles.append(mark("+", place, markersize=9, markeredgewidth=1.6))
    if boxed:
        handles.append(Line2D([], [], color="0.45", linestyle=":", label="reference box"))
    wide = figure.get_size_inches()[0] - 2
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(2, min(len(handles), int(wide / 1.35))),
        fontsize=8,
        frameon=False,
        handletextpad=0.3,
        columnspacing=1.4,
    )

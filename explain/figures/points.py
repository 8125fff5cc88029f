"""Sampling points of deformable attention over the image: of one layer, or split up into a grid."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap

from ..core.sites import in_range
from ..core.trace import AttentionTrace, QueryPrediction
from . import drawing
from .drawing import MARKERS, Array, Drawing, array

WEIGHT = "attention weight (square-root scale)"
By = Literal["layers x heads", "layers x levels", "heads x levels"]


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
        prediction: whose query.
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
    numbers = _sampled(trace, prediction, [site])
    if slopes is not None:
        numbers["slopes"] = array(trace.slopes(site, prediction, slopes))[None]
    count, of_levels = numbers["weights"].shape[1:3]
    head_numbers, level_numbers = _chosen("head", heads, count, site), _chosen("level", levels, of_levels, site)
    for name in {"xy", "weights", "slopes"} & numbers.keys():
        numbers[name] = numbers[name][0, head_numbers][:, level_numbers]
    numbers |= {"reference": numbers["reference"][0], "heads": array(head_numbers), "levels": array(level_numbers)}
    xy, weights, reference = numbers["xy"], numbers["weights"], numbers["reference"]

    window = drawing.around(trace, _corners(numbers), margin=0.3)
    titles = [""] if window is None else ["the whole image", "around the detection"]
    figure, [axes] = drawing.canvas(trace, 1, titles, largest=drawing.ALONE if window is None else drawing.BESIDE)
    norm = drawing.root_scale(most)
    far = drawing.show(axes[0], trace, xy)
    for number, one in enumerate(axes):
        drawing.draw_detection(one, prediction, named=number == 0)
        scatter(one, xy, weights, norm, level_numbers)
        _draw_reference(one, reference, numbers["box"])
        if slopes is not None and number == len(axes) - 1:
            _draw_slopes(one, xy, numbers["slopes"])
    if window is not None:
        drawing.show(axes[1], trace, xy, window)
    _explain_points(figure, axes, trace, numbers, norm, level_numbers)
    chosen = [_listed("head", head_numbers, count), _listed("level", level_numbers, of_levels)]
    which = ", ".join([drawing.in_words(site), *chosen])
    outside = f"; {far} of them outside the picture" if far else ""
    arrows = "" if slopes is None else _arrows_in_words(trace, prediction, slopes, numbers["slopes"])
    what = f"{which}: {_count(xy)} sampled points"
    see = f"large and bright where the weight is high{outside}"
    drawing.headline(figure, drawing.told(prediction, image), what, see, arrows)
    return Drawing(figure, numbers)


def draw_point_grid(
    trace: AttentionTrace,
    prediction: QueryPrediction,
    sites: Sequence[str],
    *,
    by: By = "layers x heads",
    most: float = 1.0,
    image: str = "",
) -> Drawing:
    """The points that one query sampled, as of `draw_points`, split up into a grid on one colour scale.

    Args:
        trace, prediction, most, image: as of `draw_points`.
        sites: the layers, in rows; "heads x levels" takes one.
        by: rows x columns.

    Returns:
        The drawing; numbers ``xy`` (N, H, L, P, 2), ``weights`` (N, H, L, P), ``reference`` (N, 2 or 4), as of
        `stack_references`, ``sites`` (N,), ``box`` (4,).

    Raises:
        ValueError: as of `draw_points`; no site, or too many; another `by`.
    """
    if by not in get_args(By):
        raise ValueError(f"by: expected {', '.join(get_args(By))}, got {by!r}")
    if not sites or (by == "heads x levels" and len(sites) > 1):
        expected = "one site" if by == "heads x levels" else "at least one site"
        raise ValueError(f"sites: expected {expected} for {by}, got {', '.join(sites) or 'none'}")
    numbers = _sampled(trace, prediction, sites)
    heads, levels = numbers["weights"].shape[1:3]
    names = {"layers": [drawing.layer_in_words(site) for site in sites]}
    names |= {"heads": [f"head {n}" for n in range(heads)], "levels": [f"level {n}" for n in range(levels)]}
    down, across = by.split(" x ")
    # points beyond it are counted: the image would be small beside them
    window = drawing.close_up(trace, _corners(numbers), margin=0.15) or (0, 0, trace.width, trace.height)
    figure, axes = drawing.canvas(trace, names[down], names[across], window=window)
    norm = drawing.root_scale(most)
    far = 0
    for (row, column), one in np.ndenumerate(axes):
        at = {down: row, across: column}
        layer = at.get("layers", 0)
        some_heads = [at["heads"]] if "heads" in at else range(heads)
        some_levels = [at["levels"]] if "levels" in at else range(levels)
        cell = np.ix_([layer], some_heads, some_levels)
        drawing.draw_detection(one, prediction, named=False, width=1.0)
        scatter(one, numbers["xy"][cell][0], numbers["weights"][cell][0], norm, some_levels, largest=70)
        _draw_reference(one, numbers["reference"][layer], numbers["box"], size=7)
        far = drawing.show(one, trace, numbers["xy"], window)
    _explain_points(figure, axes, trace, numbers, norm, range(levels))
    part = f"; {far} of {_count(numbers['xy'])} lie outside the picture" if far else ""
    where = f"{drawing.in_words(sites[0])}: " if by == "heads x levels" else ""
    drawing.headline(
        figure,
        drawing.told(prediction, image),
        f"{where}sampled points by {down} and {across}: large and bright where the weight is high{part}",
    )
    return Drawing(figure, numbers | {"sites": np.array(list(sites))})


def _sampled(trace: AttentionTrace, prediction: QueryPrediction, sites: Sequence[str]) -> dict[str, Array]:
    """What a query sampled at N sites, and its box, as `draw_point_grid` returns them."""
    points = [trace.points(site, prediction.query) for site in sites]
    return {
        "xy": np.stack([array(one.xy) for one in points]),
        "weights": np.stack([array(one.weights) for one in points]),
        "reference": stack_references([array(one.reference) for one in points]),
        "box": array(prediction.box),
    }


def _count(xy: Array) -> int:
    """How many points (..., 2) there are, without those that are NaN."""
    return int(np.isfinite(xy).all(-1).sum())


def _chosen(what: str, wanted: Sequence[int] | None, count: int, site: str) -> list[int]:
    """Those wanted, all when None. Raises ValueError for one that a site does not have."""
    return [in_range(number, count, what, f" at {site}") for number in (range(count) if wanted is None else wanted)]


def _listed(what: str, numbers: Sequence[int], count: int) -> str:
    """ "all heads", "head 3", "heads 0, 2"."""
    if len(numbers) == count:
        return f"all {what}s" if count > 1 else f"its one {what}"
    return f"{what}{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers))}"


def _arrows_in_words(trace: AttentionTrace, prediction: QueryPrediction, target: str, slopes: Array) -> str:
    """What the arrows of slopes mean; a coordinate of the box, which the model has in [0, 1], in pixels."""
    pixels = {"x": trace.width, "w": trace.width, "y": trace.height, "h": trace.height}
    longest = float(np.linalg.norm(slopes, axis=-1).max()) * pixels.get(target, 1)
    rises = f"by {longest:.2g} pixels" if target in pixels else f"its logit by {longest:.2g}"
    what = drawing.target_in_words(target, prediction)
    if not longest:
        return f"no arrows: {what} does not change with any of these points"
    return (
        f"arrows: where to move a point so that {what} rises; along the longest arrow {rises} a pixel "
        "(none below a quarter of that)"
    )


def _explain_points(
    figure: Any, axes: Array, trace: AttentionTrace, numbers: dict[str, Array], norm: Any, levels: Sequence[int]
) -> None:
    """The colour bar of the weights, and what each marker means, below the pictures."""
    drawing.colour_bar(figure, axes, norm, point_colours(), WEIGHT, beyond=bool((numbers["weights"] > norm.vmax).any()))
    boxes = (_reference_box(one) for one in np.atleast_2d(numbers["reference"]))
    apart = any(len(box) == 4 and _apart(box, numbers["box"]) for box in boxes)
    boxed = [drawing.mark("", "reference box", linestyle=":")] * apart
    drawing.show_key(figure, [*drawing.level_marks(trace, levels), drawing.mark("+", "reference"), *boxed])


def point_colours() -> ListedColormap:
    """From violet to yellow, without the darkest, which an image hides."""
    return ListedColormap(colormaps["plasma"](np.linspace(0.12, 1, 256)))


def scatter(axes: Any, xy: Array, weights: Array, norm: Any, levels: Sequence[int], *, largest: float = 110.0) -> None:
    """Points xy (H, L, P, 2) by weights (H, L, P), the heaviest on top, one collection a level.

    `largest`: area in square points of the weight at the end of the scale; a quarter of the weight has half of it.
    """
    for place, level in enumerate(levels):
        where, weight = xy[:, place].reshape(-1, 2), weights[:, place].reshape(-1)
        order = weight.argsort(kind="stable")
        sizes = largest * (0.08 + 0.92 * norm(weight[order]).clip(0, 1))
        edge = {"edgecolors": "white", "linewidths": 0.3 + 0.3 * (largest > 60), "zorder": 4}
        colour = {"cmap": point_colours(), "norm": norm, "marker": MARKERS[level % len(MARKERS)]}
        axes.scatter(*where[order].T, c=weight[order], s=sizes, **colour, **edge)


def stack_references(references: Sequence[Array]) -> Array:
    """References (..., 2 or 4) of several layers, (N, ..., 4) with NaN for the size of points among boxes.

    A detector that refines boxes begins with points, unless it has two stages. Where all are points, (N, ..., 2).
    """
    most = max(reference.shape[-1] for reference in references)
    padded = np.full((len(references), *references[0].shape[:-1], most), np.nan, references[0].dtype)
    for one, reference in zip(padded, references, strict=True):
        one[..., : reference.shape[-1]] = reference
    return padded


def _draw_slopes(axes: Any, xy: Array, slopes: Array) -> None:
    """Arrows from points xy (H, L, P, 2) along slopes (H, L, P, 2), the longest of 0.6 inches."""
    where, arrow = xy.reshape(-1, 2), slopes.reshape(-1, 2)
    length = np.linalg.norm(arrow, axis=-1)
    longest = float(length.max())
    if longest == 0:
        return
    where, arrow = where[length >= longest / 4], arrow[length >= longest / 4] / longest * 0.6
    scale: dict[str, Any] = {"angles": "xy", "scale_units": "inches", "scale": 1, "width": 0.035, "units": "inches"}
    line = {"color": "white", "edgecolor": "black", "linewidth": 0.7, "headwidth": 3.6, "headlength": 4, "zorder": 5}
    axes.quiver(*where.T, *arrow.T, **scale, **line)


def _corners(numbers: dict[str, Array]) -> Array:
    """Of the detection's box and of each reference box its corners, of a reference point the point: (n, 2)."""
    boxes = [
        _reference_box(reference) for reference in numbers["reference"].reshape(-1, numbers["reference"].shape[-1])
    ]
    return np.concatenate([numbers["box"], *boxes]).reshape(-1, 2)


def _reference_box(reference: Array) -> Array:
    """xyxy (4,) of a reference box cxcywh; of a point its place (2,)."""
    if len(reference) == 2 or np.isnan(reference[2]):
        return reference[:2]
    return np.concatenate([reference[:2] - reference[2:] / 2, reference[:2] + reference[2:] / 2])


def _draw_reference(axes: Any, reference: Array, detected: Array, *, size: float = 11.0) -> None:
    """Its middle as a cross and, of 4 coordinates, its box dotted, where it does not lie on the detection's."""
    drawing.draw_point(axes, reference[:2], "+", "white", size)
    box = _reference_box(reference)
    if len(box) == 4 and _apart(box, detected):
        drawing.draw_box(axes, box.tolist(), "white", style=":", width=1.2)


def _apart(box: Array, other: Array) -> bool:
    """Can two boxes xyxy (4,) be told apart? Not where no side differs by a twentieth of the other's size."""
    size = np.maximum(other[2:] - other[:2], 1e-9)
    return bool((np.abs(box - other) > 0.05 * np.concatenate([size, size])).any())

"""What is in a data set: classes, sizes and shapes of its boxes and images; as numbers, a table and a picture."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ...common.text import counted
from ..data.dataset import CocoDetection
from .charts import as_written, new_figure, save_figure

# COCO's limits of small and medium, in pixels of area
SMALL, MEDIUM = 32**2, 96**2
# bars, or rows of a table, that can still be read; the rest is counted together
MOST_BARS = 60


def statistics(data: CocoDetection) -> dict[str, Any]:
    """Counts over the images on offer, each once, in pixels of the files. Lists are of every class and image size.

    Small, medium and large are COCO's, by the area of the box (COCO itself takes the mask's, where there is one).
    """
    annotations, images, rows = data.annotations, data.annotations.images, np.unique(data.rows)
    per_image = np.diff(annotations.first)
    row_of_box = np.repeat(np.arange(len(per_image)), per_image)
    mine = np.isin(row_of_box, rows)
    labels, boxes, row_of_box = annotations.labels[mine], annotations.boxes[mine], row_of_box[mine]
    widths, heights = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).T
    areas = widths * heights
    sizes = {"small": areas < SMALL, "medium": (areas >= SMALL) & (areas < MEDIUM), "large": areas >= MEDIUM}
    shapes = Counter(zip(images.widths[rows].tolist(), images.heights[rows].tolist(), strict=True))
    return {
        "annotations": str(annotations.path),
        "images": len(rows),
        "images_without_boxes": images.ids[rows[per_image[rows] == 0]].tolist(),
        "boxes": len(boxes),
        "boxes_per_image": _spread(per_image[rows]),
        **{name: int(of.sum()) for name, of in sizes.items()},
        "box_width": _spread(widths),
        "box_height": _spread(heights),
        "box_aspect_ratio": _spread(widths / heights),
        "image_aspect_ratio": _spread(images.widths[rows] / images.heights[rows]),
        "image_sizes": [
            {"width": width, "height": height, "images": count}
            for (width, height), count in sorted(shapes.items(), key=lambda shape: shape[::-1], reverse=True)
        ],
        "classes": [
            {
                "id": category.id,
                "name": category.name,
                "boxes": int((labels == label).sum()),
                "images": len(np.unique(row_of_box[labels == label])),
                **{name: int((of & (labels == label)).sum()) for name, of in sizes.items()},
            }
            for label, category in enumerate(annotations.categories)
        ],
        "dropped": {name: getattr(annotations.dropped, name) for name in ("crowd", "degenerate", "wrong", "images")},
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    """Least, median, mean and most; of nothing, nothing."""
    if len(values) == 0:
        return {}
    measures: dict[str, Any] = {"min": np.min, "median": np.median, "mean": np.mean, "max": np.max}
    return {name: round(float(measure(values)), 3) for name, measure in measures.items()}


def _most_first(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The classes that have boxes."""
    return sorted((entry for entry in found["classes"] if entry["boxes"]), key=lambda entry: -entry["boxes"])


def print_table(found: dict[str, Any]) -> None:
    """The classes, most boxes first, and below them what holds for all."""
    table = Table("class", box=None, header_style="bold", pad_edge=False)
    columns = ("boxes", "images", "small", "medium", "large")
    for column in columns:
        table.add_column(column, justify="right")
    classes = _most_first(found)
    for entry in classes[:MOST_BARS]:
        table.add_row(entry["name"], *(f"{entry[column]:,}" for column in columns))
    if rest := classes[MOST_BARS:]:
        totals = [f"{sum(entry[column] for entry in rest):,}" for column in columns]
        totals[1] = ""  # an image may hold several of these classes
        table.add_row(f"{len(rest)} more classes", *totals)
    table.add_section()
    table.add_row("all", *(f"{found[column]:,}" for column in columns))
    console = Console(highlight=False)
    console.print(table)
    for line in summary(found):
        console.print(line, markup=False, soft_wrap=True)


def summary(found: dict[str, Any]) -> list[str]:
    """What holds for all classes, in a line each."""
    per, ratio, image_ratio = found["boxes_per_image"], found["box_aspect_ratio"], found["image_aspect_ratio"]
    commonest = ", ".join(f"{size['width']} x {size['height']} ({size['images']})" for size in found["image_sizes"][:4])
    more = len(found["image_sizes"]) - 4
    lines = [
        f"boxes per image: median {per['median']:g}, at most {per['max']:g}; "
        f"{len(found['images_without_boxes'])} of {found['images']} images have none",
        f"image sizes: {commonest}" + (f", and {more} more" if more > 0 else ""),
        f"width to height: of images {image_ratio['min']:.2f} to {image_ratio['max']:.2f}, median "
        f"{image_ratio['median']:.2f}; of boxes {ratio['min']:.2f} to {ratio['max']:.2f}, median {ratio['median']:.2f}",
        f"small: below 32 x 32 pixels of the file; large: from 96 x 96 on; by the area of the box, here "
        f"{found['small']}, {found['medium']} and {found['large']}",
    ]
    absent = [entry["name"] for entry in found["classes"] if entry["boxes"] == 0]
    if absent:
        shown = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
        lines.append(f"{counted(len(absent), 'class')} without a box: {shown}")
    return lines


def draw_charts(found: dict[str, Any], data: CocoDetection, path: Path) -> None:
    """Boxes of each class, sizes of boxes, boxes per image, and sizes of images, as a PNG."""
    annotations, rows = data.annotations, np.unique(data.rows)
    counts = np.diff(annotations.first)
    boxes = annotations.boxes[np.isin(np.repeat(np.arange(len(counts)), counts), rows)]
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    n_bars = min(MOST_BARS, len(_most_first(found)))
    figure = new_figure(13, max(6.5, 0.17 * n_bars + 1.5))
    grid = figure.add_gridspec(2, 3, width_ratios=(1.25, 1, 1))
    _draw_classes(figure.add_subplot(grid[:, 0]), found)

    axes = figure.add_subplot(grid[0, 1])
    few = np.random.default_rng(0).permutation(len(width))[:20_000]  # as many as a picture can show
    axes.scatter(width[few], height[few], s=9, alpha=min(0.6, max(0.05, 300 / len(few))), linewidths=0)
    low, high = min(width.min(), height.min()) / 1.3, max(width.max(), height.max()) * 1.3
    for area in (SMALL, MEDIUM):
        axes.plot(across := np.geomspace(low, high, 50), area / across, color="0.5", linewidth=0.8)
    axes.set(xlabel="width (pixels)", ylabel="height", title="sizes of boxes")
    _logarithmic(axes, x=(low, high), y=(low, high))

    axes, side = figure.add_subplot(grid[0, 2]), np.sqrt(width * height)
    low, high = min(20.0, float(side.min()) / 1.1), max(200.0, float(side.max()) * 1.1)
    axes.hist(side, bins=np.geomspace(low, high, 40).tolist())
    axes.set(xlabel="square root of the area (pixels)", ylabel="boxes", title="areas of boxes")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)  # room for the names
    for place, name in ((low, "small"), (32, "medium"), (96, "large")):
        axes.axvline(place, color="0.5", linewidth=0.8)
        axes.text(place * 1.05, 0.98, name, va="top", fontsize=9, transform=axes.get_xaxis_transform())
    _logarithmic(axes, x=(low, high))

    axes, most = figure.add_subplot(grid[1, 1]), int(counts[rows].max())
    axes.hist(counts[rows], bins=np.arange(-0.5, most + 1.5, max(1, most // 40)).tolist())
    axes.set(xlabel="boxes", ylabel="images", title="boxes per image")

    axes = figure.add_subplot(grid[1, 2])
    sizes = np.array([[size["width"], size["height"], size["images"]] for size in found["image_sizes"]])
    axes.scatter(sizes[:, 0], sizes[:, 1], s=12 + 300 * sizes[:, 2] / len(rows), alpha=0.5, linewidths=0)
    axes.set(xlabel="width (pixels)", ylabel="height", title="sizes of images", xlim=(0, None), ylim=(0, None))
    axes.margins(0.1)
    save_figure(figure, path, dpi=110)


def _draw_classes(axes: Any, found: dict[str, Any]) -> None:
    classes = _most_first(found)
    shown = classes[:MOST_BARS]
    places, values = np.arange(len(shown)), np.array([entry["boxes"] for entry in shown])
    size = 9 if len(shown) <= 30 else 7
    # from a half on, so that a class of one box has a bar, too
    drawn = axes.barh(places, values - 0.5, left=0.5, color="tab:blue")
    axes.bar_label(drawn, labels=[f"{value:,}" for value in values], padding=2, fontsize=size)
    names = [entry["name"] if len(entry["name"]) <= 22 else f"{entry['name'][:21]}…" for entry in shown]
    axes.set_yticks(places, list(map(as_written, names)), fontsize=size)
    title, every = "boxes of each class", len(found["classes"])
    if len(shown) < every:
        empty = f"; {every - len(classes)} have none" if len(classes) < every else ""
        title = f"boxes of {len(shown)} of {every} classes{empty}"
    axes.set(xlabel="boxes", ylim=(len(shown) - 0.4, -0.6), title=title)
    _logarithmic(axes, x=(0.5, values.max() * 2.5))


def _logarithmic(axes: Any, **limits: tuple[float, float]) -> None:
    """Logarithmic axes with 1, 2, 5, 10, 20, ..., where powers of ten alone may be too few."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    for name, (low, high) in limits.items():
        axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 2000 else (1,)))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())

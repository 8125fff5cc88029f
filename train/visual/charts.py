"""What all charts share: colours, axes, and the writing of a figure."""

from pathlib import Path
from typing import Any, Literal

from ...common.files import atomic_file

# seen apart by most who do not see all colours (Okabe and Ito), and one more
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, whose parts make room for each other."""
    import matplotlib.figure

    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def as_written(text: str) -> str:
    """Text that matplotlib shows as it is: no dollar begins a formula, and no underscore hides it in a legend."""
    return text.replace("$", r"\$") if not text.startswith("_") else as_written(f" {text}")


def dress(
    axes: Any,
    title: str,
    across: str = "",
    up: str = "",
    *,
    size: float = 10,
    grid: Literal["both", "x", "none"] = "both",
) -> None:
    """Gives axes their titles, the largest of `size` points, small numbers and a faint grid."""
    axes.set_title(title, fontsize=size)
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.tick_params(labelsize=8)
    if grid != "none":
        axes.grid(alpha=0.25, axis=grid)


def save_figure(figure: Any, path: Path, dpi: int = 130) -> None:
    """Writes a figure as what its suffix says, whole or not at all."""
    with atomic_file(path) as file:
        figure.savefig(file, format=path.suffix.lower()[1:], dpi=dpi)

"""``msdeform bench roofline``: recorded speeds under what the device could do, drawn."""

from ...common.files import atomic_file
from ..harness import records
from ..harness.tables import aligned
from ..options import RooflineOptions
from . import plots
from .tables import floors


def run(options: RooflineOptions) -> int:
    """``msdeform bench roofline``: prints the floors of every row of a GPU, and draws them."""
    found = records.read_and_warn(options.results)
    rows = plots.roofs(found.of("operator"))
    if not rows:
        raise ValueError(
            "the results have no row of a GPU, and only those have floors: python -m msdeform.bench.gpu measures there"
        )
    print(aligned(floors(rows), 6))
    with atomic_file(options.out) as file:
        file.write(plots.svg(plots.roofline(rows), plots.digest(rows, plots.ROOFLINE)))
    print(f"\ndrawn in {options.out}")
    return 0

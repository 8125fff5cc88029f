"""``msdeform bench exports``: how far an exported detector differs from its model, at every boundary of padding.

Weights are random, the picture is made in memory, and onnxruntime runs on the CPU: see `models/export/check.py`.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product

import torch

from ...models.export.check import like_a_photograph
from ...models.export.export import compare, exported_program
from ...models.zoo import create_model
from ..harness.records import Row
from ..harness.results_file import open_results
from ..harness.tables import Line, aligned
from ..options import ExportsOptions
from .resumable import measure_missing

FORMAT = "onnx"


def measure_rows(options: ExportsOptions) -> list[Row]:
    """Compares, prints, and on request records; returns the rows."""
    torch.set_num_threads(1)
    results = open_results("msdeform bench exports", options, torch.device("cpu"))
    cells = product(options.images, options.models)
    planned = [(("export", model, image, FORMAT), partial(compared, model, image)) for image, model in cells]
    measure_missing(planned, results, options.minutes)
    print(aligned(export_table(results.rows), 1))
    return results.rows


def compared(name: str, image: str) -> Row:
    """The row of one detector at one size."""
    height, width = map(int, image.split("x"))
    size = (height, width)
    row: Row = {"kind": "export", "model": name, "image": image, "format": FORMAT}
    torch.manual_seed(0)
    deformable = {"attn_backend": "reference"} if name.startswith("deformable") else {}
    model = create_model(name, **deformable).eval()  # type: ignore[arg-type]
    try:
        program, call, _ = exported_program(model, f".{FORMAT}", size=size)
        found = compare(program, call, [like_a_photograph(size)], tolerance=float("inf"))
    except (ValueError, RuntimeError) as error:
        return {**row, "difference": None, "compared": 0, "boundaries": 0, "failure": str(error)}
    counts = {"compared": found.compared, "boundaries": found.boundaries[0]}
    return {**row, "difference": found.difference, **counts, "failure": None}


def export_table(rows: Sequence[Row]) -> list[Line]:
    """A head, and a line for each detector with its largest differences, and the inputs that were compared."""
    images = sorted({row["image"] for row in rows}, key=lambda image: [int(side) for side in image.split("x")])
    lines: list[Line] = [("detector", *(part for image in images for part in (image, "inputs")))]
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = dict.fromkeys(images, ("-", "-"))
        for row in rows:
            if row["model"] == model:
                difference = "failed" if row["failure"] is not None else f"{row['difference']:.1e}"
                cells[row["image"]] = (difference, str(row["compared"]))
        lines.append((model, *(part for pair in cells.values() for part in pair)))
    return lines

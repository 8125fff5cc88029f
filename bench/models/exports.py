"""``msdeform bench exports``: how far exported detectors differ from their models, in each engine and form.

Weights are random. A file is written once for each form, and read from disk and compared in both engines, as ``msdeform
export`` does it (`models/export/check.py`), but without a limit on the difference.
"""

import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.export.check import like_a_photograph, photographs
from ...models.export.export import compare, write
from ...models.export.form import Form
from ...models.export.formats import FORMATS, open_openvino
from ...models.export.program import exportable
from ...models.zoo import create_model
from ..harness.records import Row
from ..harness.results_file import open_results
from ..harness.tables import Line, aligned, grouped
from ..options import ExportsOptions
from .resumable import measure_missing

SOURCES = ("models/**/*.py", "kernels/pytorch/*.py", "bench/models/exports.py")
_OPEN = {"onnxruntime": FORMATS["onnx"].open, "openvino": open_openvino}
_SIZES = {"any size": ("batch", "size"), "one size": ()}
# photographs of a folder, and boundaries of padding, that each file is compared on
_PICTURES, _CHECKS = 4, 4


def measure_rows(options: ExportsOptions) -> list[Row]:
    """Compares, prints, and on request records; returns the rows."""
    torch.set_num_threads(1)
    results = open_results("msdeform bench exports", options, torch.device("cpu"), measured=SOURCES)
    height, width = map(int, options.image.split("x"))
    pictures = (
        [like_a_photograph((height, width))]
        if options.photographs is None
        else photographs(options.photographs, (height, width), most=_PICTURES)
    )
    of = "made" if options.photographs is None else options.photographs.resolve().parent.name
    # one file for both engines, which follow each other
    files = lru_cache(1)(partial(compared, pictures))

    def row(model: str, sampling: str, sizes: str, engine: str) -> Row:
        cell = {"model": model, "image": options.image, "pictures": of, "sampling": sampling, "sizes": sizes}
        return {"kind": "exported", **cell, "engine": engine, **files(model, sampling, sizes)[engine]}

    planned = []
    for model, sampling, sizes, engine in product(options.models, options.sampling, _SIZES, _OPEN):
        if model.startswith("fasterrcnn") and (sizes, sampling) != ("one size", options.sampling[0]):
            continue  # it has one form
        key = ("exported", model, options.image, of, sampling, sizes, engine)
        planned.append((key, partial(row, model, sampling, sizes, engine)))
    measure_missing(planned, results, options.minutes)
    print(aligned(export_table(results.rows), 1))
    return results.rows


def compared(pictures: Sequence[Tensor], name: str, sampling: str, sizes: str) -> dict[str, dict[str, Any]]:
    """Of each engine the difference, what it is of, and why there is none."""
    size = (pictures[0].shape[1], pictures[0].shape[2])
    torch.manual_seed(0)
    model = create_model(name).eval()
    form = Form(size, dynamic=_SIZES[sizes], sampling=sampling)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        try:
            program, expected = exportable(model, form), exportable(model, replace(form, sampling="gridsample"))
            write(model, program, file, "onnx")
        except (ValueError, RuntimeError) as error:
            return dict.fromkeys(_OPEN, _nothing(str(error)))
        found = {}
        for engine, open_file in _OPEN.items():
            if importlib.util.find_spec(engine) is None:
                found[engine] = _nothing(f"{engine} is not installed")
                continue
            try:
                one = compare(
                    program,
                    open_file(file, 1).call,
                    pictures,
                    expected=expected,
                    checks=_CHECKS,
                    tolerance=float("inf"),
                )
            except (ValueError, RuntimeError) as error:
                found[engine] = _nothing(str(error))
            else:
                numbers = {"difference": one.difference, "compared": one.compared, "shapes": one.shapes}
                found[engine] = {**numbers, "failure": None}
        return found


def _nothing(why: str) -> dict[str, Any]:
    return {"difference": None, "compared": 0, "shapes": 0, "failure": why}


def export_table(rows: Sequence[Row]) -> list[Line]:
    """A head, and a line for each detector with its largest difference in each form and engine."""
    columns = list(grouped(rows, "sampling", "sizes", "engine"))
    lines: list[Line] = [("detector", *(", ".join(column) for column in columns))]
    for (model,), own in grouped(rows, "model").items():
        cells = dict.fromkeys(columns, "-")
        for row in own:
            shown = "failed" if row["failure"] is not None else f"{row['difference']:.1e}"
            cells[row["sampling"], row["sizes"], row["engine"]] = shown
        lines.append((model, *cells.values()))
    return lines

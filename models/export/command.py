"""``msdeform export``: a detector as a `torch.export` program or in ONNX, its numbers compared with the model's."""

import sys
from pathlib import Path

from ..catalog import MODELS
from ..families.detector import Detector
from ..families.faster_rcnn import STRIDE, FasterRcnn
from ..options import ExportOptions
from ..zoo import create_model, load_model
from .export import export, exportable
from .recipe import about, recipe


def run(options: ExportOptions) -> int:
    """``msdeform export``."""
    model = _find(options.source, options.model)
    size = options.height_and_width(model.input_size, STRIDE if isinstance(model, FasterRcnn) else 1)
    try:
        found = export(
            model,
            options.out,
            size=size,
            batch=options.batch,
            images=options.images,
            checks=options.checks,
            progress=options.progress,
        )
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxscript", "onnxruntime"):
            raise
        raise ValueError(f"ONNX needs the package {error.name}: pip install onnx onnxscript onnxruntime") from None
    shape = "x".join(map(str, (options.batch, 3, *size)))
    program = exportable(model)
    print(f"wrote {options.out}: {', '.join(program.outputs)} of {', '.join(program.inputs)}, images {shape}")
    tried, total = found.boundaries
    where = f", {tried} of {total} boundaries of padding among them" if total else ""
    print(f"largest difference from the model: {found.difference:.1e} of the largest number")
    print(f"compared on {found.compared} inputs{where}")
    print(
        f"an image that does not fill {size[0]}x{size[1]} is padded, and found in it is not quite what predict finds "
        "(models/layers/batch.py says why): give --size the shape of your images"
    )
    print("\nit runs without this package:\n")
    print(recipe(options.out, about(model, size, options.batch)["kind"]))
    return 0


def _find(source: str, name: str | None) -> Detector:
    """A model by its name, randomly initialised, or out of a checkpoint."""
    if source in MODELS and not Path(source).exists():
        print(f"{source} is a name: the weights are random", file=sys.stderr)
        return create_model(source, attn_backend="reference")
    return load_model(source, attn_backend="reference", name=name)

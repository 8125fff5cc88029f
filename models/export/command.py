"""``msdeform export``: a detector as a file for another engine, its numbers compared with the model's."""

import importlib.util
import sys
from pathlib import Path

import torch

from ..catalog import MODELS
from ..families.detector import Detector
from ..families.faster_rcnn import STRIDE, FasterRcnn
from ..options import ExportOptions
from ..zoo import create_model, load_model
from .export import TOLERANCE, export, format_of
from .form import Form
from .formats import FORMATS
from .recipe import recipe


def run(options: ExportOptions) -> int:
    """``msdeform export``."""
    to = format_of(options.out, options.to)
    missing = [name for name in FORMATS[to].packages if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(missing).replace("_", "-")
        raise ValueError(f"{FORMATS[to].what} needs packages that are not installed: pip install {names}")
    model = _find(options.source, options.model)
    form = form_of(options, model, to)
    if to == "litert" and form.dynamic:
        raise ValueError(f"dynamic: expected none for LiteRT, got {options.dynamic}")
    if options.progress:
        print("tracing and writing: seconds for a small detector, minutes for a deep one", file=sys.stderr)
    found = export(
        model,
        options.out,
        form,
        to=to,
        images=options.images,
        checks=options.checks,
        weights_beside=options.weights_beside,
        progress=options.progress,
    )
    said = FORMATS[to].open(options.out, None).about
    print(f"wrote {options.out}: {', '.join(said['outputs'])} of {', '.join(said['inputs'])}, images {form.shape}")
    opset = f", opset {said['opset']}" if said["opset"] else ""
    print(f"{FORMATS[to].what}{opset}, {said['dtype']}, sampling by {said['sampling']}")
    tried, total = found.boundaries
    where = f", {tried} of {total} boundaries of padding among them" if total else ""
    limit = TOLERANCE[form.dtype]
    print(
        f"largest difference from the model: {found.difference:.1e} of the largest number, at most {limit:.0e} allowed"
    )
    print(f"compared on {found.compared} inputs of {found.shapes} batches and sizes{where}")
    if "size" not in form.dynamic or form.pixels:
        height, width = form.size
        print(
            f"an image that does not fill {height}x{width} is padded, and found in it is not quite what predict finds "
            "(models/layers/batch.py says why): give --size the shape of your images"
        )
    print(f"\nit runs {'with' if said['sampling'] == 'cpu' else 'without'} this package:\n")
    print(recipe(options.out, said))
    return 0


def form_of(options: ExportOptions, model: Detector, to: str) -> Form:
    """What the options say, for this detector and format."""
    faster_rcnn = isinstance(model, FasterRcnn)
    dynamic = options.dynamic or ("none" if faster_rcnn or to in ("aoti", "litert") else "batch,size")
    return Form(
        size=options.height_and_width(model.input_size, STRIDE if faster_rcnn else 1),
        batch=options.batch,
        dynamic=() if dynamic == "none" else tuple(dynamic.split(",")),
        sampling=options.sampling,
        dtype=getattr(torch, options.dtype),
        top_k=options.top_k,
        pixels=options.pixels,
    )


def _find(source: str, name: str | None) -> Detector:
    """A model by its name, randomly initialised, or out of a checkpoint."""
    if source in MODELS and not Path(source).exists():
        print(f"{source} is a name: the weights are random", file=sys.stderr)
        return create_model(source)
    return load_model(source, name=name)

"""The detector that is served: in PyTorch, or exported and run by another engine."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.device import choose_device
from ...models.families.detector import Detector
from ...models.inference.image_size import Size
from ...models.inference.predictor import Predictor
from ..engine.checkpoint import load_trained
from .options import EXPORTED, ServeOptions

if TYPE_CHECKING:
    from ...models.export.runtime import Engine


def open_detector(options: ServeOptions) -> Predictor:
    """Loads what ``options`` name, in evaluation mode; exports a checkpoint first, for another engine than PyTorch.

    Raises:
        ValueError: the engine does not run such a source, or as `load_trained` and `export`.
        FileNotFoundError, RuntimeError: as `load_trained`, or as the exported file's runtime.
    """
    source, engine = options.source, options.computed_by
    exported = source.suffix in EXPORTED
    if engine == "pytorch" and not exported:
        return load_trained(source, choose_device(options.device), options.attn_backend, options.model).model
    if options.device not in ("auto", "cpu"):
        raise ValueError(f"device: expected cpu for {source if exported else engine}, got {options.device}")
    if options.attn_backend != "auto":
        owner = source if exported else engine
        raise ValueError(f"attn_backend: {owner} has its own operators; expected none, got {options.attn_backend}")
    if not exported:
        return _exported(options, engine)
    if options.model is not None:
        raise ValueError(f"model: an exported file is what it is; expected none, got {options.model}")
    from ...models.export.runtime import ExportedDetector

    return ExportedDetector(source, engine=engine, threads=options.threads)


def _exported(options: ServeOptions, engine: "Engine") -> Predictor:
    """A checkpoint in another engine; the file that it goes through is gone when it is loaded."""
    from ...models.export.export import export
    from ...models.export.form import Form
    from ...models.export.runtime import ExportedDetector

    model = load_trained(options.source, choose_device("cpu"), "reference", options.model).model
    if not isinstance(model, Detector):
        raise ValueError(f"engine: expected pytorch for {model.kind}, a model of transformers, got {engine}")
    print(f"exporting {options.source} for {engine}; msdeform export does it once for all", file=sys.stderr, flush=True)
    size = model.input_size or Size()
    traced = (-(-size.short // 32) * 32, -(-size.longest // 32) * 32)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("detector.xml" if engine == "openvino" else "detector.onnx")
        export(model, file, Form(traced), checks=0)
        return ExportedDetector(file, engine=engine, threads=options.threads)

"""The detector that is served: a checkpoint in PyTorch, or an exported file in a runtime."""

from ...common.device import choose_device
from ...models.inference.predictor import Predictor
from ..engine.checkpoint import load_trained
from .options import EXPORTED, ServeOptions


def open_detector(options: ServeOptions) -> Predictor:
    """Loads what ``options`` name, in evaluation mode.

    Raises:
        ValueError: the engine does not run such a source, or as `load_trained`.
        FileNotFoundError, RuntimeError: as `load_trained`, or as the exported file's runtime.
    """
    source, engine = options.source, options.computed_by
    exported = source.suffix in EXPORTED
    if engine == "pytorch":
        if exported:
            raise ValueError(f"engine: expected onnxruntime or openvino for the exported file {source}, got pytorch")
        return load_trained(source, choose_device(options.device), options.attn_backend, options.model).model
    if not exported:
        raise ValueError(
            f"{engine} runs exported files, and {source} is none; export it first: msdeform export {source} FILE.onnx"
        )
    if options.device not in ("auto", "cpu"):
        raise ValueError(f"device: expected cpu for an exported file, got {options.device}")
    if options.model is not None or options.attn_backend != "auto":
        name, value = ("attn_backend", options.attn_backend) if options.model is None else ("model", options.model)
        raise ValueError(f"{name}: an exported file is what it is; expected none, got {value}")
    from ...models.export.runtime import ExportedDetector

    detector: Predictor = ExportedDetector(source, engine=engine, threads=options.threads)
    return detector

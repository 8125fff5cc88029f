"""``msdeform convert``: weights of a detector from any format into another.

Nothing is computed: names are changed, and tensors that another format joins or parts are joined or parted.
"""

from pathlib import Path
from typing import Any

from ...common.files import atomic_folder
from ..catalog import TRANSFORMERS
from ..inference.image_size import Size
from ..options import FORMATS, ConvertOptions
from ..zoo import build_model
from .formats import Source, check_fit, read_source, save_huggingface, save_msdeform, save_official, save_transformers
from .load import WITHOUT_SIZE, settle_config


def run(options: ConvertOptions) -> int:
    """``msdeform convert``."""
    source = convert(options.src, options.dst, options.to, options.model)
    print(f"{len(source.weights)} tensors from {source.path} ({source.format}) to {options.dst} ({options.to})")
    counts = sum(name.endswith("num_batches_tracked") for name in source.weights)
    if options.to == "huggingface" and counts and (source.config or {}).get("family") != TRANSFORMERS:
        print(f"left out {counts} counts of batches: there, batch norms are constants")
    if source.ignored:
        print(f"left out {len(source.ignored)} that are no weights: {', '.join(source.ignored)}")
    if source.input_size is None:
        print(f"{source.path} does not say to what size images were resized in training: {WITHOUT_SIZE}")
    return 0


def convert(src: Path, dst: Path, to: str, model: str | None = None) -> Source:
    """Writes the weights at `src` to `dst`, whole or not at all, and returns them as they were read.

    Args:
        src: weights in any format that `formats.read_source` reads.
        dst: a file for ``official``, else a folder; must not exist, or be an empty folder.
        to: ``official``, ``huggingface`` or ``msdeform``.
        model: of `list_models`, what the weights are of, where nothing beside them says so.

    Raises:
        FileExistsError: there is something at `dst`.
        FileNotFoundError: there is nothing at `src`.
        ValueError: `src` is damaged, of no detector or of another one than `model`, or `to` has no such detector.
    """
    if to not in FORMATS:
        raise ValueError(f"to: expected one of {', '.join(FORMATS)}, got {to!r}")
    if dst.exists() and not (to != "official" and dst.is_dir() and not any(dst.iterdir())):
        raise FileExistsError(f"{dst} exists; name a place where nothing is yet")
    source = read_source(src)
    of_transformers = (source.config or {}).get("family") == TRANSFORMERS
    if of_transformers and (to != "huggingface" or model is not None):
        raise ValueError(f"to: {src} holds a detector of transformers; expected huggingface, without a model, got {to}")
    content = None if of_transformers else _content(source, src, model)
    if content is not None and to == "official":
        save_official(dst, *content, source.thresholds)
        return source
    with atomic_folder(dst) as unfinished:
        # transformers' pipelines take a threshold as an argument, one for all classes
        if content is None:
            save_transformers(unfinished, source)
        elif to == "huggingface":
            save_huggingface(unfinished, *content)
        else:
            save_msdeform(unfinished, *content, source.thresholds)
    return source


def _content(source: Source, src: Path, model: str | None) -> tuple[Any, dict[str, Any], list[str] | None, Size | None]:
    """Weights, configuration, classes and size of images, of a detector that the weights make."""
    settled = settle_config(source, model)
    # weights that don't make the detector would only be found out by those who load the result
    check_fit(build_model(settled, attn_backend="reference").state_dict(), source.weights, src)
    return source.weights, settled.to_dict(), source.categories, source.input_size

"""What an exported file says about itself, and the Python that runs it with nothing of ours."""

import dataclasses
from pathlib import Path
from typing import Any

from ... import __version__
from ..catalog import MODELS
from ..configs import FasterRcnnConfig
from ..families.detector import Detector
from ..families.faster_rcnn import FasterRcnn
from ..inference.image_size import Size
from ..inference.images import IMAGENET_MEAN, IMAGENET_STD

FILE = "about.json"
"""the extra file of a ``.pt2`` that holds it all"""

_TAKES = "images (B, 3, H, W) float32, normalised, 0 where padded; mask (B, H, W) bool, True where padded"
_BOXES = "boxes (B, Q, 4) cxcywh, shares of the unpadded image"
_USE = {
    "faster_rcnn": "images (1, 3, H, W) float32, normalised; confidence () float32, the minimum score. "
    "boxes (n, 4) xyxy, shares of the image; labels (n,); scores (n,), best first",
    "sigmoid": f"{_TAKES}. logits (B, Q, classes): the sigmoid is a class's score; {_BOXES}",
    "softmax": f"{_TAKES}. logits (B, Q, classes + 1): softmax, the last is no object; {_BOXES}",
}


def about(model: Detector, size: tuple[int, int], batch: int) -> dict[str, Any]:
    """What is written into the file, each value as JSON: how to prepare images, what comes out, and each class's
    minimum score.

    ``short`` and ``longest`` are what the model's images were resized to, see `Size`; ``size`` is (height, width) of
    the file's, which a resized image has to fit into.
    """
    config, resized = model.config, model.input_size or Size()
    names = model.categories
    if names is None:
        names = [] if config is None else [str(label) for label in range(config.num_classes)]
    kind = "faster_rcnn" if isinstance(model, FasterRcnn) else "sigmoid" if model.focal else "softmax"
    return {
        "msdeform": __version__,
        "family": None if config is None else config.family,
        "model": _name(model),
        "classes": names,
        "thresholds": [0.5] * len(names) if model.thresholds is None else model.thresholds,
        "size": list(size),
        "batch": batch,
        "short": resized.short,
        "longest": resized.longest,
        "resize": "bilinear, antialiased; padded with 0 after normalising, at the right and at the bottom",
        "colours": "RGB",
        "scale": "pixels / 255, minus mean, over std",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "kind": kind,
        "use": _USE[kind],
    }


def _name(model: Detector) -> str | None:
    """The model's name in the catalogue, if it differs from one there in what does not shape it only."""
    if model.config is None:
        return None
    free: dict[str, Any] = {"num_classes": 1, "backbone_frozen": False}
    if not isinstance(model.config, FasterRcnnConfig):
        free["dropout"] = 0.0
    plain = dataclasses.replace(model.config, **free)
    for name, config in MODELS.items():
        if type(config) is type(plain) and dataclasses.replace(config, **free) == plain:
            return name
    return None


def recipe(path: Path, kind: str) -> str:
    """Python that runs the file at `path` on image.jpg with numpy and Pillow: `found` holds (class, score, xyxy)."""
    onnx = path.suffix == ".onnx"
    if onnx:
        lines = [
            "import json, onnxruntime, numpy as np; from PIL import Image, ImageOps",
            f"session = onnxruntime.InferenceSession({str(path)!r})",
            "about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}",
        ]
    else:
        lines = [
            "import json, torch, numpy as np; from PIL import Image, ImageOps",
            f"program = torch.export.load({str(path)!r}, extra_files=(extra := {{{FILE!r}: ''}})).module()",
            f"about = json.loads(extra[{FILE!r}])",
        ]
    lines += [
        'image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB")',
        "(H, W), (w, h) = about['size'], image.size",
        "scale = min(about['short'] / min(w, h), about['longest'] / max(w, h), H / h, W / w)",
        "x = np.asarray(image.resize((round(w * scale), round(h * scale)), Image.Resampling.BILINEAR)) / 255",
        "images = np.zeros((about['batch'], 3, H, W), np.float32)",
        "images[0, :, : len(x), : len(x[0])] = ((x - about['mean']) / about['std']).transpose(2, 0, 1)",
    ]
    if kind == "faster_rcnn":
        least = "np.array(min(about['thresholds']), np.float32)"
        inputs, outputs = {"images": "images", "confidence": least}, "boxes, labels, scores"
        decode = [
            "boxes = boxes * [W, H, W, H] / scale",
            "kept = [one for one in zip(labels, scores, boxes) if one[1] >= about['thresholds'][one[0]]]",
            "found = [(about['classes'][c], score, box) for c, score, box in kept]",
        ]
    else:
        inputs, outputs = {"images": "images", "mask": "mask"}, "logits, boxes"
        lines += ["mask = np.zeros((about['batch'], H, W), bool); mask[0, len(x) :] = mask[0, :, len(x[0]) :] = True"]
        decode = ["scores = 1 / (1 + np.exp(-logits[0]))"]
        if kind == "softmax":
            decode = [
                "scores = np.exp(logits[0] - logits[0].max(-1, keepdims=True))",
                "scores = (scores / scores.sum(-1, keepdims=True))[:, :-1]",
                "scores *= scores == scores.max(-1, keepdims=True)",
            ]
        decode += [
            "xyxy = (boxes[0] @ [[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]]) * [w, h, w, h]",
            "kept = zip(*np.nonzero(scores >= about['thresholds']))",
            "found = [(about['classes'][c], scores[q, c], xyxy[q]) for q, c in kept]",
        ]
    if onnx:
        call = f"session.run(None, {{{', '.join(f'{name!r}: {value}' for name, value in inputs.items())}}})"
    else:
        tensors = ", ".join(f"torch.as_tensor({value})" for value in inputs.values())
        call = f"(out.detach().numpy() for out in program({tensors}))"
    return "\n".join([*lines, f"{outputs} = {call}", *decode, "print(*found, sep='\\n')"])

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
from .form import FILE, OPSET
from .program import Program

_TAKES = "images (B, 3, H, W) float32, normalised, 0 where padded; mask (B, H, W) bool, True where padded"
_PIXELS = "pixels (B, 3, H, W) uint8, RGB"
_SIZES = "sizes (B, 2) int64, height and width of what boxes should refer to"
_BOXES = "boxes (B, Q, 4) cxcywh, shares of the unpadded image"
_FOUND = "boxes (B, K, 4) xyxy in pixels, labels (B, K) int64, scores (B, K), best first"
_SCORES = {
    "sigmoid": "logits (B, Q, classes): the sigmoid is a class's score",
    "softmax": "logits (B, Q, classes + 1): softmax, the last is no object",
}
_FASTER_RCNN = (
    "images (1, 3, H, W) float32, normalised; confidence () float32, the minimum score. "
    "boxes (n, 4) xyxy, shares of the image; labels (n,); scores (n,), best first"
)


def about(model: Detector, program: Program, to: str) -> dict[str, Any]:
    """What is written into the file, each value as JSON: how to prepare images, what comes out, and each class's
    minimum score.

    ``short`` and ``longest`` are what the model's images were resized to, see `Size`; ``size`` is (height, width) of
    what the file was traced with, which a resized image has to fit into unless ``dynamic`` has ``size``.
    """
    config, resized, form = model.config, model.input_size or Size(), program.form
    names = model.categories
    if names is None:
        names = [] if config is None else [str(label) for label in range(config.num_classes)]
    kind = "faster_rcnn" if isinstance(model, FasterRcnn) else "sigmoid" if model.focal else "softmax"
    if kind == "faster_rcnn":
        use = _FASTER_RCNN
    else:
        takes = _PIXELS if form.pixels else _TAKES if form.top_k is None else f"{_TAKES}; {_SIZES}"
        use = f"{takes}. {_FOUND if form.top_k is not None else f'{_SCORES[kind]}; {_BOXES}'}"
    return {
        "msdeform": __version__,
        "format": to,
        "family": None if config is None else config.family,
        "model": _name(model),
        "classes": names,
        "thresholds": [0.5] * len(names) if model.thresholds is None else model.thresholds,
        "inputs": list(program.inputs),
        "outputs": list(program.outputs),
        "size": list(form.size),
        "batch": form.batch,
        "dynamic": list(form.dynamic),
        "sampling": form.sampling,
        "dtype": str(form.dtype).removeprefix("torch."),
        "opset": OPSET if to in ("onnx", "openvino") else None,
        "short": resized.short,
        "longest": resized.longest,
        "resize": "bilinear, antialiased; padded with 0 after normalising, at the right and at the bottom",
        "colours": "RGB",
        "scale": "pixels / 255, minus mean, over std",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "kind": kind,
        "use": use,
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


_OPEN = {
    "onnx": [
        "import json, onnxruntime, numpy as np; from PIL import Image, ImageOps",
        "session = onnxruntime.InferenceSession({path!r})",
        "about = {{key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}}",
        "run = lambda **inputs: session.run(None, inputs)",
    ],
    "openvino": [
        "import json, openvino, numpy as np; from PIL import Image, ImageOps",
        "model = (core := openvino.Core()).read_model({path!r})",
        "about = json.loads(model.get_rt_info(['msdeform', {file!r}]).astype(str))",
        "compiled = core.compile_model(model, 'CPU', {{'INFERENCE_PRECISION_HINT': 'f32'}})",
        "run = lambda **inputs: list(compiled(inputs).values())",
    ],
    "program": [
        "import json, torch, numpy as np; from PIL import Image, ImageOps",
        "program = torch.export.load({path!r}, extra_files=(extra := {{{file!r}: ''}})).module(check_guards=False)",
        "about = json.loads(extra[{file!r}])",
        "run = lambda **inputs: [x.detach().numpy() for x in program(*map(torch.as_tensor, inputs.values()))]",
    ],
    "litert": [
        "import json, numpy as np; from PIL import Image, ImageOps; from ai_edge_litert.interpreter import Interpreter",
        "runner = Interpreter({path!r}).get_signature_runner()",
        "about = json.load(open({path!r} + '.json'))",
        "named = lambda inputs: {{f'args_{{i}}': value for i, value in enumerate(inputs.values())}}",
        "run = lambda **inputs: [value for _, value in sorted(runner(**named(inputs)).items())]",
    ],
    "aoti": [
        "import json, torch, numpy as np; from PIL import Image, ImageOps",
        "program = torch._inductor.aoti_load_package({path!r})",
        "about = json.loads(program.get_metadata()[{file!r}])",
        "run = lambda **inputs: [x.numpy() for x in program(*map(torch.as_tensor, inputs.values()))]",
    ],
}
_READ = ['image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB"); w, h = image.size']
_RESIZE = [
    "scale = min(about['short'] / min(w, h), about['longest'] / max(w, h){fits})",
    "x = np.asarray(image.resize((round(w * scale), round(h * scale)), Image.Resampling.BILINEAR)) / 255",
    "x = ((x - about['mean']) / about['std']).transpose(2, 0, 1).astype(np.float32)",
]
_AS_IT_IS = ["images = np.repeat(x[None], {batch}, 0)"]
_ON_CANVAS = ["images = np.zeros(({batch}, 3, H, W), np.float32)", "images[0, :, : x.shape[1], : x.shape[2]] = x"]
_NO_MASK = "mask = np.zeros((len(images), *x.shape[1:]), bool)"
_MASK = "mask = np.zeros((len(images), H, W), bool); mask[0, x.shape[1] :] = mask[0, :, x.shape[2] :] = True"
_KEEP = [
    "kept = [one for one in zip(labels, scores, boxes) if one[1] >= about['thresholds'][one[0]]]",
    "found = [(about['classes'][c], score, box) for c, score, box in kept]",
]


def recipe(path: Path, said: dict[str, Any]) -> str:
    """Python that runs the file at `path`, which says this `about` itself, on image.jpg with numpy and Pillow, and with
    this package if it calls its operators.

    ``found`` holds (class, score, xyxy in pixels).
    """
    lines = [line.format(path=str(path), file=FILE) for line in _OPEN[said["format"]]] + _READ
    if said["sampling"] == "cpu":
        lines.insert(0, "import msdeform; msdeform.load_operators('cpu')")
    batch = "1" if "batch" in said["dynamic"] else "about['batch']"
    if "pixels" in said["inputs"]:
        lines.append(f"pixels = np.repeat(np.asarray(image).transpose(2, 0, 1)[None], {batch}, 0)")
    else:
        dynamic = "size" in said["dynamic"]
        lines += [] if dynamic else ["H, W = about['size']"]
        lines += [line.format(fits="" if dynamic else ", H / h, W / w") for line in _RESIZE]
        lines += [line.format(batch=batch) for line in (_AS_IT_IS if dynamic else _ON_CANVAS)]
        if "mask" in said["inputs"]:
            lines.append(_NO_MASK if dynamic else _MASK)
    if "sizes" in said["inputs"]:
        lines.append("sizes = np.array([[h, w]] * len(images))")
    if "confidence" in said["inputs"]:
        lines.append("confidence = np.array(min(about['thresholds']), np.float32)")
    call = f"run({', '.join(f'{name}={name}' for name in said['inputs'])})"
    lines.append(f"{', '.join(said['outputs'])} = {call}")
    if said["kind"] == "faster_rcnn":
        lines += ["boxes = boxes * [W, H, W, H] / scale", *_KEEP]
    elif "scores" in said["outputs"]:
        lines += ["boxes, labels, scores = boxes[0], labels[0], scores[0]", *_KEEP]
    else:
        lines += _DECODE[said["kind"]]
        scaled = "[w, h, w, h]"
        lines += [
            f"xyxy = (boxes[0] @ [[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]]) * {scaled}",
            "kept = zip(*np.nonzero(scores >= about['thresholds']))",
            "found = [(about['classes'][c], scores[q, c], xyxy[q]) for q, c in kept]",
        ]
    return "\n".join([*lines, "print(*found, sep='\\n')"])


_DECODE = {
    "sigmoid": ["scores = 1 / (1 + np.exp(-logits[0]))"],
    "softmax": [
        "scores = np.exp(logits[0] - logits[0].max(-1, keepdims=True))",
        "scores = (scores / scores.sum(-1, keepdims=True))[:, :-1]",
        "scores *= scores == scores.max(-1, keepdims=True)",
    ],
}

"""An exported file as a detector: it predicts, is evaluated and served as the model that it was made of."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...common.files import told_of
from ...common.text import printable
from ...kernels.registry import unavailable
from ..inference.detections import Detections
from ..inference.image_size import Size
from ..inference.post_processing import post_process
from ..inference.predictor import Predictor
from ..layers.batch import Images, as_batch
from .formats import FORMATS, Opened, open_openvino, open_pt2

Engine = Literal["onnxruntime", "openvino", "pytorch"]
ENGINES: dict[Engine, tuple[str, ...]] = {
    "onnxruntime": (".onnx",),
    "openvino": (".xml", ".onnx"),
    "pytorch": (".pt2",),
}
"""and the suffixes of the files that each takes, its own first"""
_USUAL: dict[str, Engine] = {suffixes[0]: engine for engine, suffixes in ENGINES.items()}


TRUST = "MSDEFORM_TRUST_PT2"
"""The environment variable that, as ``1``, has every command open ``.pt2`` files, and so run what is in them."""
_MOST_PIXELS, _MOST_IMAGES = 100_000_000, 4096  # of a canvas and of a batch that are made for one call


class FittingSize(Size):
    """As `Size`, but smaller where an image would not fit into what a file was made for, (height, width)."""

    canvas: tuple[int, int]

    def __init__(self, trained: Size, canvas: tuple[int, int]) -> None:
        super().__init__(trained.short, trained.longest)
        object.__setattr__(self, "canvas", canvas)  # frozen

    def fit(self, height: int, width: int) -> tuple[int, int]:
        fitted = super().fit(height, width)
        share = min(1.0, *(most / side for most, side in zip(self.canvas, fitted, strict=True)))
        if share == 1.0:
            return fitted
        rows, columns = (max(1, int(side * share)) for side in fitted)
        return rows, columns


def is_exported(path: Path) -> bool:
    """Does the name say that it is a file of `msdeform export` that `ExportedDetector` runs?"""
    return any(path.suffix in suffixes for suffixes in ENGINES.values()) and not path.is_dir()


class ExportedDetector(Predictor):
    """The detector of a file of ``msdeform export``, run on the CPU by an engine of its own.

    It has ``predict`` and what else evaluation asks of a model. Images are batched only as the file allows: one of a
    fixed size pads them to it, and predicts of one at a time what its batch cannot hold.

    Raises:
        ValueError: no file of ours, of detections instead of logits, or of a suffix that the engine does not take; or
            the engine is not installed.
    """

    def __init__(
        self, path: Path | str, *, engine: Engine | None = None, threads: int | None = None, trust_code: bool = False
    ) -> None:
        """Opens the file; of a ``.pt2``, whose code runs then, only where `trust_code` says that it may."""
        super().__init__()
        path = Path(path)
        engine = engine or _USUAL.get(path.suffix, "onnxruntime")
        if path.suffix not in ENGINES[engine]:
            raise ValueError(f"{path}: expected a file {' or '.join(ENGINES[engine])} for {engine}")
        if not path.is_file():
            raise FileNotFoundError(f"{path} {'is no file' if path.exists() else 'does not exist'}")
        if path.suffix == ".pt2" and not (trust_code or os.environ.get(TRUST) == "1"):
            raise ValueError(
                f"{path} can run any code as soon as it is opened, as every .pt2 can; if you made it or trust who did, "
                f"set {TRUST}=1, or trust_code=True in Python"
            )
        self.path, self.engine = path, engine
        opened = _open(path, engine, threads)
        self.about: dict[str, Any] = opened.about
        self._call = opened.call
        with told_of(path, "exported file"):
            _check_about(path, self.about)
        if self.about["inputs"] != ["images", "mask"] or self.about["outputs"] != ["logits", "boxes"]:
            raise ValueError(
                f"{path}: expected a file of logits and boxes, got {', '.join(self.about['outputs'])} of "
                f"{', '.join(self.about['inputs'])}; export it without --pixels and --top-k"
            )
        self.categories = [printable(name) for name in self.about["classes"]]
        self.thresholds = self.about["thresholds"]
        self.focal = self.about["kind"] == "sigmoid"
        self.canvas = None if "size" in self.about["dynamic"] else (self.about["size"][0], self.about["size"][1])
        trained = Size(self.about["short"], self.about["longest"])
        self.input_size = trained if self.canvas is None else FittingSize(trained, self.canvas)

    @property
    def kind(self) -> str:
        return self.about["model"] or self.about["family"] or self.path.name

    def forward(self, images: Images) -> dict[str, Tensor]:
        """``pred_logits`` (B, Q, classes) and ``pred_boxes`` (B, Q, 4) cxcywh, of what every detector takes.

        Raises ValueError for an image larger than a file of a fixed size takes.
        """
        batch, mask = as_batch(images, torch.float32)
        if self.canvas is not None:
            rows, columns = (most - side for most, side in zip(self.canvas, batch.shape[2:], strict=True))
            if min(rows, columns) < 0:
                raise ValueError(
                    f"images: expected at most {self.canvas[0]}x{self.canvas[1]}, the one size of {self.path}, "
                    f"got {batch.shape[2]}x{batch.shape[3]}"
                )
            batch, mask = pad(batch, (0, columns, 0, rows)), pad(mask, (0, columns, 0, rows), value=True)
        if "batch" in self.about["dynamic"]:
            logits, boxes = self._call(batch, mask)
            return {"pred_logits": logits, "pred_boxes": boxes}
        each = self.about["batch"]
        answers = []
        for some, padded in zip(batch.split(each), mask.split(each), strict=True):
            missing = each - len(some)
            answers.append([one[: len(some)] for one in self._call(_more(some, missing), _more(padded, missing))])
        logits, boxes = (torch.cat(several) for several in zip(*answers, strict=True))
        return {"pred_logits": logits, "pred_boxes": boxes}

    def post_process(self, outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100) -> list[Detections]:
        return post_process(outputs, target_sizes, top_k, focal=self.focal)


def _check_about(path: Path, about: dict[str, Any]) -> None:
    """Raises ValueError for what no export says of itself, nearly anything where a part is missing."""

    def whole(*numbers: Any) -> bool:
        return all(type(one) is int and 1 <= one <= _MOST_PIXELS for one in numbers)

    def words(*several: Any) -> bool:
        return all(isinstance(some, list) and all(isinstance(one, str) for one in some) for some in several)

    size = about["size"]
    scores = about["thresholds"]
    right = {
        "classes": words(about["classes"]),
        "inputs and outputs": words(about["inputs"], about["outputs"], about["dynamic"]),
        "size": isinstance(size, list) and len(size) == 2 and whole(*size) and size[0] * size[1] <= _MOST_PIXELS,
        "short and longest": whole(about["short"], about["longest"]) and about["short"] <= about["longest"],
        "batch": whole(about["batch"]) and about["batch"] <= _MOST_IMAGES,
        "kind": about["kind"] in ("sigmoid", "softmax", "faster_rcnn"),
        "model and family": all(isinstance(about[name], str | None) for name in ("model", "family")),
        "thresholds": isinstance(scores, list)
        and len(scores) == len(about["classes"])
        and all(isinstance(one, int | float) and 0 <= one <= 1 for one in scores),
    }
    wrong = [name for name, is_right in right.items() if not is_right]
    if wrong:
        raise ValueError(f"{path} is no file of msdeform export: its {wrong[0]} cannot be those of a detector")


def _more(batch: Tensor, count: int) -> Tensor:
    """A batch and `count` times its last element."""
    return torch.cat([batch, batch[-1:].expand(count, *batch.shape[1:])]) if count else batch


_OPEN = {"onnxruntime": FORMATS["onnx"].open, "openvino": open_openvino, "pytorch": open_pt2}


def _open(path: Path, engine: str, threads: int | None) -> Opened:
    try:
        opened = _OPEN[engine](path, threads)
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} needs {error.name}, which is not installed: pip install {error.name}") from None
    except Exception as error:  # what an engine raises of a file that it cannot read is its own
        reason = printable((str(error).strip().splitlines() or [type(error).__name__])[-1][:500])
        missing = unavailable("cpu") if path.suffix == ".pt2" else None
        needed = "" if missing is None else f"; one with --sampling cpu needs the backend cpu: {missing}"
        raise ValueError(f"{path} is no file of msdeform export: {reason}{needed}") from error
    return opened

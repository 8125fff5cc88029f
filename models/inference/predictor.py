"""``model.predict(images)``: from whatever holds images to detections in their pixels, for any detector."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from ..layers.evaluation_mode import evaluation_mode
from .detections import Confidence, Detections, minimum_scores, supervision_package
from .image_size import ExactSize, Size
from .images import ImageLike, normalise, read_image


class _Settings(TypedDict, total=False):
    confidence: Confidence | None
    size: int | tuple[int, int] | Size | None
    batch_size: int
    top_k: int


class Predictor(nn.Module):
    """Gives a detector its ``predict``.

    The detector has a ``forward`` that takes a list of normalised images (3, h, w) and returns a dict, and a
    ``post_process`` as below. It may set the attributes.
    """

    categories: list[str] | None = None
    """Names of the classes, by label, where they are known."""
    input_size: Size | None = None
    """What images were resized to in training; the published 800 and 1333 where that is not known."""
    thresholds: list[float] | None = None
    """The minimum score of each class, by label, that `predict` goes by where it is given none; 0.5 when None."""
    focal: bool = True
    """Are the classes independent sigmoids, or one softmax with a last class for no object?"""

    @property
    def kind(self) -> str:
        """What it is called in sentences."""
        return type(self).__name__

    def every_layer(self) -> AbstractContextManager[None]:
        """Within the block `forward` gives ``aux_outputs``, the predictions of the layers before the last."""
        return nullcontext()

    def levels_from(self, begin: Callable[[Tensor], Tensor]) -> AbstractContextManager[list[tuple[int, int]]]:
        """Within the block the maps that attention begins with are what `begin` makes of them.

        They come level by level, (B, C, h, w), or all at once, (B, S, C), as the detector has them. The block's list
        holds the levels' sizes (h, w) when the model has run. Raises NotImplementedError for one without attention.
        """
        raise NotImplementedError(f"{type(self).__name__} has no attention")

    def post_process(self, outputs: dict[str, Any], target_sizes: Tensor, top_k: int = 100) -> list[Detections]:
        """At most `top_k` detections of each image, without names, on the device of the model's `outputs`.

        `target_sizes` (B, 2) int are the (height, width) that boxes should refer to.
        """
        raise NotImplementedError(f"{type(self).__name__} has no post_process")

    @overload  # an array or a tensor is an iterable too, but the first that fits counts
    def predict(  # type: ignore[overload-overlap]
        self, images: ImageLike, *, as_supervision: Literal[False] = ..., **settings: Unpack[_Settings]
    ) -> Detections: ...

    @overload
    def predict(
        self, images: Iterable[ImageLike], *, as_supervision: Literal[False] = ..., **settings: Unpack[_Settings]
    ) -> list[Detections]: ...

    @overload
    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        as_supervision: Literal[True],
        **settings: Unpack[_Settings],
    ) -> Any: ...

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        confidence: Confidence | None = None,
        size: int | tuple[int, int] | Size | None = None,
        batch_size: int = 1,
        top_k: int = 100,
        as_supervision: bool = False,
    ) -> Any:
        """Detects objects in an image, or in many of any sizes; returns one result, or a list of them in order.

        Runs in evaluation mode without gradients, on the model's device and in its dtype, and leaves the model's mode
        as it was. Images are read as they are needed, so the results of a generator of files take little memory.

        Args:
            images: a path, PIL image, array (H, W[, 1, 3 or 4]) or tensor (1, 3 or 4, H, W); or a list, or any other
                iterable, of these. See `images.read_image` for what is made of grey, alpha, 16 bits and EXIF.
            confidence: minimum score of a detection that is kept, or one for each class, by label; when None the
                model's `thresholds`, or 0.5.
            size: what images are resized to: the longest side in pixels, or (shortest, at most longest); when None
                the model's `input_size`, or the published (800, 1333).
            batch_size: images in one forward pass. Those of different sizes are padded to the largest, and padding
                moves the results of these architectures a little (AP in its third digit): with the default of 1 a
                result depends on its own image alone.
            top_k: most detections of an image.
            as_supervision: return ``supervision.Detections``.

        Returns:
            `Detections`, with boxes in pixels of the image as displayed, not of what it was resized to.

        Raises:
            FileNotFoundError: an image does not exist.
            BadImageError (a ValueError): an image cannot be decoded, or has a wrong shape, dtype or range.
            TypeError: an image is none of these types.
            ValueError: another argument is out of its range, or `categories` lacks the name of a class.
            RuntimeError: the model's scores are not numbers.
            ImportError: `as_supervision` without that package.
        """
        if confidence is None:
            confidence = 0.5 if self.thresholds is None else self.thresholds
        minimum_scores(confidence, torch.empty(0, dtype=torch.int64))  # before the work, not after it
        for argument, value in (("batch_size", batch_size), ("top_k", top_k)):
            if value < 1:
                raise ValueError(f"{argument}: expected at least 1, got {value}")
        resize_to = self.resized_to(size)
        if as_supervision:
            supervision_package()  # before the work, not after it
        single = isinstance(images, str | os.PathLike | Image.Image | np.ndarray | Tensor)
        if not single and not isinstance(images, Iterable):
            raise TypeError(
                f"images: expected an image (path, PIL image, array, tensor) or a list, got {type(images).__name__}"
            )
        several: Iterable[Any] = [images] if single else images  # type: ignore[assignment]
        named = (("image" if single else f"images[{i}]", image) for i, image in enumerate(several))
        results: list[Any] = []
        for found in self._detections(named, confidence, resize_to, batch_size, top_k):
            results.append(found.to_supervision() if as_supervision else found)
        return results[0] if single else results

    def resized_to(self, size: int | tuple[int, int] | Size | None) -> Size:
        """What `predict` resizes images to, by its argument; a number is the side of a square for a model of squares.

        Raises ValueError for a size below 1, and for a shorter side above the longest.
        """
        if size is None or isinstance(size, Size):
            return size or self.input_size or Size()
        short, longest = (size, size) if isinstance(size, int) else size
        if not 1 <= short <= longest:
            raise ValueError(f"size: expected at least 1 pixel, and (shortest, longest) in this order, got {size}")
        if isinstance(size, int) and isinstance(self.input_size, ExactSize):
            return ExactSize(size, size)
        return Size(short, longest)

    def _detections(
        self, named: Iterator[tuple[str, Any]], confidence: Confidence, size: Size, batch_size: int, top_k: int
    ) -> Iterator[Detections]:
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        while chunk := list(islice(named, batch_size)):
            pixels = [read_image(image, name=name) for name, image in chunk]
            sizes = [(image.shape[1], image.shape[2]) for image in pixels]
            with evaluation_mode(self), torch.inference_mode():
                inputs = [
                    normalise(F.resize(image, list(size.fit(*image.shape[1:])), antialias=True).to(like.device))
                    for image in pixels
                ]
                outputs = self([image.to(like.dtype) for image in inputs])
                found = self.post_process(outputs, torch.tensor(sizes, device=like.device), top_k)
            for (name, _), image_size, detections in zip(chunk, sizes, found, strict=True):
                yield self._kept(name, detections, image_size, confidence, top_k)

    def _kept(
        self, name: str, found: Detections, image_size: tuple[int, int], confidence: Confidence, top_k: int
    ) -> Detections:
        # copied here, outside inference mode: a tensor made inside could not be changed in place later
        scores, labels, boxes = (found[key].cpu().clone() for key in ("scores", "labels", "boxes"))
        if scores.isnan().any():
            raise RuntimeError(f"{name}: the model's scores are not numbers (NaN), in {scores.dtype}")
        best = scores.argsort(descending=True, stable=True)[:top_k]
        best = best[scores[best] >= minimum_scores(confidence, labels[best])]
        labels = labels[best]
        return Detections(boxes[best], labels, scores[best], image_size, self._names(labels.tolist()))

    def _names(self, labels: list[int]) -> list[str]:
        if self.categories is None:
            return [str(label) for label in labels]
        if labels and max(labels) >= len(self.categories):
            raise ValueError(
                f"categories: expected a name for every class of the model, got {len(self.categories)} names "
                f"and a detection of class {max(labels)}"
            )
        return [self.categories[label] for label in labels]

"""``model.predict(images)``: from whatever holds images to detections in their pixels, for any detector."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count, islice
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
from .tiles import Tiling, View, merge, views


class _Settings(TypedDict, total=False):
    confidence: Confidence | None
    size: int | tuple[int, int] | Size | None
    batch_size: int
    top_k: int
    tiles: int | None
    overlap: float
    flip: bool
    nms: float | None


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
        tiles: int | None = None,
        overlap: float = 0.2,
        flip: bool = False,
        nms: float | None = None,
        as_supervision: bool = False,
    ) -> Any:
        """Detects objects in an image, or in many of any sizes; returns one result, or a list of them in order.

        Runs in evaluation mode without gradients, on the model's device and in its dtype, and leaves the model's mode
        as it was. Images are read as they are needed, so the results of a generator of files take little memory;
        `predict_each` gives each result as it comes.

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
            tiles: side in pixels of overlapping squares, for small objects in large images. Each is resized and
                detected as an image would be, beside the whole image, and fills batches as one; `tiles` says how
                boxes are merged. No tile may be larger than both sides of an image.
            overlap: least share of a tile's side that it has in common with the next.
            flip: detect the mirror image of every image or tile, too, and merge the boxes in the same way.
            nms: of two detections of a class that overlap by a higher IoU, keep the surer alone. Detection transformers
                learn to need none, but small ones that learnt from little find some objects twice.
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
        single = _is_one(images)
        if not single and not isinstance(images, Iterable):
            raise TypeError(
                f"images: expected an image (path, PIL image, array, tensor) or a list, got {type(images).__name__}"
            )
        if as_supervision:
            supervision_package()  # before the work, not after it
        found = self._results(
            [images] if single else images,  # type: ignore[list-item, arg-type]
            "image" if single else "images[{}]",
            confidence=confidence,
            size=size,
            batch_size=batch_size,
            top_k=top_k,
            tiles=tiles,
            overlap=overlap,
            flip=flip,
            nms=nms,
        )
        results: list[Any] = [one.to_supervision() if as_supervision else one for one in found]
        return results[0] if single else results

    def predict_each(self, images: Iterable[ImageLike], **settings: Unpack[_Settings]) -> Iterator[Detections]:
        """The result of each image, as it comes; holds no more images or results than a batch has.

        An image is read when its batch is filled, and let go before the next batch is read. (``itertools.tee`` is no
        way to have images beside their results: it holds up to 57.)

        Args:
            images: several, from a list or anything else that can be iterated.
            settings: those of `predict`.

        Raises what `predict` raises: at once for wrong settings, and for an image when it is read.
        """
        if _is_one(images) or not isinstance(images, Iterable):
            raise TypeError(f"images: expected several, in a list or an iterator, got one {type(images).__name__}")
        return self._results(images, "images[{}]", **settings)

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

    def _results(
        self,
        images: Iterable[ImageLike],
        naming: str,
        *,
        confidence: Confidence | None = None,
        size: int | tuple[int, int] | Size | None = None,
        batch_size: int = 1,
        top_k: int = 100,
        tiles: int | None = None,
        overlap: float = 0.2,
        flip: bool = False,
        nms: float | None = None,
    ) -> Iterator[Detections]:
        if confidence is None:
            confidence = 0.5 if self.thresholds is None else self.thresholds
        minimum_scores(confidence, torch.empty(0, dtype=torch.int64))  # before the work, not after it
        for argument, value in (("batch_size", batch_size), ("top_k", top_k)):
            if value < 1:
                raise ValueError(f"{argument}: expected at least 1, got {value}")
        if nms is not None and not 0 <= nms <= 1:
            raise ValueError(f"nms: expected an IoU from 0 to 1, got {nms}")
        every_view = _every_view(iter(images), naming, None if tiles is None else Tiling(tiles, overlap), flip)
        return self._merged(every_view, confidence, self.resized_to(size), batch_size, top_k, nms)

    def _merged(
        self,
        every_view: Iterator[View],
        confidence: Confidence,
        size: Size,
        batch_size: int,
        top_k: int,
        nms: float | None,
    ) -> Iterator[Detections]:
        """One result for each image, out of those of its views; holds no view but a batch's that is not yet merged."""
        pending: list[tuple[Detections, Tensor]] = []
        while batch := list(islice(every_view, batch_size)):
            found = self._forward(batch, size, top_k)
            batch.reverse()
            found.reverse()
            while batch:
                view, one = batch.pop(), found.pop()
                pending.append((one, view.cut(one.boxes)))
                last = view.last
                del view, one
                if last:
                    whole = merge(pending, top_k) if len(pending) > 1 else pending[0][0]
                    pending.clear()
                    whole = whole if nms is None else whole.without_duplicates(nms)
                    yield self._kept(whole, confidence, top_k)
                    del whole

    def _forward(self, batch: Sequence[View], size: Size, top_k: int) -> list[Detections]:
        """What is found in each view, in pixels of its image, on the CPU."""
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        sizes = [(view.pixels.shape[1], view.pixels.shape[2]) for view in batch]
        with evaluation_mode(self), torch.inference_mode():
            inputs = [
                normalise(F.resize(view.pixels, list(size.fit(*shape)), antialias=True).to(like.device)).to(like.dtype)
                for view, shape in zip(batch, sizes, strict=True)
            ]
            inputs = [image.flip(2) if view.mirrored else image for view, image in zip(batch, inputs, strict=True)]
            found = self.post_process(self(inputs), torch.tensor(sizes, device=like.device), top_k)
        # copied here, outside inference mode: a tensor made inside could not be changed in place later
        on_cpu = [{key: one[key].cpu().clone() for key in ("boxes", "labels", "scores")} for one in found]
        for view, one in zip(batch, on_cpu, strict=True):
            if one["scores"].isnan().any():
                raise RuntimeError(f"{view.name}: the model's scores are not numbers (NaN), in {one['scores'].dtype}")
        return [view.in_image(**one) for view, one in zip(batch, on_cpu, strict=True)]

    def _kept(self, found: Detections, confidence: Confidence, top_k: int) -> Detections:
        best = found.scores.argsort(descending=True, stable=True)[:top_k]
        best = best[found.scores[best] >= minimum_scores(confidence, found.labels[best])]
        names = self._names(found.labels[best].tolist())
        return Detections(found.boxes[best], found.labels[best], found.scores[best], found.image_size, names)

    def _names(self, labels: list[int]) -> list[str]:
        if self.categories is None:
            return [str(label) for label in labels]
        if labels and max(labels) >= len(self.categories):
            raise ValueError(
                f"categories: expected a name for every class of the model, got {len(self.categories)} names "
                f"and a detection of class {max(labels)}"
            )
        return [self.categories[label] for label in labels]


def _is_one(images: Any) -> bool:
    return isinstance(images, str | os.PathLike | Image.Image | np.ndarray | Tensor)


def _every_view(images: Iterator[ImageLike], naming: str, tiling: Tiling | None, flip: bool) -> Iterator[View]:
    """The views of all images, in order; holds none that was taken."""
    for number in count():
        try:
            image = next(images)
        except StopIteration:
            return
        name = naming.format(number)
        several = views(read_image(image, name=name), name, tiling, flip)[::-1]
        del image
        while several:
            yield several.pop()

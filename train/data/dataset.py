"""A data set of images and boxes: annotations of any format, images decoded on demand, or kept in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ...common.parallel import in_threads
from ...common.text import counted, shown
from ...models.inference.images import BadImageError, image_size, read_image
from .annotations import Annotations, BadData
from .cache import ImageCache

# images whose headers are read before a run; with bad data skipped, all are
SAMPLED = 256

# a target before batching: boxes are tv_tensors (N, 4) xyxy in pixels, or, after transforms, what models/ expects
Target = dict[str, Any]
Sample = tuple[Tensor, Target]
# epoch and item: the augmentation of an item depends on both
Key = tuple[int, int]
# makes one sample of an image and of others, which its second argument draws at random; the third is the part of the
# run's epochs that is done
Mix = Callable[[Sample, Callable[[], Sample], float], Sample]


class CocoDetection(Dataset[Sample]):
    """Images and their boxes.

    An item is an image (3, H, W) uint8 and a target: ``image_id`` int, ``size`` (h, w) of the file, ``labels`` (N,)
    int64, ``boxes`` (N, 4); what ``transform`` makes of them. It is asked for by (epoch, item), or by
    its number alone in epoch 0. With bad data skipped, an item whose image cannot be decoded is the next one that can,
    in any process alike.

    Args:
        images: folder of the images.
        annotations: their boxes.
        transform: called with (image, target); torch's generator is then seeded for this item.
        mix: done before it, such as mosaics.
        seed: augmentation of an item depends on (seed, epoch, item) alone, so that neither the number of worker
            processes nor stopping and resuming changes it.
        subset: rows of ``annotations.images`` to offer; all when None.
        bad_data: "skip" leaves out images that are missing or of another size than the annotations say, from their
            headers, and lists them in ``annotations.dropped``; "fatal" raises for a missing file at once, and for
            another when it comes to it.
        decode: with bad data skipped, decode every image once to find those to leave out: evaluation replaces no image
            by another, and must know beforehand which it counts.
        cache: keep images in memory, shared by worker processes: "files" as they are, or "pixels", decoded.
        share: (rank, processes) on this machine: of the items, in their order, keep every processes-th from the
            rank-th on. Other items are read from the disk.
        progress: show bars where images are many.

    Raises:
        FileNotFoundError: the folder, or an image that the annotations list, does not exist.
        ValueError: the cache would not fit into memory.
    """

    def __init__(
        self,
        images: Path,
        annotations: Annotations,
        transform: Callable[[Tensor, Target], Sample],
        *,
        mix: Mix | None = None,
        seed: int = 0,
        subset: Sequence[int] | np.ndarray | None = None,
        bad_data: BadData = "fatal",
        decode: bool = False,
        cache: Literal["none", "files", "pixels"] = "none",
        share: tuple[int, int] = (0, 1),
        progress: bool = True,
    ) -> None:
        self.folder = images
        self.annotations = annotations
        self.transform, self.mix = transform, mix
        self.epochs: int | None = None
        """Those of the run, by which ``mix`` knows how much of it is done; at its beginning when None."""
        self.seed = seed
        self.bad_data = bad_data
        # an array: a list's numbers would be copied into every worker
        self.rows = np.arange(len(annotations.images)) if subset is None else np.asarray(subset, dtype=np.int64)
        if not images.is_dir():
            raise FileNotFoundError(f"image folder {images} does not exist")
        self.cache: ImageCache | None = None
        if bad_data == "skip":
            self._leave_out_bad(decode, progress)
        else:
            self._refuse_bad(progress)
        if cache != "none":
            rank, processes = share
            rows = np.unique(self.rows[rank::processes])
            entries = annotations.images
            self._slots = np.full(len(entries), -1)
            self._slots[rows] = np.arange(len(rows))
            self.cache = ImageCache(
                cache,
                [images / entries[row].name for row in rows.tolist()],
                np.stack([entries.heights[rows], entries.widths[rows]], 1),
                oriented=annotations.yolo,
                processes=processes,
                progress=progress,
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key | int) -> Sample:
        return self.item(key)[0]

    def item(self, key: Key | int) -> tuple[Sample, str | None]:
        """The item, and, where another image replaces one that cannot be read, a sentence with the file and its id."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        index = range(len(self))[index]  # an IndexError past the end
        sample, replaced = self._untransformed(index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(self.seed, epoch, index))
            if self.mix is not None:
                sample = self.mix(sample, self._another, epoch / self.epochs if self.epochs else 0.0)
            return self.transform(*sample), replaced

    def _untransformed(self, index: int) -> tuple[Sample, str | None]:
        """The item before its transform, and, where another image replaces it, why."""
        replaced = None
        for onward in range(len(self)):
            row = int(self.rows[(index + onward) % len(self)])
            try:
                return (tv_tensors.Image(self.pixels(row)), self._target(row)), replaced
            except (BadImageError, FileNotFoundError) as error:
                if self.bad_data == "fatal":
                    raise
                replaced = replaced or _with_id(error, int(self.annotations.images.ids[row]))
        raise BadImageError(f"none of {len(self)} images can be read; the first: {replaced}")

    def _another(self) -> Sample:
        """An item drawn at random from torch's generator, before its transform."""
        return self._untransformed(int(torch.randint(len(self), ())))[0]

    @property
    def image_ids(self) -> list[int]:
        """COCO's ids of the images on offer."""
        return self.annotations.images.ids[self.rows].tolist()

    def pixels(self, row: int) -> Tensor:
        """The image of a row of the annotations, (3, H, W) uint8.

        Raises:
            FileNotFoundError: no such file.
            BadImageError: it cannot be decoded, or is of another size than the annotations say.
        """
        entry = self.annotations.images[row]
        path = self.folder / entry.name
        kept = None if self.cache is None or self._slots[row] < 0 else self.cache.read(self._slots[row], path)
        image = read_image(path, oriented=self.annotations.yolo) if kept is None else kept
        self._refuse_size(row, image.shape[1], image.shape[2])
        return image

    def sentences(self) -> list[str]:
        """What a user should know of these data: what was left out, images without boxes, what is kept in memory."""
        rows = np.unique(self.rows)
        empty = int((np.diff(self.annotations.first)[rows] == 0).sum())
        lines = [f"{self.annotations.path.name}: {line}" for line in self.annotations.dropped.sentences()]
        if empty:
            images = counted(len(rows), "image")
            lines.append(f"{self.annotations.path.name}: no boxes in {empty} of {images}, kept all the same")
        return lines if self.cache is None else [*lines, self.cache.sentence()]

    def _target(self, row: int) -> Target:
        entry = self.annotations.images[row]
        mine = slice(self.annotations.first[row], self.annotations.first[row + 1])
        size = (entry.height, entry.width)
        return {
            "image_id": entry.id,
            "size": size,
            "labels": torch.from_numpy(self.annotations.labels[mine].copy()),
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(self.annotations.boxes[mine].copy()), format="XYXY", canvas_size=size
            ),
        }

    def _refuse_size(self, row: int, height: int, width: int) -> None:
        entry = self.annotations.images[row]
        if (height, width) != (entry.height, entry.width):
            turned = (height, width) == (entry.width, entry.height)
            exchanged = ", the two exchanged: is the file turned by an EXIF tag?" if turned else ""
            raise BadImageError(
                f"{self.folder / entry.name} is {width} wide and {height} high, "
                f"but {self.annotations.path} says {entry.width} and {entry.height}{exchanged} (image {entry.id})"
            )

    def check_size(self, row: int) -> None:
        """Raises BadImageError where the file's header cannot be read, or says another size than the annotations."""
        self._refuse_size(row, *self._header_size(row))

    def _header_size(self, row: int) -> tuple[int, int]:
        return image_size(self.folder / self.annotations.images[row].name, oriented=self.annotations.yolo)

    def _leave_out_bad(self, decode: bool, progress: bool) -> None:
        def why(row: int) -> str | None:
            try:
                if decode:
                    self.pixels(row)
                else:
                    self._refuse_size(row, *self._header_size(row))
            except (BadImageError, FileNotFoundError) as error:
                return _with_id(error, int(self.annotations.images.ids[row]))
            return None

        rows = np.unique(self.rows).tolist()
        reasons = in_threads("checking images", why, rows, shown=progress)
        bad = {row: reason for row, reason in zip(rows, reasons, strict=True) if reason is not None}
        self.annotations.dropped.images += bad.values()
        self.rows = self.rows[~np.isin(self.rows, list(bad))]

    def _refuse_bad(self, progress: bool) -> None:
        """Looks for all files, and compares the headers of SAMPLED, spread over all, with what the annotations say."""
        images, rows = self.annotations.images, np.unique(self.rows)
        there = in_threads(
            "looking for images", lambda row: (self.folder / images[row].name).is_file(), rows.tolist(), shown=progress
        )
        if not all(there):
            image = images[rows[np.argmin(there)]]
            raise FileNotFoundError(
                f"{self.folder / image.name} does not exist, but {self.annotations.path} lists it (image {image.id}); "
                f"{there.count(False)} of {len(rows)} images are missing"
            )
        for row in rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED)).astype(int)].tolist():
            try:
                size = self._header_size(row)
            except BadImageError:  # told when it comes to it
                continue
            self._refuse_size(row, *size)


def data_line(
    where: Path | None,
    training: CocoDetection | None,
    validation: CocoDetection | None = None,
    whole: CocoDetection | None = None,
) -> str:
    """What was recognised and counted, in a line.

    ``where`` is what the user named, if that was one place; ``whole`` is one set of images that is not divided.
    """
    parts: list[str] = []
    given = [data.annotations for data in (training, validation, whole) if data is not None]
    annotations = given[0]
    for data, name in ((training, "training "), (validation, "validation "), (whole, "")):
        if data is not None:
            rows = np.unique(data.rows)
            boxes = int(np.diff(data.annotations.first)[rows].sum())
            images = "image" if len(rows) == 1 else "images"
            parts.append(f"{len(rows):,} {name}{images} with {boxes:,} {'box' if boxes == 1 else 'boxes'}")
    names = [category.name for category in annotations.categories]
    with_boxes = {label for one in given for label in np.unique(one.labels).tolist()}
    classes = counted(len(names), "class")
    if len(names) == 1:
        classes += f" ({shown(names[0])})"
    elif len(with_boxes) == 1:
        classes += f", of which only {shown(names[with_boxes.pop()])} has boxes"
    elif len(with_boxes) < len(names):
        classes += f", {len(names) - len(with_boxes)} of them without a box"
    return f"data: {annotations.described(where)}: {', '.join(parts)}, {classes}"


def _with_id(error: Exception, image_id: int) -> str:
    """The error's sentence, which names the file, and the image's id, as some name it already."""
    ending = f"(image {image_id})"
    return str(error) if str(error).endswith(ending) else f"{error} {ending}"


def _mix(seed: int, epoch: int, index: int) -> int:
    """One 63-bit seed from three numbers."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))

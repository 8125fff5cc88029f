"""Images kept in memory: one block, which worker processes share, however they are started."""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...common.parallel import in_threads
from ...common.text import counted
from ...models.inference.images import BadImageError, read_image

Kept = Literal["files", "pixels"]

# of the free memory, what a cache may take: the model, its workers and the file system's own cache need some, too
SHARE_OF_MEMORY = 0.9
MEGABYTE = 1 << 20


class ImageCache:
    """Images of a data set in one shared tensor of bytes.

    Args:
        kind: "files" keeps what is on the disk, "pixels" what it decodes to, (3, H, W) uint8 of each.
        paths: the files.
        sizes: (N, 2), height and width of each, as the annotations say. An image that turns out otherwise, or cannot
            be decoded, is left out of "pixels"; who asks for it meets the error when reading it anew.
        oriented: as `models.images.read_image`.
        processes: caches of this size that are made on this machine at the same time.
        progress: show a bar where images are many.

    Raises:
        ValueError: they would not fit into the memory that is free.
    """

    def __init__(
        self,
        kind: Kept,
        paths: Sequence[Path],
        sizes: np.ndarray,
        *,
        oriented: bool = False,
        processes: int = 1,
        progress: bool = True,
    ) -> None:
        self.kind = kind
        self.oriented = oriented
        self._sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        lengths = 3 * self._sizes.prod(1) if kind == "pixels" else [path.stat().st_size for path in paths]
        self._first = np.cumsum([0, *lengths], dtype=np.int64)
        free, needed = free_memory(), self.nbytes * processes
        if free and needed > SHARE_OF_MEMORY * min(free.values()):
            place = min(free, key=lambda name: free[name])
            raise ValueError(
                f"cache-images {kind}: {len(paths) * processes} images take {needed / MEGABYTE:,.0f} MB, but {place} "
                f"has {free[place] / MEGABYTE:,.0f} MB free; take --cache-images "
                f"{'files or none' if kind == 'pixels' else 'none'}"
            )
        try:
            self._bytes = torch.empty(self.nbytes, dtype=torch.uint8).share_memory_()
        except RuntimeError as error:  # the system gives all of it or none
            raise ValueError(
                f"cache-images {kind}: the system gives no {self.nbytes / MEGABYTE:,.0f} MB of shared memory "
                f"({str(error).splitlines()[0]}); take --cache-images none"
            ) from error
        there = in_threads("caching images", self._keep, list(enumerate(paths)), shown=progress)
        self._there = np.array(there, dtype=bool)

    @property
    def nbytes(self) -> int:
        """Bytes of shared memory."""
        return int(self._first[-1])

    def sentence(self) -> str:
        """How much is kept."""
        return (
            f"keeping {counted(self._there.sum(), 'image')} in memory as {self.kind}, {self.nbytes / MEGABYTE:,.0f} MB"
        )

    def read(self, slot: int, path: Path) -> Tensor | None:
        """The image (3, H, W) uint8, or None if it is not here.

        Raises:
            BadImageError: the kept file cannot be decoded; ``path`` is what it is called.
        """
        if not self._there[slot]:
            return None
        kept = self._bytes[self._first[slot] : self._first[slot + 1]]
        if self.kind == "pixels":
            return kept.clone().view(3, *self._sizes[slot].tolist())  # what comes after may write to it
        try:
            file = Image.open(io.BytesIO(kept.numpy().tobytes()))
        except Exception as error:  # pillow raises nearly anything on a damaged file
            raise BadImageError(f"image {path} cannot be decoded: it is in no format that Pillow knows") from error
        return read_image(file, name=f"image {path}", oriented=self.oriented)

    def _keep(self, numbered: tuple[int, Path]) -> bool:
        slot, path = numbered
        kept = self._bytes[self._first[slot] : self._first[slot + 1]]
        if self.kind == "files":
            with open(path, "rb") as file:
                return file.readinto(memoryview(kept.numpy())) == len(kept)
        try:
            image = read_image(path, oriented=self.oriented)
        except (BadImageError, FileNotFoundError):
            return False
        if image.shape[1:] != tuple(self._sizes[slot]):
            return False
        kept[:] = image.flatten()
        return True


def free_memory() -> dict[str, int]:
    """Bytes free in each place that limits shared memory, as far as this system tells them."""
    free = process_memory()
    if Path("/dev/shm").is_dir():
        free["/dev/shm"] = shutil.disk_usage("/dev/shm").free
    return free


def process_memory() -> dict[str, int]:
    """Bytes free in each place that limits a process's own memory, as far as this system tells them."""
    free = {}
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.is_file():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free["this machine's memory"] = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":  # what the file system keeps of files is given back when asked for
            used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            free["this container's memory"] = int(limit) - int(used["anon"]) - int(used["shmem"])
    except (OSError, KeyError, ValueError):
        pass  # no limit, or none that is told here
    return free

"""Where images to predict come from: files, folders, patterns, videos and webcams, as one stream of frames."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ...models.inference.images import SUFFIXES as IMAGES
from ...models.inference.images import read_image
from ..data.yolo import image_ids
from .video import SUFFIXES as VIDEOS
from .video import BadVideoError, open_video


@dataclass(frozen=True)
class Source:
    """An image file, a video file, or a webcam."""

    place: Path | int
    """A file, or a webcam's number."""
    name: str
    """What results call it."""
    stem: str
    """The same without the file's suffix, unless another image or video had it too."""

    @property
    def moving(self) -> bool:
        """Has it frames?"""
        return isinstance(self.place, int) or _is_video(self.place)


@dataclass(frozen=True)
class Frame:
    """An image, or a frame of a video."""

    source: Source
    pixels: Tensor
    """(3, H, W) uint8, RGB, upright."""
    image_id: int
    number: int | None = None
    """Of a video's frame, from 0."""
    time: Fraction = Fraction(0)
    """Of a video's frame: seconds since the first."""
    rate: Fraction = Fraction(0)
    """Of a video's frame: of those that come a second."""

    @property
    def name(self) -> str:
        """An image's own; of a frame the video's as a folder, and the number, as frames are saved one by one."""
        return self.source.name if self.number is None else f"{self.stem}.jpg"

    @property
    def stem(self) -> str:
        """The same without a suffix, for files of results."""
        return self.source.stem if self.number is None else f"{self.source.name}/{self.number:06d}"


def named_files(paths: tuple[Path, ...]) -> dict[Path, str]:
    """The files named, those of patterns such as ``"photos/*.jpg"``, and images and videos in folders, at any depth.

    Each comes once, in order, with a name of its own: its path within the folder that was named. Where two names would
    be the same, all are paths from the folder that holds all files.

    Raises:
        FileNotFoundError: a path does not exist, a pattern matches nothing, or a folder holds no image or video.
        ValueError: no path at all.
    """
    if not paths:
        raise ValueError("images: expected at least one image, video or folder, or --webcam N, got none")
    names: dict[Path, str] = {}
    places: set[str] = set()
    for path in paths:
        if path.is_dir():
            suffixes = (*IMAGES, *VIDEOS)
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
            if not found:
                raise FileNotFoundError(f"folder {path} holds no image ({', '.join(IMAGES)}) or video")
        else:
            matched = [path] if path.is_file() else map(Path, sorted(glob.glob(str(path), recursive=True)))
            found = [file for file in matched if file.is_file()]
            if not found:
                raise FileNotFoundError(f"image {path} does not exist")
        for file in found:
            if (place := os.path.abspath(file)) not in places:  # however it was spelled
                places.add(place)
                names[file] = file.relative_to(path).as_posix() if path.is_dir() else file.name
    if len(set(names.values())) < len(names):
        root = os.path.commonpath([file.absolute().parent for file in names])
        names = {file: Path(os.path.relpath(file.absolute(), root)).as_posix() for file in names}
    return names


def sources_of(files: dict[Path, str], webcam: int | None) -> list[Source]:
    """Named files as sources, and a webcam by its number."""
    # a video and an image of one stem are no trouble
    stems = Counter((Path(name).with_suffix(""), _is_video(file)) for file, name in files.items())
    repeated = any(count > 1 for count in stems.values())
    sources = [
        Source(file, name, name if repeated else Path(name).with_suffix("").as_posix()) for file, name in files.items()
    ]
    return sources if webcam is None else [*sources, Source(webcam, f"webcam{webcam}", f"webcam{webcam}")]


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEOS


def expected_frames(sources: Sequence[Source], every: int) -> int | None:
    """How many frames and images there will be, as far as files say; None where one does not."""
    total = 0
    for source in sources:
        if not source.moving:
            total += 1
            continue
        if isinstance(source.place, int):
            return None
        try:
            with open_video(source.place) as video:
                length = video.length
        except BadVideoError:
            length = 1
        if length is None:
            return None
        total += -(-length // every)
    return total


def every_frame(
    sources: Sequence[Source],
    *,
    every: int = 1,
    check: Callable[[int, int, str], None] | None = None,
    reject: Callable[[str, str], None],
) -> Iterator[Frame]:
    """All images, and each `every`-th frame of videos, read when they are asked for.

    An image's id is its number, where every image is named by one, or its place; those of frames follow.

    Args:
        sources: in the order wanted.
        every: 1 for all frames of videos.
        check: raises ValueError for an image of a (height, width) that cannot be used, by its name.
        reject: told the name and the error of what cannot be read or used. Of a video, all that comes before and
            after the damage is yielded.
    """
    ids = dict(zip(still := [one for one in sources if not one.moving], image_ids(_files(still)), strict=True))
    last = max(ids.values(), default=0)
    for source in sources:
        if not source.moving:
            try:
                pixels = read_image(source.place)  # type: ignore[arg-type]
                if check is not None:
                    check(pixels.shape[1], pixels.shape[2], f"image {source.place}")
            except (ValueError, OSError) as error:
                reject(source.name, str(error))
            else:
                yield Frame(source, pixels, ids[source])
            continue
        try:
            with open_video(source.place) as video:
                for one in video.frames(every):
                    if check is not None:
                        check(one.pixels.shape[0], one.pixels.shape[1], video.name)
                    last += 1
                    pixels = torch.from_numpy(one.pixels).permute(2, 0, 1)
                    yield Frame(source, pixels, last, one.number, one.time, video.rate / every)
        except ValueError as error:  # also a BadVideoError
            reject(source.name, str(error))


def _files(sources: Sequence[Source]) -> list[Path]:
    return [source.place for source in sources if isinstance(source.place, Path)]

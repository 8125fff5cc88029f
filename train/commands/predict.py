"""``msdeform predict``: detections in images, videos and webcams, as pictures and as files of results."""

import math
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ...common.device import choose_device
from ...common.progress import progress_bar
from ...common.text import counted
from ...models.inference.detections import Confidence, Detections, minimum_scores, nothing_detected
from ...models.inference.tiles import Tiling
from ..engine.checkpoint import Trained, load_trained
from ..prediction.pictures import Pictures
from ..prediction.results import WRITERS, ImagesWriter
from ..prediction.sources import Frame, Source, every_frame, expected_frames, named_files, sources_of
from ..prediction.tracks import Tracks
from ..prediction.video import video_package
from .options import PredictOptions


@dataclass
class Predictions:
    """What came of some images."""

    out: Path
    """Folder of all that was written."""
    written: list[str] = field(default_factory=list)
    """What that is, in words."""
    images: int = 0
    """Images and frames in which objects were looked for."""
    detections: int = 0
    """Found in them, of at least the confidence."""
    unreadable: list[dict[str, str]] = field(default_factory=list)
    """file_name and error of each image or video that could not be read, or not to its end."""
    best: tuple[float, str] = (0.0, "")
    """Score and class of the most certain detection at any confidence; a class of no name where there is none."""
    confidence: Confidence = 0.5
    """What was asked for, or else the checkpoint's for each class, or else 0.5."""
    wanted: float = 0.5
    """The same of the class of `best`."""

    def count(self, everything: Detections) -> Detections:
        """Those of at least the confidence; they are counted."""
        self.images += 1
        if len(everything):
            best = (float(everything.scores[0]), everything.names[0])
            if best > self.best:
                self.best, self.wanted = best, float(minimum_scores(self.confidence, everything.labels[:1]))
        found = everything.at_least(self.confidence)
        self.detections += len(found)
        return found


def predict(options: PredictOptions) -> Predictions:
    """Draws and writes what is found in every image and frame, upright as viewers show it.

    What cannot be read is left out and listed. All files are whole whatever ends the loop, Ctrl-C included, and hold
    what was done until then; ``complete`` in images.json says whether that is all. Boxes of a file with an orientation
    tag are in the pixels of its picture; COCO's own annotations ignore that tag.

    Raises:
        FileNotFoundError, ValueError: a path that was named does not exist, the checkpoint cannot be read, or tracks
            are asked for without a video.
        ImportError: videos without PyAV, tracks without ByteTrack.
    """
    files = named_files(options.images) if options.images else {}
    if any(source.moving for source in sources_of(files, options.webcam)):
        video_package()  # before the work, not after it
    elif options.track:
        raise ValueError("track: expected a video or a webcam, got images only")
    trained = load_trained(options.checkpoint, choose_device(options.device), options.attn_backend, options.model)
    if trained.step is None and trained.model.categories is not None:  # converted: a run knows its data's ids
        print(
            "category ids in the results are class numbers, from 0: these weights know no data set's ids",
            file=sys.stderr,
        )
    thresholds = 0.5 if trained.model.thresholds is None else trained.model.thresholds
    confidence: Confidence = thresholds if options.confidence is None else options.confidence
    follow = Tracks(confidence) if options.track else None
    tiling = None if options.tiles is None else Tiling(options.tiles, options.overlap)
    out = options.out or _default_out(options.checkpoint, trained)
    sources = sources_of(_without_own(files, options, out), options.webcam)
    places = _places(sources, options, out)
    done = Predictions(out, confidence=confidence)
    done.written = [
        *(["pictures"] if options.pictures and not all(source.moving for source in sources) else []),
        *(["videos"] if options.video and any(source.moving for source in sources) else []),
        *(WRITERS[name].written for name in dict.fromkeys(options.format)),
        ImagesWriter.written,
    ]
    total = expected_frames(sources, options.every)
    with ExitStack() as stack, progress_bar("detecting", total, shown=options.progress, unit="images") as advance:
        images = stack.enter_context(ImagesWriter(out, trained.categories))
        pictures = stack.enter_context(Pictures(places))
        writers = [
            stack.enter_context(WRITERS[name](out, trained.categories)) for name in dict.fromkeys(options.format)
        ]

        def reject(name: str, error: str) -> None:
            images.unreadable.append({"file_name": name, "error": error})
            advance()

        detected: deque[Frame] = deque()  # itertools.tee would hold up to 57

        def pixels() -> Iterator[Tensor]:
            check = None if tiling is None else tiling.check
            for frame in every_frame(sources, every=options.every, check=check, reject=reject):
                detected.append(frame)
                yield frame.pixels

        each = trained.model.predict_each(
            pixels(),
            confidence=0.0,
            size=options.image_size,
            batch_size=options.batch_size,
            top_k=options.top_k,
            tiles=options.tiles,
            overlap=options.overlap,
            flip=options.flip,
            nms=options.nms,
        )
        done.unreadable = images.unreadable
        try:
            for everything in each:
                frame = detected.popleft()
                found = done.count(everything)
                tracks = follow(frame, everything) if follow and frame.source.moving else None
                pictures.add(frame, found, tracks)
                for writer in (images, *writers):
                    writer.add(frame, found, tracks)
                advance()
        except KeyboardInterrupt:
            if options.webcam is None:  # whose end it is
                raise
    return done


def _default_out(checkpoint: Path, trained: Trained) -> Path:
    """The folder where the user names none."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    is_run = trained.step is not None and (folder / "config.yaml").is_file()
    return folder / "predictions" if is_run else Path("predictions")


def _without_own(files: dict[Path, str], options: PredictOptions, out: Path) -> dict[Path, str]:
    """The files without pictures of an earlier call, which may lie in the folder that is searched.

    Raises ValueError where nothing is left.
    """
    own = out.resolve()
    inside = any(own != path.resolve() and own.is_relative_to(path.resolve()) for path in options.images)
    kept = {file: name for file, name in files.items() if not (inside and file.resolve().is_relative_to(own))}
    if files and not kept:
        raise ValueError(f"images: expected some outside {out}, which holds the pictures of predictions")
    return kept


def _places(sources: Sequence[Source], options: PredictOptions, out: Path) -> dict[Source, Path | None]:
    """The file of each source's pictures, or None where none are wanted.

    Raises ValueError where one would be written over a file that is read.
    """
    given = {source.place.resolve() for source in sources if isinstance(source.place, Path)}
    places: dict[Source, Path | None] = {}
    for source in sources:
        path = out / f"{source.stem}{'.mp4' if source.moving else '.jpg'}"
        places[source] = path if (options.video if source.moving else options.pictures) else None
        if places[source] is not None and path.resolve() in given:
            raise ValueError(f"out: expected another folder than {out}, where {path} would be written over")
    return places


def _each_class(thresholds: Sequence[float]) -> str:
    low, high = f"{min(thresholds):.2f}", f"{max(thresholds):.2f}"
    return f"the checkpoint's thresholds, {low if low == high else f'{low} to {high}'}"


def run(options: PredictOptions) -> int:
    """``msdeform predict``; 1 if an image or a video could not be read."""
    done = predict(options)
    count = counted(done.detections, "detection")
    least = done.confidence if isinstance(done.confidence, int | float) else _each_class(done.confidence)
    *first, last = done.written
    print(f"{count} of at least {least}: {', '.join(first)} and {last} in {done.out}")
    score, name = done.best
    if not done.detections and name:
        lower = math.floor(score * 10) / 10 if score >= 0.1 else math.floor(score * 1000) / 1000
        print(f"{nothing_detected(done.wanted, name, score)}; --confidence {lower:g} shows it")
    if done.unreadable:
        print(f"{counted(len(done.unreadable), 'file')} could not be read, or not all of it:", file=sys.stderr)
        for one in done.unreadable:
            print(f"  {one['error']}", file=sys.stderr)
    return 1 if done.unreadable else 0

"""``msdeform explain``: what a detector attended to in one image, as pictures with their numbers, or as a page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from ..models.images import Size, read_image
from ..models.predictor import nothing_detected
from ..train.annotations import Annotations
from ..train.checkpoint import Trained, load_trained
from ..train.commandline import parse, progress_bar
from ..train.config import AttnBackend, choose_device
from ..train.evaluate import match_categories
from ..train.files import write_json
from .encoder import draw_encoder
from .interventions import Mask, parse_mask
from .journeys import draw_journey, draw_queries, draw_seeds
from .masked import (
    Variant,
    cumulative_masks,
    draw_masked_attention,
    draw_masked_relevance,
    draw_remaining,
    read_mask_matrix,
    summary,
    variants,
)
from .scene import Scene, Seen
from .truth import draw_truth
from .views import Job, Look, View, find_layers

Repeated = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True)
class Subject:
    """What is explained; the surest detections when nothing is named."""

    det: tyro.conf.UseAppendAction[tuple[int, ...]] = ()
    """A detection, counted from 0, the surest first; may be repeated."""
    query: tyro.conf.UseAppendAction[tuple[int, ...]] = ()
    """A query, whether it detects something or not; may be repeated."""
    box: str | None = None
    """x1,y1,x2,y2 in pixels: the query whose box comes nearest, for what was found weakly or missed."""
    ref: Repeated = ()
    """x,y in pixels: the encoder's attention at this place, row and column; may be repeated."""
    label: str | None = None
    """The class to explain, by name or number; each query's most probable when not given."""
    confidence: float = 0.5
    """Least score of a detection."""
    most: int = 3
    """How many detections are explained when none is named, or have relevance on a page: a backward pass each."""


@dataclass(frozen=True)
class Interventions:
    """The image again with parts of the attention off: boxes that remain, and relevance by layer under each mask."""

    mask: Repeated = ()
    """What is off: SITE[:hN][:lN][:pN][:qN][:MODE], such as decoder.*.cross:h0-3; may be repeated, each is drawn by
    itself; several that act together are joined by +."""
    mask_matrix: Path | None = None
    """csv, npy or json of decoder layers x heads: 1 where a head stays, 0 where it is off."""
    cumulative: bool = False
    """Heads of all decoder layers off one after the other, until none is left."""


@dataclass(frozen=True)
class ExplainOptions:
    """Explain what a detector found in an image: pictures, each with its numbers beside it."""

    image: Annotated[Path, tyro.conf.Positional]
    """An image file."""
    checkpoint: Path
    """A run's checkpoint, or its folder for the newest; or official, Hugging Face's or converted weights."""
    subject: Subject = field(default_factory=Subject)
    view: View = field(default_factory=View)
    interventions: Interventions = field(default_factory=Interventions)
    html: bool = False
    """Write one page to look with in a browser, without pictures."""
    annotations: Path | None = None
    """COCO-format annotations that name this image: detections are drawn beside them."""
    out: Path = Path("explanations")
    """Folder for what is written."""
    dpi: int = 150
    """Resolution of pictures, dots an inch: 50 for thumbnails, 300 for print."""
    image_size: int | None = None
    """Longest side in pixels; what the model was trained with when not given."""
    model: str | None = None
    """A name of msdeform.list_models(): what weights without a description are of."""
    attn_backend: AttnBackend = "auto"
    """Implementation of the deformable attention."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        if not 0 <= self.subject.confidence <= 1:
            raise ValueError(f"confidence: expected a number from 0 to 1, got {self.subject.confidence}")
        if self.subject.most < 1:
            raise ValueError(f"most: expected at least 1, got {self.subject.most}")
        if not 20 <= self.dpi <= 1200:
            raise ValueError(f"dpi: expected from 20 to 1200, got {self.dpi}")
        if self.image_size is not None and self.image_size < 32:
            raise ValueError(f"image-size: expected at least 32, got {self.image_size}")

    @property
    def size(self) -> Size | None:
        """What the image is resized to, where that was said."""
        return None if self.image_size is None else Size(self.image_size, self.image_size)


def numbers_of(text: str, count: int, what: str) -> list[float]:
    """``"3,4.5"`` as numbers. Raises ValueError for another count of them, or for what is none."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if len(found) != count:
        names = "x1,y1,x2,y2" if count == 4 else "x,y"
        raise ValueError(f"{what}: expected {names} in pixels, got {text!r}")
    return found


def find_label(model: Any, text: str | None) -> int | None:
    """A class by its name or number. Raises ValueError, with the nearest name, for one that the model does not know."""
    names = list(model.categories or [])
    if text is None or text in names:
        return None if text is None else names.index(text)
    if text.isdecimal():
        return int(text)
    import difflib

    near = difflib.get_close_matches(text, names, n=1)
    known = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names) or 'the class numbers'}"
    raise ValueError(f"label: the model knows no class {text!r}; {known}")


def choose(scene: Scene, subject: Subject, *, masked: bool = False) -> list[tuple[str, Seen]]:
    """The detections and queries to explain, each with a name for its files.

    Where none is named the surest detections; none of them where places are, unless masks are at work.

    Raises ValueError for a detection, query or class that is not there, and where nothing is named and nothing found.
    """
    label = find_label(scene.model, subject.label)
    found = scene.detections(subject.confidence)
    chosen: list[tuple[str, Seen]] = []
    for number in subject.det:
        if not 0 <= number < len(found):
            raise ValueError(f"det: {_found(scene, len(found), subject.confidence)}, got {number}")
        chosen.append((f"det{number}", scene.seen(found[number].query, label)))
    chosen += [(f"query{query}", scene.seen(query, label)) for query in subject.query]
    if subject.box is not None:
        nearest = scene.nearest(numbers_of(subject.box, 4, "box"))
        chosen.append((f"query{nearest.query}", scene.seen(nearest.query, label)))
    if chosen or (subject.ref and not masked):
        return list(dict(chosen).items())
    for number, seen in enumerate(found[: subject.most]):
        chosen.append((f"det{number}", seen if label is None else scene.seen(seen.query, label)))
    return chosen


def _found(scene: Scene, count: int, confidence: float) -> str:
    if count:
        return f"expected from 0 to {count - 1}, of detections of at least {confidence:g}"
    best = scene.detections(0.0)[0]
    return (
        f"{nothing_detected(confidence, best.name, best.score)} (query {best.query}): "
        "lower --confidence, or name --query N or --box x1,y1,x2,y2"
    )


def jobs(scene: Scene, options: ExplainOptions, chosen: Sequence[tuple[str, Seen]]) -> list[Job]:
    """Every picture of a scene that was asked for. Raises ValueError for a view that is not there."""
    view, name = options.view, options.image.name
    layers = find_layers(scene, view.layer)
    among = tuple(seen for _, seen in chosen) if view.together else ()
    looks = [(who, Look(scene, seen, view, layers, name, among)) for who, seen in chosen]
    deformable = scene.sites["decoder.0.cross"].deformable
    methods = view.method or ("points" if deformable else "raw", "relevance")
    if "points" in methods and not deformable:
        raise ValueError(f"method: {type(scene.model).__name__} attends to every key and samples no points; try raw")
    level = int(view.level) if view.level.isdecimal() else 0
    head = int(view.head) if view.head.isdecimal() else None
    places = _places(scene, options.subject, level)

    wanted: list[Job] = [("queries", partial(draw_queries, scene, options.subject.confidence, image=name))]
    if scene.tape.seeds is not None:
        wanted.append(("seeds", partial(draw_seeds, scene, options.subject.confidence, image=name)))
    if view.layer is not None or places:
        here = places or [_middle(scene, seen) for _, seen in chosen]
        for site in layers.encoder:
            draw = partial(draw_encoder, scene, site, here, head=head, level=level, image=name)
            wanted.append((site.removesuffix(".self"), draw))
    for who, look in looks:
        wanted.append((f"{who}-journey", partial(draw_journey, scene, look.seen, image=name)))
        for method in methods if layers.decoder else ():
            wanted += [(f"{who}-{what}", draw) for what, draw in look.jobs(method)]
    return wanted


def _places(scene: Scene, subject: Subject, level: int = 0) -> list[tuple[float, float]]:
    """Of ``--ref``. Raises ValueError for one that is not within the image."""
    places = []
    for ref in subject.ref:
        x, y = numbers_of(ref, 2, "ref")
        scene.token_at(x, y, level)
        places.append((x, y))
    return places


def _middle(scene: Scene, seen: Seen) -> tuple[float, float]:
    """Of its box, within the image, to a tenth of a pixel."""
    x0, y0, x1, y1 = seen.box
    return round(min(max((x0 + x1) / 2, 0), scene.width), 1), round(min(max((y0 + y1) / 2, 0), scene.height), 1)


def mask_sets(model: Any, wanted: Interventions) -> list[tuple[str, list[Mask]]]:
    """The named sets of masks that were asked for. Raises ValueError or FileNotFoundError for a bad one."""
    sets = [(text, [parse_mask(one) for one in text.split("+")]) for text in wanted.mask]
    if wanted.mask_matrix is not None:
        sets.append((wanted.mask_matrix.name, read_mask_matrix(wanted.mask_matrix, model)))
    if wanted.cumulative:
        sets += cumulative_masks(model)
    return sets


def masked_jobs(made: Sequence[Variant], options: ExplainOptions, chosen: Sequence[tuple[str, Seen]]) -> list[Job]:
    """What remains under every mask."""
    confidence, name = options.subject.confidence, options.image.name
    wanted: list[Job] = [("masked-boxes", partial(draw_remaining, made, confidence, image=name))]
    for who, seen in chosen:
        draw = partial(draw_masked_relevance, made, seen, confidence, target=options.view.target, image=name)
        wanted.append((f"masked-{who}-relevance", draw))
    for number, place in enumerate(_places(made[0].scene, options.subject)):
        wanted.append((f"masked-ref{number}-attention", partial(draw_masked_attention, made, place, image=name)))
    return wanted


def explain(options: ExplainOptions) -> dict[str, Any]:
    """Draws what was asked for; returns what ``explanation.json`` holds: detections, files, and what masks did.

    Raises ValueError, FileNotFoundError for bad options, a missing or unreadable file, and where nothing was detected
    and nothing is named. Pictures are written one by one, each whole; ``explanation.json`` at the end.
    """
    pixels = read_image(options.image)
    annotations = None if options.annotations is None else Annotations.load(options.annotations)
    trained = load_trained(options.checkpoint, choose_device(options.device), options.attn_backend, options.model)
    model, confidence = trained.model, options.subject.confidence
    sets = mask_sets(model, options.interventions)
    scene = Scene(model, pixels, size=options.size)
    chosen = choose(scene, options.subject, masked=bool(sets))
    found = scene.detections(confidence)
    if not chosen and not options.subject.ref and not sets and not options.html:
        raise ValueError(_found(scene, 0, confidence))
    stem, files = options.image.stem, []
    about: dict[str, Any] = {
        "image": options.image.name,
        "checkpoint": str(options.checkpoint),
        "attn_backend": trained.attn_backend,
        "confidence": confidence,
        "detections": [vars(seen) for seen in found],
        "explained": {who: vars(seen) for who, seen in chosen},
        "levels": scene.shapes,
        "tape_bytes": scene.tape.nbytes,
    }
    if options.html:
        from .page import write_page

        page = options.out / f"{stem}.html"
        write_page(scene, page, confidence=confidence, title=options.image.name, most=options.subject.most)
        files.append(page)
    else:
        wanted: list[Job] = []
        if annotations is not None:
            truth = _truth(annotations, options, trained)
            wanted.append(("truth", partial(draw_truth, scene, *truth, confidence, image=options.image.name)))
        if sets:
            made = variants(model, pixels, sets, confidence=confidence, size=options.size)
            about["masks"] = summary(made, [seen for _, seen in chosen], confidence)
            wanted += masked_jobs(made, options, chosen)
        else:
            wanted += jobs(scene, options, chosen)
        with progress_bar("drawing", len(wanted), shown=options.progress) as advance:
            for what, draw in wanted:
                files += draw().save(options.out / f"{stem}-{what}.png", options.dpi)
                advance()
    about["files"] = [file.name for file in files]
    write_json(options.out / f"{stem}-explanation.json", about)
    return about


def _truth(annotations: Annotations, options: ExplainOptions, trained: Trained) -> tuple[Tensor, Tensor]:
    """The image's annotated boxes (N, 4) xyxy and the model's labels of them (N,)."""
    rows = [row for row, entry in enumerate(annotations.images) if Path(entry.name).name == options.image.name]
    if not rows:
        raise ValueError(f"annotations {options.annotations}: no image is called {options.image.name}")
    ids: list[int | None] = [category.id for category in trained.categories]
    if trained.step is None:
        ids = match_categories(trained, annotations.categories)
    span = slice(int(annotations.first[rows[0]]), int(annotations.first[rows[0] + 1]))
    labels = [ids.index(annotations.categories[label].id) for label in annotations.labels[span]]
    return torch.from_numpy(annotations.boxes[span]), torch.tensor(labels, dtype=torch.int64)


def main(argv: list[str] | None = None) -> int:
    """``msdeform explain``."""
    options = parse(ExplainOptions, argv, "msdeform explain")
    about = explain(options)
    for number, one in enumerate(about["detections"]):
        box = ", ".join(f"{value:.0f}" for value in one["box"])
        print(f"  det {number}  query {one['query']:<4} {one['name']} {one['score']:.3f}  at {box}")
    for mask in about.get("masks", []):
        became = "; ".join(f"query {query} {what}" for query, what in mask["became"].items())
        print(f"  {mask['name']}: {len(mask['detections'])} detections{'; ' + became if became else ''}")
    pictures = [file for file in about["files"] if not file.endswith(".npz")]
    print(f"{len(pictures)} file{'s' * (len(pictures) != 1)} in {options.out}: {', '.join(pictures)}")
    return 0

"""``msdeform explain``: what a detector attended to in one image, as pictures with their numbers, or as a page."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.files import write_json
from ..common.progress import progress_bar
from ..common.text import counted, printable, suggest
from ..models.inference.detections import nothing_detected
from ..models.inference.images import read_image
from ..train.data.annotations import Annotations
from ..train.engine.checkpoint import Trained
from ..train.evaluation.detect import match_categories
from .ablation.patching import resized_like
from .baselines.attribution import check_installed
from .baselines.black_box import trace_of
from .baselines.drise import answers
from .core.masks import Mask, parse_masks
from .core.sites import sites
from .core.trace import AttentionTrace, QueryPrediction
from .figures import masked
from .figures.contributions import draw_contributions
from .figures.encoder import draw_encoder
from .figures.patched import draw_patched
from .figures.trajectories import draw_journey, draw_queries, draw_seeds
from .figures.truth import draw_truth
from .figures.views import Explained, Job, draw_outside, find_layers
from .options import BLACK_BOX, ExplainOptions, Interventions, Subject, View
from .workspace import any_trained_model, digest_of, place_for

LISTED = 10
"""Detections that are printed, at the least that many if there are so many."""


def find_label(model: Any, text: str | None) -> int | None:
    """A class by its name or number. Raises ValueError, with the nearest name, for one that the model does not know."""
    names = list(model.categories or [])
    if text is None or text in names:
        return None if text is None else names.index(text)
    if text.isdecimal():
        return int(text)
    every = f"expected one of {', '.join(names) or 'the class numbers'}"
    raise ValueError(suggest(f"label: the model knows no class {text!r}", text, names, every))


def choose(trace: AttentionTrace, subject: Subject, *, with_masks: bool = False) -> list[tuple[str, QueryPrediction]]:
    """The detections and queries to explain, each with a name for its files.

    Where none is named the best detections, with a class those of that class; none of them where places are, unless
    masks are at work. What a query that is named by its number, box or detection says of a class is explained whether
    or not it detected that class.

    Raises ValueError for a detection, query or class that is not there, and where a class is named and not detected.
    """
    label = find_label(trace.model, subject.label)
    found = trace.detections(subject.confidence)
    numbers = {prediction.query: number for number, prediction in enumerate(found)}
    if subject.det and max(subject.det) >= len(found):
        raise ValueError(f"det: {_choices(trace, subject.confidence)}, got {max(subject.det)}")
    chosen = {f"det{number}": trace.prediction(found[number].query, label) for number in subject.det}
    queries = [*subject.query, *([trace.nearest(_numbers(subject.box)).query] if subject.box else [])]
    chosen |= {f"query{query}": trace.prediction(query, label) for query in queries}
    if not chosen and (with_masks or not subject.ref):
        of_class = found if label is None else trace.detections(subject.confidence, label)
        if label is not None and not of_class:
            raise ValueError(f"label: {_choices(trace, subject.confidence, label)}")
        chosen = {f"det{numbers[prediction.query]}": prediction for prediction in of_class[: subject.most]}
    return list(chosen.items())


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _choices(trace: AttentionTrace, confidence: float, label: int | None = None) -> str:
    """Which detections can be chosen; where there is none, of a class or of any, what comes closest."""
    if label is None and (count := len(trace.detections(confidence))):
        return f"expected from 0 to {count - 1}, of detections of at least {confidence:g}"
    if not trace.queries:
        return f"{trace.model.kind} found nothing at all in the image: there is nothing to explain"
    closest = trace.detections(0.0, label)[:1]
    if label is not None and not closest:
        closest = [trace.prediction(int(trace.layer_scores[-1, :, label].argmax()), label)]
    best = closest[0]
    told = nothing_detected(confidence, best.name, best.score, "nothing" if label is None else f"no {best.name}")
    instead = f", detected as {best.detected_as}" * bool(best.detected_as)
    name = "name --query N or --box x1,y1,x2,y2" if trace.cross_sites else "name --box x1,y1,x2,y2"
    return f"{told} ({best.known_as}{instead}): lower --confidence, or {name}"


def check_view(model: Any, options: ExplainOptions) -> None:
    """Raises ValueError for what a detector without attention has none of."""
    if sites(model):
        return
    view, usual, subject = options.view, View(), options.subject
    inside = [name for name in view.method if name not in BLACK_BOX]
    changed = [name for name, value in vars(view).items() if name != "method" and value != getattr(usual, name)]
    asked = {
        "html": options.html,
        **{name: value != getattr(Interventions(), name) for name, value in vars(options.interventions).items()},
        "ref": bool(subject.ref),
        "query": bool(subject.query),
        "method": bool(inside),
        **{name: True for name in changed if name != "samples"},
    }
    wrong = next((name for name, given in asked.items() if given), None)
    if wrong is not None:
        raise ValueError(
            f"{wrong}: {model.kind} has no attention, and is explained from outside alone, by --method "
            f"{' or '.join(BLACK_BOX)}" + (f", got {inside[0]}" if wrong == "method" else f"; leave --{wrong} out")
        )


def methods_of(trace: AttentionTrace, options: ExplainOptions) -> tuple[str, ...]:
    """What is drawn of a detection: what was asked for, or else what its detector has."""
    if not trace.cross_sites:
        return options.view.method or BLACK_BOX[:1]
    return options.view.method or ("points" if trace.sites["decoder.0.cross"].deformable else "raw", "relevance")


def jobs(trace: AttentionTrace, options: ExplainOptions, chosen: Sequence[tuple[str, QueryPrediction]]) -> list[Job]:
    """Every picture of a trace that was asked for. Raises ValueError for a view that is not there."""
    view, name = options.view, options.image.name
    methods = methods_of(trace, options)
    if not trace.cross_sites:
        return [
            (f"{who}-{method}", partial(draw_outside, trace, prediction, method, view, image=name))
            for who, prediction in chosen
            for method in methods
        ]
    layers = find_layers(trace, view.layer)
    among = tuple(prediction for _, prediction in chosen) if view.together else ()
    explained = [(who, Explained(trace, prediction, view, layers, name, among)) for who, prediction in chosen]
    deformable = trace.sites["decoder.0.cross"].deformable
    if "points" in methods and not deformable:
        raise ValueError(f"method: {trace.model.kind} attends to every key and samples no points; try raw")
    level = int(view.level) if view.level.isdecimal() else 0
    head = int(view.head) if view.head.isdecimal() else None
    places = _places(trace, options.subject, level)

    if places and not layers.encoder:
        raise ValueError(f"ref: {trace.model.kind} has no encoder whose attention at a place could be drawn")

    wanted: list[Job] = [("queries", partial(draw_queries, trace, options.subject.confidence, image=name))]
    if trace.tape.seeds is not None:
        wanted.append(("seeds", partial(draw_seeds, trace, options.subject.confidence, image=name)))
    if view.layer is not None or places:
        here = places or [_middle(trace, prediction) for _, prediction in chosen]
        for site in layers.encoder:
            draw = partial(draw_encoder, trace, site, here, head=head, level=level, image=name)
            wanted.append((site.removesuffix(".self"), draw))
    for who, look in explained:
        wanted.append((f"{who}-journey", partial(draw_journey, trace, look.prediction, image=name)))
        if view.contributions:
            draw = partial(draw_contributions, trace, look.prediction, view.target, image=name)
            wanted.append((f"{who}-contributions", draw))
        for method in methods if layers.decoder else ():
            wanted += [(f"{who}-{what}", draw) for what, draw in look.jobs(method)]
    return wanted


def _places(trace: AttentionTrace, subject: Subject, level: int = 0) -> list[tuple[float, float]]:
    """Of ``--ref``. Raises ValueError for one that is not within the image."""
    places = []
    for x, y in map(_numbers, subject.ref):
        trace.token_at(x, y, level)
        places.append((x, y))
    return places


def _middle(trace: AttentionTrace, prediction: QueryPrediction) -> tuple[float, float]:
    """Of its box, within the image, to a tenth of a pixel."""
    x0, y0, x1, y1 = prediction.box
    return round(min(max((x0 + x1) / 2, 0), trace.width), 1), round(min(max((y0 + y1) / 2, 0), trace.height), 1)


def mask_sets(model: Any, wanted: Interventions) -> list[tuple[str, Sequence[Mask]]]:
    """The named sets of masks that were asked for. Raises ValueError or FileNotFoundError for a bad one."""
    sets: list[tuple[str, Sequence[Mask]]] = [(text, parse_masks(text)) for text in wanted.mask]
    if wanted.mask_matrix is not None:
        sets.append((wanted.mask_matrix.name, masked.read_mask_matrix(wanted.mask_matrix, model)))
    return [*sets, *(masked.cumulative_masks(model) if wanted.cumulative else [])]


def masked_jobs(
    made: Sequence[masked.Variant], options: ExplainOptions, chosen: Sequence[tuple[str, QueryPrediction]]
) -> list[Job]:
    """What remains under every mask."""
    confidence, name = options.subject.confidence, options.image.name
    wanted: list[Job] = [("masked-boxes", partial(masked.draw_remaining, made, confidence, image=name))]
    view = {part: getattr(options.view, part) for part in ("target", "by", "parity")}
    for who, prediction in chosen:
        draw = partial(masked.draw_masked_relevance, made, prediction, confidence, image=name, **view)
        wanted.append((f"masked-{who}-relevance", draw))
    for number, place in enumerate(_places(made[0].trace, options.subject)):
        wanted.append((f"masked-ref{number}-attention", partial(masked.draw_masked_attention, made, place, image=name)))
    return wanted


def explain(options: ExplainOptions) -> dict[str, Any]:
    """Draws what was asked for; returns what ``explanation.json`` holds: detections, files, and what masks did.

    Raises ValueError, FileNotFoundError for bad options, a missing or unreadable file, and where nothing was detected
    and nothing is named. Pictures are written one by one, each whole; ``explanation.json`` at the end.
    """
    pixels, subject, confidence = read_image(options.image), options.subject, options.subject.confidence
    other = options.interventions.patch
    if options.annotations is not None and not options.annotations.is_file():
        raise FileNotFoundError(f"annotation file {options.annotations} does not exist")
    trained = any_trained_model(options)
    model = trained.model
    check_view(model, options)
    check_installed(options.view.method)
    sets = mask_sets(model, options.interventions)
    trace = trace_of(model, pixels, size=options.image_size)
    if other is not None:
        resized_like(trace, other, options.image_size, name="patch")  # before anything is drawn
    chosen = choose(trace, subject, with_masks=bool(sets) or other is not None)
    predictions = [prediction for _, prediction in chosen]
    if not chosen and not subject.ref and not sets and not options.html:
        raise ValueError(_choices(trace, confidence))
    if options.view.contributions and not chosen:
        raise ValueError("contributions: expected a detection, a query or a box beside it, got none")
    folder, stem = place_for(options.image, options.out, options.checkpoint, options.model)
    label, files = find_label(model, subject.label), list[Path]()
    of_label = [] if label is None else trace.detections(confidence, label)
    about: dict[str, Any] = {
        "image": options.image.name,
        "image_sha256": digest_of(options.image),
        "checkpoint": str(options.checkpoint or options.model),
        "model": trained.name,
        "step": trained.step,
        "attn_backend": trained.attn_backend,
        "confidence": confidence,
        "attention": bool(trace.cross_sites),
        "detections": [as_displayed(trace, prediction) for prediction in trace.detections(confidence)],
        "detections_of_label": [as_displayed(trace, prediction) for prediction in of_label],
        "explained": {who: as_displayed(trace, prediction) for who, prediction in chosen},
        "levels": trace.shapes,
        "tape_bytes": trace.tape.nbytes,
    }
    if options.html:
        from .page.page import write_page

        files.append(folder / f"{stem}.html")
        methods = tuple(method for method in options.view.method if method != "points") or ("raw", "relevance")
        view: dict[str, Any] = {"confidence": confidence, "methods": methods, "most": subject.most}
        named = predictions if subject.names else []
        write_page(trace, files[0], title=options.image.name, subjects=named, **view)
    else:
        wanted: list[Job] = []
        if options.annotations is not None:
            truth = _truth(options.annotations, options.image.name, trained)
            wanted.append(("truth", partial(draw_truth, trace, *truth, confidence, image=options.image.name)))
        if sets:
            made = masked.variants(model, pixels, sets, confidence=confidence, size=options.image_size)
            about["masks"] = masked.summary(made, predictions, confidence)
            wanted += masked_jobs(made, options, chosen)
        if other is not None:
            names: dict[str, Any] = {"image": options.image.name, "other_name": other.name, "size": options.image_size}
            wanted += [(f"patched-{who}", partial(draw_patched, trace, other, one, **names)) for who, one in chosen]
        if not sets and other is None:
            wanted += jobs(trace, options, chosen)
            if "drise" in methods_of(trace, options) and chosen:
                # once for all detections, before the first is drawn
                samples = options.view.samples
                with progress_bar("masking the image", samples, shown=options.progress) as advance:
                    answers(trace, samples, advance=advance)
        with progress_bar("drawing", len(wanted), shown=options.progress) as advance:
            for what, draw in wanted:
                files += draw().save(folder / f"{stem}-{what}.png", options.dpi)
                advance()
    about |= {"folder": str(folder), "files": [file.name for file in files]}
    write_json(folder / f"{stem}-explanation.json", about)
    return about


def as_displayed(trace: AttentionTrace, prediction: QueryPrediction) -> dict[str, Any]:
    """A detection as a dictionary, its box clipped to the image."""
    limits = (float(trace.width), float(trace.height)) * 2
    box = tuple(min(max(value, 0.0), limit) for value, limit in zip(prediction.box, limits, strict=True))
    return vars(prediction) | {"box": box}


def _truth(path: Path, image: str, trained: Trained) -> tuple[Tensor, Tensor]:
    """The image's annotated boxes (N, 4) xyxy and the model's labels of them (N,)."""
    own = trained.step is not None
    annotations = Annotations.load(path, trained.categories if own else None)
    rows = [row for row, entry in enumerate(annotations.images) if Path(entry.name).name == image]
    if not rows:
        raise ValueError(f"annotations {path}: no image is called {image}")
    span = slice(int(annotations.first[rows[0]]), int(annotations.first[rows[0] + 1]))
    labels = annotations.labels[span].tolist()
    if not own:
        ids = match_categories(trained, annotations.categories)
        labels = [ids.index(annotations.categories[label].id) for label in labels]
    return torch.from_numpy(annotations.boxes[span]), torch.tensor(labels, dtype=torch.int64)


def lines(about: dict[str, Any], options: ExplainOptions) -> list[str]:
    """What is printed: the detections, of the class asked for, ten or as many as are explained; masks; the folder."""
    numbers = {one["query"]: number for number, one in enumerate(about["detections"])}
    found = about["detections_of_label" if options.subject.label else "detections"]
    shown, told = max(LISTED, options.subject.most), list[str]()
    if not about["attention"]:
        told.append(f"{about['model']} has no attention: what it found is explained from outside, by changed images")
    for one in found[:shown]:
        box = ", ".join(f"{value:.0f}" for value in one["box"])
        number = numbers[one["query"]]
        query = f"query {one['query']:<4} " if about["attention"] else ""
        mark = ", explained" * (f"det{number}" in about["explained"])
        told.append(f"  det {number}  {query}{one['name']} {one['score']:.3f}  at {box}{mark}")
    if len(found) > shown:
        told.append(f"  and {len(found) - shown} more (--most {len(found)} explains and lists them all)")
    for who, one in about["explained"].items():
        if one["detected_as"] or not who.startswith("det"):
            box = ", ".join(f"{value:.0f}" for value in one["box"])
            of_query = f" of query {one['query']}" if about["attention"] else ""
            what = f"{one['name']} {one['score']:.3f}{of_query} at {box}"
            other = f", which is detected as {one['detected_as']}" * bool(one["detected_as"])
            told.append(f"  {who}: explained is {what}{other}")
    for mask in about.get("masks", []):
        became = [f"query {query} {what}" for query, what in mask["became"].items()]
        told.append(f"  {mask['name']}: {'; '.join([counted(len(mask['detections']), 'detection'), *became])}")
    if options.html:
        return [*told, f"the page: {Path(about['folder']) / about['files'][0]}"]
    pictures = counted(sum(not file.endswith(".npz") for file in about["files"]), "picture")
    return [*told, f"{pictures}, each with its numbers as .npz, in {about['folder']}"]


def run(options: ExplainOptions) -> int:
    """``msdeform explain``."""
    print("\n".join(map(printable, lines(explain(options), options))))
    return 0

"""``msdeform ablate``: parts of a detector's attention switched off, and what that does over a data set."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.device import choose_device
from ..common.files import in_use, remove_leftovers
from ..common.progress import progress_bar
from ..models.families.detector import Detector
from ..train.config.options import Input
from ..train.data.dataset import CocoDetection
from ..train.data.loader import validation_data
from ..train.engine.checkpoint import Trained, load_trained
from ..train.evaluation.detect import match_categories
from .ablation.ablation import Ablation, Advance
from .ablation.head_sets import Head, counts_of, heads_of, orders
from .ablation.report import Findings, summary, write
from .ablation.resampling import resample
from .ablation.runs import TOGETHER, AblationRuns, check
from .core.masks import Masks
from .options import AblateOptions
from .workspace import checked, default_folder


def ablate(options: AblateOptions) -> Findings:
    """Measures, prints a line for each intervention, and writes pictures and tables.

    Raises:
        FileNotFoundError, ValueError: the checkpoint or the data are not there or not right, or a mask fits no site.
    """
    trained = load_trained(options.checkpoint, choose_device(options.device), options.attn_backend, options.model)
    heads = heads_of(trained.model, options.sites)
    _check(options, trained.model, heads)
    out = checked(options.out or default_folder(options.checkpoint, "ablation"))
    with in_use(out):
        remove_leftovers(out)
        ablation, about = _study(options, trained, out)
        print(about["sentence"])
        print(_plan(options, ablation, heads))
        start = time.perf_counter()
        findings = _find(options, ablation, heads)
        findings.about.update({name: value for name, value in about.items() if name != "sentence"})
        findings.about["seconds"] = round(time.perf_counter() - start, 1)
        files = write(findings, out)
    print("\n".join(summary(findings)))
    print(f"{findings.about['seconds']:.0f} s; written to {out}: {', '.join(files)}")
    return findings


def _check(options: AblateOptions, model: Detector, heads: Sequence[Head]) -> None:
    """Raises ValueError for what does not fit the model, before anything runs."""
    for masks in options.masks():
        check(model, masks)
    if options.prune is not None and options.prune > len(heads):
        raise ValueError(f"prune: expected at most the {len(heads)} heads of {options.sites}, got {options.prune}")
    two_stage = getattr(getattr(model, "transformer", None), "two_stage", False)
    if options.pairing == "query" and two_stage:
        raise ValueError("pairing: a two-stage model chooses its queries anew at every pass; expected --pairing iou")


def _study(options: AblateOptions, trained: Trained, out: Path) -> tuple[Ablation, dict[str, Any]]:
    """The model on its data, and what they are."""
    size = Input(image_size=options.image_size).size
    if options.image_size is None:
        size = trained.model.input_size or size
    known = None if trained.step is None else trained.categories
    data = validation_data(options.source, Input(), known, size, progress=options.progress)
    whole = len(data)
    _limit(data, options.limit)
    categories = data.annotations.categories
    ids = match_categories(trained, categories) if known is None else [category.id for category in categories]
    settings = {
        "weights": _digest(trained.model),
        "annotations": _file_digest(data.annotations.path),
        "images": [str(data.folder.resolve()), len(data)],
        "image_size": [size.short, size.longest],
        "batch_size": options.batch_size,
        "backend": trained.attn_backend,
        "device": trained.device.type,
        "precision": options.precision,
        "confidence": options.confidence,
    }
    passes = AblationRuns(
        trained.model,
        data,
        trained.device,
        ids,
        out / "passes",
        settings,
        confidence=options.confidence,
        batch_size=options.batch_size,
        workers=min(options.workers, os.cpu_count() or 1),
        precision=options.precision,
        mean_images=options.mean_images,
    )
    ablation = Ablation(
        passes,
        resample(len(data), options.samples, options.seed),
        pairing=options.pairing,
        mode=options.mode,
        seed=options.seed,
        screen_by=options.screen_by,
        screen_images=min(options.screen_images, len(data)),
    )
    step = "" if trained.step is None else f" at step {trained.step}"
    some = f"{whole} images" if len(data) == whole else f"the first {len(data)} of {whole} images alone"
    about = {
        "sentence": f"{trained.name}{step}, {trained.attn_backend} on {trained.device}, {some}",
        "checkpoint": str(options.checkpoint),
        "model": trained.name,
        "step": trained.step,
        "data": str(data.annotations.path),
        "of_images": whole,
        **{name: value for name, value in settings.items() if name != "images"},
        "images": len(data),
        "pairing": options.pairing,
        "samples": options.samples,
        "seed": options.seed,
        "mode": options.mode,
    }
    return ablation, about


def _limit(data: CocoDetection, limit: int | None) -> None:
    """Keeps the first images, which must hold a box."""
    if limit is not None:
        data.rows = data.rows[:limit]
        if not np.diff(data.annotations.first)[data.rows].any():
            raise ValueError(
                f"limit: expected a box in the first {limit} images of {data.annotations.path}, found none"
            )


def _digest(model: Detector) -> str:
    """Of all weights."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plan(options: AblateOptions, ablation: Ablation, heads: Sequence[Head]) -> str:
    """How many passes it will take, in a sentence."""
    images, known = len(ablation.passes.data), options.masks()
    if options.matrix:
        known += [ablation.off([head]) for head in heads]
    more = 0
    if options.cumulative:
        inner = len(counts_of(len(heads), options.steps)) - 2
        more += inner * (2 * (1 + options.matrix) + options.random_orders) + 1
    screenings = 1 if options.cumulative or options.prunes else 0
    if options.prunes:
        most = min(options.prune or len(heads), len(heads))
        more, screenings = more + most, most
    new = len(ablation.passes.missing([(), *known])) + more
    bound = "at most " if more else ""
    lines = [
        f"the model as it is and {bound}{len(set(known)) + more} interventions, of which {bound}{new} passes are still "
        f"to run over {images} images: {bound}{new * images} forward passes, {TOGETHER} after one of the backbone (and "
        "the encoder, where it stays as it is)"
    ]
    if screenings:
        lines.append(f"{bound}{screenings * ablation.screen_images} forward and backward passes for screening")
    return "; ".join(lines)


def _find(options: AblateOptions, ablation: Ablation, heads: Sequence[Head]) -> Findings:
    """All that was asked for."""
    images = len(ablation.passes.data)
    findings = Findings({"sites": options.sites, "screen_by": options.screen_by, "images": images})

    @contextmanager
    def bar(what: str, total: int) -> Iterator[Advance]:
        with progress_bar(what, total, shown=options.progress and total > 0) as advance:
            yield advance

    def measure(what: str, interventions: Sequence[Masks]) -> None:
        missing = ablation.passes.missing([(), *interventions])
        with bar(what, len(missing) * images) as advance:
            ablation.measure([(), *interventions], advance)

    def screen(what: str) -> None:
        with bar(what, ablation.screen_images) as advance:
            findings.screening = ablation.screen(options.sites, advance=advance)

    measure("masks" if options.mask else "no mask", options.masks())
    (findings.base,) = ablation.measure([()])
    findings.masks = ablation.measure(options.masks())
    if options.matrix:
        measure("matrix", [ablation.off([head]) for head in heads])
        findings.matrix = ablation.matrix(options.sites)
    if options.cumulative:
        screen("screening")
        assert findings.screening is not None
        importance = {"screening": findings.screening.importance}
        if findings.matrix:
            importance["measurement"] = {head: -one.change for head, one in findings.matrix.items()}
        chosen = orders(importance, heads, options.random_orders, options.seed)
        counts = counts_of(len(heads), options.steps)
        sets = {name: [ablation.off(order[:count]) for count in counts] for name, order in chosen.items()}
        measure("cumulative", [masks for several in sets.values() for masks in several])
        findings.orders = chosen
        findings.curves = {
            name: list(zip(counts, ablation.measure(several), strict=True)) for name, several in sets.items()
        }
    if options.prunes:
        count = min(options.prune or len(heads), len(heads))
        with bar("pruning", count) as advance:
            findings.pruned = ablation.prune(options.sites, count, options.budget, advance)
    return findings


def run(options: AblateOptions) -> int:
    """``msdeform ablate``."""
    ablate(options)
    return 0

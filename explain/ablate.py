"""``msdeform ablate``: parts of a detector's attention switched off, and what that does over a data set."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from ..models.detector import Detector
from ..train.checkpoint import Trained, load_trained
from ..train.coco import CocoDetection
from ..train.commandline import parse, progress_bar
from ..train.config import AttnBackend, Input, Source, choose_device
from ..train.data import validation_data
from ..train.evaluate import match_categories
from ..train.files import in_use, remove_leftovers
from .ablation_report import Findings, summary, write
from .effects import Pairing
from .heads import Head, counts_of, heads_of, orders
from .interventions import Mask, Mode, parse_masks
from .outputs import check_writable, default_folder
from .passes import TOGETHER, Masks, Passes, check
from .resampling import resample
from .screening import ScreenBy
from .study import Advance, Study


@dataclass(frozen=True)
class AblateOptions:
    """Switch parts of a detector's attention off, and measure what that does over a data set."""

    checkpoint: Path
    """A run's checkpoint, or its folder for the newest; or official, Hugging Face's or converted weights."""
    source: Source = field(default_factory=Source)
    mask: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What to change, repeatable, each measured alone: SITE[:hN][:lN][:pN][:qN][:MODE], such as decoder.*.cross:h0-3;
    several that act together with + between them."""
    matrix: bool = False
    """Every head of --sites off alone: a matrix of layers and heads."""
    cumulative: bool = False
    """Heads of --sites off one after the other: by importance, reversed, and in random orders."""
    prune: int | None = None
    """Choose N heads of --sites greedily, the least important first, and say what AP remains without them."""
    budget: float | None = None
    """Prune as long as AP falls by no more than this, such as 0.01; with --prune, at most so many heads."""
    sites: str = "decoder.*.cross"
    """Attentions whose heads --matrix, --cumulative and --prune go through; patterns with commas between them."""
    mode: Mode = "zero"
    """What to do to a head, and to a --mask that names no mode."""
    limit: int | None = None
    """Only the first N images, for a quick look; the numbers are then not the data set's."""
    samples: int = 500
    """Resamples of the images for the 95% intervals."""
    seed: int = 0
    """Of the resamples, the random orders, and the mode shuffled."""
    confidence: float = 0.5
    """Minimum score of what counts as a detection lost, gained or changed; AP counts all."""
    pairing: Pairing = "iou"
    """Which detection after is which before: by boxes that overlap by half or more, or by their query."""
    screen_by: ScreenBy = "loss"
    """What --cumulative and --prune screen heads by: the training loss, or the logits of what is detected."""
    screen_images: int = 50
    """Images that a screening looks at, the first; each costs a forward and a backward pass."""
    steps: int = 8
    """Points of a cumulative curve."""
    random_orders: int = 3
    """Random orders to draw curves of."""
    mean_images: int = 100
    """Images that the mode mean takes its means over, the first."""
    out: Path | None = None
    """Folder for pictures, tables, and what passes found, from which the same command resumes; ablation in the run's
    folder when not given, or in the current folder for weights that are not a run's."""
    batch_size: int = 1
    """Images at once."""
    image_size: int | None = None
    """Longest side in pixels; what the model was trained with when not given."""
    model: str | None = None
    """A name of msdeform.list_models(): what weights without a description are of."""
    attn_backend: AttnBackend = "auto"
    """Implementation of the deformable attention."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 run the model under autocast."""
    workers: int = 2
    """Processes that decode images."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "limit": 1, "prune": 1, "samples": 40, "screen_images": 1, "steps": 1}
        least |= {"mean_images": 1, "random_orders": 0, "seed": 0, "workers": 0, "image_size": 32}
        for name, minimum in least.items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise ValueError(f"{name.replace('_', '-')}: expected at least {minimum}, got {value}")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence: expected a number from 0 to 1, got {self.confidence}")
        if self.budget is not None and not 0 <= self.budget <= 1:
            raise ValueError(f"budget: expected a fall of AP from 0 to 1, such as 0.01, got {self.budget}")
        if not (self.mask or self.matrix or self.cumulative or self.prunes):
            raise ValueError("nothing to do: expected --mask MASK, --matrix, --cumulative, --prune N or --budget FALL")
        self.masks()

    @property
    def prunes(self) -> bool:
        return self.prune is not None or self.budget is not None

    def masks(self) -> list[Masks]:
        """What --mask names, with the mode and the seed of the others where it has none."""
        found = []
        for text in self.mask:
            masks = zip(text.split("+"), parse_masks(text), strict=True)
            found.append(tuple(replace(mask, mode=self._mode(one, mask), seed=self.seed) for one, mask in masks))
        return found

    def _mode(self, text: str, mask: Mask) -> Mode:
        """Of a mask, or --mode where it names none."""
        named = mask.mode != "zero" or "zero" in text.strip().split(":")
        return mask.mode if named else self.mode


def ablate(options: AblateOptions) -> Findings:
    """Measures, prints a line for each intervention, and writes pictures and tables.

    Raises:
        FileNotFoundError, ValueError: the checkpoint or the data are not there or not right, or a mask fits no site.
    """
    trained = load_trained(options.checkpoint, choose_device(options.device), options.attn_backend, options.model)
    heads = heads_of(trained.model, options.sites)
    _check(options, trained.model, heads)
    out = check_writable(options.out or default_folder(options.checkpoint, "ablation"))
    with in_use(out):
        remove_leftovers(out)
        study, about = _study(options, trained, out)
        print(about["sentence"])
        print(_plan(options, study, heads))
        start = time.perf_counter()
        findings = _find(options, study, heads)
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


def _study(options: AblateOptions, trained: Trained, out: Path) -> tuple[Study, dict[str, Any]]:
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
    passes = Passes(
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
    study = Study(
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
    return study, about


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


def _plan(options: AblateOptions, study: Study, heads: Sequence[Head]) -> str:
    """How many passes it will take, in a sentence."""
    images, known = len(study.passes.data), options.masks()
    if options.matrix:
        known += [study.off([head]) for head in heads]
    more = 0
    if options.cumulative:
        inner = len(counts_of(len(heads), options.steps)) - 2
        more += inner * (2 * (1 + options.matrix) + options.random_orders) + 1
    screenings = 1 if options.cumulative or options.prunes else 0
    if options.prunes:
        most = min(options.prune or len(heads), len(heads))
        more, screenings = more + most, most
    new = len(study.passes.missing([(), *known])) + more
    bound = "at most " if more else ""
    lines = [
        f"the model as it is and {bound}{len(set(known)) + more} interventions, of which {bound}{new} passes are still "
        f"to run over {images} images: {bound}{new * images} forward passes, {TOGETHER} after one of the backbone (and "
        "the encoder, where it stays as it is)"
    ]
    if screenings:
        lines.append(f"{bound}{screenings * study.screen_images} forward and backward passes for screening")
    return "; ".join(lines)


def _find(options: AblateOptions, study: Study, heads: Sequence[Head]) -> Findings:
    """All that was asked for."""
    images = len(study.passes.data)
    findings = Findings({"sites": options.sites, "screen_by": options.screen_by, "images": images})

    @contextmanager
    def bar(what: str, total: int) -> Iterator[Advance]:
        with progress_bar(what, total, shown=options.progress and total > 0) as advance:
            yield advance

    def measure(what: str, interventions: Sequence[Masks]) -> None:
        missing = study.passes.missing([(), *interventions])
        with bar(what, len(missing) * images) as advance:
            study.measure([(), *interventions], advance)

    def screen(what: str) -> None:
        with bar(what, study.screen_images) as advance:
            findings.screening = study.screen(options.sites, advance=advance)

    measure("masks" if options.mask else "no mask", options.masks())
    (findings.base,) = study.measure([()])
    findings.masks = study.measure(options.masks())
    if options.matrix:
        measure("matrix", [study.off([head]) for head in heads])
        findings.matrix = study.matrix(options.sites)
    if options.cumulative:
        screen("screening")
        assert findings.screening is not None
        importance = {"screening": findings.screening.importance}
        if findings.matrix:
            importance["measurement"] = {head: -one.change for head, one in findings.matrix.items()}
        chosen = orders(importance, heads, options.random_orders, options.seed)
        counts = counts_of(len(heads), options.steps)
        sets = {name: [study.off(order[:count]) for count in counts] for name, order in chosen.items()}
        measure("cumulative", [masks for several in sets.values() for masks in several])
        findings.orders = chosen
        findings.curves = {
            name: list(zip(counts, study.measure(several), strict=True)) for name, several in sets.items()
        }
    if options.prunes:
        count = min(options.prune or len(heads), len(heads))
        with bar("pruning", count) as advance:
            findings.pruned = study.prune(options.sites, count, options.budget, advance)
    return findings


def main(argv: list[str] | None = None) -> int:
    """``msdeform ablate``."""
    ablate(parse(AblateOptions, argv, "msdeform ablate"))
    return 0

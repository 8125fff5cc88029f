"""``msdeform bench seeds``: a real training run for every backend and seed. Do the backends' APs agree?

Each run is ``msdeform train`` in a process of its own, on one synthetic data set, from random weights. A seed decides
weights, order and augmentation, the same for every backend: what is left to tell backends apart is their arithmetic.
Runs go by seeds, so that the backends can be compared as soon as the first seed is through. A run that has a row of
this code on this device is not done again; one that was stopped goes on from its checkpoint.

The run on a GPU has 2,500 steps on 8 images of 256x256, and was measured nowhere: more --epochs where AP stays at zero.
"""

import os
import re
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from ....train.config import options as train
from ....train.config.resolve import save_settings
from ....train.data.synthetic.options import SynthOptions
from ....train.data.synthetic.synth import make_dataset
from ...harness.provenance import usual_device
from ...harness.records import Row
from ...harness.results_file import open_results
from ...harness.tables import aligned
from ...operator import implementations
from ...options import SeedsOptions
from ..resumable import measure_missing
from . import runs, spread


@dataclass(frozen=True)
class Recipe:
    """What every run has in common. Rates and lengths were chosen here, for a net from random weights."""

    model: str
    image_size: int
    images: int
    epochs: int
    batch: int
    lr: float
    warmup_steps: int
    workers: int
    log_every: int
    held_out: int
    data: Path | None = None
    precision: str = "fp32"

    @property
    def settings(self) -> str:
        """As a row has it."""
        data = f"{self.images} synthetic images" if self.data is None else f"images of {self.data.resolve().name}"
        return (
            f"{data} of {self.image_size} pixels, {self.epochs} epochs of batch {self.batch}, lr {self.lr:g}, "
            f"{self.precision}"
        )


GPU = Recipe("deformable_detr_r50", 256, 2000, 10, 8, 2e-4, 100, workers=4, log_every=10, held_out=200)
CPU = Recipe("deformable_detr_mini", 96, 400, 4, 8, 2e-3, 50, workers=0, log_every=5, held_out=50)
QUICK = Recipe("deformable_detr_tiny", 64, 8, 2, 4, 1e-3, 0, workers=0, log_every=1, held_out=2)


def measure_rows(options: SeedsOptions) -> int:
    """Trains and prints; returns how many runs are left when the time is over."""
    device = usual_device()
    recipe = _recipe(options, device)
    # what decides these runs, beside what decides all
    sources = ("train/**/*.py", "bench/models/training/runs.py", "bench/models/training/seeds.py")
    keep = not options.quick and device.type == "cuda"
    results = open_results("msdeform bench seeds", options, device, measured=sources, keep=keep, again=False)
    # a run goes on by the code and on the device it began with
    name = f"{recipe.model} {recipe.settings} {results.source['code']} {results.source['device']}"
    folder = options.runs / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    end = time.monotonic() + 60 * options.minutes
    absent = {backend: implementations.absent(backend, device) for backend in options.backends}
    results.skipped += [f"{backend}: {reason}" for backend, reason in absent.items() if reason is not None]
    planned = []
    for seed, backend in product(options.seeds, options.backends):
        if absent[backend] is None:
            lead = {"kind": "seeds", "model": recipe.model, "settings": recipe.settings, "backend": backend}
            row: Row = {**lead, "seed": seed, "reduced": options.quick, **dict.fromkeys(runs.NUMBERS), "failure": None}
            run = folder / f"{backend}-seed{seed}"
            planned.append(((*lead.values(), seed), partial(_row, row, recipe, run, device, end)))
    left = measure_missing(planned, results, float("inf"))  # a run that is over is recorded even without time
    rows = [row for row in results.rows if row["failure"] is None]
    if rows:
        print(f"{aligned(spread.table(rows), 1)}\n{spread.verdict(rows)}\n")
    return left


def _row(row: Row, recipe: Recipe, run: Path, device: torch.device, end: float) -> Row | None:
    """A run's row, with its numbers or its failure; None if the time ended before a step was logged. One that was
    stopped has saved, and its row is `unfinished`."""
    if not runs.finished(run):
        if time.monotonic() >= end:
            return None
        print(f"{recipe.model}, {row['backend']}, seed {row['seed']}: training in {run}", file=sys.stderr, flush=True)
        settings = run.parent / f"{run.name}.yaml"
        data = recipe.data or _synthetic(recipe, run.parent.parent)
        save_settings(_options(recipe, data, row["backend"], row["seed"], device), settings)
        words = ["--config", str(settings), "--resume", "auto", "--out", str(run)]
        ended, failure = runs.train(words, run.parent / f"{run.name}.txt", end)
        if failure is not None:
            return row | {"failure": failure}
        if not ended:
            return row | so_far if (so_far := runs.so_far(run)) else None
    return row | runs.numbers(run)


def _recipe(options: SeedsOptions, device: torch.device) -> Recipe:
    usual = QUICK if options.quick else GPU if device.type == "cuda" else CPU
    names = ("model", "data", "images", "image_size", "epochs", "batch", "lr", "precision")
    return replace(usual, **{name: value for name in names if (value := getattr(options, name)) is not None})


def _synthetic(recipe: Recipe, root: Path) -> Path:
    data = root / f"data-{recipe.images}-{recipe.held_out}-{recipe.image_size}"
    if not data.exists():
        workers = min(8, os.cpu_count() or 1)
        make_dataset(
            SynthOptions(data, recipe.images, recipe.held_out, size=recipe.image_size, workers=workers, progress=False)
        )
    return data


def _options(recipe: Recipe, data: Path, backend: str, seed: int, device: torch.device) -> train.TrainOptions:
    return train.TrainOptions(
        source=train.Source(data=data.resolve()),
        input=train.Input(image_size=recipe.image_size, augment="flip"),
        loading=train.Loading(workers=recipe.workers, cache_images="pixels"),
        model=train.Model(recipe.model, attn_backend=backend, backbone_weights="none"),  # type: ignore[arg-type]
        batch=train.Batch(epochs=recipe.epochs, total_batch_size=recipe.batch, batch_size=recipe.batch, seed=seed),
        optim=train.Optim(lr=recipe.lr, lr_factor_offsets=0.5),
        schedule=train.Schedule("cosine", warmup_steps=recipe.warmup_steps),
        compute=train.Compute(device=str(device), precision=recipe.precision),  # type: ignore[arg-type]
        run=train.Run(dry_steps=0, keep=1),
        logging=train.Logging(log_every=recipe.log_every, tensorboard=False, pictures=0, progress=False),
    )

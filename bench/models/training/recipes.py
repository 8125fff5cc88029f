"""``msdeform bench recipes``: the same photographs, trained on with several recipes and seeds. What helps?

Each run is ``msdeform train`` in a process of its own: a preset, with what the recipe changes of it. What counts is the
last evaluation, not the best of many, which would be chosen by the very images it is measured on. Recipes are compared
on a share of the training images; the data set's own validation images say only once how good the chosen one is.
"""

import re
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from ....common.device import choose_device
from ....common.files import checkpoints_in
from ....train.config.options import Source
from ....train.engine.checkpoint import load_trained
from ....train.evaluation.analysis import bootstrap
from ....train.evaluation.coco_metrics import evaluate_boxes
from ....train.evaluation.detect import data_of, detect
from ...harness.provenance import usual_device
from ...harness.records import Row
from ...harness.results_file import open_results
from ...harness.tables import Line, aligned, grouped, number
from ...options import RECIPES, RecipesOptions
from ..resumable import measure_missing
from . import runs, spread

_OF_RECIPE = ("data", "validated", "preset", "recipe", "flags")
DRAWN = (*_OF_RECIPE, "seed", "loss_curve", "ap_curve")
"""What `curves` shows of a row."""
_SOURCES = ("train/**/*.py", "bench/models/training/recipes.py", "bench/models/training/runs.py")


def measure_rows(options: RecipesOptions) -> int:
    """Trains and prints; returns how many runs are left when the time is over."""
    results = open_results("msdeform bench recipes", options, usual_device(), measured=_SOURCES, again=False)
    end = time.monotonic() + 60 * options.minutes
    lead = {
        "kind": "recipe",
        "data": options.data.resolve().name,
        "validated": "own" if options.val_share is None else f"{options.val_share:g} of the training images",
        "preset": options.preset,
    }
    name = " ".join(map(str, (*lead.values(), results.source["code"], results.source["device"])))
    folder = options.runs / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    planned = []
    for seed, recipe in product(options.seeds, options.recipes):
        row: Row = {**lead, "recipe": recipe, "seed": seed, "flags": RECIPES[recipe], "failure": None}
        run = folder / f"{re.sub(r'[^a-z0-9]+', '-', recipe.lower())}-seed{seed}"
        key = ("recipe", lead["data"], lead["validated"], options.preset, recipe, seed)
        planned.append((key, partial(_row, row, run, options, end)))
    left = measure_missing(planned, results, float("inf"))  # a run that is over is recorded even without time
    if rows := [row for row in results.rows if row["failure"] is None]:
        print(f"{aligned(recipe_table(rows), 3)}\n\n{aligned(interval_table(rows), 3)}\n")
    return left


def _row(row: Row, run: Path, options: RecipesOptions, end: float) -> Row | None:
    """A run's row, with its numbers or its failure; None if the time ended before the run, which has saved then."""
    if not runs.finished(run):
        if time.monotonic() >= end:
            return None
        print(f"{row['recipe']}, seed {row['seed']}: training in {run}", file=sys.stderr, flush=True)
        words = [*_words(options, row["recipe"], row["seed"]), "--resume", "auto", "--out", str(run)]
        ended, failure = runs.train(words, run.parent / f"{run.name}.txt", end)
        if failure is not None:
            return row | {"failure": failure}
        if not ended:
            return None
    return row | runs.numbers(run) | _judged(run)


def _words(options: RecipesOptions, recipe: str, seed: int) -> list[str]:
    """The words of ``msdeform train``."""
    where = ["--data", str(options.data)]
    if options.val_share is not None:  # of the training images alone
        images, annotations = Source(data=options.data).split("train")
        where = ["--train-images", str(images), "--train-annotations", str(annotations)]
        where += ["--val-share", str(options.val_share)]
    more = [("--init-from", options.init_from), ("--epochs", options.epochs)]
    given = [word for flag, value in more if value is not None for word in (flag, str(value))]
    quiet = ["--no-tensorboard", "--pictures", "0", "--no-progress"]
    changed = shlex.split(RECIPES[recipe])
    return ["--preset", options.preset, *where, *given, "--seed", str(seed), "--bad-data", "skip", *quiet, *changed]


def _judged(run: Path) -> Row:
    """The last checkpoint's AP and AP50, and each class's, with 95% intervals over the validation images."""
    trained = load_trained(checkpoints_in(run)[-1], choose_device("auto"))
    data, _, ids = data_of(trained, trained.options.source, None, progress=False)
    found = detect(trained.model, data, trained.device, category_ids=ids)
    classes = evaluate_boxes(data.annotations.ground_truth(), found, data.image_ids).classes
    spread_of = bootstrap(found.results, data.annotations, data.image_ids)
    return {
        "val_images": len(data),
        "intervals": {name: spread_of.metrics[name] for name in ("AP", "AP50")},
        "classes": [
            {"name": one.name, "boxes": one.boxes, **own} for one, own in zip(classes, spread_of.classes, strict=True)
        ],
    }


def recipe_table(rows: Sequence[Row]) -> list[Line]:
    """A line for each recipe: means over seeds, from the least to the most, and AP50 of each class."""
    names = _classes(rows)
    head = ("data", "validated on", "preset", "recipe", "seeds", "AP", "least to most", "AP50", "least to most")
    lines: list[Line] = [(*head, *(f"AP50 {name}" for name in names), "minutes")]
    for (*lead, _), mine in grouped(rows, *_OF_RECIPE).items():
        cells = []
        for name in ("AP", "AP50"):
            values = [row["intervals"][name]["value"] for row in mine]
            cells += [f"{statistics.mean(values):.3f}", f"{min(values):.3f} to {max(values):.3f}"]
        classes = [_by_class(row) for row in mine]
        by_class = [_mean([one[name]["value"] for one in classes]) for name in names]
        minutes = statistics.mean(row["seconds"] for row in mine) / 60
        lines.append((*lead, str(len(mine)), *cells, *by_class, number(minutes)))
    return lines


def interval_table(rows: Sequence[Row]) -> list[Line]:
    """A line for each run: AP, AP50, and AP50 of each class, with their 95% intervals over images."""
    names = _classes(rows)
    head = ("data", "validated on", "preset", "recipe", "seed")
    lines: list[Line] = [(*head, "AP (95% interval)", "AP50 (95% interval)", *(f"AP50 {name}" for name in names))]
    for row in rows:
        of = _by_class(row)
        measured = [row["intervals"]["AP"], row["intervals"]["AP50"], *(of[name] for name in names)]
        lines.append((*(str(row[name]) for name in (*_OF_RECIPE[:-1], "seed")), *map(_ranged, measured)))
    return lines


def curves(rows: Sequence[Row]) -> Any:
    """A figure of runs on the same images: loss and AP, for each recipe the mean of its seeds in their range."""
    groups = grouped(rows, *_OF_RECIPE).values()
    return spread.drawn([[spread.history(f"{row['preset']}: {row['recipe']}", row) for row in mine] for mine in groups])


def _classes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(one["name"] for row in rows for one in row["classes"]))


def _by_class(row: Row) -> dict[str, dict[str, float | None]]:
    return {one["name"]: one["AP50"] for one in row["classes"]}


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]  # none of a class without boxes
    return f"{statistics.mean(known):.3f}" if known else "-"


def _ranged(one: dict[str, float | None]) -> str:
    return "-" if one["value"] is None else f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"

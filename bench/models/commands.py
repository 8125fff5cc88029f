"""The commands ``msdeform table`` and ``msdeform bench accelerate``, ``explain``, ``exports``, ``recipes``, ...

Each measures and prints, and returns its exit status. A benchmark's modules are imported by its own command alone.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from ..harness.provenance import usual_device
from ..harness.results_file import open_results
from ..operator import jobs
from ..operator.runner import Settings, measure
from ..options import (
    AccelerateOptions,
    DeployOptions,
    ExplainEvalOptions,
    ExplainOptions,
    ExportsOptions,
    RecipesOptions,
    SeedsOptions,
    TableOptions,
    TrainingOptions,
)

_LIMIT = 300.0  # seconds for a row: building a model and compiling it take most of them


def table(options: TableOptions) -> int:
    """``msdeform table``: what the published table says of each detector, and ours beside it."""
    from . import table
    from .published import MODELS, REDUCED_MODELS

    device = usual_device()
    if options.flops:
        results = open_results("msdeform table", options, torch.device("cpu"), again=True)
        print(table.count(options.models or MODELS, results))
        return 0
    reduced = device.type == "cpu" if options.reduced is None else options.reduced
    names = options.models or (REDUCED_MODELS if reduced else MODELS)
    settings = Settings(device, limit=_LIMIT, threads=torch.get_num_threads())
    results = open_results("msdeform table", options, device, keep=not reduced)
    what = (names, options.backends, options.dtypes)
    planned: Sequence[jobs.Job]
    if options.speed:
        modes = ("eager", "compiled") if options.compiled else ("eager",)
        planned = table.model_jobs(*what, options.batch or (1, 4), modes, reduced=reduced)
    else:
        planned = table.training_jobs(*what, options.batch or (2, 4), reduced=reduced)
    measure(planned, settings, results)
    print(file=sys.stderr)
    results.report()
    print(table.speed_table(results.of(planned[0].kind)))
    return 0


def accelerate(options: AccelerateOptions) -> int:
    """``msdeform bench accelerate``: models of transformers before and after."""
    return _measure("accelerated", options)


def explain(options: ExplainOptions) -> int:
    """``msdeform bench explain``: relevance beside the model's own passes."""
    return _measure("explanations.cost", options)


def explain_eval(options: ExplainEvalOptions) -> int:
    """``msdeform bench explain-eval``: how good a detector's explanations are, as rows."""
    return _measure("explanations.quality", options)


def exports(options: ExportsOptions) -> int:
    """``msdeform bench exports``: exported detectors beside their models."""
    return _measure("exports", options)


def deploy(options: DeployOptions) -> int:
    """``msdeform bench deploy``: one detector in every engine."""
    return _measure("deploy", options)


def seeds(options: SeedsOptions) -> int:
    """``msdeform bench seeds``: a training run for every backend and seed."""
    return _measure("training.seeds", options)


def recipes(options: RecipesOptions) -> int:
    """``msdeform bench recipes``: a training run for every recipe and seed."""
    return _measure("training.recipes", options)


def training(options: TrainingOptions) -> int:
    """``msdeform bench training``: the loading of images, and a step's stages."""
    return _measure("training.benchmark", options)


def _measure(module: str, options: Any) -> int:
    """Measures, and returns 1 where a row that has to be right failed."""
    found = import_module(f".{module}", __package__).measure_rows(options)
    return int(isinstance(found, list) and any(row["failure"] is not None for row in found))

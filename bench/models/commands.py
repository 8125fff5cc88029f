"""The commands ``msdeform table`` and ``msdeform bench seeds``, ``explain``, ``exports`` and ``training``.

Each measures and prints, and returns its exit status. A benchmark's modules are imported by its own command alone.
"""

import sys
from collections.abc import Sequence

import torch

from ..harness.provenance import command_line, provenance, usual_device
from ..harness.results_file import ResultsFile, folder
from ..operator import jobs
from ..operator.runner import Settings, measure
from ..options import ExplainOptions, ExportsOptions, SeedsOptions, TableOptions, TrainingOptions

_LIMIT = 300.0  # seconds for a row: building a model and compiling it take most of them


def table(options: TableOptions) -> int:
    """``msdeform table``: what the published table says of each detector, and ours beside it."""
    from . import table
    from .published import MODELS, REDUCED_MODELS

    device = usual_device()
    command = command_line("msdeform table", options)
    if options.flops:
        book = ResultsFile(options.out, provenance(torch.device("cpu"), command), again=True)
        print(table.count(options.models or MODELS, book))
        return 0
    reduced = device.type == "cpu" if options.reduced is None else options.reduced
    names = options.models or (REDUCED_MODELS if reduced else MODELS)
    settings = Settings(device, limit=_LIMIT, threads=torch.get_num_threads())
    book = ResultsFile(folder(options.out, keep=not reduced), provenance(device, command), again=options.again)
    what = (names, options.backends, options.dtypes)
    planned: Sequence[jobs.Job]
    if options.speed:
        modes = ("eager", "compiled") if options.compiled else ("eager",)
        planned = table.model_jobs(*what, options.batch or (1, 4), modes, reduced=reduced)
    else:
        planned = table.training_jobs(*what, options.batch or (2, 4), reduced=reduced)
    measure(planned, settings, book)
    print(file=sys.stderr)
    book.report()
    print(table.speed_table(book.of(planned[0].kind)))
    return 0


def seeds(options: SeedsOptions) -> int:
    """``msdeform bench seeds``: a training run for every backend and seed. Do the backends' APs agree?"""
    from .seeds import measure_rows

    measure_rows(options)
    return 0


def explain(options: ExplainOptions) -> int:
    """``msdeform bench explain``: what an explanation costs beside the model's own forward and backward pass."""
    from .explain import measure_rows

    measure_rows(options)
    return 0


def training(options: TrainingOptions) -> int:
    """``msdeform bench training``: how fast images are loaded, and what a training step is made of."""
    from .training.benchmark import measure_rows

    measure_rows(options)
    return 0


def exports(options: ExportsOptions) -> int:
    """``msdeform bench exports``: returns 1 where a difference was too large or a model could not be exported."""
    from .exports import measure_rows

    return 1 if any(row["failure"] is not None for row in measure_rows(options)) else 0

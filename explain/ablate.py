"""``msdeform ablate``: parts of a detector's attention switched off, and what that does over a data set."""

import time
from typing import Any

from ..common.files import in_use, remove_leftovers
from .ablation.ablation import Ablation, check_fits
from .ablation.report import summary, write
from .ablation.runs import AblationRuns
from .options import AblateOptions
from .workspace import checked, default_folder, trained_model, with_data


def ablate(options: AblateOptions) -> dict[str, Any]:
    """Measures, prints a line for each intervention, and writes pictures and tables; returns `Ablation.find`'s.

    Raises:
        FileNotFoundError, ValueError: the checkpoint or the data are not there or not right, or a mask fits no site.
    """
    trained = trained_model(options)
    check_fits(options, trained.model)
    out = checked(options.out or default_folder(options.checkpoint, "ablation"))
    with in_use(out):
        remove_leftovers(out)
        ablation = Ablation(AblationRuns(with_data(trained, options), options, out / "passes"))
        print(ablation.runs.detector)
        start = time.perf_counter()
        found = ablation.find()
        found["about"]["seconds"] = round(time.perf_counter() - start, 1)
        files = write(found, out)
    print("\n".join(summary(found)))
    print(f"{found['about']['seconds']:.0f} s; written to {out}: {', '.join(files)}")
    return found


def run(options: AblateOptions) -> int:
    """``msdeform ablate``."""
    ablate(options)
    return 0

"""``msdeform ablate``: parts of a detector's attention switched off, and what that does over a data set."""

import time

from ..common.files import in_use, remove_leftovers
from .ablation.ablation import Ablation, Findings, check_fits
from .ablation.report import summary, write
from .ablation.runs import AblationRuns
from .options import AblateOptions
from .workspace import checked, default_folder, trained_model, with_data


def ablate(options: AblateOptions) -> Findings:
    """Measures, prints a line for each intervention, and writes pictures and tables.

    Raises:
        FileNotFoundError, ValueError: the checkpoint or the data are not there or not right, or a mask fits no site.
    """
    trained = trained_model(options)
    check_fits(options, trained.model)
    out = checked(options.out or default_folder(options.checkpoint, "ablation"))
    with in_use(out):
        remove_leftovers(out)
        detector = with_data(trained, options)
        ablation = Ablation(AblationRuns(detector, options, out / "passes"))
        print(detector)
        start = time.perf_counter()
        findings = ablation.find()
        findings.about["seconds"] = round(time.perf_counter() - start, 1)
        files = write(findings, out)
    print("\n".join(summary(findings)))
    print(f"{findings.about['seconds']:.0f} s; written to {out}: {', '.join(files)}")
    return findings


def run(options: AblateOptions) -> int:
    """``msdeform ablate``."""
    ablate(options)
    return 0

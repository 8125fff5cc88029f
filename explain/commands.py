"""The commands ``msdeform ablate``, ``msdeform explain-eval`` and ``msdeform explore``.

Each returns its exit status, and imports what it alone needs. Errors are those of `workspace.with_data`, and ValueError
for a model or a mask that does not fit.
"""

import signal
import threading
import time
from importlib.util import find_spec

from ..common.files import in_use, remove_leftovers
from .options import AblateOptions, ExplainEvalOptions, ExploreOptions
from .workspace import any_trained_model, checked, default_folder, trained_model, with_data


def ablate(options: AblateOptions) -> int:
    """``msdeform ablate``: parts of a detector's attention switched off, and what that does over a data set."""
    from .ablation.ablation import Ablation, check_fits
    from .ablation.report import summary, write
    from .ablation.runs import AblationRuns

    trained = trained_model(options)
    check_fits(options, trained.model)
    out = checked(options.out or default_folder(options.checkpoint, "ablation"))
    with in_use(out):
        remove_leftovers(out)
        detector = with_data(trained, options)
        ablation = Ablation(AblationRuns(detector, options, out / "passes"))
        print(detector)
        start = time.perf_counter()
        found = ablation.find()
        found["about"]["seconds"] = round(time.perf_counter() - start, 1)
        files = write(found, out)
    print("\n".join(summary(found)))
    print(f"{found['about']['seconds']:.0f} s; written to {out}: {', '.join(files)}")
    return 0


def explain_eval(options: ExplainEvalOptions) -> int:
    """``msdeform explain-eval``: over a data set, is what the methods say of detections better than saying nothing?"""
    from .quality.evaluate import evaluate
    from .quality.scores import lines, write

    out = checked(options.out or default_folder(options.checkpoint, "explain-eval"))
    found = evaluate(options, out / "images")
    write(found, out)  # first: who reads what is printed may stop at some line
    print("\n".join(lines(found)))
    print(f"scores.json and scores.png in {out}")
    return 0


def explore(options: ExploreOptions) -> int:
    """``msdeform explore``: the page of attention for uploaded images on the local host."""
    if find_spec("gradio") is None:
        raise RuntimeError("the interface needs the package gradio, which is not installed: pip install gradio")
    from .page.interface import serving

    stop = threading.Event()
    with serving(any_trained_model(options).model, options) as address:
        # an exception, which Ctrl-C raises otherwise, is lost where it meets a destructor or a callback
        usual = signal.signal(signal.SIGINT, lambda *_: stop.set())
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        stop.wait()
        signal.signal(signal.SIGINT, usual)
    print("stopped by Ctrl-C")
    return 0

"""``msdeform explain-eval``: over a data set, is what the methods say of detections better than saying nothing?"""

from .options import ExplainEvalOptions
from .quality.evaluate import evaluate
from .workspace import checked, default_folder


def run(options: ExplainEvalOptions) -> int:
    """``msdeform explain-eval``."""
    out = checked(options.out or default_folder(options.checkpoint, "explain-eval"))
    evaluation = evaluate(options)
    print("\n".join(evaluation.summary()))
    evaluation.write(out)
    print(f"scores.json and scores.png in {out}")
    return 0

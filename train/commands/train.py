"""``msdeform train``."""

from ..config.options import TrainOptions
from ..engine.run import evaluate_checkpoint, train
from ..evaluation.coco_metrics import summary


def run(options: TrainOptions) -> int:
    """Trains; with ``--eval --resume`` prints a checkpoint's metrics instead."""
    if options.run.eval and options.run.resume is not None:
        metrics = evaluate_checkpoint(options)
        if metrics is not None:
            print(summary(metrics))
    else:
        train(options)
    return 0

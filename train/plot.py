"""The curves of a run: loss over steps, and AP where it was measured, from its log."""

import io
from pathlib import Path

import numpy as np

from .files import atomic_file
from .log import read_log


def plot_run(log: Path, out: Path) -> None:
    """Draws ``log.jsonl`` to a PNG.

    Raises:
        ValueError: the log holds no step.
    """
    import matplotlib.figure

    events = read_log(log)
    # after a resume some steps are there twice: the last one counts
    steps = {event["step"]: event["loss"] for event in events if event["event"] == "step"}
    epochs = {event["step"]: (event["AP"], event["AP50"]) for event in events if event["event"] == "epoch"}
    if not steps:
        raise ValueError(f"{log} holds no step to plot")
    x = np.array(sorted(steps))
    loss = np.array([float(steps[step]) for step in x])

    figure = matplotlib.figure.Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(x, loss, color="0.75", linewidth=0.8, label="a step")
    left.plot(x, _smooth(loss), color="tab:blue", label="running mean")
    left.set(xlabel="step", ylabel="loss", title="training loss")
    left.set_yscale("log")
    left.legend()
    at = sorted(epochs)
    right.plot(at, [epochs[step][1] for step in at], "o-", label="AP50")
    right.plot(at, [epochs[step][0] for step in at], "o-", label="AP")
    right.set(xlabel="step", ylim=(0, 1), title="held-out images")
    right.grid(alpha=0.3)
    right.legend()

    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=120)
    with atomic_file(out) as file:
        file.write(encoded.getvalue())


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a twentieth of the run, shorter at the ends."""
    width = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - width, 0)
    high = np.minimum(np.arange(len(values)) + width + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)

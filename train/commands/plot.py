"""``msdeform plot``: the curves of runs side by side in one picture, and a table of what came of them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..monitor.curves import save_curves
from ..monitor.history import History, differences, read_all
from .options import PlotOptions


def table(histories: Sequence[History]) -> list[str]:
    """A line for each run under a head: where it got to, at what speed."""
    rows = [_row(history) for history in histories]
    columns = []
    for name in rows[0]:
        cells = [name, *(row[name] for row in rows)]
        width = max(map(len, cells))
        words = name in ("run", "backend", "precision")
        columns.append([cell.ljust(width) if words else cell.rjust(width) for cell in cells])
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def _row(history: History) -> dict[str, str]:
    at, ap = history.curve("AP")
    _, ap50 = history.curve("AP50")
    _, loss = history.curve("loss")
    _, speed = history.curve("images_per_s")
    hours = max(event["hours"] for event in (*history.steps, *history.evaluations))
    return {
        "run": history.name,
        "steps": str(max(events[-1]["step"] for events in (history.steps, history.evaluations) if events)),
        "best AP": f"{ap.max():.3f}" if len(ap) else "-",
        "at step": f"{at[ap.argmax()]:.0f}" if len(ap) else "-",
        "last AP": f"{ap[-1]:.3f}" if len(ap) else "-",
        "AP50": f"{ap50[-1]:.3f}" if len(ap50) else "-",
        # of one step alone it is much noise
        "loss": f"{loss[-max(1, len(loss) // 20) :].mean():.3f}" if len(loss) else "nan",
        "images/s": f"{np.median(speed):.1f}" if len(speed) else "-",
        "hours": "-" if np.isnan(hours) else f"{hours:.2f}",
        "backend": str(history.facts.get("attn_backend", "-")),
        "precision": str(history.settings.get("precision", "-")),
    }


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is None else str(value)


def run(options: PlotOptions) -> int:
    """``msdeform plot``."""
    folders = [run if run.is_dir() else run.parent for run in options.runs]
    # relative paths stay relative, as they are printed
    common = folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.resolve() for folder in folders]))
    out = options.out or common / "plot.png"
    histories = read_all(options.runs)
    terms = None
    if options.terms is not None:
        terms = [name.strip() for name in options.terms.split(",") if name.strip()]
        if not terms:
            raise ValueError(f"terms: expected names of curves with commas between them, got {options.terms!r}")
    save_curves(histories, out, terms, axis=options.x, smooth=options.smooth, group=options.group)
    print("\n".join(table(histories)))
    for name, values in differences(histories).items():
        print(f"{name.replace('_', '-')}: {' | '.join(map(_shown, values))}")
    print(f"curves: {out}")
    return 0

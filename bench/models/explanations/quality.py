"""``msdeform bench explain-eval``: how good a detector's explanations are, method by method, as rows.

What `explain.quality.evaluate` finds of every detection, with one seed after another; detections of all seeds are put
together, and intervals are by image. Scores of single detections stay in files beside the rows; a measurement that was
stopped takes from there what the same code found.
"""

import re
import sys
from collections.abc import Sequence
from typing import Any

from ....common.files import write_json
from ....common.text import counted
from ....explain.options import ExplainEvalOptions as EvaluateOptions
from ....explain.quality.evaluate import BASELINES, evaluate
from ....explain.quality.scores import MEASURES, beats, summarise
from ....train.config.options import Source
from ...harness.provenance import usual_device
from ...harness.records import Row
from ...harness.results_file import open_results
from ...harness.tables import Line, aligned, grouped
from ...options import ExplainEvalOptions

_SAME = ("methods", "measures", "target", "confidence", "limit", "most", "steps", "randomise")


def measure_rows(options: ExplainEvalOptions) -> int:
    """Judges, prints and keeps; returns 0, as nothing is left."""
    settings: dict[str, Any] = {name: getattr(options, name) for name in (*_SAME, "checkpoint", "model", "device")}
    each = [EvaluateOptions(source=Source(options.data), seed=seed, **settings) for seed in options.seeds]
    sources = ("explain/core/*.py", "explain/quality/*.py", "explain/baselines/*.py", "bench/models/explanations/*.py")
    results = open_results("msdeform bench explain-eval", options, usual_device(), measured=sources)
    data = options.data.resolve().name
    cells = [
        ("explanation-quality", options.detector, data, options.target, method, _settings(options))
        for method in (*each[0].method_names, *BASELINES)
    ]
    if results.to_measure(*cells):
        rows = []
        for one in each:
            print(f"{options.detector} on {data}, seed {one.seed}", file=sys.stderr, flush=True)
            found = evaluate(one, None if options.again else options.runs / results.source["code"])
            name = re.sub(r"[^a-z0-9]+", "-", f"{options.detector} {data} {options.target}".lower()).strip("-")
            write_json(options.runs / f"{name}-seed{one.seed}.json", found)
            rows += found["detections"]
        for row in _rows(rows, options, data):
            results.add(row)
        for group in each[0].group_names:
            print(f"{aligned(quality_table(results.rows, group), 1)}\n")
    results.report()
    return 0


def _settings(options: ExplainEvalOptions) -> str:
    """What scores depend on beside the cell: "confidence 0.5, limit 20, ..."."""
    given = [f"{name} {getattr(options, name)}" for name in _SAME if name not in ("methods", "target")]
    return ", ".join([*given, f"seeds {' '.join(map(str, options.seeds))}"])


def _rows(found: Sequence[dict[str, Any]], options: ExplainEvalOptions, data: str) -> list[Row]:
    """A row for every method and baseline."""
    summary = summarise(found, BASELINES)
    lead = {
        "kind": "explanation-quality",
        "detector": options.detector,
        "data": data,
        "target": options.target,
        "settings": _settings(options),
        "seeds": list(options.seeds),
        "detections": len(found) // len(options.seeds),
        "matched": sum(row["truth"] is not None for row in found) // len(options.seeds),
        "images": summary["images"],
    }
    return [
        lead
        | {
            "method": method,
            "baseline": method in BASELINES,
            "intervals": summary["intervals"][method],
            "beats": {
                measure: [other for other in BASELINES if beats(summary, measure, method, other)]
                for measure, (_, better, _) in MEASURES.items()
                if better and method not in BASELINES
            },
        }
        for method in summary["intervals"]
    ]


def of_group(rows: Sequence[Row], group: str) -> list[Row]:
    """Of each detector's measurements, which differ in their settings, the last that judged by a group of measures."""
    names = [name for name, one in MEASURES.items() if one.group == group]
    last: dict[tuple[Any, ...], list[Row]] = {}
    for (*what, _), mine in grouped(rows, "detector", "data", "target", "settings").items():
        if any(row["intervals"][name][0] is not None for row in mine for name in names):
            last[tuple(what)] = mine
    return [row for mine in last.values() for row in mine]


def counted_detections(rows: Sequence[Row]) -> str:
    """Of how much the rows are."""
    one = rows[0]
    seeds = counted(len(one["seeds"]), "seed")
    found = f"{counted(one['detections'], 'detection')} in {counted(one['images'], 'image')}"
    return f"{found}, {one['matched']} of them of an annotated object; {seeds}"


def quality_table(rows: Sequence[Row], group: str) -> list[Line]:
    """Means with 95% intervals, a line for each method, a column for each measure; * where better than every baseline.

    Better is by the paired difference, whose interval excludes 0.
    """
    names = [name for name, one in MEASURES.items() if one.group == group]
    shown = [name for name in names if any(row["intervals"][name][0] is not None for row in rows)]
    signs = {1: " (high)", -1: " (low)", 0: ""}
    head = ["method", *(MEASURES[name].title + signs[MEASURES[name].better] for name in shown)]
    return [head, *([row["method"], *(_cell(row, name) for name in shown)] for row in rows)]


def _cell(row: Row, measure: str) -> str:
    mean, low, high = row["intervals"][measure]
    if mean is None:
        return "-"
    digits = 2 if abs(mean) < 100 else 0
    span = "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    best = len(row["beats"].get(measure, ())) == len(BASELINES)
    return f"{mean:.{digits + (digits > 0)}f}{span}{' *' * best}"

"""The report of an evaluation: one HTML file, with pictures and charts in it, that asks nothing of the network."""

import base64
import html
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...common.files import atomic_file
from ...common.progress import progress_bar
from ...common.text import counted
from ..data.dataset import CocoDetection
from ..visual.error_pictures import COLOURS, error_pictures
from ..visual.evaluation_charts import charts
from .analysis import WITHOUT_THRESHOLD, Analysis
from .matching import ERRORS, LEAST_IOU, MATCHING_IOU
from .thresholds import ENOUGH, LEAST_SCORE

MOST_IN_MATRIX = 20
"""Classes; of more, the commonest confusions are listed."""
_MOST_LISTED = 30
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_MEANINGS = {
    "found": f"right class, IoU at least {MATCHING_IOU}",
    "missed": "an object that no detection is on",
    "false": "a detection on no object",
    "confused": f"IoU at least {MATCHING_IOU}, but another class",
    "badly placed": f"right class, but an IoU from {LEAST_IOU} to {MATCHING_IOU}",
    "duplicate": "a second detection of an object that is found",
}


def write_report(
    path: Path, analysis: Analysis, data: CocoDetection, origin: Mapping[str, Any], *, progress: bool = True
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: the file.
        analysis: with or without intervals.
        data: the images.
        origin: what was evaluated, by name, as it is to be told.
        progress: show a bar while pictures are drawn.

    Raises FileNotFoundError or BadImageError for an image of the worst that cannot be read.
    """
    model = origin.get("model") or Path(str(origin.get("results", "detections"))).name
    run = origin.get("checkpoint")  # tells apart the reports of two runs of one model
    of = f"{run}, on {origin['data']}" if run else str(origin["data"])
    title = f"{model} on {counted(int(origin['images']), 'image')}"
    sections = {
        "classes": ("Classes", _classes(analysis)),
        "errors": ("What goes wrong", _errors(analysis)),
        "curves": ("Confidence", _curves(analysis)),
        "confusion": ("Confusion", _confusion(analysis)),
        "worst": ("Images with most errors", _worst(analysis, data, progress)),
        "origin": ("What was evaluated", _origin(analysis, origin)),
    }
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, (heading, _) in sections.items())
    body = "".join(
        f'<section id="{name}"><h2>{heading}</h2>{text}</section>' for name, (heading, text) in sections.items()
    )
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{_text(title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{_text(title)}</h1><p>{_text(of)}</p></header>
<ul class="cards">{_cards(analysis)}</ul>
<nav aria-label="Sections">{links}</nav>
<main>{body}</main>
</body>
</html>
"""
    with atomic_file(path) as file:
        file.write(page.encode())


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of HTML cells, whose first column names the row."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heading)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: float | None) -> str:
    return "–" if value is None or value < 0 else f"{value:.3f}"


def _between(analysis: Analysis, name: str, label: int | None = None) -> str:
    """The 95% interval of a metric; nothing where there is none."""
    if analysis.intervals is None:
        return ""
    of = analysis.intervals.metrics if label is None else analysis.intervals.classes[label]
    low, high = of[name]["low"], of[name]["high"]
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _cards(analysis: Analysis) -> str:
    metrics, best = analysis.evaluation.metrics, analysis.thresholds.overall
    cards = [
        (
            "AP",
            _number(metrics["AP"]),
            f"95%: {_between(analysis, 'AP')}" if analysis.intervals else "IoU 0.50 to 0.95",
        ),
        ("AP50", _number(metrics["AP50"]), f"95%: {_between(analysis, 'AP50')}" if analysis.intervals else "IoU 0.50"),
    ]
    if best is not None:
        cards += [
            ("precision", f"{best.precision:.1%}", f"of detections of at least {best.confidence:.2f} are right"),
            ("recall", f"{best.recall:.1%}", f"of {len(analysis.matches.object_labels):,} objects are found"),
        ]
    if analysis.calibration.error is not None:
        cards.append(
            (
                "calibration error",
                f"{analysis.calibration.error:.3f}",
                "how far a score is from the share that is right",
            )
        )
    return "".join(
        f"<li><span>{name}</span><b>{value}</b><span>{_text(note)}</span></li>" for name, value, note in cards
    )


def _classes(analysis: Analysis) -> str:
    best = analysis.thresholds
    kept = best.by_label or [WITHOUT_THRESHOLD] * len(analysis.names)
    rows = []
    for label, (kind, of) in enumerate(zip(analysis.evaluation.classes, analysis.curves, strict=True)):
        between = _between(analysis, "AP", label)
        ap = _number(kind.AP) + (f"<small>{between}</small>" if between else "")
        others = [_number(value) for value in (kind.AP50, kind.AP_S, kind.AP_M, kind.AP_L)]
        shared = "*" if best.classes[label] is None else ""
        at = [f"{value:.3f}" for value in of.at(kept[label])]
        rows.append([_text(kind.name), f"{kind.boxes:,}", ap, *others, f"{kept[label]:.2f}{shared}", *at])
    metrics = analysis.evaluation.metrics
    whole = [_number(metrics[name]) for name in ("AP50", "AP_S", "AP_M", "AP_L")]
    between, overall = _between(analysis, "AP"), best.overall
    ap = _number(metrics["AP"]) + (f"<small>{between}</small>" if between else "")
    ends = ["–"] * 4 if overall is None else [f"{overall.confidence:.2f}", *(f"{value:.3f}" for value in overall[1:])]
    rows.append(["all classes", f"{len(analysis.matches.object_labels):,}", ap, *whole, *ends])
    heading = ["class", "objects", "AP", "AP50", "AP small", "AP medium", "AP large"]
    told = (
        f"The threshold is the least score with the highest F1. Precision, recall and F1 are those at it, at an IoU of "
        f"{MATCHING_IOU}. Small is below 32 × 32 pixels, large above 96 × 96."
    )
    if analysis.intervals is not None:
        samples = analysis.intervals.samples
        told += f" Below an AP is its 95% interval, from {samples:,} data sets of as many images, drawn from these."
    if None in best.classes and overall is not None:
        told += f" * that of all classes: fewer than {ENOUGH} objects, or none found."
    return f"<p>{told}</p>" + _table([*heading, "threshold", "precision", "recall", "F1"], rows)


def _key(names: Iterable[str]) -> str:
    """What the colours mean."""
    items = (f"<li>{_swatch(name)}{name}: {_text(_MEANINGS[name])}</li>" for name in names)
    return f'<ul class="key">{"".join(items)}</ul>'


def _swatch(name: str, width: str = "") -> str:
    red, green, blue = COLOURS[name]
    return f'<i style="--of: {red} {green} {blue}{width}"></i>'


def _errors(analysis: Analysis) -> str:
    errors, objects = analysis.errors, len(analysis.matches.object_labels)
    most = max(ERRORS, key=lambda kind: int(errors[kind].sum()))
    found, many = int(errors["found"].sum()), int(errors[most].sum())
    told = f"At every class's threshold {found:,} of {objects:,} objects are found."
    if many:
        told += f" The commonest error: {many:,} {most}."
    kinds = ("found", *ERRORS)
    rows = []
    for label, name in enumerate(analysis.names):
        counts = [int(errors[kind][label]) for kind in kinds]
        shares = [f"; width: {count / max(1, sum(counts)):.2%}" for count in counts]
        bar = "".join(_swatch(kind, share) for kind, share in zip(kinds, shares, strict=True))
        rows.append([_text(name), *map(str, counts), f'<div class="bar" aria-hidden="true">{bar}</div>'])
    rows.append(["all classes", *(str(int(errors[kind].sum())) for kind in kinds), ""])
    note = "Each object and each detection is one of these; confused and badly placed pairs count once, by the object."
    return f"<p>{told} {note}</p>{_key(kinds)}{_table(['class', *kinds, ''], rows)}"


def _curves(analysis: Analysis) -> str:
    told = (
        "A dot is the threshold of its class, where F1 is highest. Precision falls and recall rises when detections of "
        "lower scores are kept."
    )
    error = analysis.calibration.error
    if error is not None:
        told += (
            " A bar of the last chart is the share of detections of about that score that is right, over their number; "
            "on the dashed line a score is a probability. The mean distance, over detections of at least "
            f"{LEAST_SCORE}, is the calibration error: {error:.3f}."
        )
    figures = (f"<figure>{_labelled(svg, name)}</figure>" for name, svg in charts(analysis).items())
    return f'<p>{told}</p><div class="charts">{"".join(figures)}</div>'


def _labelled(svg: str, name: str) -> str:
    return svg.replace("<svg ", f'<svg role="img" aria-label="chart: {name.replace("-", " ")}" ', 1)


def _confusion(analysis: Analysis) -> str:
    matrix, names = analysis.confusion, [*map(_text, analysis.names), "background"]
    told = "A row is the class of the objects, a column what they are detected as, at every class's threshold."
    told += " In the row background: detections that are false, badly placed or duplicates; in its column: objects that"
    told += " are missed or badly placed. Percentages are of the row."
    if len(analysis.names) > MOST_IN_MATRIX:
        pairs = [
            (int(matrix[row, column]), names[row], names[column])
            for row, column in itertools.permutations(range(len(analysis.names)), 2)
            if matrix[row, column]
        ]
        pairs.sort(key=lambda pair: (-pair[0], *pair[1:]))
        rows = [[truth, detected, f"{count:,}"] for count, truth, detected in pairs[:_MOST_LISTED]]
        listed = _table(["object", "detected as", "times"], rows) if rows else "<p>No class is taken for another.</p>"
        return f"<p>The commonest confusions of classes, of {len(pairs)}.</p>{listed}"
    whole = matrix.sum(1).clip(min=1)
    rows = []
    for row, name in enumerate(names):
        cells = []
        for column, count in enumerate(matrix[row].tolist()):
            share = count / whole[row]
            kind = "zero" if not count else "same" if row == column else ""
            text = f"{count:,}<small>{share:.0%}</small>" if count else "0"
            cells.append(f'<td class="{kind}" style="--share: {share:.3f}">{text}</td>')
        rows.append([name, *cells])
    rows[-1][-1] = '<td class="zero"></td>'
    return f"<p>{told}</p>{_table(['object', *names], rows, 'matrix')}"


def _worst(analysis: Analysis, data: CocoDetection, progress: bool) -> str:
    if not analysis.worst:
        return "<p>None has an error.</p>"
    articles = []
    with progress_bar("drawing the worst images", len(analysis.worst), shown=progress) as advance:
        for number, one in enumerate(analysis.worst, start=1):
            pair = zip(("objects", "detections"), error_pictures(analysis, data, one["image_id"]), strict=True)
            figures = "".join(
                f'<figure><img src="{_jpeg(picture)}" width="{picture.width}" height="{picture.height}" loading="lazy" '
                f'alt="{what} of {_text(one["file_name"])}"><figcaption>{what}</figcaption></figure>'
                for what, picture in pair
            )
            total = f"{counted(one['errors'], 'error')}, {one['found']} found"
            why = "; ".join(map(_text, one["why"]))
            heading = f"<h3>{number}. {_text(one['file_name'])}</h3><p>{total}: {why}</p>"
            articles.append(f'<article>{heading}<div class="pair">{figures}</div></article>')
            advance()
    told = "By the number of errors; of as many, fewer objects found come first. What is wrong is dashed and named."
    return f'<p>{told}</p>{_key(("found", *ERRORS))}<div class="worst">{"".join(articles)}</div>'


def _jpeg(picture: Image.Image) -> str:
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _origin(analysis: Analysis, origin: Mapping[str, Any]) -> str:
    facts = {
        name.replace("_", " "): value for name, value in origin.items() if name != "versions" and value is not None
    }
    facts |= origin.get("versions", {})
    if origin["images"] < origin["of_images"]:
        facts["images"] = f"only the first {origin['images']} of {origin['of_images']}"
    listed = "".join(f"<dt>{_text(name)}</dt><dd>{_text(_plain(value))}</dd>" for name, value in facts.items())
    metrics = "".join(
        f"<dt>{name}</dt><dd>{_number(value)}</dd>" for name, value in analysis.evaluation.metrics.items()
    )
    return f"<dl>{listed}{metrics}</dl>"


def _plain(value: Any) -> str:
    return " × ".join(map(str, value)) if isinstance(value, list) else str(value)

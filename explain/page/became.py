"""What became of the detections of an image when something in the model was changed: paired, in words, and drawn."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from ...common.text import counted
from ...train.visual.boxes import Box, draw_boxes
from ..ablation.effects import SAME_OBJECT, pair_detections
from ..core.trace import AttentionTrace, QueryPrediction

PICTURE = 640
LISTED = 4
"""Detections that a sentence names."""


class Change(NamedTuple):
    """What became of a detection."""

    fate: Literal["kept", "changed", "lost", "gained"]
    """changed: of another class."""
    before: QueryPrediction | None
    after: QueryPrediction | None
    left: QueryPrediction | None = None
    """Of a lost one, what is left of its class at its place."""


def changes(
    before: Sequence[QueryPrediction],
    after: Sequence[QueryPrediction],
    left: Callable[[QueryPrediction], QueryPrediction] | None = None,
) -> list[Change]:
    """Detections of one image, best first, paired by `pair_detections`; `left` says what is left of a lost one."""
    boxes = [torch.tensor([one.box for one in found]).view(-1, 4) for found in (before, after)]
    labels = [torch.tensor([one.label for one in found]) for found in (before, after)]
    matches = pair_detections(boxes[0], labels[0], boxes[1], labels[1])
    found: list[Change] = []
    for old, match in zip(before, matches, strict=True):
        if match is None:
            found.append(Change("lost", old, None, None if left is None else left(old)))
        else:
            found.append(Change("kept" if after[match].label == old.label else "changed", old, after[match]))
    return [*found, *(Change("gained", None, new) for place, new in enumerate(after) if place not in matches)]


def left_of(trace: AttentionTrace, found: Sequence[QueryPrediction], lost: QueryPrediction) -> QueryPrediction:
    """What a trace, in which `found` is detected, has left of a detection that is not among them.

    Of the queries whose boxes overlap its box by an IoU of SAME_OBJECT or more, the one surest of its class; where
    there is none, the one whose box is nearest.
    """
    here = box_iou(trace.layer_boxes[-1].float(), torch.tensor([lost.box]))[:, 0] >= SAME_OBJECT
    here[[one.query for one in found]] = False
    if not here.any():
        return trace.prediction(trace.nearest(lost.box).query, lost.label)
    scores = trace.layer_scores[-1][:, lost.label].where(here, -1.0)
    return trace.prediction(int(scores.argmax()), lost.label)


def in_words(found: Sequence[Change], confidence: float) -> str:
    """Sentences that say what was lost, changed and gained, with scores before and after, and what the rest did."""
    by_fate = {fate: [one for one in found if one.fate == fate] for fate in ("lost", "changed", "gained", "kept")}
    before, after = sum(one.before is not None for one in found), sum(one.after is not None for one in found)
    if not found:
        return f"Nothing is detected with at least {confidence:g}, before or after."
    said = [f"{counted(before, 'detection')} of at least {confidence:g} before, {after} after."]
    for fate, verb in (("lost", "lost"), ("changed", "of another class now"), ("gained", "gained")):
        some = by_fate[fate]
        if some:
            of = f" of {before}" if fate != "gained" else ""
            named = [_scores(one) for one in some[:LISTED]]
            more = [f"and {len(some) - LISTED} more"] * (len(some) > LISTED)
            said.append(f"{len(some)}{of} {verb}: {', '.join([*named, *more])}.")
    kept = [(one.before, one.after) for one in by_fate["kept"] if one.before is not None and one.after is not None]
    if kept:
        rises = [new.score - old.score for old, new in kept]
        mean = sum(rises) / len(rises)
        place = max(range(len(kept)), key=lambda i: abs(rises[i]))
        if abs(rises[place]) < 0.005:
            said.append(f"The scores of the {len(kept)} kept are as before.")
        else:
            old, new = kept[place]
            most = f"{old.name} {old.score:.2f} → {new.score:.2f}"
            said.append(
                f"Kept is {most}."
                if len(kept) == 1
                else f"{len(kept)} kept; their scores changed by {mean:+.2f} in the mean, most {most}."
            )
    return " ".join(said)


def _scores(one: Change) -> str:
    """cat 0.91 → 0.32, cat 0.91 → dog 0.60, or dog 0.60."""
    if one.before is None:
        return "" if one.after is None else one.after.text
    if one.after is not None:
        return f"{one.before.text} → {one.after.text}"
    return one.before.text + ("" if one.left is None else f" → {one.left.score:.2f}")


def _picture(image: Tensor, found: Sequence[tuple[QueryPrediction, bool]]) -> str:
    """The image with boxes, dashed where told, as an element."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    boxes = [Box(one.box, one.label, one.text, dashed=dashed) for one, dashed in reversed(found)]
    encoded = io.BytesIO()
    draw_boxes(picture, boxes, magnify=PICTURE / max(picture.size)).save(encoded, "JPEG", quality=90)
    data = base64.b64encode(encoded.getvalue()).decode()
    return f'<img alt="{counted(len(found), "detection")}" style="width:100%" src="data:image/jpeg;base64,{data}">'


def report(image: Tensor, found: Sequence[Change], confidence: float, title: str = "") -> str:
    """What changed in words, two pictures beside each other, before and after, and a line a detection, as HTML."""
    before = [(one.before, one.fate == "lost") for one in found if one.before is not None]
    after = [(one.after, one.fate != "kept") for one in found if one.after is not None]
    pictures = "".join(
        f'<figure style="flex:1 1 300px;margin:0"><figcaption>{caption}</figcaption>{_picture(image, one)}</figure>'
        for caption, one in (("All on (dashed: lost)", before), ("As switched (dashed: changed or gained)", after))
    )
    lines = ""
    for one in found:
        left = "" if one.left is None else f"({one.left.score:.2f} is left)"
        cells = ["" if each is None else html.escape(each.text) for each in (one.before, one.after)]
        lines += f"<tr><td>{cells[0]}</td><td>{cells[1] or left}</td><td><b>{one.fate}</b></td></tr>"
    heading = f"<h3>{html.escape(title)}</h3>" * bool(title)
    return (
        f'<section style="flex:1 1 420px;min-width:0">{heading}<p>{html.escape(in_words(found, confidence))}</p>'
        f'<div style="display:flex;flex-wrap:wrap;gap:12px">{pictures}</div>'
        '<table style="width:100%;table-layout:fixed;overflow-wrap:anywhere"><thead>'
        "<tr><th>all on</th><th>as switched</th><th>fate</th></tr></thead>"
        f"<tbody>{lines}</tbody></table><p>Two boxes are of one object where their IoU is {SAME_OBJECT:g} or more.</p>"
        "</section>"
    )

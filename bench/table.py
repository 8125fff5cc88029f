"""``msdeform table --flops``: the published size and cost of each detector beside ours, counted in the same way.

The published column is that of Zhu et al. 2021, tables 1 and 2.
"""

import difflib
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..kernels.arguments import Parser
from ..models.zoo import list_models
from ..train.files import write_json
from . import flops
from .provenance import provenance


@dataclass(frozen=True)
class Published:
    """A row as published."""

    title: str
    parameters_m: int
    """millions"""
    flops_g: int
    """1e9 multiply-adds"""


PUBLISHED: dict[str, Published] = {
    "fasterrcnn_resnet50_fpn": Published("Faster R-CNN + FPN", 42, 180),
    "detr_r50": Published("DETR", 41, 86),
    "detr_r50_dc5": Published("DETR-DC5", 41, 187),
    "detr_r50_dc5_plus": Published("DETR-DC5+", 41, 187),
    "deformable_detr_r50_single_scale": Published("Deformable DETR, single scale", 34, 78),
    "deformable_detr_r50_single_scale_dc5": Published("Deformable DETR, single scale, DC5", 34, 128),
    "deformable_detr_r50": Published("Deformable DETR", 40, 173),
    "deformable_detr_r50_refine": Published("+ iterative bounding box refinement", 41, 173),
    "deformable_detr_r50_two_stage": Published("++ two-stage", 41, 173),
}

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Counts and prints; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="msdeform table", description="Published numbers of the detectors, and ours beside them.")
    parser.add_argument("--flops", action="store_true", help="parameters, and multiply-adds of an image")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="of msdeform.list_models(); default: the published")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    options = parser.parse_args(arguments)
    if not options.flops:
        parser.error("expected the table to print, --flops, got none")
    if options.json is not None and options.json.is_dir():
        parser.error(f"--json: expected a file, got the folder {options.json}")
    names = list(dict.fromkeys(PUBLISHED if options.models is None else options.models))
    for name in names:
        if name not in list_models():
            near = difflib.get_close_matches(name, list_models(), n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"expected some of {', '.join(list_models())}"
            parser.error(f"--models: no model is called {name!r}; {hint}")

    sizes = flops.published_sizes()
    counted = {}
    for i, name in enumerate(names, 1):
        print(f"counting {name} at {len(sizes)} sizes ({i} of {len(names)})", file=sys.stderr, flush=True)
        counted[name] = flops.count(name, sizes)
    rows = [row(name, count) for name, count in counted.items()]
    notes = convention(sizes, {count.proposals for count in counted.values()} - {None})
    print("\n".join([table(rows), "", *notes]))
    if options.json is not None:
        command = ["msdeform", "table", "--flops", "--models", *names]
        write_json(options.json, {"rows": rows, "notes": notes, "provenance": provenance(torch.device("cpu"), command)})
    return 0


def row(name: str, counted: flops.Count) -> Row:
    """A row of the table as JSON values; the published ones are None for a model that was not."""
    published = PUBLISHED.get(name)
    return {
        "model": name,
        "published_as": None if published is None else published.title,
        "published_parameters_m": None if published is None else published.parameters_m,
        "parameters": counted.parameters,
        "published_flops_g": None if published is None else published.flops_g,
        "multiply_adds": counted.multiply_adds,
    }


def convention(sizes: Counter[tuple[int, int]], proposals: Collection[int | None] = ()) -> list[str]:
    """What the counted columns mean, a line each; `proposals` are those of the two-stage convolutional detectors."""
    notes = [
        "Published: Zhu et al. 2021. Counted: this package's models, by torch.utils.flop_counter, from shapes alone.",
        f"FLOPs: a multiply-add is one; batch 1; the mean over the first {sizes.total()} images of COCO val2017,",
        f"  resized to 800 pixels, at most 1333, each of the {len(sizes)} sizes that this gives counted. Convolutions,",
        f"  matrix products, and for each deformable attention {flops.PER_SAMPLE} Q (L P) C: four to interpolate a",
        "  sample of a channel, one to weigh it. Normalisation, softmax and other elementwise work is left out.",
        "params: every weight, those of the fixed first layers too. The backbone's frozen batch norms have none.",
    ]
    if proposals:
        notes += [
            f"Faster R-CNN: with the box head of {', '.join(map(str, sorted(filter(None, proposals))))} proposals, the "
            "most it takes; how many suppression leaves depends",
            "  on weights and image. Choosing and pooling them is left out.",
        ]
    return notes


def table(rows: list[Row]) -> str:
    """Rows as aligned text."""
    lines = [
        ("", "", "params M", "", "FLOPs G", ""),
        ("model", "published as", "published", "counted", "published", "counted"),
    ]
    for one in rows:
        lines.append(
            (
                one["model"],
                one["published_as"] or "-",
                _text(one["published_parameters_m"]),
                f"{one['parameters'] / 1e6:.2f}",
                _text(one["published_flops_g"]),
                f"{one['multiply_adds'] / 1e9:.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _text(number: int | None) -> str:
    return "-" if number is None else str(number)

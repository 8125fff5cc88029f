"""Draws the pictures of docs/explain.md: detectors of photographs, explained.

    python -m tests.explain.figures.photographs DEIMV2 COCO RUN BCCD [OUT]

DEIMV2 is a folder of transformers with a DEIMv2 Femto in it, COCO one with val2017's files; RUN is a run of
`deformable_detr_mini`, and BCCD the folder of its data. transformers' DEIMv2 departs from what its weights were trained
as; `as_trained` undoes that, where the weights stay as they are. What `msdeform ablate` draws is not made here.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor, nn

import msdeform
from msdeform.explain.core.maps import heat_map
from msdeform.explain.core.masks import Mask
from msdeform.explain.core.trace import AttentionTrace, QueryPrediction
from msdeform.explain.figures.contributions import draw_contributions
from msdeform.explain.figures.drawing import Drawing, colour_of
from msdeform.explain.figures.encoder import RING, draw_encoder
from msdeform.explain.figures.heat import draw_heat, draw_heat_grid, draw_strongest, heat_colours
from msdeform.explain.figures.masked import draw_masked_relevance, draw_remaining, variants
from msdeform.explain.figures.points import draw_points
from msdeform.explain.figures.trajectories import draw_journey, draw_seeds
from msdeform.explain.options import METHOD_TITLES
from msdeform.integrations.detectors.detector import TransformersDetector
from tests.house.project import ROOT

CONFIDENCE = 0.5
# which stand for their kinds: attention alone, and with derivatives; features; pixels; and from outside
METHODS = ("raw", "relevance", "odam", "integrated-gradients", "occlusion", "drise")
MOST = 25.0
"""Times its mean, where the scale of their maps ends: those of the last two are never far above it."""
WIDTH = 1000
"""Pixels, at the most: a page shows 800."""
PHOTOGRAPHS = {
    # a name, its file, and the class that is explained
    "cats": ("000000555705.jpg", "cat"),
    "elephant": ("000000415748.jpg", "elephant"),
    "pigeons": ("000000456496.jpg", "bird"),
    "cyclist": ("000000261888.jpg", "person"),
}
CELLS = "BloodImage_00066.jpg"


def as_trained(model: Any) -> None:
    """Makes transformers' DEIMv2 (5.23, 5.24) compute what its published weights were trained to."""
    core = model.model
    # the original's heads over the encoder's pixels have no projection before them
    core.enc_output = nn.Identity()
    scores = [layer.reg_conf for layer in core.decoder.lqe_layers]
    for head in (core.enc_bbox_head, core.decoder.pre_bbox_head, *core.decoder.bbox_embed, *scores):
        head.act = nn.SiLU()
    # positions are those of the first boxes in every layer
    first: list[Tensor] = []
    head = core.decoder.query_pos_head
    own = head.forward
    core.decoder.register_forward_pre_hook(lambda *_: first.clear())

    def once(boxes: Tensor) -> Tensor:
        if not first:
            first.append(own(boxes))
        return first[0]

    head.forward = once


def of_photographs(weights: Path, folder: Path) -> dict[str, Drawing]:
    """Relevance of the surest detection of a class in each; of one its points, of one the rest."""
    detector = TransformersDetector.from_pretrained(weights)
    as_trained(detector.model)
    assert detector.categories is not None
    made = {}
    for name, (file, label) in PHOTOGRAPHS.items():
        trace = AttentionTrace(detector, folder / file)
        seen = trace.detections(CONFIDENCE, detector.categories.index(label))[0]
        made[f"photo-{name}-relevance"] = draw_heat(
            trace,
            heat_map(trace, seen, "relevance"),
            seen,
            "relevance: bright where, by this method, the score depends on it",
            image=file,
        )
        if name == "cats":
            made["photo-cats-points"] = draw_points(trace, seen, trace.cross_sites[-1], image=file)
        if name == "cyclist":
            made |= _of_one(detector, trace, seen, file)
    return made


def _of_one(
    detector: TransformersDetector, trace: AttentionTrace, seen: QueryPrediction, image: str
) -> dict[str, Drawing]:
    maps = [[heat_map(trace, seen, method) for method in METHODS]]
    layers, heads = range(len(trace.cross_sites)), range(trace.sites[trace.cross_sites[0]].heads)
    each = [[heat_map(trace, seen, "relevance", layer=layer, head=head) for head in heads] for layer in layers]
    names = [[f"{what} {number}" for number in some] for what, some in (("decoder layer", layers), ("head", heads))]
    masks = [(f"{count} heads off", [Mask(heads=tuple(range(count)))]) for count in (2, 4, 6)]
    off = variants(detector, trace.image, masks, confidence=CONFIDENCE)
    return {
        "methods": draw_heat_grid(
            trace,
            maps,
            [""],
            [METHOD_TITLES[method] for method in METHODS],
            seen,
            "bright: what the score depends on, by six methods",
            most=MOST,
            shares=False,
            image=image,
        ),
        "relevance-layers-heads": draw_strongest(trace, each, *names, seen, "relevance by layer and head", image=image),
        "journey": draw_journey(trace, seen, image=image),
        "masked-boxes": draw_remaining(off, CONFIDENCE, image=image),
        "masked-relevance": draw_masked_relevance(off, seen, CONFIDENCE, image=image),
    }


def of_cells(run: Path, data: Path) -> dict[str, Drawing]:
    """What needs an encoder of deformable attention, or the seeds of two stages; and the slopes."""
    trace = AttentionTrace(msdeform.load_model(str(run)), data / "JPEGImages" / CELLS)
    seen = next(one for one in trace.detections(CONFIDENCE) if one.name == "WBC")
    x0, y0, x1, y1 = seen.box
    place = (round((x0 + x1) / 2), round((y0 + y1) / 2))
    return {
        "slopes": draw_points(trace, seen, trace.cross_sites[-1], slopes="class", image=CELLS),
        "seeds": draw_seeds(trace, CONFIDENCE, image=CELLS),
        "encoder": draw_encoder(trace, "encoder.0.self", [place], image=CELLS),
        "contributions": draw_contributions(trace, seen, image=CELLS),
    }


def write(drawing: Drawing, path: Path) -> None:
    """As a picture of 256 colours, no wider than a page needs."""
    picture, numbers = drawing.save(path, 125)
    numbers.unlink()
    image = Image.open(picture).convert("RGB")
    image.thumbnail((WIDTH, 10 * WIDTH))
    few = image.quantize(palette=_palette(image), dither=Image.Dither.FLOYDSTEINBERG)
    few.save(picture, optimize=True)


def _palette(image: Image.Image) -> Image.Image:
    """Half of it for the photograph, half for what is drawn on it, which covers too little to be counted."""
    own = np.array(image.quantize(128, kmeans=2).getpalette()).reshape(-1, 3)
    scale = np.linspace(0, 1, 44)
    drawn = [colormaps["plasma"](0.12 + 0.88 * scale), heat_colours()(scale)]
    seen = [colours[:, :3] * colours[:, 3:] + (1 - colours[:, 3:]) * 0.9 for colours in drawn]
    bright = [[*colour_of(label)] for label in range(32)]
    lines = np.array([[0, 0, 0], [1, 1, 1], to_rgb(RING)])
    every = np.concatenate([own, *(np.round(255 * np.array(one)) for one in (*seen, bright, lines))])
    palette = Image.new("P", (1, 1))
    palette.putpalette(every.astype(np.uint8)[:256].flatten().tolist())
    return palette


if __name__ == "__main__":
    torch.manual_seed(0)
    deimv2, coco, run, bccd, *out = map(Path, sys.argv[1:])
    for name, drawing in (of_photographs(deimv2, coco) | of_cells(run, bccd)).items():
        write(drawing, (out[0] if out else ROOT / "docs" / "explain") / f"{name}.png")

"""Draws docs/explain/photo-*.png: a detector of transformers, explained on four photographs of COCO's val2017.

    python -m tests.explain.figures.photographs WEIGHTS PHOTOGRAPHS [OUT]

WEIGHTS is a folder of transformers with a DEIMv2 Femto in it, PHOTOGRAPHS one with COCO's files. transformers' DEIMv2
departs from what its weights were trained as; `as_trained` undoes that, where the weights stay as they are.
"""

import sys
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from msdeform.explain.core.maps import heat_map
from msdeform.explain.core.masks import Mask
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.figures.drawing import Drawing, target_in_words
from msdeform.explain.figures.heat import draw_heat
from msdeform.explain.figures.masked import draw_masked_relevance, variants
from msdeform.explain.figures.points import draw_point_grid
from msdeform.integrations.detectors.detector import TransformersDetector
from tests.house.project import ROOT

CONFIDENCE = 0.5
# each file stays below 400 kB
DPI = {"points": 80, "relevance": 68, "masked": 65}
PHOTOGRAPHS = {
    # a name, its file, and the class that is explained
    "cats": ("000000555705.jpg", "cat"),
    "elephant": ("000000415748.jpg", "elephant"),
    "pigeons": ("000000456496.jpg", "bird"),
    "cyclist": ("000000261888.jpg", "person"),
}


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


def drawings(trace: AttentionTrace, detector: TransformersDetector, label: str, image: str) -> dict[str, Drawing]:
    """Of the surest detection of a class: points by layer and level, relevance, and relevance with heads off."""
    assert detector.categories is not None
    seen = trace.detections(CONFIDENCE, detector.categories.index(label))[0]
    heads = trace.sites["decoder.0.cross"].heads
    masks = [(f"{count} heads off", [Mask(heads=tuple(range(count)))]) for count in (2, heads // 2, heads - 1)]
    made = variants(detector, trace.image, masks, confidence=CONFIDENCE)
    relevance = heat_map(trace, seen, "relevance")
    title = f"relevance for {target_in_words('class', seen)}, all layers"
    return {
        "points": draw_point_grid(trace, seen, trace.cross_sites, by="layers x levels", image=image),
        "relevance": draw_heat(trace, relevance, seen, title, image=image),
        "masked": draw_masked_relevance(made, seen, CONFIDENCE, image=image),
    }


def draw(weights: Path, photographs: Path, out: Path) -> None:
    """Writes three pictures of each photograph."""
    detector = TransformersDetector.from_pretrained(weights)
    as_trained(detector.model)
    for name, (file, label) in PHOTOGRAPHS.items():
        trace = AttentionTrace(detector, photographs / file)
        for what, drawing in drawings(trace, detector, label, file).items():
            picture, numbers = drawing.save(out / f"photo-{name}-{what}.png", DPI[what])
            numbers.unlink()
            if what == "masked":  # of 256 colours
                image = Image.open(picture).convert("RGB")
                dithered = image.quantize(palette=image.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
                dithered.save(picture, optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else ROOT / "docs" / "explain")

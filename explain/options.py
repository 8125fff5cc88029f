"""The options of the commands of this folder, and the words that they take. Nothing here needs PyTorch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ..common.options import (
    HUB_NAME,
    AtLeast,
    Between,
    Form,
    Metavar,
    NotNegative,
    Options,
    Positional,
    Positive,
    ProgressOption,
    ReadFile,
    ReadPath,
    Repeated,
    Share,
    WriteFolder,
)
from ..common.text import suggest
from ..models.catalog import check_model
from ..models.options import DetectorOptions, LoadOptions
from ..train.config.options import Source
from ..train.serving.options import Token
from .core.masks import Masks, Mode, parse_masks

Pairing = Literal["iou", "query"]
ScreenBy = Literal["loss", "logit"]
Fill = Literal["blur", "mean"]
By = Literal["point", "pixel"]
Method = Literal[
    "points",
    "raw",
    "rollout",
    "gradcam",
    "relevance",
    "relevance-rollout",
    "relevance-mirrored",
    "input-grad",
    "odam",
    "backbone-gradcam",
    "integrated-gradients",
    "drise",
    "occlusion",
]
Target = Literal["class", "x", "y", "w", "h"]
METHOD_TITLES = {
    "raw": "raw attention",
    "rollout": "attention rollout",
    "gradcam": "Grad-CAM",
    "relevance": "relevance",
    "relevance-rollout": "relevance, the encoder rolled out",
    "relevance-mirrored": "relevance, with the mirrored image's",
    "input-grad": "gradient with respect to the pixels",
    "odam": "ODAM",
    "backbone-gradcam": "Grad-CAM of the backbone",
    "integrated-gradients": "integrated gradients",
    "drise": "D-RISE",
    "occlusion": "occlusion",
}
METHODS = tuple(METHOD_TITLES)
BLACK_BOX = ("drise", "occlusion")
"""Methods that ask the detector about changed images and look at nothing inside: they explain any detector."""
PIXEL_METHODS = ("input-grad", "odam", "backbone-gradcam", "integrated-gradients", *BLACK_BOX)
"""Methods whose maps are of the image alone: they have no layer, head or level."""
OF_A_TARGET = (
    *("gradcam", "relevance", "relevance-rollout", "relevance-mirrored", "input-grad"),
    *("odam", "backbone-gradcam", "integrated-gradients"),
)
"""Methods that derive a target, the class's logit or a coordinate of the box."""
MANY_PASSES = ("integrated-gradients", *BLACK_BOX)
"""Methods that run the detector dozens or hundreds of times."""
MEASURE_GROUPS = {
    "perturbation": "pixels removed and brought back in the map's order: deletion, insertion, ROAD",
    "removal": "random parts removed: do the map's sums go with what is lost? sensitivity-n, infidelity",
    "place": "where the map lies: pointing, energy, rank accuracy in box and mask, compactness",
    "sanity": "the map with random weights, and of another class",
    "noise": "how far the map changes with noise in the image",
}
"""What explain-eval measures."""
SAMPLES = 500
"""Masked images that D-RISE looks at when nothing else is asked for."""
_NUMBER = r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*"


@dataclass(frozen=True, kw_only=True)
class AnyDetectorOptions(LoadOptions):
    """A trained detector, ours or of transformers, and how it is loaded."""

    checkpoint: ReadPath | None = None
    """A run's checkpoint, or its folder for its best; official, Hugging Face's or converted weights; or a folder of
    transformers, of any architecture with deformable attention. Not needed where --model is of transformers."""
    model: Annotated[str, Metavar("NAME")] | None = None
    """A name of msdeform.list_models(): what weights without a description are of. Or a detector of transformers with
    its weights: a folder, or OWNER/NAME on the Hugging Face Hub."""

    def __post_init__(self) -> None:
        """Raises ValueError where no weights are named, or two."""
        super().__post_init__()
        whole = self.model is not None and of_transformers(self.model)
        if self.model is not None and not whole and "/" in self.model:
            raise ValueError(
                "model: expected a folder of transformers, with a config.json, or OWNER/NAME on its Hub, "
                f"got {self.model}"
            )
        if not whole:
            try:
                check_model(self.model)
            except ValueError:
                if self.checkpoint is not None:
                    raise
                raise ValueError(
                    "model: expected a folder of transformers, or OWNER/NAME on its Hub, or beside --checkpoint one of "
                    f"msdeform.list_models(); got {self.model} alone"
                ) from None
            if self.checkpoint is None:
                raise ValueError("checkpoint: expected weights, or in --model a detector of transformers; got neither")
        elif self.checkpoint is not None:
            raise ValueError(f"checkpoint: --model {self.model} has weights of its own; leave one of them out")


def of_transformers(name: str | Path) -> bool:
    """Is it a folder with a configuration, or OWNER/NAME?"""
    path = Path(name)
    if path.exists():
        return (path / "config.json").is_file()
    return re.fullmatch(HUB_NAME, str(name)) is not None


@dataclass(frozen=True)
class View(Options):
    """What is drawn of it."""

    method: Annotated[tuple[Method, ...], Repeated()] = ()
    """points: what was sampled. The others: heat maps, of which drise, occlusion and integrated-gradients run the
    detector many times. May be repeated; points (or raw, where attention is dense) and relevance when not given, and
    drise for a detector without attention."""
    layer: str | None = None
    """decoder.5, encoder.2, or all; the last decoder layer, and for relevance the sum of all, when not given."""
    head: str = "mean"
    """A head's number, mean, or all: each by itself."""
    level: str = "together"
    """A level's number, 0 the finest; together, or all: each by itself."""
    target: Target = "class"
    """The number whose gradient explains: the class's logit, or a coordinate of the box."""
    by: By = "point"
    """relevance: the positive part of each sampled point's, or of each pixel's."""
    together: bool = False
    """relevance: one backward pass for all that is explained, by the gradient of their sum; quicker, and mixes them."""
    slopes: bool = False
    """points, of one layer: arrows that say where each sample would raise the target."""
    contributions: bool = False
    """What each attention adds to the target: the parts that relevance keeps and drops, and by how much the target
    falls without it."""
    samples: Annotated[int, AtLeast(10)] = SAMPLES
    """drise: masked images that it looks at, which serve all detections; more make its maps less noisy."""
    parity: bool = False
    """relevance: with the division by zero of its authors' code, which drops whole layers."""


@dataclass(frozen=True)
class Subject(Options):
    """What is explained; the surest detections when nothing is named."""

    det: Annotated[tuple[NotNegative, ...], Repeated()] = ()
    """A detection, counted from 0, the surest first; may be repeated."""
    query: Annotated[tuple[NotNegative, ...], Repeated()] = ()
    """A query, whether it detects something or not; may be repeated."""
    box: Annotated[str, Form(rf"{_NUMBER}(,{_NUMBER}){{3}}", "x1,y1,x2,y2 in pixels")] | None = None
    """x1,y1,x2,y2 in pixels: the query whose box comes nearest, for what was found weakly or missed."""
    ref: Annotated[tuple[str, ...], Repeated(), Form(f"{_NUMBER},{_NUMBER}", "x,y in pixels")] = ()
    """x,y in pixels: the encoder's attention at this place, row and column; may be repeated."""
    label: str | None = None
    """A class, by name or number: its best detections are explained; with --det, --query or --box, this class's score
    of that query, whatever the query detected. All classes when not given."""
    confidence: Share = 0.5
    """Minimum score of a detection."""
    most: Positive = 3
    """How many detections are explained when none is named, or have relevance on a page: a backward pass each."""

    @property
    def names(self) -> bool:
        """Is a detection, a query or a class named?"""
        return bool(self.det or self.query or self.box or self.label)


@dataclass(frozen=True)
class Interventions:
    """The image again with parts of the attention off: boxes that remain, and relevance by layer under each mask; or
    with another image's content in them."""

    mask: Annotated[tuple[str, ...], Repeated()] = ()
    """What is off: SITE[:hN][:lN][:pN][:qN][:MODE], such as decoder.*.cross:h0-3; may be repeated, each is drawn by
    itself; several that act together are joined by +."""
    mask_matrix: ReadFile | None = None
    """csv, npy or json of decoder layers x heads: 1 where a head stays, 0 where it is off."""
    cumulative: bool = False
    """Heads of all decoder layers off one after the other, until none is left."""
    patch: ReadFile | None = None
    """Another image, of the same shape: by decoder layer and head, what becomes of a detection's score when this head
    reads the other image's content at its places."""


@dataclass(frozen=True)
class ExplainOptions(ProgressOption, AnyDetectorOptions):
    """Explain what a detector found in an image: pictures, each with its numbers beside it."""

    image: Annotated[ReadFile, Positional("IMAGE")]
    """An image file."""
    subject: Subject = field(default_factory=Subject)
    view: View = field(default_factory=View)
    interventions: Interventions = field(default_factory=Interventions)
    html: bool = False
    """Write one page to look with in a browser, without pictures."""
    annotations: ReadFile | None = None
    """COCO-format annotations that name this image: detections are drawn beside them."""
    out: WriteFolder | None = None
    """Folder for what is written; explanations/IMAGE in the run's folder when not given, or in the current folder for
    weights that are not a run's."""
    dpi: Annotated[int, Between(20, 1200)] = 150
    """Resolution of pictures, dots an inch: 50 for thumbnails, 300 for print."""

    def __post_init__(self) -> None:
        """Raises ValueError for an option that would change nothing."""
        super().__post_init__()
        outside = [name for name in self.view.method if name in BLACK_BOX]
        if outside and self.view.target != "class":
            raise ValueError(
                f"target: {outside[0]} explains a detection as a whole, its class and box together; expected class, "
                f"got {self.view.target!r}"
            )
        given = vars(self.interventions) | vars(self.view) | {"ref": self.subject.ref, "annotations": self.annotations}
        usual = vars(Interventions()) | vars(View()) | {"ref": (), "annotations": None}
        if self.html:
            what, shown = "html", "the page shows all layers, heads and levels, the class's relevance, nothing off"
            ignored = given.keys() - {"method"}
        elif self.interventions != Interventions():
            what = next(name for name, value in vars(self.interventions).items() if value != usual[name])
            shown = "with masks or another image's content, what these change is drawn"
            ignored = {"method", "layer", "head", "level", "slopes", "together", "contributions", "samples"}
            if what == "patch":  # alone
                ignored |= {"target", "by", "parity", "ref"}
        else:
            return
        for name, value in given.items():
            if name in ignored and value != usual[name]:
                option = name.replace("_", "-")
                raise ValueError(f"{what.replace('_', '-')}: {shown}; --{option} has no effect on that, leave it out")


@dataclass(frozen=True, kw_only=True)
class DataOptions(ProgressOption, LoadOptions):
    """The annotated images that a trained detector is measured on."""

    source: Source = field(default_factory=Source)
    confidence: Share = 0.5
    """Minimum score of a detection; AP, where it is measured, counts all."""
    limit: Positive | None = None
    """Only the first N images, for a quick look; the numbers are then not the data set's."""
    seed: NotNegative = 0
    """Of the resamples for intervals, and of random maps, masks and orders of heads."""
    out: WriteFolder | None = None
    """Folder for what is written; ablation or explain-eval in the run's folder when not given, or in the current folder
    for weights that are not a run's. Either, when it was stopped, resumes from what it kept there."""


@dataclass(frozen=True, kw_only=True)
class ExplainEvalOptions(DataOptions, AnyDetectorOptions):
    """Scores of explanations over a data set, beside those of maps that explain nothing.

    Deletion, insertion and ROAD follow the detection: the best query's IoU with its box times the probability of its
    class. Pointing, energy and rank accuracy are held to the box of the object that was detected, or, where none was,
    to the detection's; to its outline, too, where the data have one. The baseline "box" is a Gaussian in the
    detection's own box: what one knows without looking inside the model.
    """

    methods: str = ",".join(name for name in METHODS if name not in MANY_PASSES)
    """Which to judge, with commas between them; of integrated-gradients, drise and occlusion each detection takes
    dozens to hundreds of passes."""
    measures: str = ",".join(MEASURE_GROUPS)
    """What to judge by, with commas between: perturbation, removal, place, sanity, noise."""
    target: Target = "class"
    """What is explained, and followed as pixels go: the class, or a coordinate of the box."""
    most: Positive | None = None
    """Only the N surest detections of each image."""
    steps: Positive = 12
    """In which pixels are taken away and brought back; after step i of n, (i / n)^2 of them."""
    fill: Fill = "blur"
    """What stands in their place: the blurred image, or its mean colour."""
    randomise: Literal["whole", "cascade", "smooth", "none"] = "whole"
    """Explain again with the decoder as before training: whole; one more layer at a time; or whole and, beside it, with
    the mean of maps under noise (smooth MPRT). Are the maps the same?"""
    samples: Positive = 4
    """Images with noise, for noise and --randomise smooth."""
    batch_size: Positive = 8
    """Changed images in one forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names("methods", self.methods, self.method_names, METHODS)
        _check_names("measures", self.measures, self.group_names, tuple(MEASURE_GROUPS))
        if self.target != "class" and (of_class := [name for name in self.method_names if name not in OF_A_TARGET]):
            raise ValueError(
                f"target: expected class, as {of_class[0]} explains no coordinate; --methods may name "
                f"{', '.join(OF_A_TARGET)}, got {self.target}"
            )

    @property
    def method_names(self) -> tuple[str, ...]:
        return _names(self.methods)

    @property
    def group_names(self) -> tuple[str, ...]:
        return _names(self.measures)


def _names(text: str) -> tuple[str, ...]:
    """With commas between them, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _check_names(option: str, text: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError for a name that is not known, or where none is given."""
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        sentence = f"{option}: expected some of {', '.join(known)}, got {text!r}"
        raise ValueError(suggest(sentence, unknown[0] if unknown else "", known))


@dataclass(frozen=True, kw_only=True)
class AblateOptions(DataOptions, DetectorOptions):
    """Switch parts of a detector's attention off, and measure what that does over a data set."""

    mask: Annotated[tuple[str, ...], Repeated()] = ()
    """What to change, repeatable, each measured alone: SITE[:hN][:lN][:pN][:qN][:MODE], such as decoder.*.cross:h0-3;
    several that act together with + between them."""
    matrix: bool = False
    """Every head of --sites off alone: a matrix of layers and heads."""
    cumulative: bool = False
    """Heads of --sites off one after the other: by importance, reversed, and in random orders."""
    prune: Positive | None = None
    """Choose N heads of --sites greedily, the least important first, and say what AP remains without them."""
    budget: Annotated[float, Between(0, 1, "a fall of AP")] | None = None
    """Prune as long as AP falls by no more than this, such as 0.01; with --prune, at most so many heads."""
    sites: str = "decoder.*.cross"
    """Attentions whose heads --matrix, --cumulative and --prune go through; patterns with commas between them."""
    mode: Mode = "zero"
    """What to do to a head, and to a --mask that names no mode."""
    samples: Annotated[int, AtLeast(40)] = 500
    """Resamples of the images for the 95% intervals."""
    pairing: Pairing = "iou"
    """Which detection after is which before: by boxes that overlap by half or more, or by their query."""
    screen_by: ScreenBy = "loss"
    """What --cumulative and --prune screen heads by: the training loss, or the logits of what is detected."""
    screen_images: Positive = 50
    """Images that a screening looks at, the first; each costs a forward and a backward pass."""
    steps: Positive = 8
    """Points of a cumulative curve."""
    random_orders: NotNegative = 3
    """Random orders to draw curves of."""
    mean_images: Positive = 100
    """Images that the mode mean takes its means over, the first."""
    batch_size: Positive = 1
    """Images at once."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 run the model under autocast."""
    workers: NotNegative = 2
    """Processes that decode images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.mask or self.matrix or self.cumulative or self.prunes):
            raise ValueError("nothing to do: expected --mask MASK, --matrix, --cumulative, --prune N or --budget FALL")
        self.masks()

    @property
    def prunes(self) -> bool:
        return self.prune is not None or self.budget is not None

    def masks(self) -> list[Masks]:
        """What --mask names, with the mode and the seed of the others where it has none."""
        return [parse_masks(text, self.mode, self.seed) for text in self.mask]


@dataclass(frozen=True)
class ExploreOptions(AnyDetectorOptions):
    """Upload images in the browser, look at what the detector attends to, and switch heads off."""

    confidence: Share = 0.5
    """Minimum score of a detection, at first."""
    relevance: NotNegative = 3
    """Detections whose relevance is computed, which takes a backward pass of the detector each; 0 for none."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, by the address with a token that is then printed."""
    port: Annotated[int, Between(0, 65535)] = 7860
    """Port to listen on; 0 takes a free one."""
    token: Token | None = None
    """What the address must bring; where other machines reach it and none is given, one is made. The environment
    variable MSDEFORM_TOKEN gives one unseen by others."""
    allowed_host: Annotated[tuple[str, ...], Repeated()] = ()
    """A name that a proxy on this machine calls this server by; may be repeated."""

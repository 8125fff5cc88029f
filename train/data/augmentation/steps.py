"""The transforms of ``--augment``: those of torchvision by their names, mosaics and quarter turns."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ....common.text import shown, suggest
from ....models.inference.image_size import Size
from ..dataset import Sample, Target
from ..transforms import resize, to_model, training_transform
from .options import Step, steps_of
from .pipelines import Pipeline, adapt

# near the mean of photographs, which normalisation makes zero
GREY = 114
# of a mosaic's tiles, of which larger ones would fill the memory
MOST_SCALE = 10
# of a box that an edge of a mosaic's tile cuts, what must be left of its area
_LEAST_LEFT = 0.1
# transforms of torchvision that move no boxes, need other images than the mosaic's, or a function
_UNFIT = {
    **dict.fromkeys(("AugMix", "AutoAugment", "RandAugment", "TrivialAugmentWide"), "it does not move boxes"),
    **dict.fromkeys(("CutMix", "MixUp"), "it mixes the classes of whole images"),
    **dict.fromkeys(("FiveCrop", "TenCrop"), "it makes several images of one"),
    **dict.fromkeys(("Lambda", "LinearTransformation", "Transform"), "it needs more than text can say"),
    **dict.fromkeys(("Normalize", "ToPILImage", "ToPureTensor", "ToTensor"), "the model's own normalisation follows"),
}


class RandomQuarterTurn:
    """Turns the image and its boxes by 0, 90, 180 or 270 degrees, each as likely."""

    def __call__(self, image: Tensor, target: Target) -> Sample:
        boxes = target["boxes"]
        corners = boxes.as_subclass(Tensor)
        turns = int(torch.randint(4, ()))
        for _ in range(turns):  # anticlockwise: the right edge becomes the top
            width = image.shape[-1]
            image = torch.rot90(image, 1, (-2, -1))
            x0, y0, x1, y1 = corners.unbind(1)
            corners = torch.stack([y0, width - x1, y1, width - x0], 1)
        size = (image.shape[-2], image.shape[-1])
        moved = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size)
        return tv_tensors.Image(image), {**target, "boxes": moved}


class Mosaic:
    """Puts an image and three others around a point, each in one quarter, of a picture of the first one's shape.

    Args:
        p: how often, from 0 to 1.
        scale: from and to: the images' size in the mosaic, relative to the one they have alone.
        until: part of the run's epochs after which there are none: the last epochs see images as they are.
        otherwise: done with an image that becomes no mosaic.
        size: what the model gets.
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: tuple[float, float] = (0.5, 1.5),
        until: float = 0.8,
        otherwise: Pipeline | None = None,
        *,
        size: Size,
    ) -> None:
        for name, value in (("p", p), ("until", until)):
            if not (isinstance(value, int | float) and 0 <= value <= 1):
                raise ValueError(f"{name}: expected a number from 0 to 1, got {value!r}")
        numbers = isinstance(scale, list | tuple) and all(isinstance(one, int | float) for one in scale)
        if not (numbers and len(scale) == 2 and 0 < scale[0] <= scale[1] <= MOST_SCALE):
            raise ValueError(
                f"scale: expected two numbers above 0 and up to {MOST_SCALE}, the smaller first, got {scale!r}"
            )
        self.p, self.scale, self.until, self.otherwise, self.size = p, scale, until, otherwise, size

    def __call__(self, sample: Sample, another: Callable[[], Sample], progress: float) -> Sample:
        """A mosaic, or the image itself as it is without one.

        Args:
            sample: the image and its target; its ``image_id`` and ``size`` are the mosaic's.
            another: an image of the data set, drawn at random.
            progress: part of the run's epochs that is done, from 0 to 1.
        """
        if progress < self.until and float(torch.rand(())) < self.p:
            return self.joined([sample, another(), another(), another()])
        return sample if self.otherwise is None else self.otherwise(*sample)

    def joined(self, samples: list[Sample]) -> Sample:
        """Four images as one, the first on the top left."""
        height, width = self.size.fit(*samples[0][0].shape[-2:])
        middle = torch.empty(2).uniform_(0.25, 0.75) * torch.tensor([height, width])
        y, x = middle.round().int().tolist()
        factor = float(torch.empty(()).uniform_(*self.scale))
        whole = torch.full((3, height, width), GREY, dtype=torch.uint8)
        boxes, labels = [], []
        for number, (image, target) in enumerate(samples):
            new = [max(1, round(side * factor)) for side in self.size.fit(*image.shape[-2:])]
            tile = F.resize(image, new, antialias=True)
            # each touches the middle with the corner that is nearest to it
            top, left = y - (new[0] if number < 2 else 0), x - (0 if number % 2 else new[1])
            bottom, right = min(top + new[0], height), min(left + new[1], width)
            above, before = max(top, 0), max(left, 0)
            whole[:, above:bottom, before:right] = tile[:, above - top : bottom - top, before - left : right - left]
            moved = F.resize(target["boxes"], new).as_subclass(Tensor).float() + torch.tensor([left, top, left, top])
            low = torch.tensor([before, above, before, above])
            cut = torch.minimum(torch.maximum(moved, low), torch.tensor([right, bottom, right, bottom]))
            left_over = _area(cut) > _LEAST_LEFT * _area(moved)
            boxes.append(cut[left_over])
            labels.append(target["labels"][left_over])
        joined = tv_tensors.BoundingBoxes(torch.cat(boxes), format="XYXY", canvas_size=(height, width))
        return tv_tensors.Image(whole), {**samples[0][1], "boxes": joined, "labels": torch.cat(labels)}


def augmentation(value: str, size: Size) -> tuple[Mosaic | None, v2.Compose]:
    """What the setting ``augment`` asks for: the mosaics, and what is done with each image or mosaic.

    Args:
        value: a preset's name, or a list of transforms in YAML.
        size: what the model gets: the last step resizes to it.

    Raises:
        ValueError: a transform or an argument that there is not, or wrong values; the sentence begins with "augment".
    """
    if value in ("official", "flip", "none"):
        return None, training_transform(value, size)
    mosaic, steps = None, steps_of(value)
    if steps and steps[0][0].lower() == "mosaic":
        mosaic, steps = _made(steps[0], size, first=True), steps[1:]
    ready = [partial(_at_most, size=size), *([_joined(steps, size)] if steps else [])]
    return mosaic, v2.Compose([*ready, partial(resize, size=size), to_model])


def own_augmentation(pipeline: Any, size: Size) -> v2.Compose:
    """The same of a pipeline that `adapt` takes, instead of a setting. Raises TypeError as it does."""
    return v2.Compose([partial(_at_most, size=size), adapt(pipeline), partial(resize, size=size), to_model])


def _joined(steps: list[Step], size: Size) -> Pipeline:
    return adapt(v2.Compose([_made(step, size) for step in steps]), "augment")


def _at_most(image: Tensor, target: Target, size: Size) -> Sample:
    """Images of more than twice the model's size brought to that, as transforms of large photographs take seconds."""
    double = Size(2 * size.short, 2 * size.longest)
    return resize(image, target, double) if double.fit(*image.shape[-2:])[0] < image.shape[-2] else (image, target)


def _made(step: Step, size: Size, *, first: bool = False) -> Any:
    """A transform out of its name and arguments; the first of a list may be a mosaic."""
    known: dict[str, Any] = {
        name: kind for name, kind in vars(v2).items() if inspect.isclass(kind) and issubclass(kind, v2.Transform)
    }
    known |= {"Mosaic": Mosaic, "RandomQuarterTurn": RandomQuarterTurn}
    name = {each.lower(): each for each in known}.get(step[0].lower(), step[0])
    if name in _UNFIT:
        raise ValueError(f"augment: {name} is not for detectors: {_UNFIT[name]}")
    if name not in known:
        fit = [each for each in known if each not in _UNFIT]
        raise ValueError(
            suggest(
                f"augment: no transform is called {shown(name)!r}", name, fit, "torchvision.transforms.v2 lists them"
            )
        )
    if name == "Mosaic" and not first:
        raise ValueError("augment: expected Mosaic as the first transform of the list, as what follows is done with it")
    parameters = dict(inspect.signature(known[name]).parameters)
    given = {str(argument): value for argument, value in step[1].items()}
    if name == "Mosaic":
        del parameters["size"]
    for argument in given:
        if argument not in parameters:
            offered = f"it has {', '.join(parameters)}" if parameters else "it has none"
            raise ValueError(
                suggest(f"augment: {name} has no argument {shown(argument)!r}", argument, parameters, offered)
            )
    for argument, parameter in parameters.items():
        if parameter.default is parameter.empty and argument not in given:
            raise ValueError(f"augment: {name}: expected a value for {argument}")
    if "transforms" in given:
        given["transforms"] = [_made(each, size) for each in given["transforms"]]
    if given.get("otherwise"):
        given["otherwise"] = _joined(given["otherwise"], size)
    if name == "Mosaic":
        given["size"] = size
    try:
        if "interpolation" in given:
            given["interpolation"] = v2.InterpolationMode(given["interpolation"])
        return known[name](**given)
    except Exception as error:  # torchvision checks little, and raises what its arithmetic meets
        raise ValueError(f"augment: {name}: {shown(error, 1000)}") from None


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)

"""A whole data set, with all its splits, for the commands that convert and check it."""

from typing import Literal

from ...config.options import Source
from ..annotations import Annotations, BadData
from ..dataset import CocoDetection, Sample
from ..layouts import SplitName, recognise
from .options import DataOptions

PartName = Literal["train", "val", "all"]


def _no_transform(image: object, target: object) -> Sample:
    raise NotImplementedError  # items are not asked for


def parts_of(options: DataOptions) -> list[PartName]:
    """The splits that there are, or that are made; of one set that is not divided, "all".

    Raises FileNotFoundError and ValueError as `layouts.recognise`.
    """
    if options.val_share is not None:
        return ["train", "val"]
    splits = recognise(options.data, None if options.data_format == "auto" else options.data_format).splits
    return list(splits) or ["all"]


def read_part(
    options: DataOptions, part: PartName, bad_data: BadData, like: CocoDetection | None = None, *, decode: bool = False
) -> CocoDetection:
    """The images and boxes of a split.

    Args:
        options: which data set.
        part: of `parts_of`.
        bad_data: "skip" leaves out what is wrong and lists it in ``annotations.dropped``.
        like: the part whose classes this one must have.
        decode: with bad data skipped, decode every image.

    Raises FileNotFoundError and ValueError as `Annotations.load` and `CocoDetection`.
    """
    share = 1.0 if part == "all" else options.val_share
    source = Source(data=options.data, val_share=share, split_seed=options.split_seed, data_format=options.data_format)
    split: SplitName = "train" if part == "train" else "val"
    folder, file = source.split(split)
    categories = None if like is None else like.annotations.categories
    annotations = Annotations.load(
        file, categories, bad_data, split=split, held_out=source.held_out(), progress=options.progress
    )
    return CocoDetection(
        folder, annotations, _no_transform, bad_data=bad_data, decode=decode, progress=options.progress
    )

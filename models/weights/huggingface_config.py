"""A detector's configuration out of Hugging Face's config.json or the official command line, and into the first.

Configurations are those of `Config.to_dict`: plain values, with their ``family``.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..configs import FAMILIES, SLIM, TORCHVISION
from ..inference.image_size import Size
from ..inference.images import IMAGENET_MEAN, IMAGENET_STD

# the groups of Hugging Face's normalisations behind the projections; ours are gcd(32, hidden_dim / 4)
HF_GROUPS = 32

PROCESSORS = {"detr": "DetrImageProcessor", "deformable_detr": "DeformableDetrImageProcessor"}
# a longest side that no image has, for files that bound the shortest only
_UNBOUNDED = 2**31 - 1

ARCHITECTURES = {"detr": "DetrForObjectDetection", "deformable_detr": "DeformableDetrForObjectDetection"}

_SHARED = {
    "num_queries": "num_queries",
    "position_embedding": "position_embedding_type",
    "enc_layers": "encoder_layers",
    "dec_layers": "decoder_layers",
    "hidden_dim": "d_model",
    "dropout": "dropout",
}
# ours, Hugging Face's
_FIELDS: dict[str, dict[str, str]] = {
    "detr": _SHARED,
    "deformable_detr": {
        **_SHARED,
        "num_feature_levels": "num_feature_levels",
        "enc_n_points": "encoder_n_points",
        "dec_n_points": "decoder_n_points",
        "with_box_refine": "with_box_refine",
        "two_stage": "two_stage",
    },
}
MODEL_TYPES = tuple(_FIELDS)
"""Of transformers, which are read here."""
# one number of ours stands for two of theirs
_TWICE = {
    "nheads": ("encoder_attention_heads", "decoder_attention_heads"),
    "dim_feedforward": ("encoder_ffn_dim", "decoder_ffn_dim"),
}

# transformers' own ResNet: kind of block, widths and depths of the stages
_RESNETS: dict[str, tuple[str, list[int], list[int]]] = {
    "resnet18": ("basic", [64, 128, 256, 512], [2, 2, 2, 2]),
    "resnet34": ("basic", [64, 128, 256, 512], [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [256, 512, 1024, 2048], [3, 4, 6, 3]),
    "resnet101": ("bottleneck", [256, 512, 1024, 2048], [3, 4, 23, 3]),
    **{
        name: ("basic", [width for width, _ in stages], [depth for _, depth in stages]) for name, stages in SLIM.items()
    },
}


def hf_backbone(name: str) -> str:
    """Whose ResNet stands for a backbone there: ``timm`` for the published ones, ``transformers`` for the slim."""
    return "timm" if name in TORCHVISION else "transformers"


def config_from_huggingface(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a config.json of transformers describes, for frozen norms, as theirs are.

    The number of classes is left to the weights. Raises ValueError for another model, or one that ours cannot be.
    """
    family = theirs.get("model_type")
    if family not in _FIELDS:
        raise ValueError(f"model_type: expected {' or '.join(_FIELDS)}, got {family!r}")
    if theirs.get("activation_function", "relu") != "relu":
        raise ValueError(f"activation_function: expected 'relu', got {theirs['activation_function']!r}")
    defaults = FAMILIES[family]()
    # a configuration may leave out what is at its default, which is the published detector's, here as there
    ours: dict[str, Any] = {name: theirs.get(other, getattr(defaults, name)) for name, other in _FIELDS[family].items()}
    for name, (first, second) in _TWICE.items():
        default = getattr(defaults, name)
        encoder, decoder = theirs.get(first, default), theirs.get(second, default)
        if encoder != decoder:
            raise ValueError(f"{second}: expected {encoder} like {first}, got {decoder}")
        ours[name] = encoder
    if ours.get("two_stage"):
        ours["num_queries"] = theirs.get("two_stage_num_proposals", ours["num_queries"])
    ours["backbone"], ours["dilation"] = _backbone_from(theirs)
    return {"family": family, **ours, "backbone_frozen": True}


def config_to_huggingface(ours: Mapping[str, Any], categories: list[str] | None = None) -> dict[str, Any]:
    """The config.json with which transformers builds the same detector; `categories` names the classes.

    Raises ValueError for a detector that transformers does not have.
    """
    family = ours["family"]
    _check_exists_there(ours)
    classes = ours["num_classes"]
    names = categories if categories is not None and len(categories) == classes else None
    labels = names or [f"LABEL_{i}" for i in range(classes)]
    theirs: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        **{other: ours[name] for name, other in _FIELDS[family].items()},
        **{other: ours[name] for name, pair in _TWICE.items() for other in pair},
        # the official code drops out within attention and feed-forward networks too; theirs by default doesn't
        "attention_dropout": ours["dropout"],
        "activation_dropout": ours["dropout"],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "dilation": ours["dilation"],
    }
    if family == "deformable_detr":
        theirs["two_stage_num_proposals"] = ours["num_queries"]
    return theirs | _backbone_to(ours)


def config_from_args(args: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The configuration out of the command line that official checkpoints keep; the classes are left to the weights."""
    known = {field.name for field in fields(FAMILIES[family])} - {"num_classes"}
    ours = {name: value for name, value in args.items() if name in known}
    # the official names of the two positions, and their second names
    kind = {"v2": "sine", "v3": "learned"}.get(ours.get("position_embedding", "sine"))
    if kind is not None:
        ours["position_embedding"] = kind
    return {"family": family, **{name: value for name, value in ours.items() if name in known}}


def preprocessor_of(family: str, size: Size) -> dict[str, Any]:
    """The preprocessor_config.json with which transformers brings images to `size` and normalises them as we do."""
    return {
        "image_processor_type": PROCESSORS[family],
        "do_resize": True,
        "size": {"shortest_edge": size.short, "longest_edge": size.longest},
        "resample": 2,  # bilinear, by PIL's numbers
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "do_pad": True,
        "format": "coco_detection",
    }


def preprocesses_otherwise(theirs: Any) -> bool:
    """Does a preprocessor_config.json normalise images otherwise than our detectors do?"""
    if not isinstance(theirs, Mapping):
        return False
    if not (theirs.get("do_normalize", True) and theirs.get("do_rescale", True)):
        return True
    usual = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD), "rescale_factor": 1 / 255}
    return any(theirs.get(name, value) != value for name, value in usual.items())


def size_of_preprocessor(theirs: Any) -> Size | None:
    """The size that a preprocessor_config.json of transformers describes; None where it does not bound the two sides.

    Raises ValueError for a size that is none.
    """
    if not isinstance(theirs, Mapping):
        raise ValueError(f"expected an object with size, got {type(theirs).__name__}")
    size = theirs.get("size")
    if size is None or not theirs.get("do_resize", True):
        return None
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            longest = size.get("longest_edge") or theirs.get("max_size")
            return _size("size", size["shortest_edge"], _UNBOUNDED if longest is None else longest)
        if "max_height" in size and size["max_height"] == size.get("max_width"):
            return _size("size", size["max_height"], size["max_width"])  # both at most this: what a longest side is
        return None
    if isinstance(size, int):  # the first versions of transformers, and the published files
        return _size("size", size, theirs.get("max_size", _UNBOUNDED))
    raise ValueError(f"size: expected shortest_edge and longest_edge in pixels, got {size!r:.200}")


def read_size(size: Any) -> Size | None:
    """``input_size`` as our files keep it, [shortest, longest] or None. Raises ValueError for anything else."""
    if size is None:
        return None
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise ValueError(f"input_size: expected [shortest, longest] in pixels, got {size!r:.200}")
    return _size("input_size", *size)


def size_from_args(args: Mapping[str, Any]) -> Size | None:
    """The size of images beside official weights, where `formats.save_official` wrote it."""
    try:
        return read_size(args.get("input_size"))
    except ValueError:  # other programs have a field of this name too
        return None


def _size(name: str, short: Any, longest: Any) -> Size:
    if not (isinstance(short, int) and isinstance(longest, int) and 1 <= short <= longest):
        got = f"{short!r:.100}, {longest!r:.100}"
        raise ValueError(f"{name}: expected pixels, the shortest side and then the longest, got {got}")
    return Size(short, longest)


def _check_exists_there(ours: Mapping[str, Any]) -> None:
    family = ours["family"]
    if family not in _FIELDS:
        raise ValueError(f"family: Hugging Face's files are of {' or '.join(_FIELDS)}, got {family}")
    if ours.get("pre_norm"):
        raise ValueError("pre_norm: Hugging Face's detectors have none, got True")
    if family == "detr" and ours.get("focal"):
        raise ValueError("focal: Hugging Face's DETR has a class for no object, got a detector without (focal=True)")
    width = ours["hidden_dim"]
    if family == "deformable_detr" and width % (4 * HF_GROUPS):
        raise ValueError(
            f"hidden_dim: expected a multiple of {4 * HF_GROUPS}, got {width}: Hugging Face's Deformable DETR "
            f"normalises its projections in {HF_GROUPS} groups, this one in fewer"
        )


def _backbone_from(theirs: Mapping[str, Any]) -> tuple[str, bool]:
    """Name and dilation of the ResNet, of either library's."""
    inner = theirs.get("backbone_config") or {}
    dilated = bool(theirs.get("dilation", False))
    if inner.get("model_type") == "resnet":
        kind = inner.get("layer_type", "bottleneck")
        shape = (kind, inner.get("hidden_sizes"), inner.get("depths"))
        for name, known in _RESNETS.items():
            if (
                known == shape
                and not inner.get("downsample_in_bottleneck")
                and not inner.get("downsample_in_first_stage")
            ):
                # theirs ignores `dilation` with this ResNet
                return name, False
        raise ValueError(
            f"backbone_config: expected a ResNet of {', '.join(_RESNETS)}, got {kind} blocks of widths {shape[1]}, "
            f"depths {shape[2]}"
        )
    # published files name it beside, newer ones inside
    name = inner.get("backbone") or theirs.get("backbone") or "resnet50"
    if name not in TORCHVISION:
        raise ValueError(f"backbone: expected one of {', '.join(TORCHVISION)}, got {name!r}")
    return name, dilated or inner.get("output_stride") == 16


def _backbone_to(ours: Mapping[str, Any]) -> dict[str, Any]:
    name, levels = ours["backbone"], ours.get("num_feature_levels", 1)
    if hf_backbone(name) == "timm":
        # as in the published files, which every version of transformers reads
        return {"backbone": name, "use_timm_backbone": True, "use_pretrained_backbone": False, "backbone_config": None}
    kind, widths, depths = _RESNETS[name]
    return {
        "use_timm_backbone": False,
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": widths[0],
            "hidden_sizes": widths,
            "depths": depths,
            "layer_type": kind,
            "out_features": [f"stage{i}" for i in range(5 - min(levels, 3), 5)],
        },
    }

"""State dicts between the official names, which are ours, and Hugging Face's, for DETR and Deformable DETR.

Hugging Face's names are those in the files that ``save_pretrained`` writes (and the Hub holds): transformers renames
once more on loading, so they differ from a live model's. There are three differences:

- every part has another name (the tables below);
- the query, key and value projections of ordinary attention, one matrix officially, are three;
- a tensor that several names share may stand in the file under one of them alone.

Nothing is computed: a tensor that goes there and back is the same, bit for bit.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ...common.text import printable

# official prefix, Hugging Face's prefix; # is a number. the first row that fits counts
_BACKBONE = "backbone.0.body."
_HF_BACKBONE = "model.backbone.conv_encoder.model."

_SHARED = (
    (_BACKBONE, _HF_BACKBONE),
    ("backbone.1.row_embed.", "model.position_embedding.row_embeddings."),
    ("backbone.1.col_embed.", "model.position_embedding.column_embeddings."),
    ("query_embed.", "model.query_position_embeddings."),
    ("transformer.encoder.layers.#.self_attn.", "model.encoder.layers.#.self_attn."),
    ("transformer.encoder.layers.#.norm1.", "model.encoder.layers.#.self_attn_layer_norm."),
    ("transformer.encoder.layers.#.linear1.", "model.encoder.layers.#.fc1."),
    ("transformer.encoder.layers.#.linear2.", "model.encoder.layers.#.fc2."),
    ("transformer.encoder.layers.#.norm2.", "model.encoder.layers.#.final_layer_norm."),
    ("transformer.decoder.layers.#.self_attn.", "model.decoder.layers.#.self_attn."),
    ("transformer.decoder.layers.#.linear1.", "model.decoder.layers.#.fc1."),
    ("transformer.decoder.layers.#.linear2.", "model.decoder.layers.#.fc2."),
    ("transformer.decoder.layers.#.norm3.", "model.decoder.layers.#.final_layer_norm."),
)

_DETR = (
    *_SHARED,
    ("input_proj.", "model.input_projection."),
    ("transformer.decoder.layers.#.norm1.", "model.decoder.layers.#.self_attn_layer_norm."),
    ("transformer.decoder.layers.#.multihead_attn.", "model.decoder.layers.#.encoder_attn."),
    ("transformer.decoder.layers.#.norm2.", "model.decoder.layers.#.encoder_attn_layer_norm."),
    ("transformer.decoder.norm.", "model.decoder.layernorm."),
    ("class_embed.", "class_labels_classifier."),
    ("bbox_embed.", "bbox_predictor."),
)

_DEFORMABLE_DETR = (
    *_SHARED,
    ("input_proj.", "model.input_proj."),
    ("transformer.level_embed", "model.level_embed"),
    ("transformer.reference_points.", "model.reference_points."),
    ("transformer.enc_output.", "model.enc_output."),
    ("transformer.enc_output_norm.", "model.enc_output_norm."),
    ("transformer.pos_trans.", "model.pos_trans."),
    ("transformer.pos_trans_norm.", "model.pos_trans_norm."),
    # officially norm2 follows self-attention and norm1 follows cross-attention
    ("transformer.decoder.layers.#.norm2.", "model.decoder.layers.#.self_attn_layer_norm."),
    ("transformer.decoder.layers.#.cross_attn.", "model.decoder.layers.#.encoder_attn."),
    ("transformer.decoder.layers.#.norm1.", "model.decoder.layers.#.encoder_attn_layer_norm."),
    ("transformer.decoder.bbox_embed.", "model.decoder.bbox_embed."),
    ("transformer.decoder.class_embed.", "model.decoder.class_embed."),
    ("class_embed.", "class_embed."),
    ("bbox_embed.", "bbox_embed."),
)

# of the two ResNets that Hugging Face's detectors stand on, timm's has torchvision's names; these are transformers' own
_RESNET_BLOCK = (
    ("downsample.0.", "shortcut.convolution."),
    ("downsample.1.", "shortcut.normalization."),
    *((f"conv{n}.", f"layer.{n - 1}.convolution.") for n in (1, 2, 3)),
    *((f"bn{n}.", f"layer.{n - 1}.normalization.") for n in (1, 2, 3)),
)
_RESNET = (
    (f"{_BACKBONE}conv1.", f"{_HF_BACKBONE}embedder.embedder.convolution."),
    (f"{_BACKBONE}bn1.", f"{_HF_BACKBONE}embedder.embedder.normalization."),
    *(
        (f"{_BACKBONE}layer{stage + 1}.#.{ours}", f"{_HF_BACKBONE}encoder.stages.{stage}.layers.#.{theirs}")
        for stage in range(4)
        for ours, theirs in _RESNET_BLOCK
    ),
)

_Rows = tuple[tuple[str, str], ...]


def is_huggingface(names: Mapping[str, object]) -> bool:
    """Are these the names of a file by transformers (of either detector)?"""
    return any(name.startswith("model.") for name in names)


def family_of(names: Mapping[str, object]) -> str:
    """``detr``, ``deformable_detr``, ``detr_demo`` or ``faster_rcnn``, by official or Hugging Face names.

    Raises ValueError for the names of anything else.
    """
    if "class_labels_classifier.weight" in names:
        return "detr"
    if any("sampling_offsets" in name for name in names):
        return "deformable_detr"
    if "class_embed.weight" in names:
        return "detr"
    if "linear_class.weight" in names:
        return "detr_demo"
    if any("roi_heads." in name for name in names):
        return "faster_rcnn"
    some = printable(", ".join(sorted(names)[:3])[:300]) or "nothing"
    raise ValueError(f"weights: expected the names of DETR, Deformable DETR or Faster R-CNN, found {some}")


def to_huggingface(state: Mapping[str, Tensor], *, backbone: str = "timm") -> dict[str, Tensor]:
    """The weights under the names in Hugging Face's files.

    Heads that share a tensor keep all their names. Counts of training batches (``num_batches_tracked``) are left out:
    Hugging Face's batch norms are frozen.

    Args:
        state: an official state dict of DETR or Deformable DETR.
        backbone: whose ResNet the model stands on, ``timm`` (as published) or ``transformers``.

    Raises:
        ValueError: of another detector, or with a part that Hugging Face's lacks.
    """
    if backbone not in ("timm", "transformers"):
        raise ValueError(f"backbone: expected timm or transformers, got {backbone!r}")
    rows = _rows(state)
    if backbone == "transformers":
        rows = (*_RESNET, *(row for row in rows if row[0] != _BACKBONE))
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        other = _rename(name, rows)
        if other is None:
            raise ValueError(f"{name}: Hugging Face's detector has no such part")
        renamed.update(_split(other, tensor))
    return renamed


def from_huggingface(state: Mapping[str, Tensor], *, with_box_refine: bool | None = None) -> dict[str, Tensor]:
    """The official state dict out of Hugging Face's file.

    Heads that stand in the file under one of their names are given under all.

    Args:
        state: of ``DetrForObjectDetection`` or ``DeformableDetrForObjectDetection``, with either backbone.
        with_box_refine: whether Deformable DETR's layers refine boxes, with heads of their own, as its configuration
            says; None tells it by the heads.

    Raises:
        ValueError: names of another model, or a projection without its fellows.
    """
    rows = tuple((theirs, ours) for ours, theirs in (*_RESNET, *_rows(state)))
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        other = _rename(name, rows)
        if other is None:
            raise ValueError(f"{name}: not a name in a file of Hugging Face's DETR or Deformable DETR")
        renamed[other] = tensor
    merged = _merge(renamed)
    if family_of(merged) == "deformable_detr":
        _name_heads(merged, with_box_refine)
    return merged


def _rows(names: Mapping[str, object]) -> _Rows:
    tables: dict[str, _Rows] = {"detr": _DETR, "deformable_detr": _DEFORMABLE_DETR}
    family = family_of(names)
    if family not in tables:
        raise ValueError(f"weights: expected those of DETR or Deformable DETR, which Hugging Face has, got {family}'s")
    return tables[family]


def _rename(name: str, rows: _Rows) -> str | None:
    for prefix, other in rows:
        match = re.match(re.escape(prefix).replace(r"\#", r"(\d+)"), name)
        if match:
            number = match.group(1) if match.groups() else ""
            return other.replace("#", number) + name[match.end() :]
    return None


def _split(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One matrix or bias of three projections, (3C, ...), as three of (C, ...); anything else as it is."""
    stem, _, kind = name.rpartition(".in_proj_")
    if not stem:
        return {name: tensor}
    return {f"{stem}.{q}_proj.{kind}": part for q, part in zip("qkv", tensor.chunk(3), strict=True)}


def _merge(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Three projections as one wherever there are q, k and v."""
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(.+)\.[qkv]_proj\.(weight|bias)", name)
        if match is None:
            merged[name] = tensor
            continue
        stem, kind = match.groups()
        three = [f"{stem}.{q}_proj.{kind}" for q in "qkv"]
        missing = [one for one in three if one not in state]
        if missing:
            raise ValueError(f"{missing[0]}: expected beside {name}, not found")
        if name == three[0]:
            merged[f"{stem}.in_proj_{kind}"] = torch.cat([state[one] for one in three])
    return merged


def _name_heads(state: dict[str, Tensor], refine: bool | None) -> None:
    """Gives every head of Deformable DETR all of its official names, in place."""
    two_stage = "transformer.enc_output.weight" in state
    layers = {name.split(".")[3] for name in state if name.startswith("transformer.decoder.layers.")}
    heads = len(layers) + int(two_stage)
    if refine is None:
        refine = two_stage or "transformer.decoder.bbox_embed.0.layers.0.weight" in state or _differ(state)
    for kind, parts in (("class_embed", _CLASS_PARTS), ("bbox_embed", _BOX_PARTS)):
        second = refine if kind == "bbox_embed" else two_stage
        for part in parts:
            for head in range(heads):
                found = _head(state, kind, head, part)
                if found is None:
                    found = _head(state, kind, 0, part)  # shared, and stored once
                if found is None:
                    raise ValueError(f"{kind}.0.{part}: expected in the file, not found")
                state[f"{kind}.{head}.{part}"] = found
                if second:
                    state[f"transformer.decoder.{kind}.{head}.{part}"] = found


_CLASS_PARTS = ("weight", "bias")
_BOX_PARTS = tuple(f"layers.{i}.{kind}" for i in range(3) for kind in _CLASS_PARTS)


def _head(state: Mapping[str, Tensor], kind: str, head: int, part: str) -> Tensor | None:
    name = f"{kind}.{head}.{part}"
    return state.get(name, state.get(f"transformer.decoder.{name}"))


def _differ(state: Mapping[str, Tensor]) -> bool:
    """Do two box heads differ? Then they are not one, shared."""
    first, second = (state.get(f"bbox_embed.{head}.layers.0.weight") for head in (0, 1))
    return first is not None and second is not None and not torch.equal(first, second)

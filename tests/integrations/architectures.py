"""Small models of every transformers architecture with this operator, random weights, and inputs for each."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

# batches of two images of an odd size, one of them padded where the architecture takes a mask
SIZE = (96, 160)
CLASSES = 5
TEXT = 7

_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
_SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": SIZE[0]}
_HGNET = {
    "model_type": "hgnet_v2",
    **{"stem_channels": [3, 8, 8], "stage_in_channels": [8, 8, 16, 24], "stage_mid_channels": [8, 8, 8, 8]},
    **{"stage_out_channels": [8, 16, 24, 32], "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [1, 1, 1, 1]},
    **{"stage_light_block": [False, False, True, True], "stage_kernel_size": [3, 3, 3, 3]},
    **{"stage_downsample": [False, True, True, True], "stage_downsample_strides": [2, 2, 2, 2]},
    **{"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]},
}
_BERT = {
    **{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 16, "vocab_size": 1200, "max_position_embeddings": 16},
}
# of RT-DETR's kin: the widths of the hybrid encoder and the decoder
_HYBRID = {
    **{"encoder_hidden_dim": 16, "encoder_in_channels": [16, 24, 32], "encoder_layers": 1, "encoder_ffn_dim": 16},
    **{"encoder_attention_heads": 2, "decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 16, "decoder_layers": 2},
    **{"decoder_attention_heads": 2, "num_queries": 12, "num_denoising": 0, "num_labels": CLASSES},
}
_DETR = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 12, "num_labels": CLASSES},
    **{"dropout": 0.0, "auxiliary_loss": False},
}
_LW = {
    **{"d_model": 16, "decoder_ffn_dim": 16, "decoder_layers": 2, "decoder_self_attention_heads": 2},
    **{"decoder_cross_attention_heads": 2, "num_queries": 12, "group_detr": 1, "num_labels": CLASSES, "dropout": 0.0},
    **{"projector_scale_factors": [0.5, 2.0]},
}

_STAGES = ["stage2", "stage3", "stage4"]


def _resnet(stages: list[str] = _STAGES, kind: str = "ResNetConfig") -> Any:
    return getattr(transformers, kind)(**_RESNET, out_features=stages)


def _hgnet(stages: list[str] = _STAGES, **changes: Any) -> Any:
    return transformers.HGNetV2Config(**{**_HGNET, **changes}, out_features=stages)


def _detr(name: str, head: str = "ForObjectDetection", **settings: Any) -> nn.Module:
    return getattr(transformers, name + head)(getattr(transformers, f"{name}Config")(**settings))


def _layout(name: str, **settings: Any) -> nn.Module:
    stages = ["stage1", *_STAGES] if name.endswith("3") else _STAGES
    return _detr(name, backbone_config=_hgnet(stages), **{"d_model": 16, **_HYBRID, **settings})


def _dino(name: str) -> nn.Module:
    backbone = transformers.SwinConfig(**_SWIN, out_features=_STAGES)
    text = transformers.BertConfig(**_BERT)
    return _detr(name, backbone_config=backbone, text_config=text, max_text_len=TEXT, fusion_droppath=0.0, **_DETR)


def _omdet() -> nn.Module:
    text = {
        **{"model_type": "clip_text_model", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 16, "max_position_embeddings": 8, "vocab_size": 64},
    }
    widths = {
        **{"text_projection_in_dim": 24, "text_projection_out_dim": 24, "class_embed_dim": 24, "num_queries": 12},
        **{"encoder_hidden_dim": 16, "decoder_hidden_dim": 16, "encoder_in_channels": (16, 32, 64)},
        **{"encoder_dim_feedforward": 16, "decoder_dim_feedforward": 16, "task_encoder_hidden_dim": 32},
        **{"vision_features_channels": [16, 16, 16], "encoder_layers": 1, "decoder_num_layers": 2},
        **{"encoder_attention_heads": 2, "decoder_num_heads": 2, "apply_layernorm_after_vision_backbone": False},
    }
    swin = {"model_type": "swin", **_SWIN, "window_size": 3, "out_indices": (2, 3, 4)}
    return _detr("OmDetTurbo", text_config=text, backbone_config=swin, image_size=SIZE[0], **widths)


def _mask2former() -> nn.Module:
    return _detr(
        "Mask2Former",
        "ForUniversalSegmentation",
        backbone_config=transformers.SwinConfig(**_SWIN, out_features=["stage1", *_STAGES]),
        **{"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16},
        **{"encoder_layers": 2, "decoder_layers": 3, "num_attention_heads": 2, "dim_feedforward": 16},
        **{"num_queries": 12, "num_labels": CLASSES},
    )


def _oneformer() -> nn.Module:
    return _detr(
        "OneFormer",
        "ForUniversalSegmentation",
        backbone_config=transformers.SwinConfig(**_SWIN, out_features=["stage1", *_STAGES]),
        **{"conv_dim": 32, "mask_dim": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16, "dim_feedforward": 16},
        **{"encoder_layers": 2, "decoder_layers": 3, "num_attention_heads": 2, "query_dec_layers": 1, "dropout": 0.0},
        **{"num_queries": 12, "num_labels": CLASSES, "task_seq_len": TEXT, "text_encoder_width": 32},
        **{"text_encoder_num_layers": 1, "text_encoder_vocab_size": 64, "text_encoder_context_length": TEXT},
        **{"text_encoder_n_ctx": 2},
    )


def _lw_detr() -> nn.Module:
    backbone = transformers.LwDetrViTConfig(
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE[0]},
        **{"pretrain_image_size": SIZE[0], "window_block_indices": [0], "out_indices": [1, 2], "num_windows": 4},
    )
    return _detr("LwDetr", backbone_config=backbone, **_LW)


def _rf_detr() -> nn.Module:
    backbone = transformers.RfDetrDinov2Config(
        **{"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64, "patch_size": 16},
        **{"num_windows": 2, "out_features": ["stage2", "stage3"]},
    )
    return _detr("RfDetr", backbone_config=backbone, **_LW)


def _deimv2(**settings: Any) -> nn.Module:
    return _detr("Deimv2", backbone_config=_hgnet(), d_model=16, hidden_expansion=0.5, **_HYBRID, **settings)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "deformable_detr": lambda: _detr(
        "DeformableDetr", backbone_config=_resnet(), use_timm_backbone=False, backbone=None, **_DETR
    ),
    "deformable_detr two-stage": lambda: _detr(
        "DeformableDetr",
        backbone_config=_resnet(),
        **{"use_timm_backbone": False, "backbone": None, "two_stage": True, "with_box_refine": True, **_DETR},
    ),
    "rt_detr": lambda: _detr("RTDetr", backbone_config=_resnet(kind="RTDetrResNetConfig"), d_model=16, **_HYBRID),
    "grounding_dino": lambda: _dino("GroundingDino"),
    "mm_grounding_dino": lambda: _dino("MMGroundingDino"),
    "omdet_turbo": _omdet,
    "lw_detr": _lw_detr,
    "rf_detr": _rf_detr,
    "pp_doclayout_v2": lambda: _layout(
        "PPDocLayoutV2", class_thresholds=[0.0] * CLASSES, class_order=[*range(CLASSES)]
    ),
    "pp_doclayout_v3": lambda: _layout("PPDocLayoutV3", mask_feature_channels=[16, 16], x4_feat_dim=8),
    "pp_doclayout_v4": lambda: _layout("PPDocLayoutV4", hidden_size=16),
    "rt_detr_v2": lambda: _detr("RTDetrV2", backbone_config=_resnet(kind="RTDetrResNetConfig"), d_model=16, **_HYBRID),
    "rt_detr_v2 discrete": lambda: _detr(
        "RTDetrV2",
        backbone_config=_resnet(kind="RTDetrResNetConfig"),
        **{"d_model": 16, "decoder_method": "discrete", **_HYBRID},
    ),
    "d_fine": lambda: _detr(
        "DFine", backbone_config=_hgnet(), **{"d_model": 16, "decoder_n_points": [3, 6, 3], **_HYBRID}
    ),
    "deimv2": lambda: _deimv2(decoder_n_points=[4, 2, 1]),
    "mask2former": _mask2former,
    "oneformer": _oneformer,
}


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model in evaluation mode; every weight random, since those that begin as zero would hide what they weigh."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model.to(dtype).eval()


def inputs_of(name: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Two images, and text where the architecture wants it."""
    generator = torch.Generator().manual_seed(1)
    height, width = SIZE if name not in ("omdet_turbo", "lw_detr") else (SIZE[0], SIZE[0])
    if name == "rf_detr":
        height, width = 64, 128
    given: dict[str, Any] = {"pixel_values": torch.randn(2, 3, height, width, generator=generator).to(dtype)}
    if name.startswith(("deformable", "grounding", "mm_", "lw_detr", "rf_detr", "mask2former", "oneformer")):
        mask = torch.ones(2, height, width, dtype=torch.long)
        mask[1, :, width // 2 :] = 0
        mask[1, height // 3 * 2 :] = 0
        given["pixel_mask"] = mask
    if "grounding" in name:
        given["input_ids"] = torch.tensor([[101, 3, 4, 1012, 5, 1012, 102]] * 2)
    if name == "omdet_turbo":
        classes = torch.randint(1, 60, (2 * CLASSES, TEXT), generator=generator)
        tasks = torch.randint(1, 60, (2, TEXT), generator=generator)
        given |= {"classes_input_ids": classes, "classes_attention_mask": torch.ones_like(classes)}
        given |= {"tasks_input_ids": tasks, "tasks_attention_mask": torch.ones_like(tasks)}
        given["classes_structure"] = torch.tensor([CLASSES, CLASSES])
    if name == "oneformer":
        given["task_inputs"] = torch.randint(1, 60, (2, TEXT), generator=generator)
    return given


def outputs_of(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every floating-point tensor of the model's outputs, by its name."""
    found: dict[str, Tensor] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                found[name] = value
        elif isinstance(value, dict):
            for key, one in value.items():
                collect(f"{name}.{key}", one)
        elif isinstance(value, list | tuple):
            for i, one in enumerate(value):
                collect(f"{name}[{i}]", one)

    collect("", dict(model(**inputs)))
    return found

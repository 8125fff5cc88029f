"""From the original's modules to the parameters of transformers' ``Deimv2ForObjectDetection``.

The export folded every BatchNorm into the convolution before it, and every RepVGG block, whose branches are a 3x3 and a
1x1 convolution, into one 3x3 convolution. Here both are unfolded to layers that compute the same: a BatchNorm that
adds the bias alone, and a 1x1 branch of zeros.
"""

import re
from collections.abc import Callable

import numpy as np

from tests.integrations.deimv2.published import Weights

Unfold = Callable[[str, Weights], Weights]

_BATCH_NORM_EPS = 1e-5


def _batch_norm(to: str, bias: np.ndarray) -> Weights:
    """One that adds the bias: it divides by the root of variance + eps, so the variance is 1 - eps."""
    ones = np.ones(len(bias))
    return {
        f"{to}.weight": ones,
        f"{to}.bias": bias,
        f"{to}.running_mean": 0 * ones,
        # in float64: rounded to float32, it would be a factor of up to 1 + 3e-8 in every layer of a float64 model
        f"{to}.running_var": (1 - _BATCH_NORM_EPS) * ones,
    }


def _backbone(to: str, weights: Weights) -> Weights:
    return {f"{to}.convolution.weight": weights["weight"]} | _batch_norm(f"{to}.normalization", weights["bias"])


def _encoder(to: str, weights: Weights) -> Weights:
    return {f"{to}.conv.weight": weights["weight"]} | _batch_norm(f"{to}.norm", weights["bias"])


def _rep_vgg(to: str, weights: Weights) -> Weights:
    none = {"weight": 0 * weights["weight"][:, :, :1, :1], "bias": 0 * weights["bias"]}
    return _encoder(f"{to}.conv1", weights) | _encoder(f"{to}.conv2", none)


def _as_it_is(to: str, weights: Weights) -> Weights:
    return {f"{to}.{name}": array for name, array in weights.items()}


def _rms_norm(to: str, weights: Weights) -> Weights:
    return {f"{to}.weight": weights["scale"]}


def _gated(to: str, weights: Weights) -> Weights:
    """SwiGLU's first two matrices, which the original holds as one."""
    gate, up = ({name: np.split(array, 2)[half] for name, array in weights.items()} for half in range(2))
    return _as_it_is(f"{to}.gate_proj", gate) | _as_it_is(f"{to}.up_proj", up)


_STAGE, _STAGES = r"^backbone/stages\.(\d)", "conv_encoder.model.encoder.stages"
_BLOCK = r"^encoder/(fpn|pan)_block"
_LAYER, _SWIGLU = r"^decoder/decoder/layers\.(\d)", r"^decoder/decoder/layers\.(\d)/swish_ffn"

# pattern of the original module, the module in transformers below `model.`, how its weights are written there
_RULES: tuple[tuple[str, str, Unfold], ...] = (
    (r"^backbone/stem/(stem\w+)/conv$", r"conv_encoder.model.embedder.\1", _backbone),
    (rf"{_STAGE}/downsample/conv$", rf"{_STAGES}.\1.downsample", _backbone),
    (rf"{_STAGE}/blocks/blocks\.(\d)/layers\.(\d)/conv$", rf"{_STAGES}.\1.blocks.\2.layers.\3", _backbone),
    (
        rf"{_STAGE}/blocks/blocks\.(\d)/layers\.(\d)/conv([12])/conv$",
        rf"{_STAGES}.\1.blocks.\2.layers.\3.conv\4",
        _backbone,
    ),
    (
        rf"{_STAGE}/blocks/blocks\.(\d)/aggregation/aggregation\.(\d)/conv$",
        rf"{_STAGES}.\1.blocks.\2.aggregation.\3",
        _backbone,
    ),
    (r"^backbone\.stem\.(stem\w+)\.lab$", r"conv_encoder.model.embedder.\1.lab", _as_it_is),
    (r"^backbone\.stages\.(\d.*)\.lab$", rf"{_STAGES}.\1.lab", _as_it_is),
    (r"^encoder/input_proj\.(\d)/conv$", r"encoder.input_proj.\1", _encoder),
    (r"^encoder/down_sample(\d)/down_sample\d\.1$", r"encoder.down_conv\1", _encoder),
    (r"^encoder/bi_fusion/cv/conv_bn_fused$", "encoder.bi_fusion_conv", _encoder),
    (rf"{_BLOCK}/cv1/conv_bn_fused$", r"encoder.\1_block.conv1", _encoder),
    (rf"{_BLOCK}/cv4/conv_bn_fused$", r"encoder.\1_block.conv2", _encoder),
    (rf"{_BLOCK}/cv2/cv2\.0/conv1/conv_bn_fused$", r"encoder.\1_block.csp_rep1.conv1", _encoder),
    (rf"{_BLOCK}/cv3/cv3\.0/conv1/conv_bn_fused$", r"encoder.\1_block.csp_rep2.conv1", _encoder),
    (rf"{_BLOCK}/cv2/cv2\.1/conv_bn_fused$", r"encoder.\1_block.csp_rep1.conv2", _encoder),
    (rf"{_BLOCK}/cv3/cv3\.1/conv_bn_fused$", r"encoder.\1_block.csp_rep2.conv2", _encoder),
    (
        rf"{_BLOCK}/cv2/cv2\.0/bottlenecks/bottlenecks\.(\d)/conv$",
        r"encoder.\1_block.csp_rep1.bottlenecks.\2",
        _rep_vgg,
    ),
    (
        rf"{_BLOCK}/cv3/cv3\.0/bottlenecks/bottlenecks\.(\d)/conv$",
        r"encoder.\1_block.csp_rep2.bottlenecks.\2",
        _rep_vgg,
    ),
    (r"^decoder/enc_score_head$", "enc_score_head", _as_it_is),
    (r"^decoder/enc_bbox_head/layers\.(\d)$", r"enc_bbox_head.layers.\1", _as_it_is),
    (r"^decoder/decoder/(query_pos_head|pre_bbox_head)/layers\.(\d)$", r"decoder.\1.layers.\2", _as_it_is),
    (rf"{_LAYER}/self_attn/([qkv])_proj$", r"decoder.layers.\1.self_attn.\2_proj", _as_it_is),
    (rf"{_LAYER}/self_attn/out_proj$", r"decoder.layers.\1.self_attn.o_proj", _as_it_is),
    (
        rf"{_LAYER}/cross_attn/(sampling_offsets|attention_weights)$",
        r"decoder.layers.\1.encoder_attn.\2",
        _as_it_is,
    ),
    (rf"{_SWIGLU}/w12$", r"decoder.layers.\1.mlp", _gated),
    (rf"{_SWIGLU}/w3$", r"decoder.layers.\1.mlp.down_proj", _as_it_is),
    (r"^decoder\.decoder\.layers\.(\d)\.norm1$", r"decoder.layers.\1.self_attn_layer_norm", _rms_norm),
    (r"^decoder\.decoder\.layers\.(\d)\.norm2$", r"decoder.layers.\1.encoder_attn_layer_norm", _rms_norm),
    (r"^decoder\.decoder\.layers\.(\d)\.norm3$", r"decoder.layers.\1.final_layer_norm", _rms_norm),
    (
        r"^decoder/decoder/lqe_layers\.(\d)/reg_conf/layers\.(\d)$",
        r"decoder.lqe_layers.\1.reg_conf.layers.\2",
        _as_it_is,
    ),
    (r"^decoder/decoder/dec_score_head\.(\d)$", r"decoder.class_embed.\1", _as_it_is),
    # the exporter numbers the uses of a module: layers.0, layers.0_1, layers.0_2 are one
    (r"^decoder/decoder/dec_bbox_head\.0/layers\.(\d)(?:_\d)?$", r"decoder.bbox_embed.0.layers.\1", _as_it_is),
)


def renamed(modules: dict[str, Weights]) -> Weights:
    """Transformers' parameters and buffers by name, float32 and float64, from the original's modules.

    Raises ValueError if a module is none of DEIMv2 with an HGNetv2 backbone and the lite encoder.
    """
    weights: Weights = {}
    for module, arrays in modules.items():
        for pattern, target, unfold in _RULES:
            if match := re.match(pattern, module):
                weights |= unfold(f"model.{match.expand(target)}", arrays)
                break
        else:
            raise ValueError(f"modules: expected those of DEIMv2 Atto or Femto, got {module}")
    return weights


# names in transformers of what the export holds once, and the name that it has there
_ALIASES = (
    (r"^(bbox|class)_embed\.", r"model.decoder.\1_embed."),
    # one box head for all layers
    (r"\.bbox_embed\.\d", ".bbox_embed.0"),
    # heads of the layers before the last serve training alone, and were not exported: they take the last one's
    (r"\.(class_embed|lqe_layers)\.\d", r".\1.2"),
)


def exported_name(name: str) -> str:
    """The name, among those of `renamed`, of the weights that parameter ``name`` of transformers takes."""
    for pattern, target in _ALIASES:
        name = re.sub(pattern, target, name)
    return name

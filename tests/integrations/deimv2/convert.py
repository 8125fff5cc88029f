"""Published weights of DEIMv2 Atto and Femto (ONNX) for transformers, as a model or as a folder.

    python -m tests.integrations.deimv2.convert ONNX OUT_FOLDER

The folder is one that ``AutoModelForObjectDetection`` and ``AutoImageProcessor`` read, and whose configuration has our
commands compute as the authors' code does. It also holds the anchors, in
``anchors.safetensors``, which `read_folder` hands to the repairs.
"""

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from msdeform.common.files import atomic_folder
from msdeform.integrations.detectors.deimv2 import FIELD
from tests.integrations.deimv2.coco_names import COCO_NAMES
from tests.integrations.deimv2.published import Published, Weights, read_published
from tests.integrations.deimv2.renaming import exported_name, renamed
from tests.integrations.deimv2.repairs import repaired

_ANCHORS = "anchors.safetensors"

# what transformers' own constructor sets, from the configuration or to zero
_SET_BY_TRANSFORMERS = ("num_points_scale", "reg_scale", "up", "num_batches_tracked")


def load(path: Path, *, without: Collection[str] = (), dtype: torch.dtype = torch.float32) -> nn.Module:
    """Transformers' ``Deimv2ForObjectDetection`` with the weights of the ONNX file, repaired, in evaluation.

    Args:
        path: a published Atto or Femto.
        without: names of `repairs.REPAIRS` to leave out.
        dtype: of parameters and buffers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no such export, or ``without`` names no repair.
    """
    published = read_published(path)
    model = _unrepaired(published, dtype)
    return repaired(model, torch.from_numpy(published.anchors.copy()), without=without)


def image_processor(size: int) -> Any:
    """Transformers' image processor for images of ``size`` x ``size`` pixels, as both models were trained.

    Squeezed to a square, bilinear with antialiasing, numbers from 0 to 1, not normalised by mean and deviation: the AP
    of normalised images is below 0.2, of these 0.275 and 0.341 (``test_average_precision_on_real_images``).
    """
    from transformers import RTDetrImageProcessor

    return RTDetrImageProcessor(size={"height": size, "width": size}, do_normalize=False)


def write_folder(path: Path, out: Path) -> None:
    """Writes the ONNX file's weights as a folder ``out`` that transformers reads.

    Raises:
        FileNotFoundError: no such ONNX file.
        FileExistsError: ``out`` is there already, and not an empty folder.
        ValueError: the file is no export of Atto or Femto.
    """
    published = read_published(path)
    model: Any = _unrepaired(published, torch.float32)
    with atomic_folder(out) as folder:
        # not model.save_pretrained: of the box head, which all layers share, it keeps one under a name that
        # from_pretrained (5.23) does not take it from, and the head is then random without a word
        setattr(model.config, FIELD, True)
        model.config.save_pretrained(folder)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        image_processor(published.image_size).save_pretrained(folder)
        save_file({"anchors": torch.from_numpy(published.anchors.copy())}, folder / _ANCHORS)


def read_folder(folder: Path) -> nn.Module:
    """The repaired model of a folder of `write_folder`, in evaluation. Reads nothing but the folder."""
    from transformers import AutoModelForObjectDetection

    model = AutoModelForObjectDetection.from_pretrained(folder, local_files_only=True)
    return repaired(model, load_file(folder / _ANCHORS)["anchors"])


def _unrepaired(published: Published, dtype: torch.dtype) -> nn.Module:
    from transformers import Deimv2ForObjectDetection

    weights = renamed(published.modules)
    model = Deimv2ForObjectDetection(_configuration(weights, published.queries)).eval().to(dtype)
    weights |= _not_exported(model)
    own = [name for name in model.state_dict() if not name.endswith(_SET_BY_TRANSFORMERS)]
    names = {name: exported_name(name) for name in own}
    missing, left = set(names.values()) - set(weights), set(weights) - set(names.values())
    if missing or left:
        raise ValueError(
            f"path: expected the weights of transformers' DEIMv2, got {len(missing)} too few ({sorted(missing)[:1]}) "
            f"and {len(left)} too many ({sorted(left)[:1]})"
        )
    state = {name: torch.from_numpy(np.array(weights[exported])) for name, exported in names.items()}
    model.load_state_dict(state, strict=False)  # the names are checked above
    return model


def _not_exported(model: nn.Module) -> Weights:
    """Parameters without weights in the export, with values that are the same each time."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    wide = shapes["model.enc_output.0.bias"][0]
    return {
        # transformers alone has these, and a repair takes them out
        "model.enc_output.0.weight": np.eye(wide),
        "model.enc_output.0.bias": np.zeros(wide),
        "model.enc_output.1.weight": np.ones(wide),
        "model.enc_output.1.bias": np.zeros(wide),
        # of training alone
        "model.denoising_class_embed.weight": np.zeros(shapes["model.denoising_class_embed.weight"]),
    }


def _configuration(weights: Weights, queries: int) -> Any:
    """The architecture of Atto or Femto, which differ in sizes that the shapes of their weights show."""
    from transformers import Deimv2Config, HGNetV2Config

    def outputs(name: str) -> int:
        return int(weights[f"model.{name}"].shape[0])

    stage = "conv_encoder.model.encoder.stages.2"
    last = outputs(f"{stage}.blocks.0.aggregation.1.convolution.weight")
    kernel = weights[f"model.{stage}.blocks.0.layers.0.conv2.convolution.weight"].shape[-1]
    hidden = outputs("encoder.input_proj.0.conv.weight")
    backbone = HGNetV2Config(
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 64, outputs(f"{stage}.downsample.convolution.weight")],
        stage_mid_channels=[16, 32, outputs(f"{stage}.blocks.0.layers.0.conv1.convolution.weight")],
        stage_out_channels=[64, 256, last],
        stage_num_blocks=[1, 1, 1],
        stage_downsample=[False, True, True],
        stage_downsample_strides=[2, 2, 2],
        stage_light_block=[False, False, True],
        stage_kernel_size=[3, 3, kernel],
        stage_numb_of_layers=[3, 3, 3],
        depths=[3, 3, 3],
        hidden_sizes=[64, 256, last],
        out_indices=[3],
        use_learnable_affine_block=True,
    )
    return Deimv2Config(
        architectures=["Deimv2ForObjectDetection"],
        backbone_config=backbone,
        freeze_backbone_batch_norms=True,
        id2label=dict(enumerate(COCO_NAMES)),
        label2id={name: number for number, name in enumerate(COCO_NAMES)},
        encoder_type="lite",
        encoder_layers=0,
        encoder_hidden_dim=hidden,
        encoder_in_channels=[last],
        encoder_has_trailing_conv=True,
        feat_strides=[16, 32],
        hidden_expansion=0.34,
        depth_mult=0.5,
        activation_function="silu",
        d_model=hidden,
        decoder_in_channels=[hidden, hidden],
        num_feature_levels=2,
        decoder_n_points=[4, 2],
        decoder_layers=3,
        # both halves of SwiGLU
        decoder_ffn_dim=2 * outputs("decoder.layers.0.mlp.gate_proj.weight"),
        decoder_activation_function="silu",
        num_queries=queries,
        share_bbox_head=True,
        use_gateway=False,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.integrations.deimv2.convert", description=__doc__)
    parser.add_argument("onnx", type=Path, help="published weights of DEIMv2 Atto or Femto")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    try:
        write_folder(arguments.onnx, arguments.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"wrote {arguments.out}; read it by tests.integrations.deimv2.convert.read_folder, which repairs the model")


if __name__ == "__main__":
    main()

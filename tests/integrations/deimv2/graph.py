"""Outputs of the ONNX file itself, in float32 by onnxruntime and in float64 by the reference evaluator of ONNX.

The file's own outputs are the 300 best detections, whose order hangs on scores that nearly equal each other. Here they
are what its post-processing takes: logits (B, Q, 80) and boxes (B, Q, 4), cxcywh, normalised.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

_TAKES_LOGITS, _TAKES_BOXES = "/postprocessor/Sigmoid", "/postprocessor/Split"


def onnxruntime_outputs(path: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and boxes, float32, of ``images`` (B, 3, size, size), float32 from 0 to 1."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # tests run side by side
    graph = _before_top_k(onnx.load(path))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return _outputs(session, images)


def exact_outputs(path: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and boxes, float64, of ``images`` (B, 3, size, size), float64 from 0 to 1; some seconds an image."""
    model = _before_top_k(onnx.load(path))
    for array in model.graph.initializer:
        if array.data_type == TensorProto.FLOAT:
            wide = numpy_helper.to_array(array).astype(np.float64)
            array.CopyFrom(numpy_helper.from_array(wide, array.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    return _outputs(ReferenceEvaluator(model, new_ops=[Conv, GridSample, GatherElements]), images)


def _before_top_k(model: onnx.ModelProto) -> onnx.ModelProto:
    nodes = {node.name: node for node in model.graph.node}
    del model.graph.output[:]
    for name in (_TAKES_LOGITS, _TAKES_BOXES):
        model.graph.output.append(onnx.ValueInfoProto(name=nodes[name].input[0]))
    return model


def _outputs(session: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    unused = np.ones((len(images), 2), dtype=np.int64)  # sizes that the file's own outputs are scaled to
    logits, boxes = session.run(None, {"images": images.numpy(), "orig_target_sizes": unused})
    return torch.from_numpy(logits), torch.from_numpy(boxes)


# Named as what they replace. The evaluator's own Conv and GridSample are loops in Python, which take minutes; its
# GatherElements takes at most 64 rows.
class Conv(OpRun):
    op_domain = ""

    def _run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, **attributes: Any) -> tuple[np.ndarray]:
        top, left, bottom, right = attributes["pads"]
        padded = torch.nn.functional.pad(torch.tensor(x), (left, right, top, bottom))
        stride, groups = attributes["strides"], attributes["group"]
        output = torch.nn.functional.conv2d(
            padded, torch.tensor(weight), torch.tensor(bias), stride=stride, groups=groups
        )
        return (output.numpy(),)


class GridSample(OpRun):
    op_domain = ""

    def _run(self, x: np.ndarray, grid: np.ndarray, **attributes: Any) -> tuple[np.ndarray]:
        output = torch.nn.functional.grid_sample(torch.tensor(x), torch.tensor(grid), align_corners=False)
        return (output.numpy(),)


class GatherElements(OpRun):
    op_domain = ""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int) -> tuple[np.ndarray]:
        return (np.take_along_axis(data, indices, axis),)

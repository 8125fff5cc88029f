"""What a published DEIMv2 export (ONNX) holds, by the path of the original module that uses it.

The exporter renamed most weights to ``onnx::Conv_2273`` and the like, but nodes kept the path of their module:
``/model/decoder/enc_score_head/MatMul`` is the multiplication of ``decoder.enc_score_head``. So a weight is found by
the node that takes it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

Weights = dict[str, np.ndarray]

_ANCHORS = "/model/decoder/Expand_output_0"
_TOP_K = "/model/decoder/TopK"
_KEPT_ITS_NAME = re.compile(r"model\.(.+\.(?:lab|norm\d))\.(scale|bias)")


@dataclass(frozen=True)
class Published:
    """The weights of an export, and what of the architecture its weights don't show."""

    modules: dict[str, Weights]
    """By the original module's path, the arrays "weight", "bias" or "scale", float32. A path has slashes where a node
    gave it, dots where a weight kept its name. Linear weights are (outputs, inputs)."""
    anchors: np.ndarray
    """(1, S, 4) float32: the boxes at every pixel of every level, before the sigmoid."""
    image_size: int
    """Height and width of the images in pixels."""
    queries: int


def read_published(path: Path) -> Published:
    """The weights of the ONNX file at ``path``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no export of a DEIMv2 with its post-processing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"path: expected an ONNX file of DEIMv2, {path} does not exist")
    graph = onnx.load(path).graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    arrays |= {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in graph.node if node.op_type == "Constant"
    }
    top_k = [node for node in graph.node if node.name == _TOP_K]
    if _ANCHORS not in arrays or not top_k:
        raise ValueError(f"path: expected an ONNX file of DEIMv2, got {path}, without {_ANCHORS} or {_TOP_K}")
    return Published(
        modules=_by_module(graph, arrays),
        anchors=arrays[_ANCHORS],
        image_size=graph.input[0].type.tensor_type.shape.dim[2].dim_value,
        queries=int(arrays[top_k[0].input[1]].item()),
    )


def _by_module(graph: onnx.GraphProto, arrays: Weights) -> dict[str, Weights]:
    biases = {}  # a Linear's bias is what the Add after its MatMul adds
    for node in graph.node:
        if node.op_type == "Add":
            for term, other in (tuple(node.input), tuple(reversed(node.input))):
                if other in arrays and arrays[other].ndim == 1:
                    biases[term] = arrays[other]
    found: dict[str, Weights] = {}
    for node in graph.node:
        module, _, operation = node.name.removeprefix("/model/").rpartition("/")
        if node.op_type == "Conv":
            found[module] = {"weight": arrays[node.input[1]], "bias": arrays[node.input[2]]}
        elif node.op_type == "Gemm":  # self-attention's output projection alone is one
            found[f"{module}/out_proj"] = {"weight": arrays[node.input[1]], "bias": arrays[node.input[2]]}
        elif node.op_type == "MatMul" and node.output[0] in biases and node.input[1] in arrays:
            if module.endswith("/self_attn"):
                # PyTorch's attention holds one matrix for all three; the exporter wrote three products in this order
                module += {"MatMul": "/q_proj", "MatMul_1": "/k_proj", "MatMul_2": "/v_proj"}[operation]
            # the box head, one for all layers, is met once a layer
            found.setdefault(module, {"weight": arrays[node.input[1]].T, "bias": biases[node.output[0]]})
    for name, array in arrays.items():
        if match := _KEPT_ITS_NAME.fullmatch(name):
            found.setdefault(match[1], {})[match[2]] = array
    return found

"""The operator as an ONNX graph of GridSample nodes, as exported detectors hold it, and the engines that run it.

A graph is made for the shapes of one call. onnxruntime and OpenVINO compile it once for each of them, function and
number of threads, and then read the inputs where they are and write the output where PyTorch made room for it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ...kernels.contract import Sizes
from .inputs import FUSED, PLAIN

OPSET = 20  # the first in which GridSample's mode is called linear

Engine = Callable[[Sequence[Tensor], Tensor], None]
"""(inputs, output): fills the output"""


def graph(sizes: Sizes, shapes: Sequence[Sequence[int]], fused: bool) -> bytes:
    """The serialised model of one function in float32, for inputs of these shapes; its output is (B, Q, H*D)."""
    import onnx
    from onnx import TensorProto, helper

    nodes: list[Any] = []
    constants: list[Any] = []

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(numbers: Sequence[float], kind: int = TensorProto.INT64, shape: Sequence[int] | None = None) -> str:
        name = f"constant_{len(constants)}"
        constants.append(helper.make_tensor(name, kind, shape or (len(numbers),), numbers))
        return name

    def reshape(name: str, *shape: int) -> str:
        return node("Reshape", name, constant(shape))

    def part(name: str, axis: int, start: int, length: int) -> str:
        return node("Slice", name, constant([start]), constant([start + length]), constant([axis]))

    B, S, H, D = shapes[0]
    Q, L, P = shapes[-1][1], shapes[-1][3], shapes[-1][4]
    if fused:
        extent = constant([side for h, w in sizes for side in (w, h)], TensorProto.FLOAT, (1, 1, 1, L, 1, 2))
        references = reshape("reference_points", B, Q, 1, L, 1, 2)
        locations = node("Add", references, node("Div", "sampling_offsets", extent))
        weights = node("Softmax", reshape("attention_logits", B, Q, H, L * P), axis=-1)
    else:
        locations, weights = "sampling_locations", "attention_weights"
    two, one = constant([2.0], TensorProto.FLOAT), constant([1.0], TensorProto.FLOAT)
    grid = node("Transpose", node("Sub", node("Mul", locations, two), one), perm=(0, 2, 1, 3, 4, 5))  # (B, H, Q, ...)
    grid = reshape(grid, B * H, Q, L, P * 2)
    weights = node("Transpose", reshape(weights, B, Q, H, L * P), perm=(0, 2, 1, 3))
    weights = reshape(weights, B * H, 1, Q, L * P)
    maps = reshape(node("Transpose", "value", perm=(0, 2, 3, 1)), B * H, D, S)
    start, sampled = 0, []
    for level, (h, w) in enumerate(sizes):
        pixels = reshape(part(maps, 2, start, h * w), B * H, D, h, w)
        points = reshape(part(grid, 2, level, 1), B * H, Q, P, 2)
        how = {"mode": "linear", "padding_mode": "zeros", "align_corners": 0}
        sampled.append(node("GridSample", pixels, points, **how))  # (B*H, D, Q, P)
        start += h * w
    every = node("Concat", *sampled, axis=3)  # (B*H, D, Q, L*P)
    summed = node("ReduceSum", node("Mul", every, weights), constant([3]), keepdims=0)
    nodes.append(helper.make_node("Transpose", [reshape(summed, B, H * D, Q)], ["output"], perm=(0, 2, 1)))
    named = [*zip(FUSED if fused else PLAIN, shapes, strict=True), ("output", (B, Q, H * D))]
    *inputs, output = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in named)
    operator = helper.make_graph(nodes, "multi-scale deformable attention", inputs, [output], constants)
    model = helper.make_model(operator, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def onnxruntime_engine(model: bytes, threads: int) -> Engine:
    """A session of onnxruntime on the CPU. Its threads stop spinning at the end of a call: they would take the cores
    from whoever is measured next."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[Tensor], output: Tensor) -> None:
        binding = session.io_binding()
        for known, tensor in zip(session.get_inputs(), inputs, strict=True):
            binding.bind_input(known.name, "cpu", 0, np.float32, tuple(tensor.shape), tensor.data_ptr())
        binding.bind_output("output", "cpu", 0, np.float32, tuple(output.shape), output.data_ptr())
        session.run_with_iobinding(binding)

    return run


def openvino_engine(model: bytes, threads: int) -> Engine:
    """A request of OpenVINO's CPU plug-in, in float32: where the processor has bfloat16, it would compute in that."""
    import openvino

    core = openvino.Core()
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(model, b""), "CPU", hints).create_infer_request()

    def run(inputs: Sequence[Tensor], output: Tensor) -> None:
        for i, tensor in enumerate(inputs):
            request.set_input_tensor(i, openvino.Tensor(tensor.numpy(), shared_memory=True))
        request.set_output_tensor(0, openvino.Tensor(output.numpy(), shared_memory=True))
        request.infer()

    return run

"""The operator as an ONNX graph of GridSample nodes, as exported detectors hold it, and the engines that run it.

A graph is made for the shapes of one call. onnxruntime and OpenVINO compile it once for each of them, function and
number of threads, and then read the inputs where they are and write the output where PyTorch made room for it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...kernels.contract import Sizes
from ...models.export.form import OPSET
from ...models.export.openvino_core import openvino_core

Engine = Callable[[Sequence[Tensor], Tensor], None]
"""(inputs, output): fills the output"""


def graph(function: Callable[..., Tensor], sizes: Sizes, inputs: Sequence[Tensor]) -> bytes:
    """``function(value, sizes, *rest)`` exported for inputs (value, *rest) of these shapes, as a serialised model."""

    class Operator(torch.nn.Module):
        def forward(self, value: Tensor, *rest: Tensor) -> Tensor:
            return function(value, sizes, *rest)

    exported = torch.onnx.export(
        Operator().eval(), tuple(inputs), dynamo=True, opset_version=OPSET, output_names=["output"], verbose=False
    )
    assert exported is not None
    return exported.model_proto.SerializeToString()


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

    core = openvino_core()
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(model, b""), "CPU", hints).create_infer_request()

    def run(inputs: Sequence[Tensor], output: Tensor) -> None:
        for i, tensor in enumerate(inputs):
            request.set_input_tensor(i, openvino.Tensor(tensor.numpy(), shared_memory=True))
        request.set_output_tensor(0, openvino.Tensor(output.numpy(), shared_memory=True))
        request.infer()

    return run

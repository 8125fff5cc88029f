"""The kinds of files that a detector is exported to: how each is written, and run again.

A file is one or two on disk (weights beside the graph). It holds `recipe.about`, and is run with the library that its
users have: onnxruntime, OpenVINO or PyTorch, none of which needs ours.
"""

import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels.registry import load_operators, unavailable
from .form import FILE, OPSET
from .openvino_core import openvino_core
from .program import Call, Program

# what a protobuf holds, less some for the graph
_MOST_IN_ONE = 1_900_000_000


class Opened(NamedTuple):
    """A file, ready to run on the CPU."""

    call: Call
    about: dict[str, Any]


class Format(NamedTuple):
    """One kind of file."""

    suffix: str
    what: str
    write: Callable[[Program, torch.export.ExportedProgram, dict[str, Any], Path, bool], None]
    """(program, exported, about, path, weights beside the graph)"""
    open: Callable[[Path, int | None], Opened]
    """(path, threads, or None for the library's own number)"""
    packages: tuple[str, ...] = ()
    """that writing and running it need beside PyTorch"""


def _onnx_model(program: Program, exported: torch.export.ExportedProgram, about: dict[str, Any]) -> Any:
    """The protobuf, whose dynamic dimensions have names that say what they are."""
    with _quiet("onnxscript", "onnx_ir", "torch.onnx"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's about itself
        made = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=list(program.inputs),
            output_names=list(program.outputs),
        )
    assert made is not None
    proto = made.model_proto
    _name_dimensions(proto.graph)
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        del node.metadata_props[:]  # stack traces of the exporter, with the paths of whoever ran it
    for known in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        del known.metadata_props[:]
    for name, value in about.items():
        proto.metadata_props.add(key=name, value=json.dumps(value))
    return proto


def _name_dimensions(graph: Any) -> None:
    """PyTorch's symbols are s31 and the like."""
    names: dict[str, str] = {}
    for known in graph.input:
        dims = known.type.tensor_type.shape.dim
        for dim, name in zip(
            dims, ("batch", *({4: ("channels",)}.get(len(dims), ())), "height", "width"), strict=False
        ):
            if dim.dim_param:
                names.setdefault(dim.dim_param, name)
    if not names:
        return
    symbol = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    for known in (*graph.input, *graph.output, *graph.value_info):
        for dim in known.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbol.sub(lambda match: names[match[1]], dim.dim_param)


def _write_onnx(
    program: Program, exported: torch.export.ExportedProgram, about: dict[str, Any], path: Path, beside: bool
) -> None:
    import onnx

    model = _onnx_model(program, exported, about)
    weights = sum(tensor.element_size() * tensor.numel() for tensor in exported.state_dict.values())
    if beside or weights > _MOST_IN_ONE:
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    else:
        onnx.save_model(model, path)


def _open_onnx(path: Path, threads: int | None) -> Opened:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    if threads is not None:
        settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    names = [known.name for known in session.get_inputs()]
    # as they are listed: an input that a graph does not need is none of its
    places = {name: place for place, name in enumerate(_inputs(session.get_modelmeta().custom_metadata_map))}

    def call(*inputs: Tensor) -> list[Tensor]:
        answers = session.run(None, {name: inputs[places[name]].numpy() for name in names})
        return [torch.from_numpy(answer) for answer in answers]

    about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    return Opened(call, about)


def _inputs(metadata: dict[str, str]) -> list[str]:
    return list(json.loads(metadata["inputs"]))


def _write_openvino(
    program: Program, exported: torch.export.ExportedProgram, about: dict[str, Any], path: Path, beside: bool
) -> None:
    import openvino

    graph = path.with_suffix(".onnx")
    _write_onnx(program, exported, about, graph, beside)
    model = openvino.convert_model(graph)
    model.set_rt_info(json.dumps(about), ["msdeform", FILE])
    openvino.save_model(model, path, compress_to_fp16=False)
    for leftover in (graph, graph.with_name(f"{graph.name}.data")):
        leftover.unlink(missing_ok=True)


def open_openvino(path: Path, threads: int | None) -> Opened:
    """Of an ``.xml`` or ``.onnx``. In float32: where a processor has bfloat16, OpenVINO would compute in that."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    core = openvino_core()
    if path.suffix == ".onnx":
        import onnx

        graph = onnx.load_model(path, load_external_data=False)
        _check_external(graph, path)
        about = {prop.key: json.loads(prop.value) for prop in graph.metadata_props}
    model = core.read_model(path)
    compiled = core.compile_model(model, "CPU", settings)
    if path.suffix != ".onnx":
        about = json.loads(model.get_rt_info(["msdeform", FILE]).astype(str))
    # an input that is converted first also has the converted one's name
    places = [next(place for place, name in enumerate(about["inputs"]) if name in one.names) for one in compiled.inputs]

    def call(*inputs: Tensor) -> list[Tensor]:
        answers = compiled([inputs[place].numpy() for place in places])
        return [torch.from_numpy(answers[place].copy()) for place in range(len(compiled.outputs))]

    return Opened(call, about)


def _check_external(graph: Any, path: Path) -> None:
    """Raises ValueError for weights that lie elsewhere than beside the file."""
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    for tensor in filter(uses_external_data, _get_all_tensors(graph)):
        name = next((one.value for one in tensor.external_data if one.key == "location"), "")
        if Path(name).name != name or not (path.parent / name).is_file():
            raise ValueError(f"its weights are in {name!r:.100}, expected a file beside it")


def _load_operators() -> None:
    """That a ``.pt2`` may call: what it says of itself can be read only when they are there."""
    if unavailable("cpu") is None:
        load_operators("cpu")


def _write_program(
    program: Program, exported: torch.export.ExportedProgram, about: dict[str, Any], path: Path, beside: bool
) -> None:
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # with the paths of whoever exported it
    for symbol, bounds in exported.range_constraints.items():
        # a tracer notes that each map of its example had more than one row and column, and nothing needs it
        exported.range_constraints[symbol] = type(bounds)(1, bounds.upper)
    torch.export.save(exported, path, extra_files={FILE: json.dumps(about)})


def _open_program(path: Path, threads: int | None) -> Opened:
    extra = {FILE: ""}
    _load_operators()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # PyTorch's about itself
        program = torch.export.load(path, extra_files=extra)
    # guards are what a tracer noted of its example, such as that half a side is odd: nothing in the program needs it
    module = program.module(check_guards=False)
    return Opened(lambda *inputs: list(module(*inputs)), json.loads(extra[FILE]))


def _write_aoti(
    program: Program, exported: torch.export.ExportedProgram, about: dict[str, Any], path: Path, beside: bool
) -> None:
    settings = {
        "aot_inductor.metadata": {FILE: json.dumps(about)},
        "cpp.dynamic_threads": True,  # as many as whoever runs it has, not as many as here
    }
    from torch._inductor.utils import fresh_cache

    # the usual cache is a folder of a known name for temporary files: whoever makes it first decides what is compiled
    with fresh_cache(), _quiet("torch._inductor", "torch.utils.cpp_extension"):
        torch._inductor.aoti_compile_and_package(exported, package_path=str(path), inductor_configs=settings)


def _open_aoti(path: Path, threads: int | None) -> Opened:
    _load_operators()
    with _quiet("torch.utils.cpp_extension"):
        package = torch._inductor.aoti_load_package(str(path))
    return Opened(lambda *inputs: _listed(package(*inputs)), json.loads(package.get_metadata()[FILE]))


def _listed(outputs: Sequence[Tensor]) -> list[Tensor]:
    return list(outputs)


def open_pt2(path: Path, threads: int | None) -> Opened:
    """A program or a package, by what is in it. Threads are PyTorch's."""
    with zipfile.ZipFile(path) as archive:
        compiled = any("/aotinductor/" in name for name in archive.namelist())
    return (_open_aoti if compiled else _open_program)(path, threads)


def _write_litert(
    program: Program, exported: torch.export.ExportedProgram, about: dict[str, Any], path: Path, beside: bool
) -> None:
    import litert_torch

    assert exported.example_inputs is not None
    with _quiet("root", "litert_torch"):
        litert_torch.convert(program, exported.example_inputs[0]).export(str(path))
    _about_of_litert(path).write_text(json.dumps(about), encoding="utf-8")


def _open_litert(path: Path, threads: int | None) -> Opened:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=threads).get_signature_runner()

    def call(*inputs: Tensor) -> list[Tensor]:
        answers = runner(**{f"args_{place}": tensor.numpy() for place, tensor in enumerate(inputs)})
        return [torch.from_numpy(answers[f"output_{place}"]) for place in range(len(answers))]

    return Opened(call, json.loads(_about_of_litert(path).read_text(encoding="utf-8")))


def _about_of_litert(path: Path) -> Path:
    """LiteRT's own metadata are of a schema that has no place for ours."""
    return path.with_name(f"{path.name}.json")


FORMATS = {
    "onnx": Format(".onnx", "ONNX", _write_onnx, _open_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "openvino": Format(".xml", "OpenVINO", _write_openvino, open_openvino, ("onnx", "onnxscript", "openvino")),
    "program": Format(".pt2", "a torch.export program", _write_program, _open_program),
    "aoti": Format(".pt2", "an AOTInductor package", _write_aoti, _open_aoti),
    "litert": Format(".tflite", "LiteRT", _write_litert, _open_litert, ("litert_torch", "ai_edge_litert")),
}


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """The exporter warns of each operator that it did not fold."""
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)

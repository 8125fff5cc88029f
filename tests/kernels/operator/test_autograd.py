"""The backends as PyTorch operators: opcheck, compile, export, autocast, graphs, determinism, second derivatives."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import msdeform
from msdeform.kernels import call_cache, registry
from msdeform.kernels.api import fused_ms_deform_attn, ms_deform_attn
from msdeform.kernels.contract import Sizes
from msdeform.kernels.diagnostics.checks import Case, make_inputs
from tests.kernels.backends import ALL, CPU, CUDA, OPERATORS, TRITON

PLAIN = Case(B=1, Q=3, H=2, D=4, P=2, sizes=((3, 4), (2, 2)), coordinates=None)
FUSED = Case(B=1, Q=3, H=2, D=4, P=2, sizes=((3, 4), (2, 2)), coordinates=4)
FLAT = [size for pair in PLAIN.sizes for size in pair]


def function(case: Case, backend: str | None = None) -> Callable[..., Tensor]:
    call: Any = ms_deform_attn if case.coordinates is None else fused_ms_deform_attn
    return lambda value, *rest: call(value, case.sizes, *rest, backend=backend)


@pytest.mark.parametrize("where", OPERATORS)
@pytest.mark.parametrize("case", [PLAIN, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("on_device", [False, True], ids=["ints", "tensor"])
def test_opcheck(where: tuple[str, str], case: Case, direction: str, on_device: bool) -> None:
    backend, device = where
    if backend == "cuda" and case is FUSED:
        pytest.skip("the CUDA backend composes its fused function from PyTorch's operators")
    tensors = [t.requires_grad_(direction == "forward") for t in make_inputs(case, device)]
    levels: list[Any] = [torch.tensor(case.sizes, device=device), []] if on_device else [None, FLAT]
    arguments = [*tensors, *levels]
    if direction == "backward":
        grad_output = torch.randn(case.B, case.Q, case.H * case.D, device=device)
        arguments = [grad_output, *arguments, [True] * len(tensors)]
    registry.implementation(backend, case is FUSED)  # defines the operators
    name = f"{backend}_{'fused_' if case is FUSED else ''}{direction}"
    torch.library.opcheck(getattr(torch.ops.msdeform, name).default, arguments)


def nondeterminism(backend: str) -> float:
    """How far apart two backwards may be: atomic additions in another order differ in the last bit."""
    return 0.0 if backend == "cpu" else 1e-12


@pytest.mark.parametrize("where", [*CPU, *TRITON])
@pytest.mark.parametrize("coordinates", [None, 2, 4])
def test_gradcheck_on_the_kernels(where: tuple[str, str], coordinates: int | None) -> None:
    backend, device = where
    case = Case(B=1, Q=2, H=1, D=2, P=2, sizes=((2, 3), (1, 2)), dtype=torch.float64, coordinates=coordinates)
    tensors = [t.requires_grad_() for t in make_inputs(case, device)]
    tolerance = nondeterminism(backend)
    assert torch.autograd.gradcheck(function(case, backend), tensors, nondet_tol=tolerance, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("where", OPERATORS)
@pytest.mark.parametrize("coordinates", [None, 2, 4])
def test_full_gradcheck_on_the_kernels(where: tuple[str, str], coordinates: int | None) -> None:
    backend, device = where
    case = Case(B=1, Q=1, H=1, D=2, P=2, sizes=((2, 3), (1, 2)), dtype=torch.float64, coordinates=coordinates)
    tensors = [t.requires_grad_() for t in make_inputs(case, device)]
    assert torch.autograd.gradcheck(function(case, backend), tensors, nondet_tol=nondeterminism(backend))


@pytest.mark.parametrize("where", ALL)
@pytest.mark.parametrize("case", [PLAIN, FUSED], ids=["plain", "fused"])
def test_compiles_into_one_graph(where: tuple[str, str], case: Case) -> None:
    backend, device = where
    tensors = [t.requires_grad_() for t in make_inputs(case, device)]
    eager = function(case, backend)
    torch._dynamo.reset()
    compiled = torch.compile(eager, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    want, got = eager(*tensors), compiled(*tensors)
    torch.testing.assert_close(got, want)
    g = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, tensors, g), torch.autograd.grad(want, tensors, g), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("where", OPERATORS)
def test_compiles_with_sizes_as_a_tensor(where: tuple[str, str]) -> None:
    backend, device = where
    value, *rest = make_inputs(PLAIN, device)
    shapes = torch.tensor(PLAIN.sizes, device=device)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda value, shapes, *rest: ms_deform_attn(value, shapes, *rest, backend=backend),
        fullgraph=True,
        backend="aot_eager",
    )
    torch.testing.assert_close(compiled(value, shapes, *rest), function(PLAIN, backend)(value, *rest))


def test_the_setting_is_seen_by_compiled_code() -> None:
    tensors = make_inputs(PLAIN)
    torch._dynamo.reset()
    compiled = torch.compile(function(PLAIN), fullgraph=True, backend="aot_eager")
    compiled(*tensors)
    if torch.cuda.is_available():
        pytest.skip("a CPU tensor is refused by another route where there is a GPU")
    with msdeform.use_backend("cuda"), pytest.raises(Exception, match="backend 'cuda' cannot run"):
        compiled(*tensors)


@pytest.mark.parametrize("where", ALL)
@pytest.mark.parametrize("case", [PLAIN, FUSED], ids=["plain", "fused"])
def test_exports(where: tuple[str, str], case: Case) -> None:
    backend, device = where

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return function(case, backend)(*tensors)

    tensors = make_inputs(case, device)
    program = torch.export.export(Module(), tensors)
    torch.testing.assert_close(program.module()(*tensors), Module()(*tensors))
    if backend == "triton":
        targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert any("msdeform.triton" in target for target in targets), targets


@pytest.mark.parametrize("where", OPERATORS)
def test_a_backward_runs_on_its_forwards_backend(where: tuple[str, str]) -> None:
    backend, device = where
    tensors = [t.requires_grad_() for t in make_inputs(PLAIN, device)]
    with msdeform.use_backend(backend):
        output = function(PLAIN)(*tensors)
    with msdeform.use_backend("reference"):
        assert f"{backend}_forward" in type(output.grad_fn).__name__ or "Attention" in type(output.grad_fn).__name__
        want = torch.autograd.grad(function(PLAIN)(*tensors), tensors, torch.ones_like(output))
        got = torch.autograd.grad(output, tensors, torch.ones_like(output))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", OPERATORS)
def test_only_inputs_are_saved_for_backward(where: tuple[str, str]) -> None:
    backend, device = where
    if backend == "cuda":
        pytest.skip("the CUDA backend composes its fused function from PyTorch's operators")
    tensors = [t.requires_grad_() for t in make_inputs(FUSED, device)]
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(FUSED, backend)(*tensors)
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in tensors}


@pytest.mark.parametrize("where", OPERATORS)
def test_a_second_derivative_is_refused_in_a_sentence(where: tuple[str, str]) -> None:
    backend, device = where
    tensors = [t.requires_grad_() for t in make_inputs(PLAIN, device)]
    output = function(PLAIN, backend)(*tensors)
    first = torch.autograd.grad(output.square().sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        first[0].sum().backward()


@pytest.mark.parametrize("where", OPERATORS)
def test_a_forward_derivative_is_refused_rather_than_zero(where: tuple[str, str]) -> None:
    backend, device = where
    value, *rest = make_inputs(PLAIN, device)
    with forward_ad.dual_level():
        function(PLAIN, backend)(value, *rest)  # asks for none
        with pytest.raises(RuntimeError, match="has no forward derivative"):
            function(PLAIN, backend)(forward_ad.make_dual(value, value), *rest)


def test_the_cpu_backend_reads_no_memory_of_a_gpu() -> None:
    """As a program would have it do that was exported on a CPU and moved."""
    registry.implementation("cpu", True)
    for name in ("cpu_forward", "cpu_backward", "cpu_fused_forward", "cpu_fused_backward"):
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        assert has(f"msdeform::{name}", "CPU")
        assert not has(f"msdeform::{name}", "CUDA")


Call = Callable[[Tensor], Tensor]
TRANSFORMS: dict[str, Callable[[Call, Tensor], Tensor]] = {
    "func.grad": lambda call, weights: torch.func.grad(lambda x: call(x).square().sum())(weights),
    "vmap": lambda call, weights: torch.vmap(call)(torch.stack([weights, -weights])),
    "jvp": lambda call, weights: torch.func.jvp(call, (weights,), (weights,))[1],
    "jacrev": lambda call, weights: torch.func.jacrev(call)(weights),
    "jacfwd": lambda call, weights: torch.func.jacfwd(call)(weights),
}


@pytest.mark.filterwarnings("error:There is a performance drop")  # vmap, where it goes through the batch one by one
@pytest.mark.parametrize(
    ("case", "compiled"), [(PLAIN, False), (FUSED, False), (PLAIN, True)], ids=["plain", "fused", "compiled"]
)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_auto_is_differentiated_and_batched_as_the_reference_is(name: str, case: Case, compiled: bool) -> None:
    *rest, weights = make_inputs(case)  # or logits: along the others grid_sample has no forward derivative
    transform = TRANSFORMS[name]

    def within(backend: str | None, weights: Tensor) -> Tensor:
        return transform(lambda weights: function(case, backend)(*rest, weights), weights)

    torch._dynamo.reset()
    run = torch.compile(within, backend="aot_eager", fullgraph=True) if compiled else within
    torch.testing.assert_close(run(None, weights), within("reference", weights))


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.filterwarnings("ignore")
def test_auto_is_exported_to_onnx_in_standard_operators(dynamo: bool) -> None:
    onnx = pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return function(FUSED)(*tensors)

    file = io.BytesIO()
    if dynamo:
        program = torch.onnx.export(Module(), make_inputs(FUSED), dynamo=True, verbose=False)
        program.save(file)
    else:
        torch.onnx.export(Module(), make_inputs(FUSED), file, dynamo=False, opset_version=18)
    graph = onnx.load_from_string(file.getvalue()).graph
    assert "GridSample" in {node.op_type for node in graph.node}
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}


@pytest.mark.parametrize("where", CUDA)
def test_determinism_is_refused_as_pytorch_does(where: tuple[str, str]) -> None:
    backend, device = where
    tensors = [t.requires_grad_() for t in make_inputs(PLAIN, device)]
    output = function(PLAIN, backend)(*tensors)
    previous = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        with pytest.raises(RuntimeError, match="deterministic implementation|use_deterministic_algorithms"):
            output.sum().backward(retain_graph=True)
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.warns(UserWarning, match="deterministic"):
            output.sum().backward(retain_graph=True)
        torch.use_deterministic_algorithms(True)
        function(PLAIN, backend)(tensors[0].detach(), *tensors[1:]).sum().backward()
        assert tensors[1].grad is not None, "without a gradient of value nothing is added atomically"
    finally:
        torch.use_deterministic_algorithms(previous[0], warn_only=previous[1])


@pytest.mark.parametrize("where", ALL)
def test_autocast_mixes_dtypes(where: tuple[str, str]) -> None:
    """Under autocast a module's projections give bfloat16 while its references stay float32."""
    backend, device = where
    module = msdeform.MSDeformAttn(d_model=16, n_levels=2, n_heads=2, n_points=2, backend=backend).to(device)
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.1)
    sizes = ((3, 4), (2, 2))
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 5, 16, generator=generator).to(device)
    memory = torch.randn(1, 16, 16, generator=generator).to(device)
    references = torch.rand(1, 5, 2, 2, generator=generator).to(device)
    full = module(query, references, memory, sizes)
    with torch.autocast(device, dtype=torch.bfloat16):
        low = module(query, references, memory, sizes)
    assert low.dtype is torch.bfloat16
    torch.testing.assert_close(low.float(), full, rtol=0.1, atol=0.1)
    low.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


WAYS = [("triton", "atomics"), ("triton", "sorted"), ("triton", "tiles"), ("cuda", None)]


def take(method: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Triton backward by this method."""
    if method is not None:
        from msdeform.kernels.triton import launch

        monkeypatch.setattr(launch, "backward_method", method)


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "method"), WAYS)
@pytest.mark.parametrize("case", [PLAIN, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_cuda_graph_capture(
    backend: str, method: str | None, case: Case, as_tensor: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward in one captured graph, replayed on new numbers; sizes as ints or as a device tensor."""
    take(method, monkeypatch)
    tensors = [t.requires_grad_() for t in make_inputs(case, "cuda")]
    shapes = torch.tensor(case.sizes, device="cuda") if as_tensor else case.sizes
    call: Any = ms_deform_attn if case.coordinates is None else fused_ms_deform_attn
    grad_output = torch.randn(case.B, case.Q, case.H * case.D, device="cuda")

    def step() -> tuple[Tensor, ...]:
        output = call(tensors[0], shapes, *tensors[1:], backend=backend)
        return output, *torch.autograd.grad(output, tensors, grad_output)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        tensors[0].normal_()
    graph.replay()
    for got, want in zip(captured, step(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def of_width(width: int) -> tuple[Sizes, list[Tensor]]:
    """Level sizes that no other test has, and tensors on the device that take gradients."""
    sizes = ((3, width), (2, 2))
    case = Case(B=1, Q=3, H=2, D=16, P=2, sizes=sizes, coordinates=4)
    return sizes, [tensor.requires_grad_() for tensor in make_inputs(case, "cuda")]


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["atomics", "sorted", "tiles"])
def test_the_first_call_of_a_size_may_be_captured(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes go to the kernels by value: nothing is copied to the device, and a replay needs nothing that was kept."""
    take(method, monkeypatch)

    def step(sizes: Sizes, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        output = fused_ms_deform_attn(tensors[0], sizes, *tensors[1:], backend="triton")
        return output, *torch.autograd.grad(output, tensors, torch.ones_like(output))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(*of_width(4))  # compiles, which a capture forbids
    torch.cuda.current_stream().wait_stream(stream)
    call_cache.forget()
    sizes, tensors = of_width(7)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(sizes, tensors)
    call_cache.forget()
    with torch.no_grad():
        tensors[0].normal_()
    torch.empty(2**20, device="cuda").fill_(float("nan"))  # where memory that was let go of would be
    graph.replay()
    for got, want in zip(captured, step(sizes, tensors), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_compiled_with_cuda_graphs_for_new_sizes() -> None:
    torch._dynamo.reset()

    def call(sizes: Sizes, *tensors: Tensor) -> Tensor:
        return fused_ms_deform_attn(tensors[0], sizes, *tensors[1:], backend="triton")

    compiled = torch.compile(call, mode="reduce-overhead")
    for width in (5, 6, 9):
        sizes, tensors = of_width(width)
        for _ in range(4):  # warmed up, captured, replayed
            torch.compiler.cudagraph_mark_step_begin()
            got = compiled(sizes, *tensors)
            gradients = torch.autograd.grad(got.clone(), tensors, torch.ones_like(got))
            output = call(sizes, *tensors)
            torch.testing.assert_close(got, output, rtol=1e-4, atol=1e-5)
            wanted = torch.autograd.grad(output, tensors, torch.ones_like(output))
            for gradient, want in zip(gradients, wanted, strict=True):
                torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "method"), WAYS)
def test_no_synchronisation_with_device_sizes(
    backend: str, method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(method, monkeypatch)
    tensors = [t.requires_grad_() for t in make_inputs(FUSED, "cuda")]
    shapes = torch.tensor(FUSED.sizes, device="cuda")
    grad_output = torch.ones(FUSED.B, FUSED.Q, FUSED.H * FUSED.D, device="cuda")

    def step() -> None:
        output = fused_ms_deform_attn(tensors[0], shapes, *tensors[1:], backend=backend)
        torch.autograd.grad(output, tensors, grad_output)

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")

"""Implementations in one form; those that are not here through stand-ins with their signatures."""

import importlib.machinery
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from msdeform import fused_ms_deform_attn, ms_deform_attn
from msdeform.bench import options
from msdeform.bench.operator import implementations as module
from msdeform.bench.operator import workloads
from msdeform.bench.operator.cases import Case
from msdeform.bench.operator.implementations import find
from msdeform.bench.operator.inputs import make_inputs
from msdeform.kernels.triton import interpreter

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CASE = Case("small", ((6, 5), (3, 2)), B=2, Q=7, H=2, D=4)


def test_others_say_why_not() -> None:
    assert find("reference", CPU).reason is None
    assert "CUDA" in (find("cuda", CPU).reason or "")
    assert find("triton", CPU).reason
    assert options.IMPLEMENTATIONS[0] == "reference"
    assert sorted(module._MAKERS) == sorted(options.IMPLEMENTATIONS)
    assert set(options.COMPILED_IMPLEMENTATIONS) == {"reference-compiled", "core-compiled"}


def test_an_unknown_implementation_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no backend is called 'tritn'; did you mean triton"):
        find("tritn", CPU)


def test_the_interpreter_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "interpreting", lambda: True)
    assert "interpreter is never timed" in (find("triton", CPU).reason or "")


def test_determinism_is_asked_for_during_the_backward_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call is one node of the graph in the Triton backend, and in this one."""
    seen = []

    def now() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            seen.append(now())
            return 2 * value

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            seen.append(now())
            return 2 * gradients[0]

    def run(value: torch.Tensor, *_: Any) -> torch.Tensor:
        doubled: torch.Tensor = Doubled.apply(value)
        return doubled

    monkeypatch.setattr(
        module, "_backend", lambda name, device: module.Implementation(name, plain=run, fused=run, ours=True)
    )
    subject = find("triton-deterministic", CPU)
    assert subject.plain is not None
    value = torch.ones(2, requires_grad=True)
    subject.plain(value, (), value, value).sum().backward()
    # memory that PyTorch fills meanwhile would be timed, too
    assert seen == [(False, True), (True, False)]
    assert now() == (False, True)
    assert "fill_uninitialized_memory=False" in (subject.setting or "")
    with torch.no_grad():
        assert not subject.plain(value, (), value, value).requires_grad


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("deformops", "pip install deformops"),
        ("deformops-fp32acc", "pip install deformops"),
        ("official", "python setup.py install in models/ops"),
        ("hub", "deformable-detr of Hugging Face's kernels-community"),
        ("mmcv", "mim install mmcv"),
        ("dcnv4", "pip install DCNv4"),
        ("transformers", "pip install transformers"),
    ],
)
def test_a_missing_implementation_says_how_to_get_it(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert how in (module.absent(name, CPU) or "")
    assert how in (find(name, CPU).reason or "")


def plain_and_fused() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    inputs = make_inputs(CASE, torch.float32, CPU, seed=0)
    plain = (inputs.value, CASE.sizes, inputs.sampling_locations, inputs.attention_weights)
    return plain, (inputs.value, CASE.sizes, *inputs[1:4])


@pytest.mark.parametrize("name", ["reference", "core", "transformers", "embedding-bag"])
def test_implementations_of_a_cpu_agree(name: str) -> None:
    plain, fused = plain_and_fused()
    subject = find(name, CPU)
    assert subject.plain is not None
    assert subject.fused is not None
    torch.testing.assert_close(subject.plain(*plain), ms_deform_attn(*plain))
    torch.testing.assert_close(subject.fused(*fused), fused_ms_deform_attn(*fused))
    # who has no fused call is charged for what stands in for it
    assert subject.composed == (None if name == "reference" else "locations and softmax")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("name", ["transformers", "embedding-bag"])
def test_implementations_of_a_cpu_are_right_by_dtype(name: str, fused: bool, dtype: torch.dtype) -> None:
    """Points outside the maps, too; embedding-bag rounds weights to 16 bits, which its gradients show."""
    case = Case("uniform", ((6, 5), (1, 3)), B=2, Q=9, H=2, D=4)
    inputs = make_inputs(case, dtype, CPU, seed=0)
    checks = workloads.check(
        workloads.operator(case, find(name, CPU), [inputs], fused), workloads.truth(case, inputs, fused)
    )
    assert checks["forward"].failure is None
    differs = name == "embedding-bag" and dtype is torch.bfloat16
    assert (checks["backward"].failure is not None) == differs


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """A package of someone else's, as far as a test wants it."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        package = ModuleType(".".join(parts[:i]))
        package.__spec__ = importlib.machinery.ModuleSpec(package.__name__, None)
        monkeypatch.setitem(sys.modules, package.__name__, package)
    for member, value in members.items():
        setattr(package, member, value)


def answer(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    assert starts.tolist() == [0, 30]
    return ms_deform_attn(value, shapes, locations.to(torch.float32), weights, backend="reference")


@pytest.mark.parametrize("name", ["official", "hub", "mmcv"])
def test_the_extension_is_called_as_it_wants(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through stand-ins with their signatures, answered by our reference, gradients included."""
    monkeypatch.setattr(module, "_needs_cuda", lambda *_: None)
    steps = []

    def forward(*arguments: Any) -> Tensor:
        *tensors, step = arguments
        steps.append(step)
        return answer(*tensors)

    def backward(*arguments: Any) -> Any:
        value, shapes, starts, locations, weights, gradient, _ = arguments
        leaves = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        with torch.enable_grad():
            output = answer(leaves[0], shapes, starts, *leaves[1:])
        return torch.autograd.grad(output, leaves, gradient)

    if name != "mmcv":
        functions = {"ms_deform_attn_forward": forward, "ms_deform_attn_backward": backward}
        stand_in(monkeypatch, module._PACKAGES[name], **functions)
    else:
        function = SimpleNamespace(apply=forward)
        stand_in(monkeypatch, "mmcv.ops.multi_scale_deform_attn", MultiScaleDeformableAttnFunction=function)
    subject = find(name, CUDA)
    plain, fused = plain_and_fused()
    assert subject.plain is not None
    assert subject.fused is not None
    torch.testing.assert_close(subject.plain(*plain), ms_deform_attn(*plain))
    torch.testing.assert_close(subject.fused(*fused), fused_ms_deform_attn(*fused))
    assert steps == [2, 2]  # the whole batch of two
    value = plain[0].requires_grad_()
    (got,) = torch.autograd.grad(subject.plain(value, *plain[1:]).sum(), value)
    (expected,) = torch.autograd.grad(ms_deform_attn(value, *plain[1:]).sum(), value)
    torch.testing.assert_close(got, expected)


def test_mmcv_on_a_cpu_is_its_function_of_pytorch_with_or_without_its_extension(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imported = []

    def pytorch(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, shapes, locations, weights, backend="reference")

    stand_in(monkeypatch, "mmcv.ops.multi_scale_deform_attn", multi_scale_deformable_attn_pytorch=pytorch)
    usual = module._imported

    def watched(*names: str) -> Any:
        imported.append(sys.modules["mmcv._ext"].ms_deform_attn_forward)
        return usual(*names)

    monkeypatch.setattr(module, "_imported", watched)
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: None if name.endswith("_ext") else sys.modules[name].__spec__
    )
    subject = find("mmcv", CPU)
    plain, fused = plain_and_fused()
    assert subject.plain is not None
    assert subject.fused is not None
    torch.testing.assert_close(subject.plain(*plain), ms_deform_attn(*plain))
    torch.testing.assert_close(subject.fused(*fused), fused_ms_deform_attn(*fused))
    assert imported == [None]
    assert "mmcv._ext" not in sys.modules


def test_the_hubs_kernel_takes_all_in_values_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_needs_cuda", lambda *_: None)
    seen = []

    def forward(*arguments: Any) -> Tensor:
        *_, locations, weights, step = arguments
        seen.append((locations.dtype, weights.dtype, step))
        return answer(*arguments[:5])

    stand_in(monkeypatch, "deformable_detr", ms_deform_attn_forward=forward)
    inputs = make_inputs(CASE, torch.bfloat16, CPU, seed=0)
    subject = find("hub", CUDA)
    assert "half a pixel off" in (subject.limits or "")
    assert subject.plain is not None
    assert subject.fused is not None
    subject.plain(inputs.value, CASE.sizes, inputs.sampling_locations, inputs.attention_weights)
    subject.fused(inputs.value, CASE.sizes, *inputs[1:4])
    assert seen == [(torch.bfloat16, torch.bfloat16, 2)] * 2


@pytest.mark.parametrize("queries", [7, 64], ids=["images one by one", "a batch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dcnv4_takes_logits_beside_locations_and_no_weights(
    dtype: torch.dtype, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one dtype, which its backward lacks bfloat16 of; and never a batch in which a block takes two images."""
    monkeypatch.setattr(module, "_needs_cuda", lambda *_: None)
    case = replace(CASE, Q=queries, D=32)
    L, P, batches = len(case.sizes), case.P, []

    def apply(value: Tensor, shapes: Tensor, starts: Tensor, both: Tensor, step: int, points: int) -> Tensor:
        assert both.dtype is value.dtype is (torch.float32 if dtype is torch.float32 else torch.float16)
        assert points == P
        assert step == len(value)
        batches.append(len(value))
        locations = both[..., : 2 * L * P].unflatten(-1, (L, P, 2))
        weights = both[..., 2 * L * P :].float().softmax(-1).unflatten(-1, (L, P))
        return answer(value, shapes, starts, locations, weights)

    stand_in(monkeypatch, "DCNv4.functions", FlashDeformAttnFunction=SimpleNamespace(apply=apply))
    subject = find("dcnv4", CUDA)
    assert subject.plain is None
    assert subject.fused is not None
    inputs = make_inputs(case, dtype, CPU, seed=0)
    fused = (inputs.value, case.sizes, *inputs[1:4])
    tolerance = 1e-5 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(subject.fused(*fused), fused_ms_deform_attn(*fused), atol=tolerance, rtol=0)
    assert batches == ([1, 1] if queries == 7 else [2])


@pytest.mark.parametrize(
    ("B", "Q", "H", "D", "expected"),
    [
        (1, 17821, 8, 32, False),
        (2, 17821, 8, 32, True),  # two queries a block, of an odd number of them
        (2, 300, 8, 32, False),  # 15 of the forward's, which divide 300 as they divide 600
        (2, 34, 8, 32, True),  # 4 would divide 68, and not 34
        (2, 8, 8, 32, True),  # all 16 in one
        (2, 32, 8, 32, False),
        (3, 5, 2, 32, True),  # 15 in the forward, 3 in the backward
        (2, 7, 64, 64, False),  # more threads than a block has: one query each
    ],
)
def test_where_a_block_of_dcnv4_takes_two_images(B: int, Q: int, H: int, D: int, expected: bool) -> None:
    assert module._straddles(B, Q, H, D) == expected


def test_the_step_divides_the_batch() -> None:
    assert [module._step(torch.empty(B, 1)) for B in (1, 2, 64, 65, 96, 67)] == [1, 2, 64, 13, 48, 1]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for deformops, with its argument order, answered by our reference; lists the options it got."""
    seen: list[dict[str, Any]] = []

    def msda(
        value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, /, **options: Any
    ) -> Tensor:
        seen.append(options)
        assert starts.tolist() == [0, 30]
        assert weights.dtype is value.dtype
        if options.get("method") == "softmax":
            weights = weights.flatten(3).softmax(-1).view_as(weights)
        return ms_deform_attn(value, shapes, locations, weights, backend="reference")

    stand_in(monkeypatch, "deformops.registry", msda=msda)
    return seen


def test_deformops_is_called_as_it_wants(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    plain_inputs, fused_inputs = plain_and_fused()
    on_a_cpu = find("deformops", CPU)
    assert find("deformops-fp32acc", CPU).reason == "its kernels need a CUDA device"
    monkeypatch.setattr(module, "_needs_cuda", lambda *_: None)
    for subject in (find("deformops", CUDA), find("deformops-fp32acc", CUDA), on_a_cpu):
        assert subject.composed == "locations"
        assert subject.plain is not None
        assert subject.fused is not None
        torch.testing.assert_close(subject.plain(*plain_inputs), ms_deform_attn(*plain_inputs))
        torch.testing.assert_close(subject.fused(*fused_inputs), fused_ms_deform_attn(*fused_inputs))
    default = [{}, {"method": "softmax"}]
    assert calls == [*default, {"fp32acc": True}, {"method": "softmax", "fp32acc": True}, *default]


def test_a_broken_deformops_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "deformops")
    monkeypatch.setitem(sys.modules, "deformops.registry", None)
    assert (find("deformops", CUDA).reason or "").startswith("installed but fails to import")

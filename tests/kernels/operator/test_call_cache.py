"""Calls like one before: which of them skip the checks, and that those get what the others get."""

import ast
import gc
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import msdeform
from msdeform.kernels import call_cache, contract, registry
from msdeform.kernels.api import fused_ms_deform_attn, ms_deform_attn
from msdeform.kernels.diagnostics.checks import Case, make_inputs
from msdeform.kernels.registry import BackendUnavailable
from tests.house import project
from tests.kernels.stand_ins import without_kernels

PLAIN = Case(B=2, Q=3, H=2, D=4, P=2, sizes=((3, 4), (2, 2)), coordinates=None)
BOXES = Case(B=2, Q=3, H=2, D=4, P=2, sizes=((3, 4), (2, 2)), coordinates=4)


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    call_cache.forget()
    yield
    call_cache.forget()


def call(tensors: tuple[Tensor, ...], sizes: Any = PLAIN.sizes, **options: Any) -> Tensor:
    function: Any = ms_deform_attn if len(tensors) == 3 else fused_ms_deform_attn
    return function(tensors[0], sizes, *tensors[1:], **options)


def known(tensors: tuple[Tensor, ...], sizes: Any = PLAIN.sizes, starts: Any = None, backend: Any = None) -> bool:
    return call_cache.find(len(tensors) == 4, backend or registry.current_setting(), sizes, starts, tensors) is not None


@pytest.mark.parametrize("case", [PLAIN, BOXES], ids=["plain", "fused"])
def test_a_call_seen_before_is_not_checked_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make_inputs(case)
    want = call(tensors)

    def refuse(*_: Any) -> None:
        raise AssertionError("checked again")

    monkeypatch.setattr(contract, "check", refuse)
    assert torch.equal(call(tensors), want)
    other = tuple(tensor + 1 for tensor in tensors)
    call(other)  # other numbers, and other memory
    call(tensors, [list(pair) for pair in case.sizes])
    for changed in (tensors[0].double(), tensors[0][:1], tensors[0].transpose(0, 1).contiguous().transpose(0, 1)):
        with pytest.raises(AssertionError, match="checked again"):
            call((changed, *tensors[1:]))


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        (((3.0, 4.0), (2, 2)), {}, "expected integer heights"),
        (((4, 3), (2, 1)), {}, "sum to S=16"),
        (((3, 4, 1), (2, 2, 1)), {}, "one pair"),
        (7, {}, "expected pairs"),
        (PLAIN.sizes, {"level_start_index": [0, 11]}, r"level_start_index: expected \[0, 12\]"),
        (PLAIN.sizes, {"backend": "tirton"}, "did you mean triton"),
    ],
)
def test_a_wrong_call_after_a_right_one_is_told_as_ever(sizes: Any, options: dict[str, Any], message: str) -> None:
    tensors = make_inputs(PLAIN)
    call(tensors)
    with pytest.raises((TypeError, ValueError), match=message):
        call(tensors, sizes, **options)
    with pytest.raises(ValueError, match="H differs"):
        call((tensors[0], tensors[1][:, :, :1], tensors[2]))
    with pytest.raises(TypeError, match="expected a tensor, got list"):
        call((tensors[0], tensors[1], [1.0]))  # type: ignore[arg-type]


def test_sizes_on_the_host_are_read_every_time() -> None:
    tensors, sizes = make_inputs(PLAIN), torch.tensor(PLAIN.sizes)
    call(tensors, sizes)
    sizes[0, 0] = 5
    with pytest.raises(ValueError, match="sum to S=16"):
        call(tensors, sizes)


def test_the_setting_is_seen() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CPU tensor is refused by another route where there is a GPU")
    tensors = make_inputs(PLAIN)
    call(tensors)
    with msdeform.use_backend("cuda"), pytest.raises(BackendUnavailable, match="backend 'cuda' cannot run"):
        call(tensors)


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class PassingFunctions(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class Sub(Tensor):
    pass


Ask = Callable[..., Tensor]


def _dual(ask: Ask, value: Tensor) -> None:
    with forward_ad.dual_level():
        ask(forward_ad.make_dual(value, value))


def _within(mode: Any, ask: Ask, value: Tensor) -> None:
    with mode:
        ask(value)


MORE: dict[str, Callable[[Ask, Tensor], Any]] = {
    "dispatch mode": lambda ask, value: _within(Passing(), ask, value),
    "function mode": lambda ask, value: _within(PassingFunctions(), ask, value),
    "FakeTensorMode": lambda ask, value: _within(FakeTensorMode(allow_non_fake_inputs=True), ask, value),
    "FakeTensor": lambda ask, value: ask(FakeTensorMode().from_tensor(value)),
    "subclass": lambda ask, value: ask(value.as_subclass(Sub)),
    "vmap": lambda ask, value: torch.vmap(ask)(value),
    "func.grad": lambda ask, value: torch.func.grad(lambda x: ask(x).sum())(value),
    "forward derivative": _dual,
    "make_fx": lambda ask, value: make_fx(ask)(value),
    "make_fx before dispatch": lambda ask, value: make_fx(ask, pre_dispatch=True)(value),
    "jit.trace": lambda ask, value: torch.jit.trace(ask, value, check_trace=False),
    "negated view": lambda ask, value: ask(torch._neg_view(value)),
    "meta": lambda ask, value: ask(value.to("meta")),
    "sparse": lambda ask, value: ask(value.to_sparse()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", MORE)
def test_more_than_plain_tensors_never_passes(what: str) -> None:
    """Neither where a plain call was seen, nor as the first of its kind."""
    value, *rest = make_inputs(PLAIN)
    call((value, *rest))
    assert known((value, *rest))
    asked = []

    def ask(value: Tensor) -> Tensor:
        asked.append((known((value, *rest)), call_cache.plain(value)))
        return value * 1

    MORE[what](ask, value)
    assert asked
    assert not any(found or plain for found, plain in asked)


def test_gradients_are_asked_for_when_they_are() -> None:
    """requires_grad and no_grad are parts of what a call is like."""
    with without_kernels() as kernels:
        tensors = make_inputs(PLAIN)
        for _ in range(2):
            assert call(tensors).grad_fn is None
        for tensor in tensors:
            tensor.requires_grad_()
        for _ in range(2):
            assert call(tensors).grad_fn is not None
            with torch.no_grad():
                assert call(tensors).grad_fn is None
            with torch.inference_mode():
                assert call(tensors).is_inference()
        assert kernels["forward"].launches == 8


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_call_without_gradients_is_not_kept_for_one_with_them(without: Callable[[], Any]) -> None:
    """An evaluation before the first training step, with tensors of the same sizes."""
    with without_kernels():
        tensors = [tensor.requires_grad_() for tensor in make_inputs(PLAIN)]
        for _ in range(2):
            with without():
                assert call(tensors).grad_fn is None
        for _ in range(2):
            assert call(tensors).grad_fn is not None


def test_a_graph_of_gradients_and_batched_ones_go_by_the_operator() -> None:
    with without_kernels() as kernels:
        tensors = tuple(tensor.requires_grad_() for tensor in make_inputs(PLAIN))
        call(tensors)
        output = call(tensors)
        assert "_AttentionBackward" in type(output.grad_fn).__name__
        (first,) = torch.autograd.grad(output.sum(), tensors[:1], create_graph=True)
        with pytest.raises(RuntimeError, match="has no second derivative"):
            first.sum().backward()
        before = kernels["backward"].launches
        batch = torch.ones(4, *output.shape)
        torch.autograd.grad(call(tensors), tensors[:1], batch, is_grads_batched=True)
        assert kernels["backward"].launches == before + 4


def test_a_recomputed_call_may_go_the_other_way() -> None:
    with without_kernels():
        tensors = tuple(tensor.requires_grad_() for tensor in make_inputs(PLAIN))
        for _ in range(2):  # the first forward is checked, its recomputation is not
            checkpoint(lambda *tensors: call(tensors), *tensors, use_reentrant=False).sum().backward()
        assert all(tensor.grad is not None for tensor in tensors)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_cache, "_MOST_KEYS", 3)
    for width in range(1, 9):
        tensors = make_inputs(Case(B=1, Q=3, H=2, D=4, P=2, sizes=((3, width),), coordinates=None))
        for queries in range(1, 4):
            call((tensors[0], *(tensor[:, :queries] for tensor in tensors[1:])), ((3, width),))
        assert len(call_cache._kept) <= 3
    monkeypatch.setattr(call_cache, "_MOST_ALIKE", 2)
    for queries in (1, 2, 3):
        call((tensors[0], *(tensor[:, :queries].contiguous() for tensor in tensors[1:])), ((3, 8),))
    assert all(len(alike) <= 3 for alike in call_cache._kept.values())


def test_no_tensor_is_kept_alive() -> None:
    with without_kernels():
        tensors = tuple(tensor.requires_grad_() for tensor in make_inputs(PLAIN))
        outputs = [call(tensors) for _ in range(2)]
        assert known(tensors)
        held = [weakref.ref(tensor) for tensor in (*tensors, *outputs)]
        del tensors, outputs
        gc.collect()
        assert [reference() for reference in held] == [None] * len(held)


def test_switched_off_every_call_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same results, and gradients by the operator."""
    monkeypatch.setattr(call_cache, "WHY_OFF", "a reason")
    tensors = make_inputs(PLAIN)
    want = call(tensors)
    assert not known(tensors)
    assert torch.equal(call(tensors), want)
    with without_kernels() as kernels:
        leaves = tuple(tensor.detach().requires_grad_() for tensor in tensors)
        for _ in range(2):
            output = call(leaves)
            assert "triton_forward" in type(output.grad_fn).__name__
            output.sum().backward()
        assert not call_cache._kept
        assert (kernels["forward"].launches, kernels["backward"].launches) == (2, 2)
    monkeypatch.undo()
    call(tensors)
    assert known(tensors)


PRIVATE = [
    (torch._C, "_len_torch_dispatch_stack"),
    (torch._C, "_is_torch_function_mode_enabled"),
    (torch._C, "_are_functorch_transforms_active"),
    (torch._C, "_get_tracing_state"),
    (torch._C, "_dispatch_keys"),
    (torch._C._dynamo.guards, "TensorGuards"),
    (forward_ad, "_current_level"),
]


@pytest.mark.parametrize(("owner", "name"), PRIVATE, ids=[name for _, name in PRIVATE])
def test_a_private_interface_that_is_missing_switches_off(owner: Any, name: str, monkeypatch: Any) -> None:
    assert call_cache.WHY_OFF is None
    monkeypatch.setattr(call_cache, "_plain_keys", {})
    monkeypatch.delattr(owner, name)
    why = call_cache._probe()
    monkeypatch.undo()
    assert why is not None
    assert re.fullmatch(
        rf"PyTorch {re.escape(torch.__version__)} lacks what calls are kept by: \w+Error: .*{name}.*", why
    )


def test_guards_that_pass_everything_switch_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_cache, "_guard", lambda tensors: lambda *others: True)
    assert "does not tell tensors apart" in str(call_cache._probe())


def test_every_private_interface_stands_in_the_call_cache() -> None:
    """The list above is what the file uses, and no other file of ours uses any."""
    found: dict[str, set[str]] = {}
    for file in project.modules().values():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch._C"):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute) and re.fullmatch(r"torch\._C(\.\w+)*", ast.unparse(node.value)):
                names = [node.attr]
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "forward_ad":
                names = [node.attr] if node.attr.startswith("_") else []
            else:
                continue
            found.setdefault(file.name, set()).update(names)
    found = {file: names for file, names in found.items() if names}
    assert found == {"call_cache.py": {name for _, name in PRIVATE}}

"""Implementations in one form; deformops through a stand-in with its signature."""

import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from msdeform import fused_ms_deform_attn, ms_deform_attn
from msdeform.bench import peers as module
from msdeform.bench.cases import Case, make_inputs
from msdeform.bench.peers import peers
from msdeform.kernels import registry

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CASE = Case("small", ((6, 5), (3, 2)), B=2, Q=7, H=2, D=4)


def by_name(device: torch.device, **options: bool) -> dict[str, module.Peer]:
    return {peer.name: peer for peer in peers(device, **options)}


def test_reference_comes_first_and_others_say_why_not() -> None:
    found = by_name(CPU, compiled=True)
    assert list(found)[:2] == ["reference", "reference-compiled"]
    assert found["reference"].reason is None
    assert "CUDA" in (found["cuda"].reason or "")
    assert found["triton"].reason


def test_the_interpreter_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "interpreting", lambda: True)
    assert "interpreter is never timed" in (by_name(CPU)["triton"].reason or "")


def test_missing_deformops_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert "pip install deformops" in (by_name(CPU)["deformops"].reason or "")


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

    package, inner = ModuleType("deformops"), ModuleType("deformops.registry")
    package.__spec__ = importlib.machinery.ModuleSpec("deformops", None)
    inner.msda = msda  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deformops", package)
    monkeypatch.setitem(sys.modules, "deformops.registry", inner)
    return seen


def test_deformops_is_called_as_it_wants(calls: list[dict[str, Any]]) -> None:
    inputs = SimpleNamespace(**make_inputs(CASE, torch.float32, CPU, seed=0)._asdict())
    plain_inputs = (inputs.value, CASE.sizes, inputs.sampling_locations, inputs.attention_weights)
    fused_inputs = (
        inputs.value,
        CASE.sizes,
        inputs.reference_points,
        inputs.sampling_offsets,
        inputs.attention_logits,
    )
    first, second = module._deformops(CUDA)
    for peer in (first, second):
        assert peer.plain is not None
        assert peer.fused is not None
        torch.testing.assert_close(peer.plain(*plain_inputs), ms_deform_attn(*plain_inputs))
        torch.testing.assert_close(peer.fused(*fused_inputs), fused_ms_deform_attn(*fused_inputs))
    assert calls == [{}, {"method": "softmax"}, {"fp32acc": True}, {"method": "softmax", "fp32acc": True}]


def test_a_broken_deformops_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("deformops")
    package.__spec__ = importlib.machinery.ModuleSpec("deformops", None)
    monkeypatch.setitem(sys.modules, "deformops", package)
    monkeypatch.setitem(sys.modules, "deformops.registry", None)
    (peer,) = module._deformops(CUDA)
    assert peer.reason is not None
    assert peer.reason.startswith("installed but fails to import")

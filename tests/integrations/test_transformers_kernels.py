"""Our layer in the mapping of the ``kernels`` package: taken by kernelize, or told that it would be ignored."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import msdeform
from msdeform.integrations import transformers as ours
from msdeform.integrations.forms import Layer, OurOperator
from tests.integrations.architectures import inputs_of, make, outputs_of

kernels: Any = pytest.importorskip("kernels", reason="the package kernels is not installed")


def layer_class() -> Any:
    """transformers' layer of Deformable DETR."""
    return type(next(m for m in make("deformable_detr").modules() if type(m).__name__ == ours.LAYER))


@pytest.fixture
def decorated() -> Iterator[Any]:
    """The layer as transformers decorates it where it works with the installed kernels."""
    layer = layer_class()
    before = dict(vars(layer))
    if "kernel_layer_name" not in before:
        kernels.replace_kernel_forward_from_hub(layer, ours.LAYER)
    yield layer
    for name in vars(layer).keys() - before.keys():
        delattr(layer, name)
    layer.forward = before["forward"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backend of each call of our operator."""
    made: list[str] = []
    usual = OurOperator.__call__

    def counted(self: OurOperator, *args: Any) -> Tensor:
        made.append(self.backend)
        return usual(self, *args)

    monkeypatch.setattr(OurOperator, "__call__", counted)
    return made


def test_kernelize_takes_our_layer(decorated: Any, calls: list[str]) -> None:
    model, inputs = make("deformable_detr"), inputs_of("deformable_detr")
    with torch.no_grad():
        before = outputs_of(model, inputs)
        assert calls == []
        with kernels.use_kernel_mapping({}, inherit_mapping=False):
            ours.register("reference", ("cpu",))
            for mode in (kernels.Mode.INFERENCE, kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE):
                calls.clear()
                kernelized = kernels.kernelize(model, mode=mode, device="cpu")
                after = outputs_of(kernelized, inputs)
                assert calls == ["reference"] * 4
    assert before.keys() == after.keys()
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-12


def test_a_kernelized_model_is_not_accelerated_again(decorated: Any) -> None:
    model = make("deformable_detr")
    with kernels.use_kernel_mapping({}, inherit_mapping=False):
        ours.register("reference", ("cpu",))
        report = msdeform.accelerate(kernels.kernelize(model, mode=kernels.Mode.INFERENCE, device="cpu"))
    assert report.replaced == 0
    assert "its forward was replaced before" in str(report)


def test_a_mapping_that_would_be_ignored_is_told() -> None:
    if hasattr(layer_class(), "kernel_layer_name"):
        ours.register()  # these versions work together
        return
    with pytest.raises(
        RuntimeError, match=r"register: transformers \S+ does not work with kernels \S+ and would ignore"
    ):
        ours.register()


def test_the_package_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kernels", None)
    with pytest.raises(ImportError, match=r"register: expected the package kernels.*msdeform.accelerate\(model\)"):
        ours.register()


def test_a_typo_in_the_backend() -> None:
    with pytest.raises(ValueError, match="did you mean triton"):
        ours.register("tritn")


def test_the_layer_is_what_the_package_wants() -> None:
    layer = ours.Repository().load()
    assert layer.__init__ is nn.Module.__init__
    assert {name for name in vars(layer) if not name.startswith("__")} == {
        "can_torch_compile",
        "has_backward",
        "forward",
    }
    assert Layer.unlike(layer.forward) is None

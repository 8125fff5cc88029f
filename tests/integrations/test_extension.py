"""Stand-ins for compiled extensions, used as the code of others uses them: by an autograd function of its own."""

import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from msdeform import ms_deform_attn, use_backend
from msdeform.integrations.extension import DETREX, MMCV, OFFICIAL, StandIn, install_extension
from tests.integrations.formula import LEVELS, SHAPES, STARTS, B, H, L, P, Q, S, draw
from tests.kernels.backends import CPU

BACKENDS = [pytest.param(("reference", "cpu"), id="reference"), *CPU]
NAMES = [OFFICIAL, MMCV, DETREX]


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in NAMES}
    yield
    assert {name: sys.modules.get(name) for name in NAMES} == before


def function_of(name: str, extension: Any) -> type[torch.autograd.Function]:
    """An autograd function that calls an extension as its users do: mmcv's by keyword, into given gradients."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor, shapes: Tensor, starts: Tensor, *tensors: Any) -> Tensor:
            *tensors, ctx.step = tensors  # type: ignore[assignment]
            ctx.save_for_backward(value, shapes, starts, *tensors)
            step = {"im2col_step": ctx.step} if name == MMCV else {}
            rest = () if step else (ctx.step,)
            return extension.ms_deform_attn_forward(value, shapes, starts, *tensors, *rest, **step)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
            saved = ctx.saved_tensors
            if name == MMCV:
                gradients = [torch.zeros_like(saved[place]) for place in (0, 3, 4)]
                done = extension.ms_deform_attn_backward(*saved, upstream, *gradients, im2col_step=ctx.step)
                assert done is None
            else:
                gradients = extension.ms_deform_attn_backward(*saved, upstream, ctx.step)
            for_value, for_locations, for_weights = gradients
            return for_value, None, None, for_locations, for_weights, None

    return Attention


def tensors(dtype: torch.dtype = torch.float64, channels: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    value, locations = draw(0, B, S, H, channels), draw(1, B, Q, H, L, P, 2) * 1.4 - 0.2
    made = (value, locations, draw(2, B, Q, H, L, P))
    return tuple(tensor.to(dtype).requires_grad_() for tensor in made)  # type: ignore[return-value]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_output_and_gradients_are_the_operators(name: str, backend: tuple[str, str]) -> None:
    value, locations, weights = tensors()
    with install_extension(name, backend=backend[0]):
        function = function_of(name, importlib.import_module(name) if name == OFFICIAL else sys.modules[name])
        out = function.apply(value, LEVELS, STARTS, locations, weights, 64)
    expected = ms_deform_attn(value, SHAPES, locations, weights, backend="reference")
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    upstream = draw(3, B, Q, H * 4)
    ours = torch.autograd.grad(out, (value, locations, weights), upstream)
    theirs = torch.autograd.grad(expected, (value, locations, weights), upstream)
    for got, want in zip(ours, theirs, strict=True):
        assert got.is_contiguous()
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [OFFICIAL, MMCV])
def test_gradients_are_those_of_finite_differences(name: str, backend: tuple[str, str]) -> None:
    with install_extension(name, backend=backend[0]):
        function = function_of(name, sys.modules[name])
        value, locations, weights = tensors(channels=2)
        assert torch.autograd.gradcheck(function.apply, (value, LEVELS, STARTS, locations, weights, 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [OFFICIAL, MMCV])
def test_half_precision(name: str, backend: tuple[str, str]) -> None:
    value, locations, weights = tensors(torch.float16)
    with install_extension(name, backend=backend[0]):
        out = function_of(name, sys.modules[name]).apply(value, LEVELS, STARTS, locations, weights, 64)
    gradients = torch.autograd.grad(out, (value, locations, weights), torch.ones_like(out))
    assert {tensor.dtype for tensor in (out, *gradients)} == {torch.float16}
    doubled = [tensor.detach().double().requires_grad_() for tensor in (value, locations, weights)]
    expected = ms_deform_attn(doubled[0], SHAPES, *doubled[1:], backend="reference")
    torch.testing.assert_close(out.double(), expected, rtol=2e-3, atol=2e-3)
    wanted = torch.autograd.grad(expected, doubled, torch.ones_like(expected))
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=4e-3, atol=4e-3)


def test_a_forward_has_no_graph_and_any_layout_and_batch_are_taken() -> None:
    value, locations, weights = tensors()
    with install_extension(backend="reference"):
        extension = importlib.import_module(OFFICIAL)
        out = extension.ms_deform_attn_forward(value, LEVELS, STARTS, locations, weights, 64)
        assert not out.requires_grad
        strided = value.detach().transpose(1, 2).contiguous().transpose(1, 2)
        again = extension.ms_deform_attn_forward(
            strided, LEVELS, STARTS, locations, weights, 3
        )  # 2 is no multiple of 3
        assert torch.equal(again, out)
        upstream = draw(3, Q, B, H * 4).transpose(0, 1)
        arguments = (value, LEVELS, STARTS, locations, weights)
        gradients = extension.ms_deform_attn_backward(*arguments, upstream, 64)
        dense = extension.ms_deform_attn_backward(*arguments, upstream.contiguous(), 64)
    assert not any(gradient.requires_grad for gradient in gradients)
    assert all(torch.equal(a, b) for a, b in zip(gradients, dense, strict=True))
    assert all(tensor.requires_grad for tensor in (value, locations, weights))


def test_mmcvs_gradients_are_overwritten() -> None:
    value, locations, weights = (tensor.detach() for tensor in tensors())
    arguments = (value, LEVELS, STARTS, locations, weights, draw(3, B, Q, H * 4))
    with install_extension([MMCV, OFFICIAL], backend="reference"):
        given = [torch.full_like(tensor, 7) for tensor in (value, locations, weights)]
        sys.modules[MMCV].ms_deform_attn_backward(
            value=value,
            value_spatial_shapes=LEVELS,
            value_level_start_index=STARTS,
            sampling_locations=locations,
            attention_weights=weights,
            grad_output=arguments[-1],
            grad_value=given[0],
            grad_sampling_loc=given[1],
            grad_attn_weight=given[2],
            im2col_step=64,
        )
        returned = sys.modules[OFFICIAL].ms_deform_attn_backward(*arguments, 64)
    assert all(torch.equal(a, b) for a, b in zip(given, returned, strict=True))


def test_the_setting_of_the_process_is_taken_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    from msdeform.kernels import registry

    def resolve(inputs: Any, backend: str | None = None) -> str:
        asked.append(registry.current_setting() if backend is None else backend)
        return "reference"

    monkeypatch.setattr(registry, "resolve", resolve)
    arguments = [*tensors(torch.float32, channels=5)]  # a call of its own, which no cache holds
    call = (arguments[0], LEVELS, STARTS, *arguments[1:], torch.ones(B, Q, H * 5), 64)
    with install_extension(), use_backend("cpu"):
        importlib.import_module(OFFICIAL).ms_deform_attn_backward(*call)
    with install_extension(backend="triton"):
        importlib.import_module(OFFICIAL).ms_deform_attn_backward(*call)
    assert asked == ["cpu", "triton"]


def test_undoing() -> None:
    installed = install_extension(NAMES)
    import MultiScaleDeformableAttention as extension  # type: ignore[import-not-found]

    assert all(isinstance(sys.modules[name], StandIn) for name in NAMES)
    installed.undo()
    installed.undo()  # no harm
    assert not {*NAMES} & {*sys.modules}
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(OFFICIAL)
    assert callable(extension.ms_deform_attn_forward)  # who has it keeps it


def test_the_latest_is_undone_first() -> None:
    first = install_extension(backend="reference")
    inner = sys.modules[OFFICIAL]
    second = install_extension()  # a stand-in is no compiled extension
    with pytest.raises(RuntimeError, match="undo: expected 'MultiScaleDeformableAttention' as it was put there"):
        first.undo()
    second.undo()
    assert sys.modules[OFFICIAL] is inner
    first.undo()


def compiled(name: str) -> ModuleType:
    """A module as a compiled extension of that name would be."""
    module = ModuleType(name)
    module.ms_deform_attn_forward = lambda *_: "theirs"  # type: ignore[attr-defined]
    module.ms_deform_attn_backward = lambda *_: "theirs"  # type: ignore[attr-defined]
    module.nms = lambda *_: "nms"  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_extension_that_is_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        theirs = compiled(name)
        patch.setitem(sys.modules, name, theirs)
        with pytest.raises(RuntimeError) as caught:
            install_extension([n for n in NAMES if n != name] + [name])
        assert str(caught.value) == (
            f"names: expected no compiled extension {name}, got one that is imported already; pass replace=True to "
            "exchange its two functions for ours"
        )
        assert {n: sys.modules.get(n) for n in NAMES} == dict.fromkeys(NAMES) | {name: theirs}  # nothing is half done
        value, locations, weights = tensors()
        with install_extension(name, backend="reference", replace=True):
            assert sys.modules[name] is theirs
            out = theirs.ms_deform_attn_forward(value, LEVELS, STARTS, locations, weights, 64)
            assert torch.equal(out, ms_deform_attn(value, SHAPES, locations, weights, backend="reference"))
            assert theirs.nms() == "nms"
        assert (theirs.ms_deform_attn_forward(), theirs.ms_deform_attn_backward()) == ("theirs", "theirs")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with extensions that are installed, not imported; the package must not be, either."""
    lines = "def ms_deform_attn_forward(*_): return 'theirs'\nms_deform_attn_backward = ms_deform_attn_forward\n"
    for name in NAMES:
        file = tmp_path / (name.replace(".", "/") + ".py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(lines + "def nms(*_): return 'nms'\n")
        if "." in name:
            (file.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_extension_that_is_installed(name: str, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RuntimeError, match=rf"^names: expected no compiled extension {name}, got one that is installed"
    ):
        install_extension(name)
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, name, raising=False)
        with install_extension(name, replace=True):
            module = sys.modules.pop(name)
            assert not isinstance(module, StandIn)
            assert module.nms() == "nms"
            assert module.ms_deform_attn_forward.func.__module__ == "msdeform.integrations.extension"
        assert module.ms_deform_attn_forward() == "theirs"


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_extension_that_does_not_load(name: str, installed: Path) -> None:
    """Compiled for another PyTorch: undefined symbol."""
    (installed / (name.replace(".", "/") + ".py")).write_text("raise ImportError('undefined symbol')\n")
    with install_extension(name, replace=True):
        assert isinstance(sys.modules[name], StandIn)


def test_a_folder_of_that_name_is_no_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / OFFICIAL).mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with install_extension():
        assert isinstance(sys.modules[OFFICIAL], StandIn)


def test_what_else_a_stand_in_is_asked_for() -> None:
    """mmcv asserts at import that its extension has every operator's functions."""
    with install_extension(NAMES):
        assert hasattr(sys.modules[MMCV], "nms")
        with pytest.raises(NotImplementedError, match=r"^mmcv\._ext\.nms: expected a compiled mmcv, got msdeform's "):
            sys.modules[MMCV].nms(torch.zeros(1))
        assert not hasattr(sys.modules[MMCV], "__path__")
        assert not hasattr(sys.modules[DETREX], "dcnv3_forward")
        with pytest.raises(AttributeError, match="MultiScaleDeformableAttention: msdeform's stand-in has .*, no nms"):
            _ = sys.modules[OFFICIAL].nms
        assert importlib.util.find_spec(MMCV) is not None  # mmcv's own check whether its operators are there


def test_packages_import_it_as_their_own(tmp_path: Path) -> None:
    """In a process of its own, a package that takes ``from detrex import _C`` and another by import_module."""
    for package, line in {
        "detrex": "from detrex import _C as found",
        "mmcv": "import importlib; found = importlib.import_module('mmcv._ext')",
    }.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "layers.py").write_text(line)
    code = (
        "from msdeform.integrations.extension import install_extension\n"
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "with install_extension(['detrex._C', 'mmcv._ext']):\n"
        "    import detrex.layers, mmcv.layers\n"
        "assert callable(detrex.layers.found.ms_deform_attn_forward)\n"
        "assert callable(mmcv.layers.found.ms_deform_attn_backward)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"names": "my extension"},
            "names: expected names of modules such as MultiScaleDeformableAttention or mmcv._ext, got 'my extension'",
        ),
        (
            {"names": ["mmcv."]},
            "names: expected names of modules such as MultiScaleDeformableAttention or mmcv._ext, got 'mmcv.'",
        ),
        ({"names": "cpu"}, "names: expected names of modules, got the backend 'cpu': pass backend='cpu'"),
        ({"backend": "fast"}, "backend: expected one of auto, reference, gather, cpu, triton, cuda, got 'fast'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        install_extension(**arguments)


def test_wrong_tensors_are_named() -> None:
    value, locations, weights = tensors()
    with install_extension(backend="reference"):
        extension = importlib.import_module(OFFICIAL)
        with pytest.raises(ValueError, match="attention_weights: expected .* got"):
            extension.ms_deform_attn_forward(value, LEVELS, STARTS, locations, weights[..., :1], 64)
        with pytest.raises(ValueError, match=r"^grad_output: expected \(B, Q, H\*D\)=\(2, 5, 8\), got \(2, 5, 4\)$"):
            extension.ms_deform_attn_backward(value, LEVELS, STARTS, locations, weights, torch.ones(B, Q, 4), 64)

"""Launch parameters side by side: what is wrong is not timed. Kernels run in the interpreter where it is on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from msdeform.bench.gpu import search
from msdeform.bench.operator.cases import CASES, Case
from msdeform.bench.operator.inputs import OperatorInputs, make_inputs

CPU = torch.device("cpu")
SMALL = Case("small", ((6, 5), (3, 2)), B=1, H=2, D=16)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "small", SMALL)


class Pool:
    """Stands for a pool of processes, in this one."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, act: Callable[..., Any], *arguments: Any) -> Any:
        return type("Future", (), {"result": staticmethod(lambda: act(*arguments))})


def answering(wrong: str | None) -> Callable[..., Callable[[], dict[str, Tensor]]]:
    """Stands for the kernels: right for every choice but one."""
    from msdeform import fused_ms_deform_attn

    def prepared(case: str, kernel: str, choice: search.Choice, inputs: OperatorInputs) -> Callable[[], Any]:
        def run() -> dict[str, Tensor]:
            if search.described(choice) == "BAND=9":
                raise RuntimeError("out of registers")
            output = fused_ms_deform_attn(inputs.value, CASES[case].sizes, *inputs[1:4], backend="reference")
            return {"output": output * (1.001 if search.described(choice) == wrong else 1.0)}

        return run

    return prepared


def test_a_wrong_choice_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(search, "_prepared", answering("BAND=8"))
    choices = [{"BAND": 8}, {"BAND": 0}, {"BAND": 9}, {"BAND": None}]
    rows = {row["choice"]: row for row in search.rows("small", "float32", search.FORWARD, choices, CPU, 0.0)}
    assert rows["BAND=8"]["failure"].startswith("differs from float64 in output: error")
    assert rows["BAND=8"]["median_us"] is None
    assert rows["BAND=9"]["failure"] == "RuntimeError: out of registers"
    for name in ("BAND=0", "BAND=free"):
        assert rows[name]["failure"] is None
        assert rows[name]["median_us"] > 0
        assert rows[name]["beside"] == "BAND=0"  # the first that is right
    assert rows["BAND=0"]["ratio"] == 1.0
    assert "differs from float64 in output" in search.table([*rows.values()])


def test_no_choice_is_timed_where_none_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(search, "_prepared", answering("BAND=8"))
    [row] = search.rows("small", "float32", search.FORWARD, [{"BAND": 8}], CPU, 0.0)
    assert row["failure"]
    assert row["ratio"] is None


def test_it_needs_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "usual_device", lambda: CPU)
    assert search.main([]) == 1
    assert "torch finds no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tiles_begin_with_the_launchers_own(dtype: str) -> None:
    pytest.importorskip("triton")
    from msdeform.bench.gpu import variants

    usual = variants.usual_forward(make_inputs(SMALL, getattr(torch, dtype), CPU, 0))
    assert set(usual) == {"BLOCK_Q", "BAND", "num_warps", "maxnreg"}
    tiles = search.forward_tiles("small", dtype, CPU)
    assert tiles[0] == {name: usual[name] for name in ("BLOCK_Q", "num_warps", "maxnreg")}
    assert len(tiles) == len({search.described(one) for one in tiles}) == 10
    assert {one["num_warps"] for one in tiles} == {2, 4, 8}


@pytest.mark.interpreter
@pytest.mark.parametrize("choice", [{}, {"BLOCK_Q": 16}, {"BLOCK_Q": 64, "maxnreg": None}, {"BAND": 8}, {"BAND": 0}])
def test_a_choice_of_the_forward_reaches_the_kernel(
    choice: dict[str, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from msdeform.bench.gpu import variants

    assert search.difference("small", "float32", search.FORWARD, choice, CPU) is None
    asked: list[dict[str, Any]] = []
    kernel = type("Kernel", (), {"__getitem__": lambda self, grid: lambda *a, **k: asked.append({"grid": grid} | k)})()
    monkeypatch.setattr(variants.launch, "forward_kernel", kernel)
    inputs = make_inputs(SMALL, torch.float32, CPU, 0)
    variants.forward(inputs, SMALL.sizes, choice)()
    for name, value in choice.items():
        assert asked[0].get(name) == value
    blocks = -(-SMALL.queries // asked[0]["BLOCK_Q"])
    assert asked[0]["grid"] == (blocks, SMALL.H, SMALL.B)


@pytest.mark.interpreter
def test_a_choice_of_the_backward_reaches_the_kernels_and_ends_with_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from msdeform.bench.gpu import variants

    usual = variants.launch.RUN, variants.launch.backward_method
    assert search.difference("small", "float32", search.SORTED, {"RUN": 64}, CPU) is None
    seen = []
    real = variants.launch._prepare_sorted

    def watched(*arguments: Any) -> Any:
        seen.append((variants.launch.RUN, variants.launch.backward_method))
        return real(*arguments)

    monkeypatch.setattr(variants.launch, "_prepare_sorted", watched)
    variants.sorted_backward(make_inputs(SMALL, torch.float32, CPU, 0), SMALL.sizes, {"RUN": 64})()
    assert seen == [(64, "sorted")]
    assert (variants.launch.RUN, variants.launch.backward_method) == usual


@pytest.mark.compiled
def test_a_tile_reaches_the_kernel_and_stays_with_its_call() -> None:
    pytest.importorskip("triton")
    pytest.importorskip("cuda.core")
    from msdeform.bench.gpu import variants
    from msdeform.bench.static.ptx import nvrtc

    inputs = make_inputs(SMALL, torch.float32, CPU, 0)
    truth = search.workloads.truth(SMALL, inputs, fused=True).results
    choices = search.TILES[1], search.TILES[-1]
    with nvrtc.executing() as device:
        calls = [variants.tiled_backward(inputs, SMALL.sizes, choice) for choice in choices]
        assert (variants.launch.tile, variants.launch.backward_method) == (None, "auto")
        device.launches.clear()
        for call in calls:
            for name, gradient in call().items():
                torch.testing.assert_close(gradient.double(), truth[name], atol=1e-3, rtol=1e-3)
    blocks = [SMALL.B * SMALL.H * -(-SMALL.queries // int(choice["queries"] or 0)) for choice in choices]
    assert [launch.grid for launch in device.launches] == [(count, 1, 1) for count in blocks]


@pytest.mark.interpreter
def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from msdeform.bench.gpu import variants

    real = variants.sorted_backward

    def skewed(inputs: OperatorInputs, *rest: Any) -> Callable[[], Any]:
        return real(replace_value(inputs), *rest)

    def replace_value(inputs: OperatorInputs) -> OperatorInputs:
        return inputs._replace(grad_output=inputs.grad_output * 1.001)

    monkeypatch.setattr(variants, "sorted_backward", skewed)
    answer = search.difference("small", "float32", search.SORTED, {"RUN": 32}, CPU)
    assert answer is not None
    assert answer.startswith("differs from float64 in value: error")


@pytest.mark.slow
@pytest.mark.interpreter
def test_choices_are_checked_in_processes_of_their_own() -> None:
    rows = list(search.rows("decoder-reduced", "float32", search.FORWARD, search.BANDS, CPU, 0.0, processes=2))
    assert [(row["choice"], row["failure"]) for row in rows] == [("BAND=0", None), ("BAND=8", None)]
    assert all(row["median_us"] > 0 for row in rows)

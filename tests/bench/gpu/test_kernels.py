"""Times of single kernels, and what was predicted of them."""

import re
from pathlib import Path

import pytest
import torch

from msdeform import fused_ms_deform_attn
from msdeform.bench.gpu import kernels, stages
from msdeform.bench.harness import records
from msdeform.bench.harness.results_file import ResultsFile
from msdeform.bench.operator.cases import CASES, Case
from msdeform.bench.operator.implementations import Implementation
from msdeform.bench.operator.jobs import Job, Kernels, Operator
from msdeform.bench.operator.runner import Settings

CPU = torch.device("cpu")


def test_the_longest_come_first_and_those_of_no_weight_are_left_out() -> None:
    launches = [("short", 1.0), ("long", 90.0), ("twice", 30.0), ("long", 110.0), *[("twice", 20.0)] * 3, ("no", 0.1)]
    found = kernels.summary(launches, passes=2)
    assert found["total_us"] == pytest.approx((1 + 200 + 90 + 0.1) / 2)
    assert [line["name"] for line in found["kernels"]] == ["long", "twice"]
    assert found["kernels"][1] == {"name": "twice", "launches": 2.0, "median_us": 20.0}


def test_a_row_has_the_parts_of_its_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_LEAST_SHARE", 0.0)  # on a busy machine one operator may wait for long
    monkeypatch.setitem(CASES, "small", Case("small", ((6, 5), (3, 2)), B=1, Q=7, H=2, D=4))

    def fused(*arguments: torch.Tensor) -> torch.Tensor:
        return fused_ms_deform_attn(*arguments, backend="reference")  # type: ignore[arg-type]

    [row] = kernels.rows(Kernels("small", "float32", "other"), Implementation("other", fused=fused, ours=True), CPU)
    assert (row["failure"], row["ours"]) == (None, True)
    assert any("grid_sampler" in line["name"] for line in row["kernels"])
    assert any("backward" in line["name"].lower() for line in row["kernels"])
    # what is wrong gets no times
    wrong = Implementation("other", fused=lambda *arguments: 1.001 * fused(*arguments))
    [row] = kernels.rows(Kernels("small", "float32", "other"), wrong, CPU)
    assert row["failure"].startswith("differs from float64 in output")
    assert row["total_us"] is row["kernels"] is None
    assert "differs from float64 in output" in kernels.table([row])
    [row] = kernels.rows(Kernels("small", "float32", "other"), Implementation("other"), CPU)
    assert row["failure"] == "it has no such function"


def test_predictions_stand_beside_what_was_measured(tmp_path: Path) -> None:
    lead = {"case": "odd", "dtype": "float32", "backend": "triton"}
    predicted = [
        lead | {"kind": "prediction", "part": part, "low_us": 80.0, "high_us": 120.0}
        for part in ("forward", "backward", "sort", "keys_kernel", "no_such")
    ]
    file = tmp_path / "predictions.jsonl"
    records.append(file, predicted)
    lines = [
        {"name": "DeviceRadixSortOnesweep", "launches": 4.0, "median_us": 40.0},
        {"name": "radix_sort_histogram", "launches": 1.0, "median_us": 5.0},
        {"name": "keys_kernel", "launches": 1.0, "median_us": 50.0},
    ]
    timed = lead | {"kind": "kernels", "total_us": 215.0, "kernels": lines, "failure": None}
    rows = Operator("odd", "grid", "float32", "fused_ms_deform_attn", "triton").unmeasured(None)
    rows[0]["median_us"] = 110.0
    rows += Operator("odd", "grid", "float32", "ms_deform_attn", "triton").unmeasured(None)
    text = kernels.beside_predictions(records.Records([timed, *rows]), file)
    assert text is not None
    found = {line.split()[3]: line.split()[4:] for line in text.splitlines()[1:]}
    assert found == {
        "forward": ["80.0", "to", "120", "110", "1.10"],
        "sort": ["80.0", "to", "120", "165", "1.65"],
        "keys_kernel": ["80.0", "to", "120", "50.0", "0.50"],
    }
    assert kernels.beside_predictions(records.Records([]), file) is None
    elsewhere = [row | {"device": "another GPU"} for row in (timed, *rows)]
    assert kernels.beside_predictions(records.Records(elsewhere), file) is None
    assert kernels.beside_predictions(records.Records([timed]), tmp_path / "none.jsonl") is None


def test_the_committed_predictions_are_of_things_that_are_measured() -> None:
    rows = records.read(kernels.PREDICTIONS).of("prediction")
    assert rows
    for row in rows:
        assert row["case"] in CASES
        assert 0 < row["low_us"] <= row["high_us"]
        assert row["basis"]
        assert row["device"]


# as PyTorch's profiler names what torch.sort launches, with CUDA 13
SORTING = "void at_cuda_detail::cub::detail::radix_sort::DeviceRadixSortOnesweepKernel<at_cuda_detail::cub::policy_hub"


def test_each_committed_prediction_finds_what_the_stages_measure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rows as the stages plan them, under the names that the kernels have, each of 1 microsecond."""
    launch = pytest.importorskip("msdeform.kernels.triton.launch")
    names = [getattr(launch, name).__name__ for name in dir(launch) if name.endswith("_kernel")]
    sources = (stages.ROOT / "kernels" / "cuda").glob("*.cu")
    names += [name for source in sources for name in re.findall(r"__global__ .*\b(msda_\w+)\(", source.read_text())]
    lines = [{"name": name, "launches": 1.0, "median_us": 1.0} for name in (*names, SORTING)]
    planned: list[Job] = []
    monkeypatch.setattr(stages, "measure", lambda jobs, *_: planned.extend(jobs) or 0)
    results = ResultsFile(tmp_path / "rows.jsonl", {"code": "c", "device": "cpu", "host_cpu": "x"})
    for stage in (stages.kernel_times, stages.operator_main):
        stage(stages.Run(Settings(CPU), results, quick=False))
    numbers = {"median_us": 1.0, "total_us": 9.0, "kernels": lines}
    committed = records.read(kernels.PREDICTIONS).of("prediction")
    rows = [row | numbers for job in planned for row in job.unmeasured(None)]
    for device in {row["device"] for row in committed}:
        text = kernels.beside_predictions(records.Records([row | {"device": device} for row in rows]))
        found = [tuple(line.split()[:4]) for line in (text or "").splitlines()[1:]]
        of_device = [row for row in committed if row["device"] == device]
        assert found == [tuple(row[name] for name in ("case", "dtype", "backend", "part")) for row in of_device]

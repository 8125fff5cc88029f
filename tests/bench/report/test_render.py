"""The documentation's tables and plots are those of the recorded rows, and claim nothing that was not measured."""

from pathlib import Path
from typing import Any

import pytest

from msdeform.bench.harness import records
from msdeform.bench.operator import bounds
from msdeform.bench.operator.jobs import Model, Operator, Training
from msdeform.bench.report import plots, render, tables
from msdeform.cli import main
from tests.house.project import ROOT

SOURCE = {
    "code": "c",
    "commit": "abcdef123",
    "dirty": False,
    "device": "cpu",
    "host_cpu": "Xeon",
    "host_threads": 1,
    "host_load": 1.5,
    "torch": "2.11",
    "triton": "3.6",
    "date": "2026-01-02T03:04:05",
}


def operator(
    backend: str, median: float | None, failure: str | None = None, case: str = "odd", **more: Any
) -> dict[str, Any]:
    row = Operator(case, "grid", "float32", "ms_deform_attn", backend).unmeasured(failure)[0]
    if median is not None:
        row |= {"median_us": median, "median_low_us": 0.98 * median, "median_high_us": 1.02 * median}
    return {**row, **SOURCE, **more}


PAIRED = {"ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.625, "baseline": "reference"}


def page(tmp_path: Path, *blocks: str) -> Path:
    """A README with these blocks, and an empty folder of documentation."""
    (tmp_path / "docs").mkdir(exist_ok=True)
    text = "".join(f"before\n<!-- rendered {name} -->\nold\n<!-- end of {name} -->\nafter\n" for name in blocks)
    (tmp_path / "README.md").write_text(text)
    return tmp_path / "README.md"


def run(tmp_path: Path, rows: list[dict[str, Any]], *words: str) -> int:
    results = tmp_path / "results"
    results.mkdir(exist_ok=True)
    (results / "rows.jsonl").unlink(missing_ok=True)
    if rows:
        records.append(results / "rows.jsonl", rows)
    return main(["bench", "render", "--root", str(tmp_path), "--results", str(results), *words])


def test_the_documentation_is_that_of_the_committed_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "render", "--check"]) == 0, capsys.readouterr().out + "run: msdeform bench render"


def test_every_block_stands_somewhere() -> None:
    text = "".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert all(f"<!-- rendered {name} -->" in text for name in render.BLOCKS)


def test_a_table_that_differs_from_its_rows_is_found_and_renewed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = page(tmp_path, "operator")
    rows = [operator("reference", 100.0), operator("core", 50.0, **PAIRED)]
    assert run(tmp_path, rows, "--check") == 1
    assert "README.md differs from its rows" in capsys.readouterr().out
    assert "old" in readme.read_text()
    assert run(tmp_path, rows) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| odd | grid | float32 | ms_deform_attn | forward | 100 | 50.0, 2.00x (1.60-2.50) |" in text
    assert "at commit abcdef1; 1 threads; torch 2.11, Triton 3.6; 1.5 to 1.5 threads wanted to run." in text
    assert run(tmp_path, rows, "--check") == 0
    readme.write_text(text.replace("2.00x", "3.00x"))
    assert run(tmp_path, rows, "--check") == 1


def test_a_plot_is_renewed_when_its_rows_change(tmp_path: Path) -> None:
    page(tmp_path, "operator")
    rows = [operator("reference", 100.0), operator("core", 50.0, **PAIRED)]
    run(tmp_path, rows)
    (plot,) = (tmp_path / "docs" / "plots").glob("*.svg")
    first = plot.read_bytes()
    assert b"times faster than reference" in first
    run(tmp_path, rows)
    assert plot.read_bytes() == first
    plot.unlink()
    assert run(tmp_path, rows, "--check") == 1
    rows[1] |= {"ratio": 0.6}
    run(tmp_path, rows)
    assert plot.read_bytes() != first


def test_a_block_nobody_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page(tmp_path, "operatr")
    assert run(tmp_path, []) == 1
    assert "no rendered block is called 'operatr'; did you mean operator?" in capsys.readouterr().err


def test_without_rows_nothing_is_claimed(tmp_path: Path) -> None:
    readme = page(tmp_path, *render.BLOCKS)
    assert run(tmp_path, []) == 0
    text = readme.read_text()
    assert text.count("No such row is recorded yet.") == 30
    assert "No row of a GPU is recorded yet" in text
    assert text.count("not trained") == 10
    assert text.count("not counted") == 20
    assert "fastest" not in text


def test_coverage_of_measured_rows_alone() -> None:
    rows = [
        operator("reference", 100.0),
        operator("core", 50.0),
        operator("mmcv", None, "differs from float64 in output: error 1"),
        operator("official", None, "crashed with signal 11 (SIGSEGV)"),
        operator("dcnv4", None, "it has no such function"),
        operator("core", 50.0, case="odd-wide-head"),
    ]
    lines = {line[0]: line[1:] for line in tables.coverage(rows, [{"backend": "cuda", "reason": "no CUDA device"}])}
    assert lines["implementation"] == ("odd", "odd-wide-head", "")
    assert lines["core"] == ("1 measured", "1 measured", "")
    assert lines["mmcv"] == ("1 differing", "not measured", "")
    assert lines["official"] == ("1 failed", "not measured", "")
    assert lines["dcnv4"] == ("1 has none", "not measured", "")
    assert lines["cuda"] == ("not measured", "not measured", "no CUDA device")
    assert lines["deformops"] == ("not measured", "not measured", "")
    # one cell has two that were measured
    assert tables.fastest(rows) == ["`core` was the fastest of those measured in 1 of 1 cells."]
    assert tables.fastest(rows[1:]) == []


def test_two_that_cannot_be_told_apart_have_no_fastest() -> None:
    rows = [operator("reference", 100.0), operator("core", 98.0)]
    assert tables.fastest(rows) == ["In 1 of 1 cells the first two cannot be told apart."]


def test_wrong_failed_and_noisy_are_said(tmp_path: Path) -> None:
    rows = [
        operator("reference", 100.0, noisy="it spread"),
        operator("mmcv", None, "differs from float64 in output"),
        operator("core", None, "crashed"),
    ]
    assert tables.speeds(rows)[1][5:] == ("100 (noisy)", "differs", "failed")


def floored(backend: str, median: float) -> dict[str, Any]:
    floors = bounds.floors(median, 200_000_000, 4e12, 46.4e6, 928e9)
    return operator(backend, median, device="NVIDIA H200", **floors)


def test_floors_of_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = page(tmp_path, "bounds")
    rows = [floored("triton", 100.0), floored("cuda", 400.0), operator("core", 1.0)]
    run(tmp_path, rows)
    text = readme.read_text()
    assert "| triton | 100 | 2000 | 50% | 50.0 | 50.0 | 50% | instruction issue |" in text
    assert "| core |" not in text
    out = tmp_path / "roof.svg"
    assert main(["bench", "roofline", "--results", str(tmp_path / "results"), "--out", str(out)]) == 0
    assert b"floor / measured time" in out.read_bytes()
    assert "drawn in" in capsys.readouterr().out
    assert len(tables.floors(plots.roofs(rows))) == 3


def test_a_roofline_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records.append(tmp_path / "rows.jsonl", [operator("core", 1.0)])
    assert main(["bench", "roofline", "--results", str(tmp_path)]) == 1
    assert "the results have no row of a GPU" in capsys.readouterr().err


def executed(implementation: str, count: float, **changes: Any) -> dict[str, Any]:
    where = {"implementation": implementation, "call": "forward plain", "kernel": "forward", "dtype": "float32"}
    numbers = {"warp_instructions": count, "wavefronts": 90.0, "sectors": 256.0, "reductions": 0.0}
    listed = {"shared_conflicts": 0.0, "ptx": 1000, "sass": 800, "registers": 64, "spilled_bytes": 0}
    place = {"case": "encoder-400x533", "arch": 90}
    return {"kind": "executed", **where, **place, **numbers, **listed, **SOURCE, **changes}


def test_our_cuda_backends_instructions_beside_the_official_ones(tmp_path: Path) -> None:
    readme = page(tmp_path, "instructions")
    run(tmp_path, [executed("cuda", 109.0), executed("official", 100.0)])
    assert "PTX instructions of `cuda` against the official kernel: forward plain, float32: +9%." in readme.read_text()
    run(tmp_path, [executed("cuda", 109.0)])
    assert "The official kernel's instructions were not counted." in readme.read_text()


def test_counts_and_what_they_were_before(tmp_path: Path) -> None:
    readme = page(tmp_path, "instructions", "before-and-after")
    rows = [executed("triton", 400.0), executed("triton", 410.0, case="decoder-400x533")]
    run(tmp_path, rows)
    text = readme.read_text()
    assert "| triton | forward plain | forward | 400 / - / - | 90.0 / - / - |" in text
    assert "**decoder-400x533**" in text
    assert "No count has changed since the first that were recorded." in text
    run(tmp_path, [*rows, executed("triton", 300.0, date="2026-02-03T00:00:00+00:00")])
    assert "| forward plain | forward | 400 to 300 | 90.0 to 90.0 |" in readme.read_text()


def test_detectors_counted_measured_and_trained(tmp_path: Path) -> None:
    readme = page(tmp_path, "models", "model-speeds", "training")
    speed = {"fps": 33.3, "peak_mb": 1234.0, "image": [800, 1201]}
    files = {"config": "c.json", "log": "l.jsonl", "checkpoint": "w.pt"}
    rows: list[dict[str, Any]] = [
        {"kind": "flops", "model": "detr_r50", "parameters": 41_520_000, "multiply_adds": 84.6e9},
        {
            "kind": "trained",
            "model": "detr_r50",
            "epochs": 500,
            "ap": 41.9,
            "ap_s": 20.0,
            "ap_m": 45.0,
            "ap_l": 61.0,
            **files,
        },
        Model("detr_r50", "published", "none", "float32", "eager", 1).unmeasured(None)[0] | speed,
        Model("detr_r50", "reduced published", "none", "float32", "eager", 4).unmeasured(None)[0]
        | {**speed, "fps": 987.0},
        Training("detr_r50", "training", "none", "float32", 2).unmeasured("out of memory")[0],
    ]
    run(tmp_path, [{**row, **SOURCE} for row in rows])
    text = readme.read_text()
    line = next(line for line in text.splitlines() if line.startswith("| DETR (`detr_r50`)"))
    assert "| 41 | 41.52 | 86 | 84.6 | 27.0 | 38.3 | 41.9, 20.0, 45.0, 61.0 ([config](c.json), [log](l.jsonl)" in line
    assert text.count("not trained") == 9
    assert "| detr_r50 | published | none | float32 | eager | 1 | 33.3 | 1234 | 800x1201 |" in text
    assert "987" not in text  # a reduced form is nobody's result
    assert "| detr_r50 | training | none | float32 | 2 | - | - | - | failed |" in text

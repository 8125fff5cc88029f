"""The table of launches: what it answers, what it refuses, and that each of its rows compiles as it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from msdeform.kernels.triton import launch, tune, tuning
from msdeform.kernels.triton.tuning import Choice

ROW: dict[str, Any] = {
    **{"kind": "forward", "arch": 90, "L": 4, "P": 4, "D": 32, "dtype": "float32", "queries": "decoder"},
    **{"block_q": 8, "num_warps": 2, "maxnreg": 64, "by": "instructions"},
}
COMMITTED = json.loads(tuning.TABLE.read_text())


def shapes(D: int = 32, Q: int = 300, S: int = 17821, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    value = torch.empty(2, S, 8, D, dtype=dtype, device="meta")
    return value, torch.empty(2, Q, 8, 4, 4, 2, device="meta"), torch.empty(2, Q, 8, 4, 4, device="meta")


@pytest.fixture
def one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice(ROW["block_q"], ROW["num_warps"], ROW["maxnreg"])
    monkeypatch.setattr(tuning, "_table", {tuning.key(ROW): choice})


def launched(arch: int | None, **dims: Any) -> tuple[int, dict[str, int]]:
    value, points, weights = shapes(**dims)
    parameters = launch.forward_parameters(value, None, points, weights, arch)
    return parameters["BLOCK_Q"], launch.forward_options(value, points, arch)


def test_a_class_in_the_table_is_launched_as_it_says(one_row: None) -> None:
    assert launched(90) == (8, {"num_warps": 2, "maxnreg": 64})


@pytest.mark.parametrize("other", [{"D": 16}, {"Q": 1025}, {"dtype": torch.bfloat16}])
def test_another_class_or_architecture_takes_the_rule(one_row: None, other: dict[str, Any]) -> None:
    by_rule = launched(None, **other)
    assert launched(90, **other) == by_rule
    assert launched(89) == launched(None) == (32, {"maxnreg": 116})


def test_where_a_decoder_ends(one_row: None) -> None:
    assert [tuning.bucket(queries) for queries in (0, 1, 1024, 1025, 17821)] == ["decoder"] * 3 + ["encoder"] * 2
    assert launched(90, Q=1024)[0] == 8
    assert launched(90, Q=1025)[0] == 32


def test_the_size_of_an_image_is_no_part_of_a_class(one_row: None) -> None:
    assert len({str(launched(90, S=S, Q=Q)) for S in (100, 17821, 60000) for Q in (100, 300, 900)}) == 1
    assert len({str(launched(90, S=S, Q=S)) for S in (1100, 17821, 60000)}) == 1


def test_float64_and_the_interpreter_know_no_table(one_row: None, monkeypatch: pytest.MonkeyPatch) -> None:
    value, points, weights = shapes()
    assert launch.forward_parameters(value, None, points.double(), weights, 90)["BLOCK_Q"] == 16
    assert tuning.find("forward", value, points, 90) is not None
    monkeypatch.setattr(tuning, "interpreting", lambda: True)
    assert tuning.find("forward", value, points, 90) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "expected a list of rows, got what is not JSON"),
        ("{}", "expected a list of rows, got dict"),
        ("[7]", "row 1: expected an object, got int"),
        (json.dumps([ROW, ROW]), "row 2: its class has a row already"),
        (json.dumps([{k: v for k, v in ROW.items() if k != "block_q"}]), "row 1: block_q is missing"),
        (json.dumps([{**ROW, "block_q": 12}]), "row 1: block_q: expected one of 1, 2, 4, .*, got 12"),
        (json.dumps([{**ROW, "num_warps": 3}]), "row 1: num_warps: expected one of 1, 2, 4, 8, 16, got 3"),
        (json.dumps([{**ROW, "maxnreg": 300}]), "row 1: maxnreg: expected 16 to 255 or null, got 300"),
        (json.dumps([{**ROW, "arch": "sm_90"}]), "row 1: arch: expected a number of at least 1, got 'sm_90'"),
    ],
)
def test_a_malformed_table_gets_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^tuning\.json(:|,) {sentence}") as caught:
        tuning.read(path)
    assert "\n" not in str(caught.value)


def test_rows_are_merged_by_class_and_time_goes_before_instructions(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    tune.merge(path, [ROW, {**ROW, "arch": 80}])
    tune.merge(path, [{**ROW, "block_q": 16, "by": "time"}])
    tune.merge(path, [ROW])
    rows = json.loads(path.read_text())
    assert [(row["arch"], row["block_q"], row["by"]) for row in rows] == [(80, 8, "instructions"), (90, 16, "time")]
    before = path.read_text()
    with pytest.raises(ValueError, match="num_warps"):
        tune.merge(path, [{**ROW, "arch": 70, "num_warps": 5}])
    assert path.read_text() == before, "nothing half-written"


def test_candidates_begin_with_the_rule() -> None:
    usual = tune.rule(32, 4, 4, torch.float32)
    assert usual == Choice(32, 4, 116)
    found = tune.candidates(usual)
    assert found[0] == usual
    assert len(set(found)) == len(found)


def test_tuning_by_time_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(SystemExit):
        tune.main(["--time"])
    assert "--time: torch finds no CUDA device" in capsys.readouterr().err


def test_the_committed_table_has_the_common_classes() -> None:
    table = tuning.read()
    for arch in (80, 90):
        for D, L, P in tune.CLASSES:
            for dtype in tuning.DTYPES:
                for queries in (tuning.DECODER, tuning.ENCODER):
                    assert ("forward", arch, L, P, D, dtype, queries) in table
    for row in COMMITTED:
        if row["by"] == "instructions":
            assert row["instructions_per_query_and_head"] <= row["of_the_rule"]
            if row["queries"] == tuning.DECODER:
                usual = tune.rule(row["D"], row["L"], row["P"], getattr(torch, row["dtype"]))
                assert row["block_q"] <= usual.block_q, "fewer programs than the rule has"


def _rows() -> list[Any]:
    marked = []
    for row in COMMITTED:
        quick = (row["D"], row["L"], row["dtype"], row["queries"]) == (32, 1, "float32", "encoder")
        name = "-".join(str(part) for part in tuning.key(row))
        marked.append(pytest.param(row, marks=[] if quick else [pytest.mark.slow], id=name))
    return marked


@pytest.mark.aot
@pytest.mark.parametrize("row", _rows())
def test_a_committed_row_compiles_as_it_says(row: dict[str, Any]) -> None:
    from msdeform.kernels.triton import aot

    shape = {name: row[name] for name in ("D", "L", "P")} | {"dtype": getattr(torch, row["dtype"])}
    shape["queries"] = 300 if row["queries"] == tuning.DECODER else 17821
    whole = aot.compile_kernel("forward", row["arch"], **shape)
    assert (whole.block_q, whole.num_warps) == (row["block_q"], row["num_warps"])
    assert whole.spills == 0
    assert whole.registers == row["registers"]
    executed = aot.compile_kernel("forward", row["arch"], fallback=False, **shape)
    assert executed.per_query == pytest.approx(row["instructions_per_query_and_head"], rel=0.02)


@pytest.mark.gpu
def test_every_candidate_is_right_before_it_is_timed() -> None:
    from msdeform.kernels import verify

    case = verify.Case(B=1, Q=300, H=8, D=32, P=4, sizes=tune._SIZES[4])
    tried = tune.candidates(tune.rule(32, 4, 4, torch.float32))
    assert tune.correct(tried, case, verify.make_inputs(case, "cuda")) == tried

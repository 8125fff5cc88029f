"""The script for a GPU machine: on a bare machine, in order, within its time, and going on where it stopped."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.bench.gpu import run, stages
from msdeform.bench.gpu.stages import Run, Stage
from msdeform.bench.harness import records
from msdeform.bench.harness.isolate import Stopped, logged
from msdeform.bench.harness.results_file import ResultsFile
from msdeform.bench.operator import runner
from msdeform.bench.operator.jobs import Correctness, Job
from msdeform.bench.options import ExplainOptions, SeedsOptions, TrainingOptions

ROOT = stages.ROOT
CPU = torch.device("cpu")
SOURCE: dict[str, Any] = {"code": "c", "device": "cpu", "host_cpu": "x"}
# what a bare machine with a GPU lacks: PyTorch, Triton, cuda-core, numpy, scipy, pillow, matplotlib, pytest and
# transformers with all that they need are there
LACKING = (
    *("rich", "pycocotools", "faster_coco_eval", "tensorboard", "timm", "onnx", "onnxruntime", "onnxscript"),
    "llvmlite",
    *("gradio", "fastapi", "hypothesis", "xdist", "pytest_timeout", "pytest_benchmark", "wandb", "mypy"),
)
# stands before Python's own start; metadata too, since pytest loads every plug-in that it finds the metadata of
BLOCK = """
import sys
LACKING = {lacking!r}
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in LACKING else self.finder.find_spec(name, *rest)
    def find_distributions(self, *arguments, **options):
        found = getattr(self.finder, "find_distributions", lambda *_, **__: ())(*arguments, **options)
        return (one for one in found if one.metadata["Name"].replace("-", "_") not in LACKING)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def on_a_bare_machine(folder: Path, *words: str, lacking: tuple[str, ...] = LACKING) -> tuple[str, list[records.Row]]:
    """What the script says where some packages cannot be imported, and its rows."""
    (folder / "start").mkdir(exist_ok=True)
    names = {*lacking, *(name.removeprefix("pytest_") for name in lacking)}
    (folder / "start" / "sitecustomize.py").write_text(BLOCK.format(lacking=names))
    environment = os.environ | {"PYTHONPATH": f"{folder / 'start'}{os.pathsep}{ROOT}"}
    for name in lacking:
        blocked = [sys.executable, "-c", f"import importlib.util as u; print(u.find_spec({name!r}))"]
        if name == lacking[0]:  # the block itself works
            assert subprocess.check_output(blocked, env=environment, text=True).strip() == "None"
    places = ["--out", str(folder / "out"), "--runs", str(folder / "runs")]
    command = [sys.executable, "-m", "msdeform.bench.gpu", "--quick", "--seconds", "0", *words, *places]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout, records.read(folder / "out").rows


def stages_of(rows: list[records.Row]) -> dict[str, records.Row]:
    return {row["stage"]: row for row in rows if row["kind"] == "stage"}


@pytest.mark.slow  # two minutes: every stage in processes of its own; the first ones run in the test below, too
@pytest.mark.timeout(900)
def test_the_whole_script_on_a_bare_machine(tmp_path: Path) -> None:
    said, rows = on_a_bare_machine(tmp_path)
    found = stages_of(rows)
    assert set(found) == {stage.name for stage in stages.STAGES} | {"machine"}
    assert [found[stage.name]["failure"] for stage in stages.STAGES] == [None] * len(stages.STAGES)
    skipped = {name: row["skipped"] for name, row in found.items() if row.get("skipped")}
    assert "not run: needs rich and faster_coco_eval and tensorboard" in skipped["training runs"]
    ran = {stage.name for stage in stages.STAGES if stage.name not in skipped}
    least = {"versions", "correctness", "kernels", "operator", "verify", "tests", "detector", "training step"}
    assert ran >= least | {"profiles", "explanations", "training options and loading"}
    by_stage = {"correctness", "kernels", "operator", "model", "training", "profile", "explanation", "loading"}
    assert {row["kind"] for row in rows} == by_stage | {"stage", "missing", "training-step"}
    measured = [row for row in rows if row["kind"] in ("operator", "model", "training")]
    assert {row["backend"] for row in measured} == {"reference", "core"}
    assert all(row["median_us"] > 0 for row in measured)
    assert all(row["method"].startswith("reduced ") for row in rows if row["kind"] in ("model", "training"))
    for row in rows:
        assert {"commit", "dirty", "code", "device", "torch", "date", "command"} <= set(row)
        assert str(tmp_path) not in json.dumps(row)
        assert "--stage" not in row["command"]
    # what comes back from a lent machine: eight files, two folders deep
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert {file.parent for file in files} == {tmp_path / "out"}
    assert len(files) <= 8
    assert "tests collected" in (tmp_path / "out" / "tests.log").read_text()
    assert "FAILED" not in said
    # the same command again has nothing left to do, and adds nothing
    again, more = on_a_bare_machine(tmp_path)
    assert "== " not in again
    assert len(more) == len(rows)


def test_without_torchvision_the_operator_is_measured_all_the_same(tmp_path: Path) -> None:
    names = ["versions", "correctness", "kernels", "detector", "training step", "explanations"]
    _, rows = on_a_bare_machine(tmp_path, "--only", *names, lacking=(*LACKING, "torchvision", "yaml", "transformers"))
    found = stages_of(rows)
    assert found["detector"]["skipped"] == found["explanations"]["skipped"] == "not run: needs torchvision"
    assert found["training step"]["skipped"] == "not run: needs torchvision and yaml"
    assert {row["kind"] for row in rows} == {"stage", "correctness", "kernels"}


def test_no_stage_needs_more_than_it_says(tmp_path: Path) -> None:
    """Nothing that the first stages import is more than the operator has to have."""
    modules = "msdeform.bench.gpu.stages, msdeform.bench.operator.runner"
    code = f"import sys, {modules}; print(*{{one.split('.')[0] for one in sys.modules}})"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split())
    assert not loaded & {*LACKING, "torchvision", "PIL", "matplotlib", "scipy", "yaml", "transformers"}
    # nor anything that stages of detectors and training import more than they name
    modules = (
        "msdeform.bench.models.table, msdeform.bench.models.explanations.cost, msdeform.bench.models.training.benchmark"
    )
    code = f"import sys, {modules}; print(*{{one.split('.')[0] for one in sys.modules}})"
    assert not set(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()) & {*LACKING}


def stage(name: str, seconds: float = 100.0, **more: Any) -> Stage:
    return Stage(name, lambda run: None, "one.log", seconds, gpu=False, **more)


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Three stages in place of the real ones, whose processes are replaced: what each answers by its name, a status
    and a last line or an error; and in ``did``, name and limit of those that ran."""
    answers: dict[str, Any] = {"did": []}

    def answer(command: list[str], log: Path, limit: float, title: str) -> tuple[int, str]:
        answers["did"].append((title, round(limit), "--retry" in command))
        found = answers.get(title, (0, "fine"))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(run, "logged", answer)
    monkeypatch.setattr(stages, "STAGES", (stage("first"), stage("second"), stage("third", 3000.0)))
    return answers


def test_what_failed_is_tried_again_after_the_rest_and_what_passed_is_not(
    acts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    acts["first"] = (1, "a wrong gradient")
    call = ["--quick", "--out", str(tmp_path), "--minutes"]
    assert run.main([*call, "3"]) == 1  # the third stage has less than its limit here, and uses it up
    assert "FAILED\n  first: a wrong gradient" in capsys.readouterr().out
    assert [name for name, _, _ in acts["did"]] == ["first", "second", "third"]
    assert stages_of(records.read(tmp_path).rows)["first"]["failure"] == "a wrong gradient"

    acts["did"].clear()
    del acts["first"]
    stages.STAGES += (stage("fourth"),)  # type: ignore[assignment]
    assert run.main([*call, "3"]) == 0
    assert [(name, retried) for name, _, retried in acts["did"]] == [("fourth", False), ("first", True)]
    acts["did"].clear()
    assert run.main([*call, "3"]) == 0
    assert acts["did"] == []
    assert run.main([*call, "3", "--again", "--only", "second"]) == 0
    assert [name for name, _, _ in acts["did"]] == ["second"]


def test_the_time_of_a_call_that_ends_is_no_failure_of_a_stage(
    acts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    acts["third"] = Stopped("x")
    call = ["--quick", "--out", str(tmp_path), "--minutes"]
    assert run.main([*call, "5"]) == 0
    said = capsys.readouterr().out
    # on a busy machine the stages before it take seconds
    assert re.search(r"left for the next call of this command\n  third \(not done after (29\d|300) s: stopped\)", said)
    assert "third" not in stages_of(records.read(tmp_path).rows)
    # with all the time that it may take, it is
    acts["did"].clear()
    assert run.main([*call, "60"]) == 1
    assert acts["did"] == [("third", 3020, False)]
    assert stages_of(records.read(tmp_path).rows)["third"]["failure"] == "not done after 3000 s: stopped"
    # nothing begins in the last seconds of a call
    acts["did"].clear()
    run.main([*call, "0.3", "--again"])
    assert acts["did"] == []


def test_earlier_rows_may_lie_elsewhere(acts: dict[str, Any], tmp_path: Path) -> None:
    run.main(["--quick", "--out", str(tmp_path / "one"), "--only", "first"])
    acts["did"].clear()
    run.main(["--quick", "--out", str(tmp_path / "two"), "--known", str(tmp_path / "one")])
    assert [name for name, _, _ in acts["did"]] == ["second", "third"]


def test_rows_of_other_benchmarks_go_on_too(acts: dict[str, Any], tmp_path: Path) -> None:
    """They have a digest of their own code, by which they are looked for."""
    run.main(["--quick", "--out", str(tmp_path / "one"), "--only", "first"])
    [own] = records.read(tmp_path / "one").rows
    step = dict.fromkeys(records.KEYS["training-step"], "x") | {"kind": "training-step"}
    place = {name: own[name] for name in records.PLACE}
    others = [{**step, **place, "code": "another"}, {**step, **place, "device": "another GPU"}]
    records.append(tmp_path / "one" / "rows.jsonl", others)
    run.main(["--quick", "--out", str(tmp_path / "two"), "--known", str(tmp_path / "one"), "--minutes", "0"])
    assert records.read(tmp_path / "two").rows == [own, others[0]]


def test_what_a_machine_lacks_is_said_and_looked_for_again(acts: dict[str, Any], tmp_path: Path) -> None:
    lacking = stage("lacking", packages=("no_such_package",), program="no-such-program")
    stages.STAGES = (lacking, Stage("device", lambda run: None, "one.log", 9.0))  # type: ignore[assignment]
    for _ in range(2):
        assert run.main(["--quick", "--out", str(tmp_path)]) == 0
        found = records.read(tmp_path).rows
        expected = "not run: needs no_such_package and no-such-program, which comes with the CUDA toolkit"
        assert [row["skipped"] for row in found] == [expected, "not run: needs a CUDA device, and torch finds none"]
    assert acts["did"] == []


def test_a_process_that_takes_too_long_is_stopped_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    code = f"""
import subprocess, sys, time
print("begun", flush=True)
subprocess.Popen([sys.executable, "-c", {child!r}])
time.sleep(60)
"""
    begun = time.monotonic()
    with pytest.raises(Stopped, match="not done after 2 s"):
        logged([sys.executable, "-c", code], tmp_path / "a.log", 2.0, "a stage")
    assert time.monotonic() - begun < 4
    assert "begun" in (tmp_path / "a.log").read_text()
    time.sleep(4)
    assert not mark.exists()


def test_a_call_that_is_killed_leaves_no_stage_behind(tmp_path: Path) -> None:
    """Nor what the stage runs: a lent machine goes on to the next call with whatever still computes."""
    stage = """
import subprocess, sys, time
from msdeform.bench.harness.isolate import watch_parent
watch_parent(group=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
    call = f"""
import sys
from pathlib import Path
from msdeform.bench.harness.isolate import logged
logged([sys.executable, "-c", {stage!r}], Path({str(tmp_path / "a.log")!r}), 60.0, "a stage")
"""
    process = subprocess.Popen([sys.executable, "-c", call], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = Path("/proc") / process.stdout.readline().strip()
    assert child.exists()
    process.kill()
    process.wait()
    end = time.monotonic() + 15
    while child.exists() and time.monotonic() < end:
        time.sleep(0.2)
    assert not child.exists()


def test_a_process_says_how_it_ended(tmp_path: Path) -> None:
    code = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    assert logged([sys.executable, "-c", code], tmp_path / "a.log", 30.0, "a stage") == (3, "two")
    assert logged([sys.executable, "-c", "print('three')"], tmp_path / "a.log", 30.0, "b stage") == (0, "three")
    text = (tmp_path / "a.log").read_text()
    assert text.index("== a stage") < text.index("one") < text.index("two") < text.index("== b stage")


def run_of(tmp_path: Path, deadline: float = float("inf"), *, quick: bool = False, retry: bool = False) -> Run:
    results = ResultsFile(tmp_path / "rows.jsonl", SOURCE, retry=retry)
    return Run(runner.Settings(CPU, deadline=deadline), results, quick)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[list[Job]]:
    """The jobs of the stages that run, none of them measured."""
    seen: list[list[Job]] = []

    def note(jobs: list[Job], settings: runner.Settings, results: ResultsFile, processes: int = 1) -> int:
        seen.append(list(jobs))
        return 0

    monkeypatch.setattr(stages, "measure", note)
    return seen


def test_the_most_important_comes_first() -> None:
    names = [one.name for one in stages.STAGES]
    first = ["versions", "correctness", "operator", "kernels", "counters", "detector", "detector, compiled", "profiles"]
    assert names[: len(first)] == first
    assert names[-1] == "training runs"
    assert len(names) == len(set(names))
    assert len({one.log for one in stages.STAGES}) <= 7
    # with its grace, the longest fits a call on a lent machine, ten minutes
    assert max(one.seconds for one in stages.STAGES) + run._GRACE <= 610
    # the first row comes at once, and the operator's times have half of the first call even if all before takes long
    assert sum(one.seconds for one in stages.STAGES[:3]) <= 700
    assert sum(one.seconds for one in stages.STAGES[:2]) <= 300


def test_correctness_takes_every_dtype_and_backend_at_the_main_shapes(planned: list[list[Job]], tmp_path: Path) -> None:
    stages.correctness(run_of(tmp_path))
    [jobs] = planned
    found = {(job.case, job.dtype, job.function, job.backend) for job in jobs if isinstance(job, Correctness)}
    for case in ("encoder-800x1066-b2", "decoder-800x1066"):
        for dtype in ("float32", "bfloat16", "float16", "float64"):
            for function in ("ms_deform_attn", "fused_ms_deform_attn"):
                ours = {"triton", "triton-sorted", "cuda"} | ({"triton-tiles"} if dtype != "float64" else set())
                assert {job[3] for job in found if job[:3] == (case, dtype, function)} == ours
    assert {job.case for job in jobs[:24]} == {"encoder-800x1066-b2", "decoder-800x1066"}  # type: ignore[union-attr]
    stages.kernel_times(run_of(tmp_path))
    assert {"triton", "triton-sorted", "triton-tiles", "cuda"} <= {job.backend for job in planned[1]}


def test_detectors_by_the_published_method(planned: list[list[Job]], tmp_path: Path) -> None:
    by_name = {one.name: one.function for one in stages.STAGES}
    for name in ("detector", "detectors", "detector, compiled"):
        by_name[name](run_of(tmp_path, deadline=0.0))
    one, every, compiled = (
        {(job.model, job.batch, job.dtype, job.backend) for job in jobs}  # type: ignore[union-attr]
        for jobs in planned
    )
    for batch in (1, 4):
        for dtype in ("float32", "bfloat16"):
            assert ("detr_r50_dc5_plus", batch, dtype, "none") in every
            for ours in ("triton", "cuda", "reference"):
                assert ("deformable_detr_r50_two_stage", batch, dtype, ours) in every
                assert ("deformable_detr_r50", batch, dtype, ours) in one
    # the first of them are of one detector, which is what is compared first, and triton's before all
    assert len(one) == 12
    assert compiled == {cell for cell in one if cell[1] == 1}
    backends = [list(dict.fromkeys(job.backend for job in jobs)) for jobs in planned]
    assert backends == [["triton", "cuda", "reference"], ["triton", "none", "cuda", "reference"], backends[0]]


def test_every_stage_in_its_full_form(
    planned: list[list[Job]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that a machine with a GPU does, its measurements left out; in this process."""
    from msdeform.bench.gpu import profile
    from msdeform.bench.models.explanations import cost as explain
    from msdeform.bench.models.training import benchmark as training
    from msdeform.bench.models.training import seeds

    said: list[str] = []
    asked: list[Any] = []

    def say(self: Run, command: list[str], name: str, environment: dict[str, str] | None = None) -> None:
        said.append(name)

    def act(options: Any) -> int:
        asked.append(options)
        return 0

    def rows(case: str, dtype: str, kernel: str, choices: Any, *_: Any) -> Any:
        lead = {"kind": "variant", "case": case, "dtype": dtype, "kernel": kernel, "median_us": 1.0, "ratio": 1.0}
        wrong = {"failure": "differs from float64 in output", "ratio_low": 1.0, "ratio_high": 1.0}
        return ({**lead, **wrong, "choice": stages.search.described(choice)} for choice in choices)

    def profiled(what: str, backend: str, device: torch.device) -> records.Row:
        failure = "out of memory" if what == "deformable_detr_r50" and backend == "cuda" else None
        lead = {"kind": "profile", "what": what, "backend": backend, "failure": failure}
        return lead | {"longest": [], "total_us": 1.0}

    monkeypatch.setattr(Run, "run", say)
    monkeypatch.setattr(stages.search, "rows", rows)
    monkeypatch.setattr(stages.implementations, "absent", lambda name, device: None)
    monkeypatch.setattr(stages.host_time, "measure", lambda *_: [])
    monkeypatch.setattr(profile, "profile", profiled)
    monkeypatch.setenv("PATH", str(tmp_path))
    for command in (training, explain, seeds):
        monkeypatch.setattr(command, "measure_rows", act)
    run = run_of(tmp_path, deadline=time.monotonic() + 600)
    for one in stages.STAGES:
        one.function(run)
    kinds = [jobs[0].kind for jobs in planned]
    expected = ["correctness", "operator", "kernels", "model", "model", "training", "model", "training"]
    assert kinds == [*expected, *["operator"] * 2, *["model"] * 2, "operator"]
    compiled = [{getattr(job, "mode", job.backend.rpartition("-")[2]) for job in jobs} for jobs in planned]
    assert [i for i, names in enumerate(compiled) if "compiled" in names] == [4, 11, 12]
    # of our backends, whose rows come first, every one by itself
    assert [job.backend for job in planned[1]][:5] == ["triton"] * 5
    assert not {"gather", "triton-deterministic"} & {job.backend for job in planned[1]}
    main = {(job.backend, job.case) for job in planned[8]}  # type: ignore[union-attr]
    assert {(name, case) for name in ("gather", "triton-deterministic") for case in stages.MAIN} <= main
    cells = [(one, dtype) for one in ("triton", "cuda") for dtype in ("float32", "float64", "float16", "bfloat16")]
    assert said[:2] == ["pytest -m gpu", "pytest -m gpu"]
    assert sorted(said[2:10]) == sorted(f"memcheck of {backend}, {dtype}" for backend, dtype in cells)
    assert sorted(said[10:18]) == sorted(f"verify --backend {backend} --dtype {dtype}" for backend, dtype in cells)
    assert said[18:] == ["pytest -m gpu"]
    assert len(asked) == 5
    # of what can run there, without backends that are for a CPU or for exports
    assert all(options.backends == ("triton", "cuda", "reference") for options in asked)
    assert run.unfinished == []
    assert "deformable_detr_r50, cuda: out of memory" in run.failures
    assert "ncu is not installed (it comes with the CUDA toolkit)" in run.failures
    assert (
        sum(failure.endswith("differs from float64 in output") for failure in run.failures) == 22
    )  # two bands, three walks, six tiles, two dtypes
    # variants that are recorded are not measured again
    monkeypatch.setattr(stages.search, "rows", lambda *_: pytest.fail("measured again"))
    again = run_of(tmp_path, deadline=time.monotonic() + 600)
    stages.variants(again)
    assert len(again.failures) == 22


def test_a_wrong_row_fails_its_stage_until_it_is_measured_right(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong: list[str | None] = ["differs from float64 in output"]

    def measured(jobs: list[Job], settings: runner.Settings, results: ResultsFile, processes: int = 1) -> int:
        for job in (job for job in jobs if results.to_measure(*job.cells())):
            for row in job.unmeasured(wrong[0] if job.backend == "reference" else None):
                results.add(row | {"ours": True})
        return 0

    monkeypatch.setattr(stages, "measure", measured)
    for retry in (False, False, True):  # that it is recorded makes it no more right
        run = run_of(tmp_path, quick=True, retry=retry)
        stages.correctness(run)
        assert len(run.failures) == 32
        assert (
            "encoder-reduced, grid, float32, ms_deform_attn, forward, reference: differs from float64 in output"
            in run.failures
        )
    wrong[0] = None
    run = run_of(tmp_path, quick=True, retry=True)
    stages.correctness(run)
    assert run.failures == []


def test_a_backend_of_ours_that_is_not_here_fails_correctness(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    stages.correctness(run)  # the whole of it, on a machine without a GPU
    assert {failure.partition(" was not checked: ")[0] for failure in run.failures} == {
        "cuda",
        "triton",
        "triton-sorted",
        "triton-tiles",
    }


@pytest.mark.parametrize("quick", [False, True])
def test_training_gets_the_time_that_is_left(quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from msdeform.bench.models.explanations import cost as explain
    from msdeform.bench.models.training import benchmark as training
    from msdeform.bench.models.training import seeds

    run = run_of(tmp_path, deadline=time.monotonic() + 180, quick=quick)
    asked: list[Any] = []

    def note(options: Any) -> int:
        asked.append(options)
        return 4 if isinstance(options, SeedsOptions) else 0

    for command in (training, explain, seeds):
        monkeypatch.setattr(command, "measure_rows", note)
    by_name = {one.name: one.function for one in stages.STAGES}
    for name in ("parts of a training step", "explanations", "training runs"):
        by_name[name](run)
    assert [type(options) for options in asked] == [TrainingOptions, ExplainOptions, SeedsOptions]
    for options in asked:
        assert 1.5 < options.minutes <= 3
        assert options.quick == quick
        assert options.out == tmp_path / "rows.jsonl"
    assert asked[2].minutes <= 2  # a training run has to save
    assert run.unfinished == ["seeds: 4"]
    # less than a minute is nothing to begin such a command with
    run.settings.deadline = time.monotonic() + 30
    by_name["explanations"](run)
    assert run.unfinished[1:] == ["explanations: less than a minute was left"]


def test_every_test_of_the_device_is_run() -> None:
    marked = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("*.py")
        if "mark.gpu" in file.read_text() and file.name != "test_gpu.py"
    }
    paths = (*stages.TESTS, *stages.TIMING_TESTS, *stages.DETECTOR_TESTS)
    assert all((ROOT / path).exists() for path in paths)
    assert [name for name in sorted(marked) if not name.startswith(paths)] == []


@pytest.mark.parametrize("status", [0, 9])
def test_memcheck_runs_under_the_sanitizer(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each backend and dtype: one that takes too long costs what it says alone."""
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(f"#!/bin/sh\necho $PYTORCH_NO_CUDA_MEMORY_CACHING $@ >> {tmp_path}/words\nexit {status}\n")
    sanitizer.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    run = run_of(tmp_path, deadline=time.monotonic() + 60)
    stages.memcheck(run)
    lines = (tmp_path / "words").read_text().splitlines()
    assert all(line.startswith("1 --tool memcheck --error-exitcode 9 ") for line in lines)
    cells = [(one, dtype) for one in ("cuda", "triton") for dtype in ("bfloat16", "float16", "float32", "float64")]
    assert sorted(line.partition(" verify ")[2] for line in lines) == [f"--backend {a} --dtype {b}" for a, b in cells]
    expected = [f"memcheck of {a}, {b}: exit status 9: " for a, b in cells] * (status > 0)
    assert sorted(run.failures) == expected


@pytest.mark.parametrize(
    ("wrong", "failures", "unfinished"), [("", 0, 1), ("assert i", 1, 0)], ids=["right", "one is wrong"]
)
def test_tests_end_in_time_with_what_they_found(
    wrong: str, failures: int, unfinished: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytest_timeout")
    text = "import pytest, time\n@pytest.mark.gpu\n@pytest.mark.parametrize('i', range(60))\ndef test_it(i):\n"
    (tmp_path / "test_slow.py").write_text(f"{text}    time.sleep(0.5)\n    {wrong}\n")
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a device\n")
    run = run_of(tmp_path, deadline=time.monotonic() + stages._ENDING + 6)
    stages._tests(run, ["test_slow.py"], processes=1)
    assert (len(run.failures), len(run.unfinished)) == (failures, unfinished)
    assert "passed" in (run.failures + run.unfinished)[0]


def test_a_stage_runs_in_this_process_and_says_its_failure_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(run: Run) -> None:
        assert 40 < run.seconds_left <= 50
        run.failures.append("a wrong gradient")

    monkeypatch.setattr(stages, "STAGES", (Stage("one", act, "one.log", 100.0),))
    assert run.main(["--quick", "--out", str(tmp_path), "--stage", "one", "--limit", "50"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "a wrong gradient"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["--quik"], "did you mean --quick"), (["--only", "kernel"], "no stage is called 'kernel'; did you mean kernels")],
)
def test_a_slip(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run.main(words)
    assert exit_.value.code == 2
    assert sentence in capsys.readouterr().err

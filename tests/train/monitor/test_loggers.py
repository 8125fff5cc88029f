"""TensorBoard, Weights & Biases and MLflow, as callbacks of a run."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from msdeform.train.config.options import Logging
from msdeform.train.monitor.callbacks import EndEvent, EvaluationEvent, StepEvent
from msdeform.train.monitor.loggers import Logger, loggers_of, tagged

PICTURE = Image.new("RGB", (8, 6))


def logger(folder: Path, step: int = 0, **asked: str) -> Logger:
    """The one logger that is asked for; TensorBoard where none is."""
    [found] = loggers_of(Logging(tensorboard=not asked, **asked), folder, {"optim": {"lr": 0.1}}, step)
    return found


def step_event(folder: Path, step: int, loss: float, *, logged: bool = True) -> StepEvent:
    return StepEvent(folder, step, 0, 9, {"loss": loss}, logged)


def evaluation(folder: Path, step: int) -> EvaluationEvent:
    metrics = {"AP": 0.5, "per_class": {"cat": 0.25}}
    return EvaluationEvent(folder, step, 1, metrics, True, {"predictions": PICTURE})


def test_loggers_group_numbers_and_keep_the_last_layer_apart() -> None:
    values = {"step": 3, "epoch": 0, "loss": 7, "loss_ce": 1.0, "loss_ce_0": 2.0, "loss_giou_enc": 3.0, "finite": 1.0}
    values |= {"class_error": 4.0, "cardinality_error_0": 5.0, "lr_main": 0.1, "grad_norm": 6.0}
    values |= {"data_s": 0.2}
    values |= {"loss_box_reg": 8.0, "scale": 2.0, "anything": 9.0, "ema": True, "name": "text"}
    assert tagged("step", values) == {
        "loss/total": 7.0,
        "loss/ce": 1.0,
        "loss/box_reg": 8.0,
        "loss_auxiliary/ce_0": 2.0,
        "loss_auxiliary/giou_enc": 3.0,
        "error/class": 4.0,
        "error_auxiliary/cardinality_0": 5.0,
        "lr/main": 0.1,
        "gradient/norm": 6.0,
        "gradient/finite": 1.0,
        "gradient/scale": 2.0,
        "speed/data_s": 0.2,
        "step/anything": 9.0,
    }
    epoch = {"step": 8, "epoch": 1, "AP": 0.5, "AP_L": -1.0, "val_loss_ce": 0.3, "seconds": 2.0, "ema": True}
    assert tagged("epoch", {**epoch, "per_class": {"traffic light": 0.25, "cat": -1.0}}) == {
        "val/AP": 0.5,
        "val/loss_ce": 0.3,
        "speed/evaluation_s": 2.0,
        "val/class/traffic_light_AP": 0.25,
    }
    assert tagged("start", {"step": 0}) == {}


def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = logger(tmp_path)
    for step in range(1, 7):
        log.on_step(step_event(tmp_path, step, float(step)))
    log.on_end(EndEvent(tmp_path, 6, "stopped"))
    log = logger(tmp_path, step=3)
    log.on_step(step_event(tmp_path, 4, 40.0))
    log.on_step(step_event(tmp_path, 5, 50.0, logged=False))
    log.on_evaluation(evaluation(tmp_path, 4))
    log.on_end(EndEvent(tmp_path, 4, "finished"))
    seen = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in seen.Scalars("loss/total")] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert [event.value for event in seen.Scalars("val/class/cat_AP")] == [0.25]
    assert (seen.Images("predictions")[0].width, seen.Images("predictions")[0].height) == (8, 6)


class FakeRun:
    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = False

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """A package wandb that keeps what it is given; its runs."""
    runs: list[FakeRun] = []
    module = types.ModuleType("wandb")

    def init(**arguments: Any) -> FakeRun:
        runs.append(FakeRun(**arguments))
        return runs[-1]

    module.init = init  # type: ignore[attr-defined]
    module.Image = lambda image: ("image", image.size)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_weights_and_biases_goes_on_with_the_same_run(wandb: list[FakeRun], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for step in (0, 5, 0):
        log = logger(folder, step, wandb="shapes")
        log.on_step(step_event(folder, step + 1, 2.0))
        log.on_evaluation(EvaluationEvent(folder, step + 1, 1, {}, True, {"predictions": PICTURE}))
        log.on_end(EndEvent(folder, step + 1, "finished"))
    first, resumed, anew = wandb
    assert first.arguments["project"] == "shapes"
    assert first.arguments["name"] == "mine"
    assert first.arguments["config"] == {"optim": {"lr": 0.1}}
    assert first.logged == [
        (1, {"loss/total": 2.0}),
        (1, {}),
        (1, {"predictions": ("image", (8, 6))}),
    ]
    assert first.finished
    assert resumed.arguments["id"] == first.arguments["id"]
    assert resumed.arguments["resume"] == "allow"
    assert anew.arguments["id"] != first.arguments["id"]


def test_a_run_that_will_not_start_is_told_in_one_sentence(wandb: list[FakeRun], tmp_path: Path) -> None:
    def refuse(**arguments: Any) -> FakeRun:
        raise Exception("no API key configured\nuse wandb login")

    sys.modules["wandb"].init = refuse  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"^wandb: no run of project 'shapes' could be started: no API key.*\)$"):
        logger(tmp_path, wandb="shapes")


class FakeClient:
    """MLflow's client, with what it was told, over all clients."""

    told: list[tuple[str, Any]]
    experiments: dict[str, str]

    def get_experiment_by_name(self, name: str) -> Any:
        return types.SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = f"experiment {name}"
        return self.experiments[name]

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.told.append(("run", (experiment, run_name)))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run {len(self.told)}"))

    def log_batch(self, run: str, metrics: list[Any] = (), params: list[Any] = ()) -> None:  # type: ignore[assignment]
        self.told += [(f"{run} {name}", (value, step)) for name, value, _, step in metrics]
        self.told += [(f"{run} {name}", value) for name, value in params]

    def log_image(self, run: str, image: Image.Image, artifact_file: str) -> None:
        self.told.append((f"{run} {artifact_file}", image.size))

    def update_run(self, run: str, status: str) -> None:
        self.told.append((run, status))

    def set_terminated(self, run: str, status: str) -> None:
        self.told.append((run, status))


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    FakeClient.told, FakeClient.experiments = [], {}
    module = types.ModuleType("mlflow")
    module.MlflowClient = FakeClient  # type: ignore[attr-defined]
    module.entities = types.SimpleNamespace(Metric=lambda *values: values, Param=lambda *values: values)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return FakeClient.told


def test_mlflow_goes_on_with_the_same_run(mlflow: list[tuple[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    log = logger(folder, mlflow="shapes")
    log.on_step(step_event(folder, 1, 2.0))
    log.on_step(step_event(folder, 2, 3.0, logged=False))
    log.on_evaluation(evaluation(folder, 2))
    log.on_end(EndEvent(folder, 2, "stopped"))
    logger(folder, 2, mlflow="shapes").on_end(EndEvent(folder, 3, "failed"))
    assert mlflow == [
        ("run", ("experiment shapes", "mine")),
        ("run 1 lr", "0.1"),
        ("run 1 loss/total", (2.0, 1)),
        ("run 1 val/AP", (0.5, 2)),
        ("run 1 val/class/cat_AP", (0.25, 2)),
        ("run 1 predictions-00000002.png", (8, 6)),
        ("run 1", "KILLED"),
        ("run 1", "RUNNING"),
        ("run 1", "FAILED"),
    ]
    logger(folder, 0, mlflow="shapes")  # another run, in the experiment that is there
    assert mlflow[9] == ("run", ("experiment shapes", "mine"))


def absent(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)


def a_folder_of_that_name(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, types.ModuleType(package))


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
@pytest.mark.parametrize("missing", [absent, a_folder_of_that_name])
def test_a_missing_package_is_said_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: Callable[[str, pytest.MonkeyPatch], None], package: str
) -> None:
    missing(package, monkeypatch)
    told = f"--{package} shapes needs the package {package}, which is not installed: pip install {package}"
    with pytest.raises(ValueError, match=f"^{package}: {told}$"):
        logger(tmp_path / "run", **{package: "shapes"})
    assert not (tmp_path / "run").exists()

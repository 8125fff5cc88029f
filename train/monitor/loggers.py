"""Where a run's numbers and pictures can be looked at while it goes on: TensorBoard, Weights & Biases and MLflow."""

import importlib
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...common.files import atomic_file
from ..config.options import Logging, flatten
from .callbacks import Callback, EndEvent, EvaluationEvent, StepEvent

# the files in a run's folder that hold the id of its run there
WANDB_ID = "wandb-id"
MLFLOW_ID = "mlflow-id"
# by package: a name that it has, and a folder of that name has not
_NEEDED = {"wandb": "init", "mlflow": "MlflowClient"}
_MLFLOW_TEXT = 6000  # characters of a parameter

# where a point is, and of how many steps it is the mean
_NOT_SHOWN = ("step", "epoch", "time", "steps")
# by event: names, and the tags that loggers group them by; the first that fits counts
_TAGS = {
    "step": (
        (r"loss", "loss/total"),
        (r"loss_(.+(?:_\d+|_enc))", r"loss_auxiliary/\1"),
        (r"(.+)_error(_\d+|_enc)", r"error_auxiliary/\1\2"),
        (r"(.+)_error", r"error/\1"),
        (r"(loss|lr)_(.+)", r"\1/\2"),
        (r"(images_per_s|data_s|step_s|left_s|memory_mb)", r"speed/\1"),
        (r"(?:grad_)?(norm|finite|scale)", r"gradient/\1"),
        (r"(.+)", r"step/\1"),
    ),
    "epoch": ((r"seconds", "speed/evaluation_s"), (r"(?:val_)?(.+)", r"val/\1")),
}


def tagged(event: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an event under the names that loggers group by: ``loss/ce``, ``lr/main``, ``val/AP``, ...

    The losses of the last layer are in ``loss``, those of the others, and of the encoder, in ``loss_auxiliary``. AP
    and AR of a size that nothing annotated has are -1, and left out.
    """
    tags, found = _TAGS.get(event, ()), {}
    for name, value in values.items() if tags else ():
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NOT_SHOWN:
            tag = next(match.expand(tag) for known, tag in tags if (match := re.fullmatch(known, name)))
            found[tag] = float(value)
    for name, ap in (values.get("per_class") or {}).items() if event == "epoch" else ():
        found[f"val/class/{re.sub(r'[^-.0-9A-Za-z]', '_', name)}_AP"] = float(ap)
    return {tag: value for tag, value in found.items() if event != "epoch" or value != -1}


class Logger(Callback):
    """A callback that shows the numbers of logged steps and evaluations under their tags, and pictures."""

    def numbers(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        raise NotImplementedError

    def on_step(self, event: StepEvent) -> None:
        if event.logged:
            self.numbers(tagged("step", event.numbers), event.step)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        self.numbers(tagged("epoch", event.metrics), event.step)
        for name, picture in event.pictures.items():
            self.picture(name, picture, event.step)


class TensorBoard(Logger):
    """TensorBoard's files in ``folder/tensorboard``. What earlier writers wrote after ``step`` is hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # a thread writes; a longer queue than its default keeps the training from waiting for it
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1, max_queue=1000, flush_secs=30)

    def numbers(self, values: dict[str, float], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        # in one event: an add_scalar for each takes several times as long
        numbers = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._writer._get_file_writer().add_summary(Summary(value=numbers), step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def on_end(self, event: EndEvent) -> None:
        self._writer.close()


class WeightsAndBiases(Logger):
    """A run at Weights & Biases, named after the folder; a run that goes on from a step above 0 is the same one there.

    Of steps that are done again after resuming, what came first stays: it takes no point earlier than the last.

    Raises:
        ValueError: the package is not installed.
        RuntimeError: it would not start a run.
    """

    def __init__(self, folder: Path, project: str, settings: dict[str, Any], step: int) -> None:
        self._wandb = import_logger("wandb", project)
        path = folder / WANDB_ID
        known = step > 0 and path.is_file()
        run_id = path.read_text(encoding="utf-8").strip() if known else secrets.token_hex(4)
        if not known:
            with atomic_file(path) as file:
                file.write(run_id.encode())
        try:
            self._run = self._wandb.init(
                project=project,
                id=run_id,
                resume="allow",
                name=folder.resolve().name,
                dir=str(folder),
                config=settings,
                allow_val_change=True,
            )
        except Exception as error:  # its errors have no common base that is not Exception
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise RuntimeError(
                f"wandb: no run of project {project!r} could be started: {reason} (WANDB_MODE=offline needs no network)"
            ) from error

    def numbers(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def on_end(self, event: EndEvent) -> None:
        self._run.finish()


class MLflow(Logger):
    """A run of an experiment at MLflow, where ``MLFLOW_TRACKING_URI`` says, named after the folder.

    A run that resumes from a step above 0 is the same one there.

    Raises:
        ValueError: the package is not installed.
        RuntimeError: it would not start a run.
    """

    def __init__(self, folder: Path, experiment: str, settings: dict[str, Any], step: int) -> None:
        self._mlflow = import_logger("mlflow", experiment)
        path = folder / MLFLOW_ID
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # a client of its own: a script may have a run of MLflow under way, which stays what it is
            self._client = self._mlflow.MlflowClient()
            if step > 0 and path.is_file():
                self._id = path.read_text(encoding="utf-8").strip()
                self._client.update_run(self._id, status="RUNNING")
                return
            known = self._client.get_experiment_by_name(experiment)
            number = self._client.create_experiment(experiment) if known is None else known.experiment_id
            self._id = self._client.create_run(number, run_name=folder.resolve().name).info.run_id
            entity = self._mlflow.entities.Param
            params = [entity(name, str(value)[:_MLFLOW_TEXT]) for name, value in flatten(settings)]
            self._client.log_batch(self._id, params=params)
        except Exception as error:  # its errors, and those of its transport, have no common base
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise RuntimeError(
                f"mlflow: no run of experiment {experiment!r} could be started: {reason} (MLFLOW_TRACKING_URI names a "
                "server, or sqlite:///FILE, which mlflow-skinny alone cannot write)"
            ) from error
        with atomic_file(path) as file:
            file.write(self._id.encode())

    def numbers(self, values: dict[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self._mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self._client.log_image(self._id, image, artifact_file=f"{name}-{step:08d}.png")

    def on_end(self, event: EndEvent) -> None:
        status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[event.why]
        self._client.set_terminated(self._id, status)


def import_logger(package: str, name: str) -> Any:
    """The package of a logger, called as its setting. Raises ValueError where it is not installed."""
    try:
        found = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # installed, but broken: its own error says how
            raise
        found = None
    # a folder of that name, such as wandb leaves behind, is imported as an empty package
    if not hasattr(found, _NEEDED[package]):
        told = f"--{package} {name} needs the package {package}, which is not installed: pip install {package}"
        raise ValueError(f"{package}: {told}")
    return found


def loggers_of(logging: Logging, folder: Path, settings: dict[str, Any], step: int) -> list[Logger]:
    """The loggers that a run's settings ask for. Raises as they do.

    Args:
        logging: those settings.
        folder: of the run; made if it is not there.
        settings: all of the run, shown there.
        step: of the checkpoint that the run resumes from; points after it, which are about to be made again, are hidden
            in TensorBoard.
    """
    loggers: list[Logger] = []
    if logging.wandb is not None:
        loggers.append(WeightsAndBiases(folder, logging.wandb, settings, step))
    if logging.mlflow is not None:
        loggers.append(MLflow(folder, logging.mlflow, settings, step))
    folder.mkdir(parents=True, exist_ok=True)
    return [*loggers, *([TensorBoard(folder, step)] if logging.tensorboard else [])]

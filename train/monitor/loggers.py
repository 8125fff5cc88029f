"""Where a run's numbers and pictures can be looked at while it goes on: TensorBoard, and Weights & Biases."""

import importlib
import re
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...common.files import atomic_file

# the file in a run's folder that holds the id of its run at Weights & Biases
WANDB_ID = "wandb-id"

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
        (r"(images_per_s|data_s|step_s|memory_mb)", r"speed/\1"),
        (r"(?:grad_)?(norm|finite|scale)", r"gradient/\1"),
        (r"(.+)", r"step/\1"),
    ),
    "epoch": ((r"seconds", "speed/evaluation_s"), (r"(?:val_)?(.+)", r"val/\1")),
}


def tagged(event: str, values: dict[str, Any]) -> dict[str, float]:
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


class TensorBoard:
    """TensorBoard's files in ``folder/tensorboard``. What earlier writers wrote after ``step`` is hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # a thread writes; a longer queue than its default keeps the training from waiting for it
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1, max_queue=1000, flush_secs=30)
        self.close = self._writer.close

    def numbers(self, values: dict[str, float], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        # in one event: an add_scalar for each takes several times as long
        numbers = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._writer._get_file_writer().add_summary(Summary(value=numbers), step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")


class WeightsAndBiases:
    """A run at Weights & Biases, named after the folder; a run that goes on from a step above 0 is the same one there.

    Of steps that are done again after resuming, what came first stays: it takes no point earlier than the last.

    Raises:
        ValueError: the package is not installed.
        RuntimeError: it would not start a run.
    """

    def __init__(self, folder: Path, project: str, settings: dict[str, Any], step: int) -> None:
        self._wandb = import_wandb(project)
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

    def close(self) -> None:
        self._run.finish()


def import_wandb(project: str) -> Any:
    """The package of Weights & Biases. Raises ValueError where it is not installed."""
    try:
        wandb = importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        if error.name != "wandb":  # installed, but broken: its own error says how
            raise
        wandb = None
    # a folder called wandb, such as the package leaves behind, is imported as an empty one
    if not hasattr(wandb, "init"):
        raise ValueError(f"wandb: --wandb {project} needs the package wandb, which is not installed: pip install wandb")
    return wandb

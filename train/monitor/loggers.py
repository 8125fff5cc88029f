"""Where a run's numbers and pictures can be looked at while it goes on: TensorBoard, and Weights & Biases."""

import html
import importlib
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ...common.files import atomic_file

# the file in a run's folder that holds the id of its run at Weights & Biases
WANDB_ID = "wandb-id"

_SPEED = ("images_per_s", "data_s", "step_s", "memory_mb")
# where a point is, and of how many steps it is the mean
_NOT_SHOWN = ("step", "epoch", "time", "steps")
_TERM = re.compile(r"(?P<measure>.+?)(?P<layer>_\d+|_enc)?")


class Logger(Protocol):
    """What shows numbers, pictures and texts by name, each at a step."""

    def numbers(self, values: dict[str, float], step: int) -> None: ...

    def picture(self, name: str, image: Image.Image, step: int) -> None: ...

    def text(self, name: str, text: str, step: int) -> None: ...

    def close(self) -> None: ...


def tagged(event: str, values: dict[str, Any]) -> dict[str, float]:
    """The numbers of an event under the names that loggers group by: ``loss/ce``, ``lr/main``, ``val/AP``, ...

    The losses of the last layer are in ``loss``, those of the others, and of the encoder, in ``loss_auxiliary``. AP
    and AR of a size that nothing annotated has are -1, and left out.
    """
    if event == "step":
        return {_step_tag(name): float(value) for name, value in _numbers(values)}
    if event == "epoch":
        classes = values.get("per_class") or {}
        by_class = {f"val/class/{re.sub(r'[^-.0-9A-Za-z]', '_', name)}_AP": ap for name, ap in classes.items()}
        whole = {
            "speed/evaluation_s" if name == "seconds" else f"val/{name.removeprefix('val_')}": value
            for name, value in _numbers(values)
        }
        return {tag: float(value) for tag, value in (whole | by_class).items() if value != -1}
    return {}


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NOT_SHOWN:
            yield name, value


def _step_tag(name: str) -> str:
    match = _TERM.fullmatch(name)
    assert match is not None
    group = "loss_auxiliary" if match["layer"] else "loss"
    if name == "loss":
        return "loss/total"
    if name.startswith("loss_"):
        return f"{group}/{name.removeprefix('loss_')}"
    if match["measure"].endswith("_error"):
        return f"{group.replace('loss', 'error')}/{name.replace('_error', '')}"
    if name.startswith("lr_"):
        return f"lr/{name.removeprefix('lr_')}"
    if name in _SPEED:
        return f"speed/{name}"
    if name in ("grad_norm", "finite", "scale"):
        return f"gradient/{name.removeprefix('grad_')}"
    return f"step/{name}"


class TensorBoard:
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

    def text(self, name: str, text: str, step: int) -> None:
        # markdown, in which indented lines stay as they are
        self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), step)

    def close(self) -> None:
        self._writer.close()


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

    def text(self, name: str, text: str, step: int) -> None:
        self._run.log({name: self._wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)

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

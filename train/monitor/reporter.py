"""What a run tells: sentences and a bar on the terminal of the main process, events in log.jsonl and to callbacks."""

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ...common.text import counted
from ...models.catalog import TRANSFORMERS
from ...models.inference.image_size import ExactSize
from ...models.layers.evaluation_mode import evaluating
from ..config.options import to_plain
from ..config.resolve import save_settings, settings_lines
from ..data.dataset import CocoDetection, data_line
from ..engine.acceleration import uncompiled
from ..engine.state import Training
from ..visual.sheets import predictions_beside_truth
from .callbacks import Callbacks, CheckpointEvent, EndEvent, EvaluationEvent, StepEvent
from .display import Display, peak_memory_mb
from .loggers import loggers_of
from .run_log import RunLog


class Reporter:
    """Reports a run, until ``stack`` is left; processes other than the main one log and show nothing."""

    def __init__(
        self,
        training: Training,
        validation: CocoDetection,
        out: Path,
        stack: ExitStack,
        callbacks: Sequence[object] = (),
    ) -> None:
        self.training, self.validation, self.out = training, validation, out
        options, is_main = training.options, training.group.is_main
        self._log: RunLog | None = None
        if is_main:
            save_settings(options, out / "config.yaml", training.given.describe())
            self._log = stack.enter_context(RunLog(out))
        loggers = loggers_of(options.logging, out, to_plain(options), training.steps_done) if is_main else []
        self.callbacks = Callbacks([*loggers, *callbacks] if is_main else [])
        shown = options.logging.progress and is_main
        display = Display(training.steps_done, training.total_steps, shown=shown, evaluations=self._evaluations_after)
        self._display = stack.enter_context(display)
        self.say, self.expect = display.say, display.expect
        self._replaced = set[str]()
        self._forget()
        self.restart_epoch()

    def write(self, event: str, **values: Any) -> None:
        """Logs an event."""
        if self._log is not None:
            self._log.write(event, **values)

    @contextmanager
    def measure(self, what: Literal["data", "step"]) -> Iterator[None]:
        """A block whose time is that of waiting for data, or of computing a step."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[what] += time.perf_counter() - begun

    def replaced(self, sentence: str) -> None:
        """Says once of each image that could not be read that another stands in for it."""
        if sentence in self._replaced:
            return
        self._replaced.add(sentence)
        self.write("bad_image", step=self.training.steps_done + 1, sentence=sentence)
        if self.training.group.is_main:
            self.say(f"left out: {sentence}")
        else:  # met by this process alone
            print(f"process {self.training.group.rank} left out: {sentence}", file=sys.stderr, flush=True)

    def step(self, result: dict[str, float], epoch: int) -> None:
        """Shows a step, and logs every so many; ``result`` as `Training.step` returns it."""
        training = self.training
        self._images += int(result["images"])
        self._steps += 1
        if result["finite"]:
            self._losses.append(result["loss"])
        seconds = max(sum(self._seconds.values()), 1e-9)
        speed, waited = self._images / seconds, self._seconds["data"] / seconds
        numbers = {name: value for name, value in result.items() if name not in ("images", "searching")}
        epochs = training.options.batch.epochs
        self._display.step(training.steps_done, f"{epoch + 1}/{epochs}", numbers, speed, waited)
        logged = training.steps_done % training.options.logging.log_every == 0 or training.steps_done == 1
        if logged:
            numbers |= {
                **{f"lr_{group['name']}": group["lr"] for group in training.optimizer.param_groups},
                "images_per_s": round(speed, 2),
                "data_s": round(self._seconds["data"] / self._steps, 4),
                "step_s": round(self._seconds["step"] / self._steps, 4),
            }
            unknown_somewhere = {
                "memory_mb": peak_memory_mb(),
                "left_s": self._display.seconds_left(training.steps_done),
            }
            numbers |= {name: round(value, 1) for name, value in unknown_somewhere.items() if value is not None}
            self.write("step", step=training.steps_done, epoch=epoch, **numbers, steps=self._steps)
            self._forget()
        self.callbacks(
            "on_step", StepEvent(self.out, training.steps_done, epoch, training.total_steps, numbers, logged)
        )

    def _evaluations_after(self, step: int) -> int:
        """How many there are from a step on, one that is due right after it among them."""
        total, every = self.training.total_steps, self.training.options.run.eval_every * self.training.steps_per_epoch
        return total // every - (step - 1) // every + (total % every > 0)

    def _forget(self) -> None:
        self._seconds = {"data": 0.0, "step": 0.0}
        self._images = self._steps = 0

    def epoch_end(self, epoch: int) -> None:
        """Says the mean loss of an epoch and its time."""
        if self._losses:
            seconds = time.perf_counter() - self._epoch_begun
            self.say(f"epoch {epoch + 1}: mean loss {np.mean(self._losses):.3f}, {seconds:.0f} s")
            self.restart_epoch()

    def restart_epoch(self) -> None:
        """From here on the time and losses of an epoch count."""
        self._losses: list[float] = []
        self._epoch_begun = time.perf_counter()

    def evaluation(self, metrics: dict[str, Any], seconds: float, *, record: bool) -> None:
        """Says and logs an evaluation, and draws its pictures."""
        training = self.training
        self._display.evaluated(seconds)
        metrics = {**metrics, "seconds": round(seconds, 2)}
        step = {"step": training.steps_done, "epoch": training.epoch}
        self.write("epoch", **step, **metrics, ema=training.ema is not None)
        best = ", the best so far" if record else ""
        self.say(f"validation: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}{best} ({seconds:.0f} s)")
        rows = self.validation.rows[: training.options.logging.pictures].tolist()
        if self._log is None:
            return
        pictures = {"predictions": self._sheet(rows)} if rows else {}
        for name, picture in pictures.items():
            self._log.picture(name, picture, training.steps_done)
        self.callbacks(
            "on_evaluation", EvaluationEvent(self.out, **step, metrics=metrics, best=record, pictures=pictures)
        )

    def _sheet(self, rows: list[int]) -> Image.Image:
        training = self.training
        names = [category.name for category in training.data.annotations.categories]
        with uncompiled(training.options.compute), evaluating(training.detector) as model:
            return predictions_beside_truth(model, names, self.validation, rows, size=training.options.input.size)

    def checkpoint(self, path: Path) -> None:
        """Tells of a checkpoint that was written."""
        step = self.training.steps_done
        self.callbacks("on_checkpoint", CheckpointEvent(self.out, step, path, self.training.best["step"] == step))

    def end(self, why: Literal["finished", "stopped", "failed"], error: BaseException | None = None) -> None:
        """Tells of the end of the run."""
        self.callbacks("on_end", EndEvent(self.out, self.training.steps_done, why, error))

    def _shapes(self) -> str:
        """What becomes of rectangular images."""
        size, bucket = self.training.options.input.size, self.training.options.loading.bucket
        if isinstance(size, ExactSize):
            return f"images are stretched to {size.width} x {size.height} pixels, as this model's were (--square)"
        alike = " of like shape (--bucket)" if bucket else ""
        longer = f"at most {size.longest} pixels on the longer side"
        sides = longer if size.short == size.longest else f"{size.short} pixels on the shorter side, {longer}"
        return f"images keep their shape: {sides}; padded only to the largest of a batch{alike}"

    def start(self) -> None:
        """Says and logs what is about to be trained, on what, and how."""
        training, options, group = self.training, self.training.options, self.training.group
        data, total, start = training.data, training.order.total, training.start
        parameters = sum(parameter.numel() for parameter in training.model.parameters())
        of_transformers = options.model.model == TRANSFORMERS
        name = f"{training.model.kind} of transformers" if of_transformers else options.model.model
        processes = "" if group.size == 1 else f", {group.size} processes"
        self.say(
            f"{name}: {parameters:,} parameters, "
            f"{training.backend} attention on {training.device}, {options.compute.precision}{processes}"
        )
        passes = math.ceil(math.ceil(total / group.size) / options.batch.batch_size)
        divided = f", in {passes} passes of {options.batch.batch_size} on each device" if passes > 1 else ""
        self.say(data_line(options.source.data, data, self.validation))
        self.say(
            f"{counted(training.total_steps, 'step')} of "
            f"{counted(min(total, len(data)), 'image')}{divided}; results in {self.out}"
        )
        if total > len(data):
            self.say(f"--total-batch-size {total} is more than there are; a step is one pass over all")
        self.say(self._shapes())
        for line in (*data.sentences(), *self.validation.sentences(), *(start.sentences() if start else ())):
            self.say(line)
        if start and start.input_size not in (None, options.input.size):
            self.say(
                f"those weights were trained on images of at most {start.input_size.longest} pixels, this run uses "
                f"{options.input.size.longest}; --image-size changes that"
            )
        if training.steps_done:
            self.say(f"resuming at step {training.steps_done} of {training.total_steps}")
        for line in settings_lines(options, self.out / "config.yaml"):
            self.say(line)
        self.write(
            "start" if training.steps_done == 0 else "resume",
            step=training.steps_done,
            attn_backend=training.backend,
            device=str(training.device),
            processes=group.size,
            steps_per_epoch=training.steps_per_epoch,
            torch=torch.__version__,
            parameters=parameters,
            dropped=dataclasses.asdict(data.annotations.dropped),
            fresh=start.fresh if start else [],
            ignored=start.ignored if start else [],
            options=to_plain(options),
        )

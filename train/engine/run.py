"""Training: steps, evaluations, checkpoints and logs, to the end of a run, whatever happens on the way.

A run can end at any moment and go on later: checkpoints are whole or absent, one is written before an evaluation and
another after it, and a signal from a scheduler is answered by a checkpoint when the step is done.
"""

import contextlib
import dataclasses
import errno
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from ...common.files import atomic_file, in_use, remove_leftovers
from ...common.options import command
from ...common.text import counted
from ...models.layers.evaluation_mode import evaluating
from ...models.weights.formats import checkpoints_in
from ..config.options import TrainOptions, to_plain
from ..config.resolve import save_settings, settings_lines
from ..data.dataset import CocoDetection, Sample
from ..data.loader import validation_data
from ..evaluation.distributed import evaluate_together
from ..monitor.display import Display, display, peak_memory_mb
from ..monitor.loggers import import_wandb
from ..monitor.run_log import RunLog
from ..visual.sheets import predictions_beside_truth
from .acceleration import uncompiled
from .checkpoint import BEST, checkpoint_path, keep_best, load_checkpoint, remove_old, save_checkpoint
from .distributed import LateError, team
from .memory import dry_run, what_to_lower
from .profile import profile
from .signals import StopSignals
from .state import Training

_KEPT_BATCHES = 3


def run_steps(options: TrainOptions, n: int) -> list[float]:
    """The losses of the first ``n`` steps of a run, without writing anything."""
    training = Training(options)
    losses: list[float] = []
    for samples in training.batches():
        result = training.step(samples)
        assert result is not None
        losses.append(result["loss"])
        if len(losses) == n:
            break
    return losses


def evaluate(training: Training, validation: CocoDetection) -> dict[str, Any]:
    """COCO's metrics of the model as it stands, and its losses; every process detects in its share of the images."""
    training.team.note("evaluating", training.steps_done)
    training.share_averages()
    with uncompiled(training.options.compute):
        return evaluate_together(
            training.detector,
            validation,
            training.team,
            criterion=training.criterion,
            batch_size=training.options.batch.batch_size,
            workers=training.options.loading.workers,
            precision=training.options.compute.precision,
        )


def train(options: TrainOptions) -> Path:
    """Trains to the end of the run.

    Returns:
        The run's folder: ``checkpoint-*.pt``, ``best.pt``, ``config.yaml``, ``log.jsonl``, ``tensorboard/``.

    Raises:
        RuntimeError: too many steps in a row were not finite; memory, disk or another process failed.
        ValueError, FileNotFoundError: wrong settings or data; each message is one sentence.
        SystemExit: a signal stopped it; all is saved.
    """
    _settle_determinism(options)
    with team(options.compute) as crew, StopSignals() as signals, contextlib.ExitStack() as stack:
        out = crew.broadcast(_run_folder(options)) if crew.size > 1 else _run_folder(options)
        with crew.together("setting up"):
            if options.seeing.wandb is not None:
                import_wandb(options.seeing.wandb)  # before there is a folder
            there = out.is_dir()
            if crew.leads and there:  # before its checkpoint is read: another process might save meanwhile
                stack.enter_context(in_use(out))
            state = None if options.run.resume is None else load_checkpoint(options.run.resume)
            training = Training(options, state, crew)
            validation = _validation(training)
        _agree(training)
        with crew.together("setting up"):
            if crew.leads:
                if not there:
                    stack.enter_context(in_use(out))
                _refuse_another_run(options, out, training.steps_done)
                remove_leftovers(out)
        log, bar = _record(stack, training, out)
        _Run(training, validation, out, log, bar, signals).go()
    return out


class _Run:
    """A run under way: what it trains, and where it leaves word of it."""

    def __init__(
        self,
        training: Training,
        validation: CocoDetection,
        out: Path,
        log: RunLog | None,
        bar: Display,
        signals: StopSignals,
    ) -> None:
        self.training, self.validation, self.out = training, validation, out
        self.log, self.bar, self.signals = log, bar, signals
        self.options, self.team = training.options, training.team
        self._data_seconds = self._step_seconds = 0.0
        self._images = self._steps = 0
        self._replaced = set[str]()

    def go(self) -> None:
        """To the end, or to a sentence."""
        training, run = self.training, self.options.run
        self._introduce()
        if run.dry_steps and training.steps_done == 0:
            with self.team.together("trying a step"):
                estimate = dry_run(training, run.dry_steps)
                estimate.refuse_what_cannot_fit()
            self._say(estimate.sentence())
        if self.options.seeing.profile:
            self._say(profile(training, self.options.seeing.profile, self.out if self.team.leads else None))
            return
        try:
            self._make_up()
            self._train()
        except KeyboardInterrupt:
            self._say(f"stopped at step {training.steps_done}; {self._way_on()}")
            raise SystemExit(StopSignals.status("SIGINT")) from None
        except (LateError, SystemExit):
            raise
        except Exception as error:
            told = self._told(error)
            if told is None:
                raise
            raise RuntimeError(told) from error
        self._write("end", step=training.steps_done)
        if training.best["step"] >= 0 and (self.out / BEST).is_file():
            self._say(f"best AP {training.best['AP']:.3f}, at step {training.best['step']:.0f}: {self.out / BEST}")
        self._say(f"done: {self.out}")

    def _make_up(self) -> None:
        """What the run was stopped before: an evaluation, or the last word of one."""
        newest = checkpoint_path(self.out, self.training.steps_done)
        if self.team.leads and self.training.best["step"] == self.training.steps_done and newest.is_file():
            keep_best(newest)
        if self._evaluation_due():
            self._evaluate()

    def _train(self) -> None:
        training, run = self.training, self.options.run
        if training.finished or self._out_of_patience():
            return
        begun, losses = time.perf_counter(), []
        for samples in self._timed(training.batches()):
            started = time.perf_counter()
            epoch = training.epoch
            result = training.step(samples, stop=self.signals.caught is not None)
            self._step_seconds += time.perf_counter() - started
            if result is None:
                self._stop()
            self._after_step(samples, result, epoch)
            if result["finite"]:
                losses.append(result["loss"])
            if training.steps_done % training.steps_per_epoch == 0 and losses:
                seconds, begun = time.perf_counter() - begun, time.perf_counter()
                self._say(f"epoch {epoch + 1}: mean loss {np.mean(losses):.3f}, {seconds:.0f} s")
                losses = []
            at_end = training.finished or training.steps_done % training.steps_per_epoch == 0
            if at_end or (run.checkpoint_every and training.steps_done % run.checkpoint_every == 0):
                self._save()
            if self._evaluation_due():
                self._evaluate()
                begun = time.perf_counter()
                if self._out_of_patience():
                    return

    def _timed(self, batches: Iterator[list[Sample]]) -> Iterator[list[Sample]]:
        """The batches; the time of waiting for each is counted."""
        while True:
            self.team.note("loading images", self.training.steps_done)
            begun = time.perf_counter()
            with self.training.step_timer.stage("data"):
                samples = next(batches, None)
            self._data_seconds += time.perf_counter() - begun
            if samples is None:
                return
            self.team.note("training", self.training.steps_done)
            yield samples

    def _after_step(self, samples: list[Sample], result: dict[str, float], epoch: int) -> None:
        training, seeing = self.training, self.options.seeing
        self._images += int(result.pop("images"))
        self._steps += 1
        searching = result.pop("searching")
        seconds = self._data_seconds + self._step_seconds
        speed, waited = self._images / max(seconds, 1e-9), self._data_seconds / max(seconds, 1e-9)
        self.bar.update(
            training.steps_done, f"{epoch + 1}/{self.options.batch.epochs}", result, speed, data_share=waited
        )
        self._list_replaced(samples)
        if searching:
            self._say(f"step {training.steps_done}: gradients overflowed fp16, loss scale lowered, step skipped")
        elif not result["finite"]:
            self._report_nonfinite(samples)
        if training.steps_done % seeing.log_every == 0 or training.steps_done == 1:
            rates = {f"lr_{group['name']}": group["lr"] for group in training.optimizer.param_groups}
            self._write(
                "step",
                step=training.steps_done,
                epoch=epoch,
                **result,
                **rates,
                images_per_s=round(speed, 2),
                steps=self._steps,
                data_s=round(self._data_seconds / self._steps, 4),
                step_s=round(self._step_seconds / self._steps, 4),
                memory_mb=peak_memory_mb(),
            )
            self._data_seconds = self._step_seconds = 0.0
            self._images = self._steps = 0

    def _list_replaced(self, samples: list[Sample]) -> None:
        """Says once of each image that could not be read that another stood in for it."""
        for _, target in samples:
            sentence = target.get("replaced")
            if sentence is not None and sentence not in self._replaced:
                self._replaced.add(sentence)
                self._write("bad_image", step=self.training.steps_done, sentence=sentence)
                if self.team.leads:
                    self._say(f"left out: {sentence}")
                else:  # met by this process alone
                    print(f"process {self.team.rank} left out: {sentence}", file=sys.stderr, flush=True)

    def _report_nonfinite(self, samples: list[Sample]) -> None:
        training = self.training
        step = training.steps_done
        blamed = training.blamed or list(range(self.team.size))
        files = [
            self.out / f"nonfinite-step-{step:08d}{f'-process-{rank}' if self.team.size > 1 else ''}.pt"
            for rank in range(self.team.size)
        ]
        if self.team.rank in blamed:
            with atomic_file(files[self.team.rank]) as file:
                torch.save(training.replayable(samples), file)
            # each is as large as the model; what went wrong often is in the last
            own = files[self.team.rank].name.replace(f"{step:08d}", "?" * 8)
            for old in sorted(self.out.glob(own))[:-_KEPT_BATCHES]:
                old.unlink(missing_ok=True)
        every = self.team.gather([target["image_id"] for _, target in samples])
        ids, batch = [image for rank in blamed for image in every[rank]], files[blamed[0]]
        self._write("nonfinite", step=step, image_ids=ids, batch=batch.name, processes=training.blamed)
        self._say(f"step {step}: loss or gradient not finite, step skipped; look at it by: {command('replay', batch)}")
        if training.nonfinite_in_a_row >= self.options.run.max_nonfinite:
            raise RuntimeError(
                f"loss or gradient was not finite in {training.nonfinite_in_a_row} steps in a row, the last {step}; "
                f"try a lower --lr or --precision fp32 (images {ids}; {command('replay', batch)})"
            )

    def _evaluation_due(self) -> bool:
        """At the end of every so many epochs, and of the run, once."""
        training = self.training
        at_end = training.steps_done % training.steps_per_epoch == 0
        due = training.finished or (at_end and training.epoch % self.options.run.eval_every == 0)
        return due and training.steps_done > training.evaluated_at

    def _evaluate(self) -> None:
        training, begun = self.training, time.perf_counter()
        metrics = evaluate(training, self.validation)
        seconds = time.perf_counter() - begun
        training.evaluated_at = training.steps_done
        first = training.best["step"] < 0
        better = first or metrics["AP"] > training.best["AP"]
        told = not first and round(metrics["AP"], 3) > round(training.best["AP"], 3)
        # among checkpoints that find nothing, the newest has learnt most
        if better or metrics["AP"] == training.best["AP"] == 0:
            training.best = {"AP": metrics["AP"], "step": float(training.steps_done)}
        training.evaluations_since_best = 0 if better else training.evaluations_since_best + 1
        self._write(
            "epoch",
            step=training.steps_done,
            epoch=training.epoch,
            **metrics,
            ema=training.ema is not None,
            seconds=round(seconds, 2),
        )
        record = ", the best so far" if told else ""
        self._say(f"validation: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}{record} ({seconds:.0f} s)")
        self._draw()
        self._save()

    def _draw(self) -> None:
        rows = self.validation.rows[: self.options.seeing.pictures].tolist()
        if self.log is None or not rows:
            return
        names = [category.name for category in self.training.data.annotations.categories]
        with uncompiled(self.options.compute), evaluating(self.training.detector) as model:
            sheet = predictions_beside_truth(model, names, self.validation, rows, size=self.options.input.size)
        self.log.picture("predictions", sheet, self.training.steps_done)

    def _out_of_patience(self) -> bool:
        patience, since = self.options.run.patience, self.training.evaluations_since_best
        if patience is None or since < patience:
            return False
        self._say(f"no higher AP in {since} evaluations: the run ends at step {self.training.steps_done}")
        return True

    def _save(self) -> None:
        training = self.training
        self.team.note("saving", training.steps_done)
        state = training.state()
        if not self.team.leads:
            return
        path = checkpoint_path(self.out, training.steps_done)
        save_checkpoint(path, state)
        if training.best["step"] == training.steps_done:
            keep_best(path)
        remove_old(self.out, self.options.run.keep)

    def _stop(self) -> NoReturn:
        """Another time: all is saved, and whoever started the run can tell by its status."""
        caught = next((name for name in self.team.gather(self.signals.caught) if name is not None), "SIGTERM")
        self._save()
        self._write("stopped", step=self.training.steps_done, signal=caught)
        self._say(f"stopped by {caught} at step {self.training.steps_done}, all saved; {self._way_on()}")
        raise SystemExit(StopSignals.status(caught))

    def _way_on(self) -> str:
        files = checkpoints_in(self.out)
        return f"resume it with: {command('train', '--resume', files[-1])}" if files else "there is no checkpoint yet"

    def _told(self, error: Exception) -> str | None:
        """What happens to long jobs, in a sentence; None for anything else."""
        first = (str(error) or type(error).__name__).splitlines()[0]
        at = f"at step {self.training.steps_done}"
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in first:
            batch = self.options.batch.batch_size
            return f"out of memory {at} with --batch-size {batch}: {what_to_lower(batch)} ({first}); {self._way_on()}"
        if "DataLoader worker" in first:
            return (
                f"a process that loads images was killed {at}, as a rule for want of memory: try fewer --workers, or "
                f"less --cache-images ({first}); {self._way_on()}"
            )
        full = _no_room(error)
        if full is not None:
            reason = os.strerror(full.errno or errno.ENOSPC)
            return f"no room to write {full.filename or self.out} {at} ({reason}); {self._way_on()}"
        return None

    def _say(self, line: str) -> None:
        if self.team.leads:
            self.bar.say(line)

    def _write(self, event: str, **values: Any) -> None:
        if self.log is not None:
            self.log.write(event, **values)

    def _introduce(self) -> None:
        """Says, and records, what is about to happen."""
        training, options = self.training, self.options
        parameters = sum(parameter.numel() for parameter in training.model.parameters())
        processes = "" if self.team.size == 1 else f", {self.team.size} processes"
        self._say(
            f"{options.model.model}: {parameters:,} parameters, "
            f"{training.backend} attention on {training.device}, {options.compute.precision}{processes}"
        )
        each = -(-training.order.total // self.team.size)
        passes = -(-each // options.batch.batch_size)
        divided = f", in {passes} passes of {options.batch.batch_size} on each device" if passes > 1 else ""
        self._say(
            f"{len(set(training.data.rows))} training and {len(self.validation)} validation images, "
            f"{len(training.data.annotations.categories)} classes; {training.total_steps} steps of "
            f"{counted(min(training.order.total, len(training.data)), 'image')}{divided}; results in {self.out}"
        )
        if training.order.total > len(training.data):
            self._say(f"--total-batch-size {training.order.total} is more than there are; a step is one pass over all")
        for line in (*training.data.sentences(), *self.validation.sentences()):
            self._say(line)
        for line in training.start.sentences() if training.start else ():
            self._say(line)
        size = training.start.input_size if training.start else None
        if size is not None and size != options.input.size:
            self._say(
                f"those weights were trained on images of at most {size.longest} pixels, this run uses "
                f"{options.input.size.longest}; --image-size changes that"
            )
        if training.steps_done:
            self._say(f"resuming at step {training.steps_done} of {training.total_steps}")
        for line in settings_lines(options, self.out / "config.yaml"):
            self._say(line)
        self._write(
            "start" if training.steps_done == 0 else "resume",
            step=training.steps_done,
            attn_backend=training.backend,
            device=str(training.device),
            processes=self.team.size,
            steps_per_epoch=training.steps_per_epoch,
            torch=torch.__version__,
            parameters=parameters,
            dropped=dataclasses.asdict(training.data.annotations.dropped),
            fresh=training.start.fresh if training.start else [],
            ignored=training.start.ignored if training.start else [],
            options=to_plain(options),
        )


def _no_room(error: BaseException | None) -> OSError | None:
    """The error of a full disk that is, or led to, this one: torch.save covers it with one of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        error = error.__cause__ or error.__context__
    return None


def _settle_determinism(options: TrainOptions) -> None:
    if options.compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _run_folder(options: TrainOptions) -> Path:
    run = options.run
    if run.resume is not None:
        return run.out or (run.resume if run.resume.is_dir() else run.resume.parent)
    return run.out or Path("runs") / f"{options.model.model}-{datetime.now():%Y%m%d-%H%M%S}"


def _refuse_another_run(options: TrainOptions, out: Path, step: int) -> None:
    """A folder's checkpoints are those of one run, and none is of a later step than where it stands."""
    files, resume = checkpoints_in(out), options.run.resume
    if resume is None:
        if files:
            raise ValueError(f"{out} holds a run already; resume it with --resume {out}, or name another --out")
        return
    if files and not out.samefile(resume if resume.is_dir() else resume.parent):
        raise ValueError(f"{out} holds a run already, and not that of {resume}; name another --out")
    later = [file for file in files if file.name > checkpoint_path(out, step).name]
    if later and resume.is_file():
        raise ValueError(
            f"{resume.name} is not the newest checkpoint of {out}, which holds {later[-1].name} as well; "
            "name another --out, or remove the later ones"
        )
    for file in later:  # damaged, or they would have been taken; by their step they would count as the newest
        os.replace(file, file.with_name(f"damaged-{file.name}"))


def _validation(training: Training) -> CocoDetection:
    options, shown = training.options, training.options.seeing.progress and training.team.leads
    categories = training.data.annotations.categories
    return validation_data(options.source, options.input, categories, progress=shown)


def _agree(training: Training) -> None:
    """All processes were given the same settings and data; else they would train apart, or wait forever."""
    data = training.data.annotations
    mine = {"data": [len(data.images), len(data.boxes), float(data.boxes.sum())], **to_plain(training.options)}
    all_of_them = training.team.gather(mine, patient=True)
    with training.team.together("comparing settings"):
        for rank, theirs in enumerate(all_of_them):
            for name, value in all_of_them[0].items():
                if theirs[name] != value:
                    raise ValueError(f"process {rank} has another {name} than process 0: {theirs[name]}, not {value}")


def _record(stack: contextlib.ExitStack, training: Training, out: Path) -> tuple[RunLog | None, Display]:
    """The log, of the process that leads, and the bar, which others do not show."""
    options, leads = training.options, training.team.leads
    log = None
    if leads:
        save_settings(options, out)
        log = stack.enter_context(
            RunLog(
                out,
                tensorboard=options.seeing.tensorboard,
                wandb=options.seeing.wandb,
                settings=to_plain(options),
                step=training.steps_done,
            )
        )
    shown = options.seeing.progress and leads
    return log, stack.enter_context(display(training.steps_done, training.total_steps, shown=shown))


def evaluate_checkpoint(options: TrainOptions) -> dict[str, Any] | None:
    """COCO's metrics of the checkpoint that ``--resume`` names; None in every process but the first."""
    with team(options.compute) as crew:
        assert options.run.resume is not None
        with crew.together("setting up"):
            training = Training(options, load_checkpoint(options.run.resume), crew)
            validation = _validation(training)
        metrics = evaluate(training, validation)
        return metrics if crew.leads else None

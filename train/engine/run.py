"""Training: steps, evaluations, checkpoints and logs, to the end of a run, whatever happens on the way.

A run can end at any moment and go on later: checkpoints are whole or absent, one is written before an evaluation and
another after it, and a signal from a scheduler is answered by a checkpoint when the step is done.
"""

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from ...common.command_line import command
from ...common.files import atomic_file, in_use, remove_leftovers
from ...models.weights.formats import checkpoints_in
from ..config.given import NOTHING, Given
from ..config.options import TrainOptions, to_plain
from ..data.dataset import CocoDetection, Sample
from ..data.loader import validation_data
from ..evaluation.coco_metrics import evaluate_boxes
from ..evaluation.detect import detect
from ..evaluation.matching import match_detections
from ..evaluation.results import merge
from ..evaluation.thresholds import best_thresholds
from ..monitor.callbacks import check_callbacks
from ..monitor.loggers import import_logger
from ..monitor.reporter import Reporter
from .acceleration import uncompiled
from .checkpoint import (
    BEST,
    checkpoint_path,
    keep_best,
    load_checkpoint,
    refuse_another_run,
    run_folder,
    save_checkpoint,
)
from .distributed import LateError, process_group
from .memory import dry_run, out_of_memory, settle_batch_size, what_to_lower
from .profile import profile
from .signals import StopSignals
from .state import Training

_KEPT_BATCHES = 3


def run_steps(options: TrainOptions, n: int) -> list[float]:
    """The losses of the first ``n`` steps of a run, without writing anything."""
    training = Training(options)
    settle_batch_size(training)
    results = [training.step(samples) for samples in itertools.islice(training.batches(), n)]
    return [result["loss"] for result in results if result is not None]


def evaluate(training: Training, data: CocoDetection) -> dict[str, Any]:
    """COCO's numbers of the model as it stands, AP and ``per_class``, and its ``val_`` losses, as detect has them.

    Beside them ``thresholds``, the best least score of each class, by label; None where no detection is right.
    Every process detects in its share of the images, none twice, and gets the same numbers.

    Raises:
        ValueError: as detect and evaluate_boxes.
        LateError: a process did not come in time.
    """
    group, options = training.group, training.options
    group.note("evaluating", training.steps_done)
    training.share_running_statistics()
    with uncompiled(options.compute), group.all_or_none("detecting"):
        found = detect(
            training.detector,
            data,
            group.device,
            batch_size=options.batch.batch_size,
            workers=options.loading.workers,
            precision=options.compute.precision,
            criterion=training.criterion,
            shard=(group.rank, group.size),
        )
    every = group.gather(found, patient=True)
    metrics: dict[str, Any] = {}
    with group.all_or_none("measuring"):
        if group.is_main:
            whole = merge(every)
            evaluation = evaluate_boxes(data.annotations.ground_truth(), whole, data.image_ids)
            losses = {f"val_{name}": value for name, value in whole.losses.items()}
            per_class = {kind.name: kind.AP for kind in evaluation.classes if kind.AP is not None}
            thresholds = best_thresholds(match_detections(whole.results, data.annotations, data.image_ids)).by_label
            metrics = {**evaluation.metrics, **losses, "per_class": per_class, "thresholds": thresholds}
    return group.broadcast(metrics)


def train(options: TrainOptions, given: Given = NOTHING) -> Path:
    """Trains to the end of the run, with what a script gives beside the settings.

    Returns:
        The run's folder: ``checkpoint-*.pt``, ``best.pt``, ``config.yaml``, ``log.jsonl``, ``tensorboard/``.

    Raises:
        RuntimeError: too many steps in a row were not finite; memory, disk, a callback or another process failed.
        ValueError, FileNotFoundError: wrong settings or data; each message is one sentence.
        SystemExit: a signal stopped it; all is saved.
    """
    if options.compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    with process_group(options.compute) as group, StopSignals() as signals, contextlib.ExitStack() as stack:
        out = group.broadcast(run_folder(options))
        with group.all_or_none("setting up"):
            check_callbacks(given.callbacks)  # before there is a folder, as all that may be wrong
            for package in ("wandb", "mlflow"):
                if (name := getattr(options.logging, package)) is not None:
                    import_logger(package, name)
            there = out.is_dir()
            if group.is_main and there:  # before its checkpoint is read: another process might save meanwhile
                stack.enter_context(in_use(out))
            state = None if options.run.resume is None else load_checkpoint(options.run.resume)
            training = Training(options, state, group, given)
            validation = _validation(training)
        _agree(training)
        with group.all_or_none("finding the batch size"):
            found = settle_batch_size(training)
        with group.all_or_none("setting up"):
            if group.is_main:
                if not there:
                    stack.enter_context(in_use(out))
                refuse_another_run(options, out, training.steps_done)
                remove_leftovers(out)
        report = Reporter(training, validation, out, stack, given.callbacks)
        if found:
            report.say(found)
        _Run(training, validation, out, report, signals).go()
    return out


class _EndedByCallbackError(Exception):
    """A callback wished the end of the run, all is saved; its message says which. Its cause is what that raised."""


class _Run:
    """The order of events of a run: steps, evaluations, checkpoints, and its end."""

    def __init__(
        self, training: Training, validation: CocoDetection, out: Path, report: Reporter, signals: StopSignals
    ) -> None:
        self.training, self.validation, self.out = training, validation, out
        self.report, self.signals = report, signals
        self.options, self.group = training.options, training.group

    def go(self) -> None:
        """To the end, or to a sentence, of which callbacks are told."""
        try:
            stopped = self._go()
        except SystemExit:
            self.report.end("stopped")
            raise
        except BaseException as error:
            self.report.end("failed", error)
            raise
        self.report.end("stopped" if stopped else "finished")
        if self.report.callbacks.error is not None:  # at the very end
            raise RuntimeError(str(self.report.callbacks.end)) from self.report.callbacks.error

    def _go(self) -> bool:
        """Returns whether a callback ended it."""
        training, run, report = self.training, self.options.run, self.report
        report.start()
        if run.dry_steps and training.steps_done == 0:
            with self.group.all_or_none("trying a step"):
                estimate = dry_run(training, run.dry_steps)
                estimate.refuse_what_cannot_fit()
            report.say(estimate.sentence())
            report.expect(estimate.step_s)
        if self.options.logging.profile:
            report.say(profile(training, self.options.logging.profile, self.out if self.group.is_main else None))
            return False
        ended = False
        try:
            self._catch_up()
            self._train()
        except _EndedByCallbackError as end:
            told = f"{end}; all is saved at step {training.steps_done}; {how_to_resume(self.out)}"
            if end.__cause__ is not None:
                raise RuntimeError(told) from end.__cause__
            report.say(told)
            ended = True
        except KeyboardInterrupt:
            report.say(f"stopped at step {training.steps_done}; {how_to_resume(self.out)}")
            raise SystemExit(StopSignals.status("SIGINT")) from None
        except (LateError, SystemExit):
            raise
        except Exception as error:
            sentence = failure_sentence(error, self.out, training.steps_done, self.options.batch.batch_size)
            if sentence is None:
                raise
            raise RuntimeError(sentence) from error
        report.write("end", step=training.steps_done)
        if training.best["step"] >= 0 and (self.out / BEST).is_file():
            report.say(f"best AP {training.best['AP']:.3f}, at step {training.best['step']:.0f}: {self.out / BEST}")
        report.say(f"done: {self.out}")
        if self.options.source.data is not None and checkpoints_in(self.out):
            page = self.out / "report.html"
            report.say(f"its errors, as a page: {command('eval', '--checkpoint', self.out, '--report', page)}")
            report.say(f"what it detects:       {command('predict', 'PHOTOGRAPHS', '--checkpoint', self.out)}")
        return ended

    def _catch_up(self) -> None:
        """Does what the run was stopped before: an evaluation, or keeping the best checkpoint."""
        newest = checkpoint_path(self.out, self.training.steps_done)
        if self.group.is_main and self.training.best["step"] == self.training.steps_done and newest.is_file():
            keep_best(newest)
        if self._evaluation_due():
            self._evaluate()

    def _train(self) -> None:
        training, every = self.training, self.options.run.checkpoint_every
        if training.finished or self._out_of_patience():
            return
        self.report.restart_epoch()
        for samples in self._batches():
            epoch = training.epoch
            self._step(samples, epoch)
            if self._at_epoch_end():
                self.report.epoch_end(epoch)
            if training.finished or self._at_epoch_end() or (every and training.steps_done % every == 0):
                self._save()
            if self._evaluation_due():
                self._evaluate()
                if self._out_of_patience():
                    return

    def _batches(self) -> Iterator[list[Sample]]:
        """The batches that are left; the time of waiting for each is counted."""
        training = self.training
        batches = training.batches(self.report.replaced)
        while True:
            self.group.note("loading images", training.steps_done)
            with self.report.measure("data"), training.step_timer.stage("data"):
                samples = next(batches, None)
            if samples is None:
                return
            self.group.note("training", training.steps_done)
            yield samples

    def _step(self, samples: list[Sample], epoch: int) -> None:
        training = self.training
        with self.report.measure("step"):
            wish = self.signals.caught is not None or self.report.callbacks.end is not None
            result = training.step(samples, stop=wish)
        if result is None:
            self._stop()
        if result["searching"]:
            self.report.say(f"step {training.steps_done}: gradients overflowed fp16, loss scale lowered, step skipped")
        elif not result["finite"]:
            self._keep_nonfinite(samples)
        self.report.step(result, epoch)

    def _keep_nonfinite(self, samples: list[Sample]) -> None:
        """Keeps a batch whose loss or gradient was not finite for ``msdeform replay``; ends the run at too many."""
        training = self.training
        step, rank, size = training.steps_done, self.group.rank, self.group.size
        blamed = training.blamed or list(range(size))

        def file(rank: int, step: str = f"{step:08d}") -> Path:
            return self.out / f"nonfinite-step-{step}{f'-process-{rank}' if size > 1 else ''}.pt"

        if rank in blamed:
            with atomic_file(file(rank)) as opened:
                torch.save(training.replayable(samples), opened)
            # each is as large as the model; what went wrong often is in the last
            for old in sorted(self.out.glob(file(rank, "?" * 8).name))[:-_KEPT_BATCHES]:
                old.unlink(missing_ok=True)
        every = self.group.gather([target["image_id"] for _, target in samples])
        ids, batch = [image for rank in blamed for image in every[rank]], file(blamed[0])
        self.report.write("nonfinite", step=step, image_ids=ids, batch=batch.name, processes=training.blamed)
        self.report.say(
            f"step {step}: loss or gradient not finite, step skipped; look at it by: {command('replay', batch)}"
        )
        if training.nonfinite_in_a_row >= self.options.run.max_nonfinite:
            raise RuntimeError(
                f"loss or gradient was not finite in {training.nonfinite_in_a_row} steps in a row, the last {step}; "
                f"try a lower --lr or --precision fp32 (images {ids}; {command('replay', batch)})"
            )

    def _at_epoch_end(self) -> bool:
        return self.training.steps_done % self.training.steps_per_epoch == 0

    def _evaluation_due(self) -> bool:
        """At the end of every so many epochs, and of the run, once."""
        training = self.training
        due = training.finished or (self._at_epoch_end() and training.epoch % self.options.run.eval_every == 0)
        return due and training.steps_done > training.evaluated_at

    def _evaluate(self) -> None:
        begun = time.perf_counter()
        metrics = evaluate(self.training, self.validation)
        seconds = time.perf_counter() - begun
        record = self.training.record_evaluation(metrics["AP"], metrics.pop("thresholds", None))
        self.report.evaluation(metrics, seconds, record=record)
        self._save()
        self.report.restart_epoch()

    def _out_of_patience(self) -> bool:
        patience, since = self.options.run.patience, self.training.evaluations_since_best
        if patience is None or since < patience:
            return False
        self.report.say(f"no higher AP in {since} evaluations: the run ends at step {self.training.steps_done}")
        return True

    def _save(self) -> None:
        training = self.training
        self.group.note("saving", training.steps_done)
        state = training.state()
        if not self.group.is_main:
            return
        path = checkpoint_path(self.out, training.steps_done)
        save_checkpoint(path, state)
        if training.best["step"] == training.steps_done:
            keep_best(path)
        for old in checkpoints_in(self.out)[: -self.options.run.keep]:
            old.unlink(missing_ok=True)
        self.report.checkpoint(path)

    def _stop(self) -> NoReturn:
        """Saves all, and ends with a status by which whoever started the run can tell that it is to be resumed."""
        self._save()
        callbacks = self.report.callbacks  # which may fail on hearing of the checkpoint
        wishes = self.group.gather((self.signals.caught, callbacks.end, callbacks.error is not None))
        caught = next((name for name, _, _ in wishes if name is not None), None)
        end, failed = next(((end, failed) for _, end, failed in wishes if end is not None), (None, False))
        if end is not None:
            self.report.write("stopped", step=self.training.steps_done, callback=end)
            raise _EndedByCallbackError(end) from (callbacks.error or RuntimeError(end)) if failed else None
        caught = caught or "SIGTERM"
        self.report.write("stopped", step=self.training.steps_done, signal=caught)
        self.report.say(f"stopped by {caught} at step {self.training.steps_done}, all saved; {how_to_resume(self.out)}")
        raise SystemExit(StopSignals.status(caught))


def _validation(training: Training) -> CocoDetection:
    options, shown = training.options, training.options.logging.progress and training.group.is_main
    categories = training.data.annotations.categories
    return validation_data(training.given.data or options.source, options.input, categories, progress=shown)


def _agree(training: Training) -> None:
    """All processes were given the same settings and data; else they would train apart, or wait forever."""
    data = training.data.annotations
    mine = {"data": [len(data.images), len(data.boxes), float(data.boxes.sum())], **to_plain(training.options)}
    all_of_them = training.group.gather(mine, patient=True)
    with training.group.all_or_none("comparing settings"):
        for rank, theirs in enumerate(all_of_them):
            for name, value in all_of_them[0].items():
                if theirs[name] != value:
                    raise ValueError(f"process {rank} has another {name} than process 0: {theirs[name]}, not {value}")


def how_to_resume(out: Path) -> str:
    """The command that goes on with the run in a folder; the end of a sentence."""
    files = checkpoints_in(out)
    return f"resume it with: {command('train', '--resume', files[-1])}" if files else "there is no checkpoint yet"


def failure_sentence(error: Exception, out: Path, step: int, batch_size: int) -> str | None:
    """What ended the run in a folder, and what to do, in a sentence; None for anything but what long runs meet."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    if out_of_memory(error):
        what = f"out of memory at step {step} with --batch-size {batch_size}: {what_to_lower(batch_size)} ({first})"
    elif "DataLoader worker" in first:
        # one that ended by itself may be a script that began anew in it, as where processes are not forked
        script = ", or begin your script with if __name__ == '__main__'" if "exited unexpectedly" in first else ""
        what = (
            f"a process that loads images was killed at step {step}, as a rule for want of memory: try fewer "
            f"--workers, or less --cache-images{script} ({first})"
        )
    else:
        # torch.save covers the error of a full disk with one of its own
        full: BaseException | None = error
        while full is not None and getattr(full, "errno", None) not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            full = full.__cause__ or full.__context__
        if not isinstance(full, OSError):
            return None
        what = f"no room to write {full.filename or out} at step {step} ({os.strerror(full.errno or 0)})"
    return f"{what}; {how_to_resume(out)}"


def evaluate_checkpoint(options: TrainOptions) -> dict[str, Any] | None:
    """COCO's metrics of the checkpoint that ``--resume`` names; None in every process but the first."""
    with process_group(options.compute) as group:
        assert options.run.resume is not None
        with group.all_or_none("setting up"):
            training = Training(options, load_checkpoint(options.run.resume), group)
            validation = _validation(training)
        metrics = evaluate(training, validation)
        return metrics if group.is_main else None

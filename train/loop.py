"""``msdeform train``: one process, from data to checkpoints.

Training          all that a checkpoint holds: model, optimizer, schedule, place in the data
Training.step     one optimizer step
train             steps, evaluations, checkpoints and logs, to the end of the run
run_steps         a few steps and their losses, for tests
"""

import argparse
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.formats import checkpoints_in
from ..models.loading import Start, init_from
from ..models.matcher import NonFiniteCostError
from ..models.targets import Target
from ..models.zoo import create_criterion, plain_config
from .build import new_model
from .checkpoint import (
    category_list,
    load_checkpoint,
    load_model_state,
    random_state,
    remove_old,
    save_checkpoint,
    set_random_state,
)
from .coco import Sample
from .commandline import parse
from .config import TrainOptions, choose_device, from_plain, to_plain
from .data import batches_per_epoch, to_device, training_data, training_loader, validation_data
from .evaluate import autocast, coco_metrics, detect, evaluating
from .files import atomic_file
from .log import Display, RunLog, display
from .optim import Rates, make_optimizer, rate_at


class Training:
    """A run's model, optimizer, schedule and place in the data.

    Args:
        options: of the run; ``options.run`` matters only for the device here.
        resume: a checkpoint's content to go on from, instead of fresh weights.

    Raises:
        ValueError, FileNotFoundError, BackendUnavailable: as the parts it is made of; each message is one sentence.
    """

    def __init__(self, options: TrainOptions, resume: dict[str, Any] | None = None) -> None:
        self.options = options
        optim, batch = options.optim, options.batch
        self.device = choose_device(options.compute.device)
        self.data = training_data(options.source, options.input, options.loading, batch.seed)
        self.workers = 0 if options.loading.cache_images != "none" else options.loading.workers

        torch.manual_seed(batch.seed)
        categories = self.data.annotations.categories
        self.model, self.backend, self.backbone_trained = new_model(options.model, len(categories), self.device)
        if options.compute.precision == "fp64":
            self.model.double()
        self.start: Start | None = None  # what --init-from gave
        if options.model.init_from is not None and resume is None:
            self.start = init_from(self.model, options.model.init_from)
        self.criterion = create_criterion(self.model)
        self.optimizer = make_optimizer(self.model, optim, backbone_trained=self.backbone_trained)

        self.batch_size = min(batch.total_batch_size, options.input.overfit or batch.total_batch_size)
        self.steps_per_epoch = batches_per_epoch(len(self.data), self.batch_size)
        self.total_steps = min(batch.epochs * self.steps_per_epoch, batch.max_steps or sys.maxsize)
        self.schedule = Rates(self.optimizer, rate_at(options.schedule, self.steps_per_epoch, self.total_steps))
        self.steps_done = 0
        self.nonfinite_in_a_row = 0
        if resume is not None:
            self._restore(resume)

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 0."""
        return self.steps_done // self.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self.steps_done >= self.total_steps

    def batches(self) -> Iterator[list[Sample]]:
        """What is left of the current epoch."""
        start = self.steps_done % self.steps_per_epoch
        left = self.total_steps - self.steps_done
        loader = training_loader(self.data, self.batch_size, self.workers, self.epoch, start)
        for _, samples in zip(range(left), loader, strict=False):
            yield samples

    def step(self, samples: list[Sample]) -> dict[str, float]:
        """One optimizer step on a batch, in micro-batches whose gradients add up to those of the whole.

        Returns:
            ``loss`` (weighted total), each of its terms, ``grad_norm`` before clipping, and ``finite``, 0.0 if the
            step was skipped.
        """
        optim = self.options.optim
        self.model.train()
        self.schedule.set(self.steps_done)
        self.optimizer.zero_grad(set_to_none=True)
        # known to every micro-batch, so that their losses add up to the whole batch's
        batch = [target for _, target in samples]
        averages = _running_averages(self.model)
        sums: dict[str, float] = {}
        try:
            for start in range(0, len(samples), self.options.batch.batch_size):
                part = samples[start : start + self.options.batch.batch_size]
                for name, value in self._backward(part, batch).items():
                    sums[name] = sums.get(name, 0.0) + value
        except NonFiniteCostError:
            sums["loss"] = float("nan")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip or float("inf"))
        finite = bool(torch.isfinite(norm)) and abs(sums["loss"]) < float("inf")
        if finite:
            self.optimizer.step()
            self.nonfinite_in_a_row = 0
        else:
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, saved in averages:  # the forward pass has moved them already
                buffer.copy_(saved)
            self.nonfinite_in_a_row += 1
        self.steps_done += 1
        return {**sums, "grad_norm": float(norm), "finite": float(finite)}

    def _backward(self, samples: list[Sample], batch: list[Target]) -> dict[str, float]:
        """Adds the gradients of some images of a batch, of which ``batch`` holds all targets."""
        images, targets = to_device(samples, self.device, next(self.model.parameters()).dtype)
        with autocast(self.device, self.options.compute.precision):
            outputs = self.model(images)
        losses = self.criterion(outputs, targets, batch=batch)
        weights = self.criterion.weight_dict
        total: Tensor = sum((losses[name] * weight for name, weight in weights.items()), torch.zeros(()))
        total.backward()
        share = len(samples) / len(batch)  # of what is logged as an average
        terms = {name: float(value.detach()) * (1.0 if name in weights else share) for name, value in losses.items()}
        return {"loss": float(total.detach()), **terms}

    def state(self) -> dict[str, Any]:
        """All of it, as a checkpoint holds it."""
        return {
            "model": self.model.state_dict(),
            "model_name": self.options.model.model,
            "model_config": plain_config(self.model),
            "categories": category_list(self.data.annotations.categories),
            "attn_backend": self.backend,
            "optimizer": self.optimizer.state_dict(),
            "step": self.steps_done,
            "epoch": self.epoch,
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
            "random_state": random_state(),
            "options": to_plain(self.options),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        run = self.options.run.resume or Path("the checkpoint")
        mine, theirs = self.options.model.model, state["model_name"]
        if mine != theirs:
            raise ValueError(f"{run} is a checkpoint of another model: {theirs}, not {mine}")
        if state["categories"] != category_list(self.data.annotations.categories):
            raise ValueError(f"{run} was trained on other classes; --init-from takes its weights for new data")
        load_model_state(self.model, state["model"], run)
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_done = state["step"]
        self.nonfinite_in_a_row = state["nonfinite_in_a_row"]
        set_random_state(state["random_state"])


def _running_averages(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The buffers of trainable batch norms, each with a copy; frozen norms never change."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]


def run_steps(options: TrainOptions, n: int) -> list[float]:
    """The losses of the first ``n`` steps of a run, without writing anything."""
    training = Training(options)
    losses: list[float] = []
    while len(losses) < n:
        for samples in training.batches():
            losses.append(training.step(samples)["loss"])
            if len(losses) == n:
                break
    return losses


def evaluate(training: Training, validation: Any) -> dict[str, float]:
    """COCO's metrics of the model as it stands."""
    options = training.options
    results = detect(
        training.model,
        validation,
        training.device,
        batch_size=options.batch.batch_size,
        workers=training.workers,
        precision=options.compute.precision,
    )
    return coco_metrics(validation.annotations.path, results, validation.image_ids)


def train(options: TrainOptions) -> Path:
    """Trains to the end of the run.

    Returns:
        The run's folder: ``checkpoint-*.pt``, ``log.jsonl``, ``tensorboard/``.

    Raises:
        RuntimeError: too many steps in a row were not finite.
        ValueError, FileNotFoundError: wrong settings or data; each message is one sentence.
    """
    state = None if options.run.resume is None else load_checkpoint(options.run.resume)
    training = Training(options, state)
    validation = validation_data(options.source, options.input, training.data.annotations.categories)
    out = _run_folder(options)
    with (
        RunLog(out, tensorboard=options.seeing.tensorboard) as log,
        display(training.steps_done, training.total_steps, shown=options.seeing.progress) as bar,
    ):
        _introduce(training, validation, out, log, bar)
        try:
            while not training.finished:
                _train_epoch(training, out, log, bar)
                at_end = training.steps_done % training.steps_per_epoch == 0
                if training.finished or (at_end and training.epoch % options.run.eval_every == 0):
                    _evaluate(training, validation, log, bar)
                _save(training, out)
        except KeyboardInterrupt:
            files = checkpoints_in(out)
            go_on = f"go on with: msdeform train --resume {files[-1]}" if files else "there is no checkpoint yet"
            bar.say(f"stopped at step {training.steps_done}; {go_on}")
            raise SystemExit(130) from None
        log.write("end", step=training.steps_done)
        bar.say(f"done: {out}")
    return out


def _train_epoch(training: Training, out: Path, log: RunLog, bar: Display) -> None:
    run, options = training.options.run, training.options
    epoch = training.epoch
    begun, images, losses = time.perf_counter(), 0, []
    for samples in training.batches():
        result = training.step(samples)
        images += len(samples)
        speed = images / (time.perf_counter() - begun)
        bar.update(training.steps_done, f"{epoch + 1}/{options.batch.epochs}", result, speed)
        if not result["finite"]:
            _report_nonfinite(training, samples, out, log, bar)
        else:
            losses.append(result["loss"])
        if training.steps_done % options.seeing.log_every == 0 or training.steps_done == 1:
            rates = {f"lr_{group['name']}": group["lr"] for group in training.optimizer.param_groups}
            log.write("step", step=training.steps_done, epoch=epoch, **result, **rates, images_per_s=round(speed, 2))
        if run.checkpoint_every and training.steps_done % run.checkpoint_every == 0:
            _save(training, out)
    mean = sum(losses) / max(1, len(losses))
    speed = images / (time.perf_counter() - begun)
    bar.say(f"epoch {epoch + 1}: mean loss {mean:.3f}, {speed:.1f} images/s")


def _report_nonfinite(training: Training, samples: list[Sample], out: Path, log: RunLog, bar: Display) -> None:
    ids = [target["image_id"] for _, target in samples]
    batch = out / f"nonfinite-step-{training.steps_done:08d}.pt"
    with atomic_file(batch) as file:
        torch.save({"samples": samples, "model": training.model.state_dict()}, file)
    log.write("nonfinite", step=training.steps_done, image_ids=ids, batch=batch.name)
    bar.say(f"step {training.steps_done}: loss or gradient not finite, step skipped; its batch is in {batch}")
    if training.nonfinite_in_a_row >= training.options.run.max_nonfinite:
        raise RuntimeError(
            f"loss or gradient was not finite in {training.nonfinite_in_a_row} steps in a row, the last "
            f"{training.steps_done}; try a lower --lr or --precision fp32 (images {ids}, batch in {batch})"
        )


def _evaluate(training: Training, validation: Any, log: RunLog, bar: Display) -> None:
    begun = time.perf_counter()
    metrics = evaluate(training, validation)
    seconds = time.perf_counter() - begun
    log.write("epoch", step=training.steps_done, epoch=training.epoch, **metrics, seconds=round(seconds, 2))
    bar.say(f"validation: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f} ({seconds:.0f} s)")


def _save(training: Training, out: Path) -> None:
    save_checkpoint(out / f"checkpoint-{training.steps_done:08d}.pt", training.state())
    remove_old(out, training.options.run.keep)


def _run_folder(options: TrainOptions) -> Path:
    run = options.run
    if run.resume is not None:
        return run.out or (run.resume if run.resume.is_dir() else run.resume.parent)
    out = run.out or Path("runs") / f"{options.model.model}-{datetime.now():%Y%m%d-%H%M%S}"
    if checkpoints_in(out):
        raise ValueError(f"{out} holds a run already; go on with it by --resume {out}, or name another --out")
    return out


def _introduce(training: Training, validation: Any, out: Path, log: RunLog, bar: Display) -> None:
    """Says, and records, what is about to happen."""
    options = training.options
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    bar.say(
        f"{options.model.model}: {parameters:,} parameters, "
        f"{training.backend} attention on {training.device}, {options.compute.precision}"
    )
    bar.say(
        f"{len(set(training.data.rows))} training and {len(validation)} validation images, "
        f"{len(training.data.annotations.categories)} classes; {training.total_steps} steps of "
        f"{min(training.batch_size, len(training.data))} images; results in {out}"
    )
    for line in training.data.annotations.dropped.sentences():
        bar.say(f"{training.data.annotations.path.name}: {line}")
    for line in training.start.sentences() if training.start else ():
        bar.say(line)
    log.write(
        "start" if training.steps_done == 0 else "resume",
        step=training.steps_done,
        attn_backend=training.backend,
        device=str(training.device),
        torch=torch.__version__,
        parameters=parameters,
        dropped={
            "crowd": training.data.annotations.dropped.crowd,
            "degenerate": training.data.annotations.dropped.degenerate,
        },
        fresh=training.start.fresh if training.start else [],
        ignored=training.start.ignored if training.start else [],
        options=to_plain(options),
    )


def main(argv: list[str] | None = None) -> int:
    """``msdeform train``; with --resume, the settings of the checkpoint are those not given."""
    words = list(sys.argv[1:] if argv is None else argv)
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--resume", type=Path)
    resume = peek.parse_known_args(words)[0].resume
    default = None if resume is None else from_plain(TrainOptions, load_checkpoint(resume)["options"])
    options = parse(TrainOptions, words, "msdeform train", default)
    if options.run.eval and options.run.resume is not None:
        training = Training(options, load_checkpoint(options.run.resume))
        validation = validation_data(options.source, options.input, training.data.annotations.categories)
        with evaluating(training.model):
            metrics = evaluate(training, validation)
        print("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
        return 0
    train(options)
    return 0

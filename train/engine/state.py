"""A run's model, optimizer and place in the data, and one optimizer step; what a checkpoint holds.

The gradient of a step is that of its whole batch, however many processes and passes it is divided among: every part's
loss is divided by what belongs to the whole, and the parts add up.
"""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...common.device import choose_device
from ...common.files import told_of
from ...models.losses.matcher import NonFiniteCostError
from ...models.weights.formats import check_fit
from ..config.given import NOTHING, Given
from ..config.options import AUTO, TrainOptions, from_plain, to_plain, with_batch_size
from ..data.dataset import Sample
from ..data.loader import Order, to_device, training_data, training_loader
from .acceleration import autocast, prepare
from .build import AnyDetector, inputs_of, model_of_checkpoint, new_criterion, new_model
from .checkpoint import random_state, set_random_state
from .distributed import ProcessGroup
from .optim import ema_state, make_ema, make_optimizer, rate_at, restore_ema
from .step_timer import StepTimer

REPLAY_FORMAT = "msdeform-replay-1"

_MOST_WORKERS = 16  # for each processor

# what a checkpoint holds of a run under the same names
_KEPT = ("nonfinite_in_a_row", "best", "evaluated_at", "evaluations_since_best", "thresholds")

# below this the loss scale of fp16 says that gradients overflow by themselves, not by being scaled
_LEAST_SCALE = 1.0


class Training:
    """A run's model, optimizer, schedule and place in the data.

    Args:
        options: of the run; ``options.run`` matters only for messages here.
        resume: a checkpoint's content to go on from, instead of fresh weights.
        group: the processes that train together; this one alone when None.
        given: by a script, beside the settings.

    Raises:
        ValueError, FileNotFoundError, BackendUnavailable: as the parts it is made of; each message is one sentence.
    """

    def __init__(
        self,
        options: TrainOptions,
        resume: dict[str, Any] | None = None,
        group: ProcessGroup | None = None,
        given: Given = NOTHING,
    ) -> None:
        if resume is not None:
            run = options.run.resume or Path("the checkpoint")
            with told_of(run, "checkpoint"):
                given.refuse_what_differs(resume.get("given", {}), run)
                if options.batch.batch_size == AUTO:  # as it was found
                    options = with_batch_size(options, from_plain(TrainOptions, resume["options"]).batch.batch_size)
        self.given = given
        self.options = options
        self.group = group or ProcessGroup(choose_device(options.compute.device))
        self.device = self.group.device
        batch, compute = options.batch, options.compute
        most = _MOST_WORKERS * (os.cpu_count() or 1)
        if options.loading.workers > most:  # before the machine is full of processes that wait for each other
            told = f"expected at most {most}, {_MOST_WORKERS} for each processor here, got {options.loading.workers}"
            raise ValueError(f"workers: {told}")
        # what of the cache of images this process reads and keeps for the others on its machine
        cached = options.loading.cache_images != "none" and not options.input.overfit
        share = (self.group.local_rank, self.group.local_size) if cached else (0, 1)
        self.data = training_data(
            given.data or options.source,
            options.input,
            options.loading,
            batch.seed,
            pipeline=given.transform,
            share=share,
            progress=options.logging.progress and self.group.is_main,
        )
        images = self.data.annotations.images
        self.order = Order(
            n_images=len(self.data),
            total=min(batch.total_batch_size, options.input.overfit or batch.total_batch_size),
            seed=batch.seed,
            rank=self.group.rank,
            size=self.group.size,
            share=share,
            shapes=(images.heights / images.widths)[self.data.rows] if options.loading.bucket else None,
        )
        self.total_steps = min(batch.epochs * self.steps_per_epoch, batch.max_steps or sys.maxsize)
        self.data.epochs = math.ceil(self.total_steps / self.steps_per_epoch)

        torch.manual_seed(batch.seed)
        self._categories = [asdict(category) for category in self.data.annotations.categories]
        if resume is None:
            built = new_model(options.model, len(self._categories), self.device)
        else:
            with told_of(self._source, "checkpoint"):
                built = model_of_checkpoint(resume, self._source, options.model, self.device)
        self.model, self.backend, self.start = built.model, built.backend, built.start
        self.backbone_trained = built.backbone_trained
        if compute.precision == "fp64":
            self.model.double()
        self.criterion = new_criterion(self.model, self.group.size)
        self.ema = None if options.optim.ema is None else make_ema(self.model, options.optim.ema)
        prepare(self.model, compute)
        if compute.sync_bn and self.device.type == "cuda" and self.group.size > 1:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.optimizer = make_optimizer(self.model, options.optim, backbone_trained=self.backbone_trained)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=compute.precision == "fp16")
        # a function of the step alone, so that there is nothing in it to save
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._rate_factor = rate_at(options.schedule, self.steps_per_epoch, self.total_steps)
        self.step_timer = StepTimer(self.device)
        self.step_timer.watch(self.model, self.criterion)

        self.steps_done = 0
        self.nonfinite_in_a_row = 0
        self.best: dict[str, float] = {"AP": -1.0, "step": -1}
        self.evaluated_at = 0
        self.evaluations_since_best = 0
        self.thresholds: list[float] | None = None
        """The best least score of each class, by label, in the last evaluation."""
        self.blamed: list[int] = []
        """Processes whose part of the last step had a loss that was not finite."""
        self._random_before: tuple[Tensor, Tensor | None] = torch.get_rng_state(), None
        if resume is not None:
            with told_of(self._source, "checkpoint"):
                self._restore(resume)
        elif self.group.rank:
            torch.manual_seed(batch.seed + self.group.rank)  # dropout of its own
        self._wrapped = self.group.wrap(self.model)

    @property
    def _source(self) -> Path:
        """Where it is resumed from, for messages."""
        return self.options.run.resume or Path("the checkpoint")

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 0."""
        return self.steps_done // self.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self.steps_done >= self.total_steps

    @property
    def detector(self) -> AnyDetector:
        """What is evaluated: the average of the weights, if one is kept."""
        return self.model if self.ema is None else cast(AnyDetector, self.ema.module)

    def batches(self, replaced: Callable[[str], None] = lambda sentence: None) -> Iterator[list[Sample]]:
        """This process's part of every batch that is left of the run, in the order of its passes.

        ``replaced`` is called with a sentence for each image that could not be read and that another stands in for.
        """
        for batch in training_loader(
            self.data,
            self.order,
            self.options.loading,
            start=self.steps_done,
            end=self.total_steps,
            pin=self.device.type == "cuda",
        ):
            for sentence in batch.replaced:
                replaced(sentence)
            yield by_shape(batch.samples) if self.options.loading.bucket else batch.samples

    def step(self, samples: list[Sample], *, stop: bool = False) -> dict[str, float] | None:
        """One optimizer step on this process's part of a batch.

        Args:
            samples: that part.
            stop: this process wishes to stop.

        Returns:
            Of the whole batch: ``loss`` (weighted total), each of its terms, ``grad_norm`` before clipping,
            ``images``, ``scale`` of fp16, and ``finite``, 0.0 if the step was skipped. None, and nothing is done, if
            any process wishes to stop.
        """
        self.model.train()
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._rate_factor(self.steps_done)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.group.gather(([len(target["labels"]) for _, target in samples], stop, self.steps_done))
        if len({place for _, _, place in parts}) > 1:
            told = ", ".join(f"process {rank} is at {place}" for rank, (_, _, place) in enumerate(parts))
            raise RuntimeError(f"processes disagree on the step: {told}")
        if any(wish for _, wish, _ in parts):
            return None
        box_counts = [count for counts, _, _ in parts for count in counts]
        averages = running_statistics(self.model)
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        self._random_before = (torch.get_rng_state(), cuda)
        losses = self._gradients(samples, box_counts)
        with self.step_timer.stage("optimiser"):
            self.scaler.unscale_(self.optimizer)
            clip = self.options.optim.clip or float("inf")
            norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip))
            of_all = self.group.gather(losses)
            self.blamed = [rank for rank, part in enumerate(of_all) if not abs(part["loss"]) < float("inf")]
            finite = norm < float("inf") and not self.blamed
            # an infinite gradient of a finite loss is what the search for fp16's scale is made of
            searching = self.scaler.is_enabled() and not self.blamed and self.scaler.get_scale() > _LEAST_SCALE
            if finite:
                self.scaler.step(self.optimizer)
                self.nonfinite_in_a_row = 0
            else:
                self.optimizer.zero_grad(set_to_none=True)
                for buffer, saved in averages:  # the forward pass has moved them already
                    buffer.copy_(saved)
                self.nonfinite_in_a_row += not searching
            self.scaler.update()
            if finite and self.ema is not None:
                self.ema.update_parameters(self.model)
        self.steps_done += 1
        result = {name: sum(part[name] for part in of_all) for name in of_all[0] if all(name in p for p in of_all)}
        if self.scaler.is_enabled():
            result["scale"] = self.scaler.get_scale()
        result |= {"grad_norm": norm, "images": float(len(box_counts))}
        return result | {"finite": float(finite), "searching": float(searching and not finite)}

    def try_pass(self, samples: list[Sample]) -> None:
        """A forward and backward pass of this process alone, whose gradients nobody uses."""
        self.model.train()
        with self.group.no_sync(self._wrapped):
            self._backward(samples, [len(target["labels"]) for _, target in samples])

    def _gradients(self, samples: list[Sample], box_counts: list[int]) -> dict[str, float]:
        """Adds the gradients of this process's images; returns its part of the losses."""
        most = self.options.batch.batch_size
        sums: dict[str, Tensor] = {}
        for start in range(0, len(samples), most):
            last = start + most >= len(samples)
            with contextlib.nullcontext() if last else self.group.no_sync(self._wrapped):
                for name, value in self._backward(samples[start : start + most], box_counts).items():
                    sums[name] = sums[name] + value if name in sums else value
        # one wait for the device, whatever the number of terms
        return dict(zip(sums, torch.stack(list(sums.values())).double().tolist(), strict=True))

    def _backward(self, samples: list[Sample], box_counts: list[int]) -> dict[str, Tensor]:
        """Adds the gradients of some images of a batch whose images have so many boxes."""
        with self.step_timer.stage("data"):
            images, targets = to_device(samples, self.device, next(self.model.parameters()).dtype)
        with self.step_timer.stage("model, other"), autocast(self.device, self.options.compute.precision):
            outputs = self._wrapped(*inputs_of(self.model, images, targets))
        with self.step_timer.stage("loss"):
            weights = self.criterion.weight_dict
            try:
                losses = self.criterion(outputs, targets, box_counts=box_counts)
                total = sum((losses[name] * weight for name, weight in weights.items()), torch.zeros(()))
            except NonFiniteCostError:
                # every process must reach the same parameters, and see that this one could not
                losses = {}
                total = sum(p.sum() for p in self.model.parameters() if p.requires_grad) * torch.nan
        with self.step_timer.stage("backward"):
            # gradients are averaged over processes, where those of parts of a batch add up
            self.scaler.scale(total * self.group.size).backward()
        return {"loss": total.detach(), **{name: value.detach().to(total) for name, value in losses.items()}}

    def record_evaluation(self, ap: float, thresholds: list[float] | None) -> bool:
        """Notes the AP of the model as it stands, and its classes' thresholds, None where no detection was right.

        Returns true if the AP is the best so far, to the three digits that are shown.
        """
        self.thresholds = thresholds
        first, best = self.best["step"] < 0, self.best["AP"]
        better = first or ap > best
        # among checkpoints that find nothing, the newest has learnt most
        if better or ap == best == 0:
            self.best = {"AP": ap, "step": float(self.steps_done)}
        self.evaluated_at = self.steps_done
        self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
        return not first and round(ap, 3) > round(best, 3)

    def share_running_statistics(self) -> None:
        """Gives all processes the running statistics of the first, as each has seen other images."""
        for model in (self.model, *([] if self.ema is None else [self.ema.module])):
            self.group.share([buffer for buffer, _ in running_statistics(model)])

    def _described(self) -> dict[str, Any]:
        """The weights, and what they are of."""
        return {
            "model": {name.replace("_orig_mod.", ""): tensor for name, tensor in self.model.state_dict().items()},
            "model_name": self.options.model.model,
            "model_config": self.model.require_config().to_dict(),
            "categories": self._categories,
            "attn_backend": self.backend,
            "step": self.steps_done,
        }

    def replayable(self, samples: list[Sample]) -> dict[str, Any]:
        """What ``msdeform replay`` needs to do this process's part of the step that was just skipped again."""
        cpu, cuda = self._random_before
        return {
            **self._described(),
            "format": REPLAY_FORMAT,
            "samples": samples,
            "precision": self.options.compute.precision,
            "batch_size": self.options.batch.batch_size,
            "random": {"torch": cpu, "cuda": cuda},
        }

    def state(self) -> dict[str, Any]:
        """All of it, as a checkpoint holds it; every process must ask, the main one writes."""
        return {
            **self._described(),
            "ema": None if self.ema is None else ema_state(self.ema),
            "backbone_trained": self.backbone_trained,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "n_images": self.order.n_images,
            **{name: getattr(self, name) for name in _KEPT},
            "random_states": self.group.gather(random_state()),
            "options": to_plain(self.options),
            "given": self.given.describe(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint; its place in the data means something only among the same images and batches."""
        run, now = self._source, self.options.batch
        before = from_plain(TrainOptions, state["options"]).batch
        if state["categories"] != self._categories:
            raise ValueError(f"{run} was trained on other classes; --init-from takes its weights for new data")
        if (before.total_batch_size, before.seed) != (now.total_batch_size, now.seed):
            raise ValueError(
                f"{run} was trained with --total-batch-size {before.total_batch_size} --seed {before.seed}, which its "
                f"place in the data belongs to, and is resumed with {now.total_batch_size} and {now.seed}; --init-from "
                "takes its weights for another run"
            )
        if state.get("n_images", self.order.n_images) != self.order.n_images:
            raise ValueError(
                f"{run} was trained on {state['n_images']} images, and now there are {self.order.n_images}; "
                "--init-from takes its weights for new data"
            )
        check_fit(self.model.state_dict(), state["model"], run)
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            if kept := state.get("ema"):
                restore_ema(self.ema, kept)
            else:
                self.ema.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.steps_done = self.evaluated_at = state["step"]
        for name in _KEPT:
            setattr(self, name, state.get(name, getattr(self, name)))
        states = state.get("random_states") or [state["random_state"]]
        if self.group.rank < len(states):
            set_random_state(states[self.group.rank])
        else:  # more processes than before: dropout that none of them had
            torch.manual_seed(now.seed + self.steps_done * self.group.size + self.group.rank)


def by_shape(samples: list[Sample]) -> list[Sample]:
    """From wide to high, as augmentation has made them, so that images that pass together pad each other little."""
    return sorted(samples, key=lambda sample: sample[0].shape[-2] / sample[0].shape[-1])


def running_statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The buffers of trainable batch norms, each with a copy; frozen norms never change."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]

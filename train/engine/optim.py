"""AdamW with the official parameter groups, the learning rate by the step, and the moving average (EMA) of weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..config.options import Optim, Schedule

# ours, beside which learned positions stand, and those of transformers
_BACKBONES = ("backbone.0", "model.model.backbone.", "model.model.conv_encoder.")


def make_optimizer(model: nn.Module, options: Optim, *, backbone_trained: bool) -> torch.optim.AdamW:
    """AdamW over the official groups, by name: the backbone; sampling offsets and reference points; everything else.

    Frozen parameters are in none. Each group carries its ``name``, for the log.

    Args:
        backbone_trained: the backbone starts from trained weights, and so learns ten times slower.
    """
    groups: dict[str, list[nn.Parameter]] = {"main": [], "backbone": [], "offsets": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if any(part in name for part in _BACKBONES):
            groups["backbone"].append(parameter)
        elif "reference_points" in name or "sampling_offsets" in name:
            groups["offsets"].append(parameter)
        else:
            groups["main"].append(parameter)
    backbone = options.lr_backbone
    if backbone is None:
        backbone = options.lr / 10 if backbone_trained else options.lr
    rates = {"main": options.lr, "backbone": backbone, "offsets": options.lr * options.lr_factor_offsets}
    described = [{"params": groups[name], "lr": rates[name], "name": name} for name in groups if groups[name]]
    # one pass over the parameters instead of a dozen: on a small net a sixth of the step
    return torch.optim.AdamW(described, lr=options.lr, weight_decay=options.weight_decay, fused=True)


def rate_at(options: Schedule, steps_per_epoch: int, total_steps: int) -> Callable[[int], float]:
    """What every group's rate is multiplied by, as a function of the number of steps done."""

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
        if options.schedule == "cosine":
            done = max(0, step - options.warmup_steps) / max(1, total_steps - options.warmup_steps)
            falling = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
            return warm * (options.lr_end + (1 - options.lr_end) * falling)
        if options.schedule == "step" and step >= options.lr_drop * steps_per_epoch:
            return warm * 0.1
        return warm

    return factor


def decay_at(decay: float, updates: int) -> float:
    """The decay of an update: low at first, so that the average soon forgets random weights."""
    return min(decay, (1 + updates) / (10 + updates))


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` that ``update_parameters`` moves towards it, buffers included; the first call copies."""

    @torch.no_grad()
    def update(averages: Sequence[Tensor], currents: Sequence[Tensor], updates: Tensor | int) -> None:
        weight = 1 - decay_at(decay, int(updates))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, weight)
            else:
                average.copy_(current)  # counts have no average

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    average.requires_grad_(False)
    return average.eval()


def ema_state(average: AveragedModel) -> dict[str, Any]:
    """For a checkpoint: weights by the model's own names, and how many updates they hold."""
    return {"weights": average.module.state_dict(), "updates": int(average.n_averaged)}


def restore_ema(average: AveragedModel, state: dict[str, Any]) -> None:
    """Puts back what `ema_state` returned."""
    average.module.load_state_dict(state["weights"])
    average.n_averaged.fill_(state["updates"])

"""An exponential moving average of a model's weights, which is often a better detector than the weights themselves."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def decay_at(decay: float, updates: int) -> float:
    """The decay of an update: low at first, so that the average soon forgets random weights."""
    return min(decay, (1 + updates) / (10 + updates))


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` that ``update_parameters`` moves towards it, buffers included; the first call copies."""
    average = AveragedModel(model, multi_avg_fn=_towards(decay), use_buffers=True)
    average.requires_grad_(False)
    return average.eval()


def _towards(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(averages: Sequence[Tensor], currents: Sequence[Tensor], updates: Tensor | int) -> None:
        weight = 1 - decay_at(decay, int(updates))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, weight)
            else:
                average.copy_(current)  # counts have no average

    return update


def average_state(average: AveragedModel) -> dict[str, Any]:
    """For a checkpoint: weights by the model's own names, and how many updates they hold."""
    return {"weights": average.module.state_dict(), "updates": int(average.n_averaged)}


def restore_average(average: AveragedModel, state: dict[str, Any]) -> None:
    """What average_state returned, put back."""
    average.module.load_state_dict(state["weights"])
    average.n_averaged.fill_(state["updates"])

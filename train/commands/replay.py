"""``msdeform replay``: the step that was not finite, done again slowly, to see where it went wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...common.device import choose_device
from ...kernels.registry import BackendUnavailable
from ...models.families.detector import Detector
from ...models.layers.boxes import cxcywh_to_xyxy
from ...models.losses.matcher import NonFiniteCostError
from ...models.weights.formats import check_fit
from ...models.zoo import build_model, create_criterion
from ..data.dataset import Sample
from ..data.loader import to_device
from ..engine.acceleration import autocast
from ..engine.build import settle_backend
from ..engine.checkpoint import read_saved
from ..engine.state import REPLAY_FORMAT
from ..visual.boxes import Box, draw_boxes, save_picture
from .options import ReplayOptions


def run(options: ReplayOptions) -> int:
    """``msdeform replay``."""
    print("\n".join(replay(options)))
    return 0


def replay(options: ReplayOptions) -> list[str]:
    """What was found, in lines.

    Raises FileNotFoundError or ValueError for a file that is not such a batch.
    """
    state = read_saved(options.batch, "batch", REPLAY_FORMAT)
    device = choose_device(options.device)
    precision = state["precision"] if options.precision == "same" else options.precision
    usable = _backend(options.attn_backend, state["attn_backend"], device)
    model = build_model(state["model_config"], attn_backend=usable).to(device)
    check_fit(model.state_dict(), state["model"], options.batch)
    model.load_state_dict(state["model"])
    if precision == "fp64":
        model.double()
    samples: list[Sample] = state["samples"]
    lines = [
        f"step {state['step']} of {state['model_name']}, {usable} on {device}, {precision}; "
        f"images {', '.join(str(target['image_id']) for _, target in samples)}"
    ]
    if options.out is not None:
        lines += [f"drawn: {path}" for path in _draw(samples, state["categories"], options.out)]
    bad = _not_finite(dict(model.named_parameters()) | dict(model.named_buffers()))
    if bad:
        return [*lines, f"the weights themselves are not finite: {_list(bad)}; an earlier step wrote them"]
    for _, target in samples:
        if not bool(torch.isfinite(target["boxes"]).all()):
            lines.append(f"boxes of image {target['image_id']} are not finite: {target['boxes'].tolist()}")
    set_random(state["random"], device)
    return lines + _passes(model, samples, state["batch_size"], device, precision)


def _backend(asked: str, recorded: str, device: torch.device) -> str:
    """The one that is asked for; of ``same`` the run's, or what auto takes where that does not run on the device."""
    if asked != "same":
        return settle_backend(device, asked)
    try:
        return settle_backend(device, recorded)
    except BackendUnavailable:
        return settle_backend(device, "auto")


def set_random(state: dict[str, Any], device: torch.device) -> None:
    """The generators as they were before the step, so that dropout falls on the same numbers."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _passes(model: Detector, samples: list[Sample], batch_size: int, device: torch.device, precision: str) -> list[str]:
    """Forward and backward in the passes of the run, each told."""
    criterion = create_criterion(model)
    box_counts = [len(target["labels"]) for _, target in samples]
    lines: list[str] = []
    model.train()
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        name = f"images {', '.join(str(target['image_id']) for _, target in part)}"
        images, targets = to_device(part, device, model.dtype)
        model.zero_grad(set_to_none=True)
        with _first_not_finite(model) as first, autocast(device, precision):
            outputs = model(images)
        if first:
            lines.append(f"{name}: the first that is not finite in the forward pass is the output of {first[0]}")
            continue
        try:
            losses = criterion(outputs, targets, box_counts=box_counts)
        except NonFiniteCostError as error:
            lines.append(f"{name}: {error}")
            continue
        weights = criterion.weight_dict
        odd = [term for term in losses if not bool(torch.isfinite(losses[term]))]
        if odd:
            lines.append(f"{name}: the forward pass is finite, and these losses are not: {', '.join(odd)}")
            continue
        total: Tensor = sum((losses[term] * weight for term, weight in weights.items()), torch.zeros(()))
        with _first_bad_gradient(model) as bad:
            total.backward()
        told = f"gradients are not finite, the first in the backward pass that of {bad[0]}" if bad else "all is finite"
        lines.append(f"{name}: loss {float(total.detach()):.4g}; {told}")
    return lines


@contextmanager
def _first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Yields a list that gets the names of modules whose outputs are not finite, the innermost first."""
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def look(module: nn.Module, arguments: Any, output: Any) -> None:
            parts = output if isinstance(output, list | tuple) else [output]
            if any(isinstance(part, Tensor) and not bool(part.isfinite().all()) for part in parts):
                found.append(name)

        return module.register_forward_hook(look)

    hooks = [watch(name, module) for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _first_bad_gradient(model: nn.Module) -> Iterator[list[str]]:
    """Yields a list that gets the names of parameters whose gradients are not finite, in the backward pass's order."""
    found: list[str] = []

    def watch(name: str, parameter: nn.Parameter) -> RemovableHandle:
        def look(parameter: Tensor) -> None:
            if parameter.grad is not None:
                found.extend(_not_finite({name: parameter.grad}))

        return parameter.register_post_accumulate_grad_hook(look)

    hooks = [watch(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _not_finite(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _draw(samples: list[Sample], categories: list[dict[str, Any]], out: Path) -> Iterator[Path]:
    """The images as the model saw them, with their boxes."""
    for number, (image, target) in enumerate(samples):
        height, width = image.shape[-2:]
        scale = torch.tensor([width, height, width, height])
        corners = cxcywh_to_xyxy(torch.nan_to_num(target["boxes"])) * scale
        boxes = [
            Box(tuple(corner), label, str(categories[label]["name"]))
            for corner, label in zip(corners.tolist(), target["labels"].tolist(), strict=True)
        ]
        path = out / f"{number:02d}-image-{target['image_id']}.png"
        save_picture(draw_boxes(Image.fromarray(image.permute(1, 2, 0).numpy()), boxes, max(1.0, 256 / width)), path)
        yield path

"""``msdeform replay``: the step that was not finite, done again slowly, to see where it went wrong."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ...common.device import choose_device
from ...common.files import told_of
from ...common.text import printable
from ...kernels.registry import BackendUnavailable
from ...models.layers.boxes import cxcywh_to_xyxy
from ...models.losses.matcher import NonFiniteCostError
from ...models.losses.targets import check_shapes
from ...models.weights.files import is_state_dict
from ...models.weights.formats import check_fit
from ..data.dataset import Sample
from ..data.loader import to_device
from ..engine.acceleration import autocast
from ..engine.build import AnyDetector, build_any_model, inputs_of, new_criterion, settle_backend
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
    state = _read(options.batch)
    device = choose_device(options.device)
    precision = state["precision"] if options.precision == "same" else options.precision
    usable = _backend(options.attn_backend, state["attn_backend"], device)
    with told_of(options.batch, "batch"):
        model = build_any_model(state, options.batch, None, attn_backend=usable).to(device)
    check_fit(model.state_dict(), state["model"], options.batch)
    model.load_state_dict(state["model"])
    if precision == "fp64":
        model.double()
    samples: list[Sample] = state["samples"]
    lines = [
        f"step {state['step']} of {state['model_name']}, {usable} on {device}, {precision}; images {_ids(samples)}"
    ]
    if options.out is not None:
        lines += [f"drawn: {path}" for path in _draw(samples, state["categories"], options.out)]
    bad = _not_finite(model.state_dict())
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        return [
            *lines,
            f"the weights themselves are not finite: {', '.join(bad[:5])}{more}; an earlier step wrote them",
        ]
    for _, target in samples:
        if not bool(torch.isfinite(target["boxes"]).all()):
            lines.append(f"boxes of image {target['image_id']} are not finite: {target['boxes'].tolist()}")
    # the generators as they were before the step, so that dropout falls on the same numbers
    torch.set_rng_state(state["random"]["torch"])
    if state["random"]["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["random"]["cuda"], device)
    criterion = new_criterion(model)
    box_counts = [len(target["labels"]) for _, target in samples]
    model.train()
    for start in range(0, len(samples), state["batch_size"]):
        part = samples[start : start + state["batch_size"]]
        lines.append(f"images {_ids(part)}: {_do_again(model, criterion, part, box_counts, device, precision)}")
    return lines


def _read(path: Path) -> dict[str, Any]:
    """A batch that is one throughout: it names files that are written, and numbers that others are counted by."""
    state = read_saved(path, "batch", REPLAY_FORMAT)
    with told_of(path, "batch"):
        names = [str(category["name"]) for category in state["categories"]]
        check_shapes([target for _, target in state["samples"]], len(state["samples"]))
        right = [
            is_state_dict(state["model"]),
            isinstance(state["model_config"], dict),
            state["precision"] in ("fp32", "bf16", "fp16", "fp64"),
            type(state["step"]) is int,
            type(state["batch_size"]) is int and state["batch_size"] > 0,
            isinstance(state["attn_backend"], str) and isinstance(state["random"]["torch"], Tensor),
            *(_is_image(image) and type(target["image_id"]) is int for image, target in state["samples"]),
            *(
                bool(((labels := target["labels"]) >= 0).all() and (labels < len(names)).all())
                for _, target in state["samples"]
            ),
        ]
    if not all(right):
        raise ValueError(f"batch {path} is damaged: its values are not of the kinds that msdeform train writes")
    model_name = printable(str(state.get("model_name")))
    return {**state, "categories": [{"name": printable(name)} for name in names], "model_name": model_name}


def _is_image(image: Any) -> bool:
    return isinstance(image, Tensor) and image.dtype == torch.uint8 and image.dim() == 3 and len(image) == 3


def _ids(samples: list[Sample]) -> str:
    return ", ".join(str(target["image_id"]) for _, target in samples)


def _backend(asked: str, recorded: str, device: torch.device) -> str:
    """The one that is asked for; of ``same`` the run's, or what auto takes where that does not run on the device."""
    if asked != "same":
        return settle_backend(device, asked)
    try:
        return settle_backend(device, recorded)
    except BackendUnavailable:
        return settle_backend(device, "auto")


def _do_again(
    model: AnyDetector,
    criterion: Any,
    samples: list[Sample],
    box_counts: list[int],
    device: torch.device,
    precision: str,
) -> str:
    """What a forward and a backward pass find."""
    images, targets = to_device(samples, device, model.dtype)
    model.zero_grad(set_to_none=True)
    names = {module: name for name, module in model.named_modules()}
    first: list[str] = []  # the innermost first
    bad: list[str] = []  # in the backward pass's order

    def look(module: nn.Module, arguments: Any, output: Any) -> None:
        parts = output if isinstance(output, list | tuple) else [output]
        if module in names and any(isinstance(part, Tensor) and not bool(part.isfinite().all()) for part in parts):
            first.append(names[module])

    def look_at_gradient(name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            bad.extend(_not_finite({name: parameter.grad}))

    with register_module_forward_hook(look), autocast(device, precision):
        outputs = model(*inputs_of(model, images, targets))
    if first:
        return f"the first that is not finite in the forward pass is the output of {first[0]}"
    try:
        losses = criterion(outputs, targets, box_counts=box_counts)
    except NonFiniteCostError as error:
        return str(error)
    odd = _not_finite(losses)
    if odd:
        return f"the forward pass is finite, and these losses are not: {', '.join(odd)}"
    total: Tensor = sum((losses[term] * weight for term, weight in criterion.weight_dict.items()), torch.zeros(()))
    with ExitStack() as hooks:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                hooks.enter_context(parameter.register_post_accumulate_grad_hook(partial(look_at_gradient, name)))
        total.backward()
    told = f"gradients are not finite, the first in the backward pass that of {bad[0]}" if bad else "all is finite"
    return f"loss {float(total.detach()):.4g}; {told}"


def _not_finite(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]


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

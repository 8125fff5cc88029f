"""Models with our operator in what people train them with: transformers' Trainer, and DistributedDataParallel."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

transformers = pytest.importorskip("transformers", reason="needs the package transformers")

import msdeform  # noqa: E402
from msdeform.integrations.places import find_places  # noqa: E402
from tests.integrations.architectures import inputs_of, make  # noqa: E402
from tests.train.processes import run_processes  # noqa: E402

IMAGES = 4


def _sample(number: int) -> dict[str, Any]:
    random = torch.Generator().manual_seed(number)
    boxes = torch.rand(2, 4, generator=random, dtype=torch.float64) * 0.3 + 0.2
    labels = {"class_labels": torch.randint(0, 3, (2,), generator=random), "boxes": boxes}
    return {"pixel_values": torch.rand(3, 64, 96, generator=random, dtype=torch.float64), "labels": labels}


def _batch(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "pixel_values": torch.stack([one["pixel_values"] for one in samples]),
        "labels": [one["labels"] for one in samples],
    }


def _trained(model: nn.Module, folder: Path, steps: int, resume: Path | None = None) -> Any:
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=2,
        logging_steps=1,
        per_device_train_batch_size=2,
        optim="sgd",  # Adam makes of a difference in the last digit one as large as a step
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    data: Any = [_sample(number) for number in range(IMAGES)]
    trainer = transformers.Trainer(model=model, args=settings, data_collator=_batch, train_dataset=data)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def _weights_apart(one: nn.Module, other: nn.Module) -> float:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    return max(float((tensor - theirs[name]).abs().max()) for name, tensor in mine.items())


def test_the_trainer_trains_saves_and_resumes_as_before(tmp_path: Path) -> None:
    ends = {}
    for ours in (False, True):
        folder = tmp_path / str(ours)
        model, resumed = make("deformable_detr"), make("deformable_detr")
        if ours:
            msdeform.accelerate(model)
            msdeform.accelerate(resumed)
        losses = [one["loss"] for one in _trained(model, folder, 4).state.log_history if "loss" in one]
        # what was saved knows nothing of us
        saved = transformers.AutoModelForObjectDetection.from_pretrained(folder / "checkpoint-4")
        assert _weights_apart(saved, model) == 0
        assert all(place.current is None for place in find_places(saved))
        _trained(resumed, folder, 4, resume=folder / "checkpoint-2")
        ends[ours] = losses, model, resumed
    (losses, model, resumed), (our_losses, our_model, our_resumed) = ends[False], ends[True]
    assert len(losses) == 4
    assert our_losses == losses
    assert _weights_apart(model, make("deformable_detr")) > 0
    assert _weights_apart(model, our_model) < 1e-9
    assert _weights_apart(resumed, our_resumed) < 1e-9


def _gradients(name: str, ours: bool) -> dict[str, Any]:
    """Of one of two processes, each with its own image, averaged over both."""
    torch.distributed.init_process_group("gloo")
    try:
        model = make(name).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if ours:
            msdeform.accelerate(model)
        parallel = DistributedDataParallel(model, find_unused_parameters=True)
        rank = torch.distributed.get_rank()
        outputs = parallel(**{key: one[rank : rank + 1] for key, one in inputs_of(name).items()})
        first = next(one for one in outputs.values() if isinstance(one, Tensor) and one.requires_grad)
        first.square().mean().backward()
        return {key: one.grad.numpy() for key, one in model.named_parameters() if one.grad is not None}
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["deformable_detr", "d_fine", "rt_detr_v2", "mask2former"])
def test_distributed_gradients_are_as_before(name: str) -> None:
    theirs, ours = (run_processes(2, _gradients, name, with_ours) for with_ours in (False, True))
    for before, after in zip(theirs, ours, strict=True):
        assert before.error == after.error == ""
        assert before.result.keys() == after.result.keys() != set()
        # statistics of a batch of one make some gradients large
        largest = max(1.0, *(abs(one).max() for one in before.result.values()))
        for key, one in before.result.items():
            assert abs(one - after.result[key]).max() < 1e-12 * largest, key


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["deformable_detr", "d_fine", "rt_detr_v2", "mask2former"])
def test_on_a_gpu_as_before_also_within_a_graph(name: str, fused: bool) -> None:
    model = make(name, torch.float32).cuda()
    inputs = {key: one.cuda() for key, one in inputs_of(name, torch.float32).items()}
    path = find_places(model)[0].path.removesuffix(".attn")  # transformers' layer stands inside
    module, given = model.get_submodule(path), {}  # type: ignore[var-annotated]
    hook = module.register_forward_pre_hook(
        lambda _, args, named: given.update(args=args, named=named), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
        hook.remove()
        before = module(*given["args"], **given["named"])
        msdeform.accelerate(model, fused=fused)

        def call() -> Tensor:
            found = module(*given["args"], **given["named"])
            return found if isinstance(found, Tensor) else found[0]

        before = before if isinstance(before, Tensor) else before[0]
        assert torch.allclose(call(), before, rtol=0, atol=1e-4 * float(before.abs().max()))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is chosen and compiled at the first call
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, call())

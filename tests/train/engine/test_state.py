"""Runs: resumed, interrupted, split into micro-batches, gone wrong."""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.common.command_line import command
from msdeform.kernels import call_cache, registry
from msdeform.models.weights.formats import checkpoints_in
from msdeform.train.config.options import Source, TrainOptions
from msdeform.train.engine import checkpoint, run
from msdeform.train.engine.checkpoint import load_checkpoint, load_trained
from msdeform.train.engine.run import run_steps, train
from msdeform.train.engine.state import Training
from msdeform.train.monitor.run_log import read_log

Change = Callable[..., TrainOptions]


def losses_of(folder: Path) -> dict[int, dict[str, float]]:
    """Every loss term of every step; of a step that was done again after resuming, the last."""
    ignored = ("event", "time", "images_per_s", "step_s", "data_s", "memory_mb", "left_s")
    events = [event for event in read_log(folder / "log.jsonl") if event["event"] == "step"]
    return {event["step"]: {k: v for k, v in event.items() if k not in ignored} for event in events}


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: type[BaseException]) -> None:
    """Makes the run end by ``error`` when it is about to do ``step``."""
    original = Training.step

    def limited(self: Training, samples: Any, **wishes: bool) -> dict[str, float] | None:
        if self.steps_done + 1 == step:
            raise error
        return original(self, samples, **wishes)

    monkeypatch.setattr(Training, "step", limited)


class PowerCut(Exception):
    """What nobody catches."""


@pytest.mark.parametrize("step", [3, 5, 7])
def test_a_run_stopped_and_resumed_has_the_same_losses_to_the_bit(changed: Change, tmp_path: Path, step: int) -> None:
    whole = train(changed(out=tmp_path / "whole"))
    # a checkpoint every step: the run goes on in the middle of an epoch (4 steps), or at its end
    options = changed(out=tmp_path / "cut", checkpoint_every=1)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, step, PowerCut)
        with pytest.raises(PowerCut):
            train(options)
    assert len(losses_of(options.run.out)) == step - 1
    torch.manual_seed(12345)  # a new process starts elsewhere
    train(changed(out=options.run.out, resume=options.run.out))
    assert losses_of(options.run.out) == losses_of(whole)
    last = [checkpoints_in(folder)[-1] for folder in (whole, options.run.out)]
    models = [load_checkpoint(file)["model"] for file in last]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_checkpoint_holds_all_that_is_left_to_chance(changed: Change, tmp_path: Path) -> None:
    # the run above has dropout and random crops; without restoring their state it would not pass
    options = changed(max_steps=4, out=tmp_path / "run")
    first = Training(options)
    for samples in first.batches():
        first.step(samples)
    state = first.state()
    state["random_states"][0]["torch"] = torch.manual_seed(99).get_state()
    longer = changed(max_steps=8)
    plain, shifted = Training(longer, first.state()), None
    expected = [plain.step(samples)["loss"] for samples in plain.batches()]
    shifted = Training(longer, state)
    assert [shifted.step(samples)["loss"] for samples in shifted.batches()] != expected


def test_worker_processes_change_nothing(changed: Change) -> None:
    assert run_steps(changed(workers=0), 6) == run_steps(changed(workers=2), 6)


def test_run_steps_goes_through_epochs(changed: Change) -> None:
    losses = run_steps(changed(), 6)
    assert len(losses) == 6
    assert len(set(losses)) == 6


def test_micro_batches_add_up_to_the_batch(changed: Change) -> None:
    # without dropout, and with norms that do not look at the batch
    base = changed(augment="none", override=("dropout=0",), total_batch_size=4, lr=0.0)
    gradients = []
    for micro_batch in (4, 2, 1):
        training = Training(changed(base, batch_size=micro_batch))
        training.model.train = lambda mode=True, model=training.model: torch.nn.Module.train(model, False)
        samples = next(training.batches())
        result = training.step(samples)
        gradients.append((result, {n: p.grad for n, p in training.model.named_parameters() if p.grad is not None}))
    for result, grads in gradients[1:]:
        assert result["loss"] == pytest.approx(gradients[0][0]["loss"], rel=1e-5)
        assert result["loss_giou"] == pytest.approx(gradients[0][0]["loss_giou"], rel=1e-5)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, gradients[0][1][name], rtol=1e-3, atol=1e-6, msg=name)


class SlightlyWrong(torch.autograd.Function):
    """The identity, with a gradient 1% too large."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 1.01


# the fused function's arguments: inputs, value, shapes, sizes, reference points, offsets, logits
@pytest.mark.parametrize("argument", [1, 5, 6])
def test_losses_in_float64_tell_a_gradient_one_per_cent_off(
    changed: Change, monkeypatch: pytest.MonkeyPatch, argument: int
) -> None:
    """What the tests of a backend's golden curve rely on."""
    options = changed(precision="fp64", override=(), schedule="constant", augment="none", epochs=9)
    expected = run_steps(options, 20)
    assert run_steps(options, 20) == expected
    backend = options.model.attn_backend
    plain, fused = registry.implementation(backend, False), registry.implementation(backend, True)

    def wrong(*arguments: Any) -> torch.Tensor:
        changed_arguments = list(arguments)
        changed_arguments[argument] = SlightlyWrong.apply(arguments[argument])
        return fused(*changed_arguments)

    monkeypatch.setitem(registry._loaded, backend, (plain, wrong))
    call_cache.forget()  # calls that were alike went to the right one
    off = run_steps(options, 20)
    call_cache.forget()
    assert off[0] == expected[0]
    assert off != pytest.approx(expected, rel=1e-8)  # a hundred times the bound there


def test_a_run_leaves_checkpoints_a_log_and_metrics(changed: Change, tmp_path: Path) -> None:
    out = train(changed(out=tmp_path / "run", tensorboard=True))
    assert [file.name for file in checkpoints_in(out)] == ["checkpoint-00000004.pt", "checkpoint-00000008.pt"]
    events = read_log(out / "log.jsonl")
    assert [event["event"] for event in events] == ["start", *["step"] * 4, "epoch", *["step"] * 4, "epoch", "end"]
    assert events[0]["attn_backend"] == "reference"
    assert {"AP", "AP50"} <= events[-2].keys()
    assert {"loss", "loss_ce", "loss_bbox", "loss_giou", "grad_norm", "lr_backbone"} <= events[1].keys()
    assert list((out / "tensorboard").iterdir())
    state = load_checkpoint(out)
    assert state["attn_backend"] == "reference"
    assert [category["name"] for category in state["categories"]] == ["disc", "square", "triangle"]
    trained = load_trained(out, torch.device("cpu"))
    assert trained.step == state["best"]["step"]
    assert trained.options.input.image_size == 64


def test_ctrl_c_leaves_the_last_checkpoint_and_one_sentence(
    changed: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(monkeypatch, 6, KeyboardInterrupt)
    with pytest.raises(SystemExit) as caught:
        train(changed(out=tmp_path / "run", progress=True))
    assert caught.value.code == 130
    last = capsys.readouterr().err.strip().splitlines()[-1]
    checkpoint_file = tmp_path / "run" / "checkpoint-00000004.pt"
    assert last == f"stopped at step 5; resume it with: {command('train', '--resume', checkpoint_file)}"
    assert load_checkpoint(checkpoint_file)["step"] == 4


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Makes the total loss of these steps NaN."""
    original = Training._backward

    def poisoned(self: Training, *arguments: Any) -> dict[str, float]:
        result = original(self, *arguments)
        if self.steps_done + 1 in steps:
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(float("nan"))
            result["loss"] = torch.tensor(float("nan"))
        return result

    monkeypatch.setattr(Training, "_backward", poisoned)


def test_a_step_that_is_not_finite_is_skipped_and_kept_for_replay(
    changed: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2, 3})
    out = train(changed(out=tmp_path / "run", epochs=1, max_nonfinite=3))
    model = load_checkpoint(out)["model"]
    assert all(torch.isfinite(tensor).all() for tensor in model.values())
    bad = [event for event in read_log(out / "log.jsonl") if event["event"] == "nonfinite"]
    assert [event["step"] for event in bad] == [2, 3]
    kept = torch.load(out / bad[0]["batch"], weights_only=True)
    assert [target["image_id"] for _, target in kept["samples"]] == bad[0]["image_ids"]
    assert losses_of(out)[2]["loss"] == "nan"  # JSON has no NaN


def test_too_many_such_steps_in_a_row_end_the_run(
    changed: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2, 4, 5, 6})
    with pytest.raises(RuntimeError, match="not finite in 3 steps in a row, the last 6; try a lower --lr"):
        train(changed(out=tmp_path / "run", max_nonfinite=3))


def test_weights_that_are_not_finite_are_noticed_by_the_matcher(changed: Change) -> None:
    training = Training(changed())
    with torch.no_grad():
        next(iter(training.model.class_embed.parameters())).fill_(float("nan"))
    result = training.step(next(training.batches()))
    assert result["finite"] == 0.0


def test_a_skipped_step_leaves_the_running_statistics_of_batch_norm(changed: Change) -> None:
    training = Training(changed())
    samples = next(training.batches())
    before = {name: buffer.clone() for name, buffer in training.model.named_buffers()}
    assert any("running_mean" in name for name in before)
    with torch.no_grad():
        training.model.backbone[0].body.conv1.weight.fill_(float("inf"))
    assert training.step(samples)["finite"] == 0.0
    for name, buffer in training.model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_overfitting_trains_and_evaluates_on_the_same_images(changed: Change) -> None:
    options = changed(overfit=3, total_batch_size=8)
    training = Training(options)
    validation = run.validation_data(options.source, options.input, training.data.annotations.categories)
    assert len(validation) == 3
    assert set(training.data.image_ids) == set(validation.image_ids)
    # 20 passes in batches of 3, the images there are
    assert training.steps_per_epoch == 20
    first, second = (training.data[row] for row in (0, 3))
    assert first[1]["image_id"] == second[1]["image_id"]
    assert torch.equal(first[0], second[0])  # not augmented
    with pytest.raises(ValueError, match="overfit: expected 99 images with boxes"):
        Training(changed(overfit=99))


def test_image_folders_and_annotation_files_can_be_named_one_by_one(changed: Change, shapes: Path) -> None:
    named = Source(train_images=shapes / "val2017", train_annotations=shapes / "annotations" / "instances_val2017.json")
    training = Training(changed(train_images=named.train_images, train_annotations=named.train_annotations))
    assert len(training.data) == 4
    with pytest.raises(ValueError, match="no val data: name a folder in COCO"):
        named.split("val")


def test_missing_data_is_named(tmp_path: Path, shapes: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data directory .*nowhere does not exist"):
        Source(data=tmp_path / "nowhere").split("train")
    with pytest.raises(FileNotFoundError, match=r"^data: expected the layout of COCO .*; .* holds "):
        Source(data=tmp_path).split("train")
    with pytest.raises(FileNotFoundError, match=r"image folder .*nowhere does not exist"):
        Source(data=shapes, val_images=tmp_path / "nowhere").split("val")


def test_bf16_trains(changed: Change) -> None:
    losses = run_steps(changed(precision="bf16", augment="none", override=("dropout=0",)), 2)
    exact = run_steps(changed(augment="none", override=("dropout=0",)), 2)
    assert losses == pytest.approx(exact, rel=0.05)
    assert losses != exact


def test_an_occupied_run_folder_is_refused(changed: Change, tmp_path: Path) -> None:
    out = train(changed(out=tmp_path / "run", max_steps=1))
    with pytest.raises(ValueError, match="holds a run already; resume it with --resume"):
        train(changed(out=out))


@pytest.mark.parametrize(("name", "content"), [("config.yaml", "mine: 1\n"), ("log.jsonl", "mine\n")])
def test_files_of_others_stay(changed: Change, tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / "mine" / name
    file.parent.mkdir()
    file.write_text(content)
    sentence = f"out: {file} would be written over, and was not written by msdeform train; name another --out"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        train(changed(out=file.parent, max_steps=1))
    assert file.read_text() == content


def test_a_full_disk_is_told_in_a_sentence(changed: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, state: dict[str, Any]) -> None:
        if path.name == "checkpoint-00000002.pt":
            try:
                raise OSError(errno.ENOSPC, "no space")
            finally:
                raise RuntimeError("unexpected pos 58560 vs 58448")  # what torch.save makes of it
        checkpoint.save_checkpoint(path, state)

    monkeypatch.setattr(run, "save_checkpoint", full)
    with pytest.raises(
        RuntimeError, match=r"^no room to write .* at step 2 \(No space left on device\); resume it with: .*1.pt$"
    ):
        train(changed(out=tmp_path / "run", checkpoint_every=1))


def test_a_folder_that_cannot_be_made_is_told(changed: Change, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="^folder .*file cannot be made: File exists; name another$"):
        train(changed(out=tmp_path / "file"))


def test_a_folder_holds_one_run_and_no_later_step_of_it(changed: Change, tmp_path: Path) -> None:
    first = train(changed(out=tmp_path / "first", checkpoint_every=1, keep=4, max_steps=2))
    other = train(changed(out=tmp_path / "other", max_steps=1))
    with pytest.raises(ValueError, match="other holds a run already, and not that of .*first; name another --out"):
        train(changed(out=other, resume=first))
    earlier = first / "checkpoint-00000001.pt"
    with pytest.raises(ValueError, match="is not the newest checkpoint of .* which holds checkpoint-00000002.pt"):
        train(changed(out=first, resume=earlier))
    # by its step, a damaged file would be the newest for good, and the run's own the ones to remove
    (first / "checkpoint-00000002.pt").write_bytes(b"damaged")
    train(changed(out=first, resume=first, keep=1, max_steps=2))
    assert checkpoint.load_checkpoint(first)["step"] == 2
    assert (first / "damaged-checkpoint-00000002.pt").read_bytes() == b"damaged"


def test_the_last_k_checkpoints_are_kept(changed: Change, tmp_path: Path) -> None:
    out = train(changed(out=tmp_path / "run", checkpoint_every=1, keep=3, epochs=1))
    assert [file.name for file in checkpoints_in(out)] == [f"checkpoint-{step:08d}.pt" for step in (2, 3, 4)]
    assert checkpoint.load_checkpoint(out)["step"] == 4

"""The estimate before a run: true to what the run does, and without a trace in it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msdeform.train.config.options import AUTO, Source, TrainOptions
from msdeform.train.config.resolve import resolve, take_settings
from msdeform.train.engine import memory
from msdeform.train.engine.memory import Estimate, dry_run, settle_batch_size
from msdeform.train.engine.run import train
from msdeform.train.engine.state import Training
from msdeform.train.monitor.run_log import read_log

Change = Callable[..., TrainOptions]


def write_images(folder: Path, sizes: list[tuple[int, int]]) -> Source:
    """Grey images of these heights and widths, each with a box, as training and validation images."""
    files, boxes = [], []
    (folder / "images").mkdir(parents=True)
    for number, (height, width) in enumerate(sizes, start=1):
        name = f"{number}.png"
        Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(folder / "images" / name)
        files.append({"id": number, "file_name": name, "height": height, "width": width})
        box = {"id": number, "image_id": number, "category_id": 1, "bbox": [2, 2, 20, 20], "area": 400, "iscrowd": 0}
        boxes.append(box)
    content = {"images": files, "annotations": boxes, "categories": [{"id": 1, "name": "box"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return Source(None, folder / "images", folder / "a.json", folder / "images", folder / "a.json")


def at(options: TrainOptions, source: Source) -> TrainOptions:
    return dataclasses.replace(options, source=source)


def test_a_dry_run_changes_nothing(changed: Change) -> None:
    # with dropout, random crops, batch norms that learn, and a scale of fp16 to be found
    options = changed(precision="fp16", workers=0)
    plain, tried = Training(options), Training(options)
    before = {name: tensor.clone() for name, tensor in tried.model.state_dict().items()}
    generators = torch.get_rng_state()
    np_state = np.random.get_state()[1].tolist()  # noqa: NPY002
    dry_run(tried, 2)
    assert torch.equal(torch.get_rng_state(), generators)
    assert np.random.get_state()[1].tolist() == np_state  # noqa: NPY002
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tried.model.state_dict().items())
    assert all(parameter.grad is None for parameter in tried.model.parameters())
    assert tried.steps_done == 0
    assert tried.scaler.get_scale() == plain.scaler.get_scale()
    losses = []
    for training in (plain, tried):
        torch.manual_seed(3)
        losses.append([training.step(samples) for samples, _ in zip(training.batches(), range(3), strict=False)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("batch_size", "largest"),
    # two images are the widest and the tallest, and pad each other; one is that of most pixels
    [(2, (128, 128)), (1, (128, 96))],
)
def test_the_largest_batch_of_the_data_is_tried(
    changed: Change, tmp_path: Path, batch_size: int, largest: tuple[int, int]
) -> None:
    source = write_images(tmp_path / "data", [(60, 120), (128, 96), (64, 128), (30, 80)])
    options = at(changed(image_size=128, batch_size=batch_size, augment="flip"), source)
    found = dry_run(Training(options), 1)
    assert (found.largest, found.batch, found.images, found.steps_per_epoch) == (largest, batch_size, 2, 2)
    assert found.step_s > 0
    assert found.load_s > 0
    assert 0 < found.peak < found.room


@pytest.mark.parametrize("fields", [{"overfit": 1, "total_batch_size": 8}, {"total_batch_size": 4, "batch_size": 4}])
def test_few_images_are_enough(changed: Change, tmp_path: Path, fields: dict[str, Any]) -> None:
    source = write_images(tmp_path / "data", [(64, 48)])
    found = dry_run(Training(at(changed(**fields), source)), 1)
    assert (found.batch, found.images) == (1, 1)


@pytest.mark.slow
def test_of_faster_rcnn_as_well(changed: Change) -> None:
    found = dry_run(Training(changed(model="fasterrcnn_tiny", override=())), 1)
    assert found.largest == (64, 64)


def test_the_time_of_a_step_is_that_of_its_passes(changed: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_pass", lambda *_: 2.0)
    found = dry_run(Training(changed(total_batch_size=8, batch_size=3)), 1)
    assert (found.step_s, found.batch) == (6.0, 3)


GIB = 2**30


@pytest.fixture
def known() -> Estimate:
    """3 of 4 GiB; half a second a step of 8 images on 2 processes, and 0.1 s to load one."""
    return Estimate(
        largest=(800, 1333),
        batch=2,
        peak=3 * GIB,
        room=4 * GIB,
        device=torch.device("cpu"),
        step_s=0.5,
        load_s=0.1,
        workers=2,
        images=8,
        processes=2,
        steps_per_epoch=1000,
        steps=50_000,
    )


def test_the_sentence_has_the_right_numbers(known: Estimate) -> None:
    assert known.sentence() == (
        "estimate: 3.00 of 4.0 GiB for 2 images of up to 800x1333; 0.5 s a step, 8 min an epoch, 6.9 h in all. "
        "It trains 8.0 images/s on each process and loads about 20.0 with 2 workers"
    )
    slow = dataclasses.replace(known, load_s=0.5, workers=1, steps_per_epoch=10)
    assert slow.sentence().endswith("loads about 2.0 with 1 worker, which is less: loading will be waited for")
    assert "5 s an epoch" in slow.sentence()


def test_what_cannot_fit_is_refused_with_what_to_lower(known: Estimate) -> None:
    known.refuse_what_cannot_fit()
    dataclasses.replace(known, room=0).refuse_what_cannot_fit()  # not known
    with pytest.raises(ValueError, match="batch-size: 2 images of up to 800x1333 take about 3.9 GiB on cpu, which has"):
        dataclasses.replace(known, peak=int(3.9 * GIB)).refuse_what_cannot_fit()
    single = dataclasses.replace(known, peak=5 * GIB, batch=1)
    with pytest.raises(ValueError, match="4.0 GiB for this process; try --checkpointing all, --precision bf16 or a"):
        single.refuse_what_cannot_fit()


def test_a_run_that_cannot_fit_ends_before_it_begins(
    changed: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_room", lambda device: 2**20)
    with pytest.raises(ValueError, match="lower --batch-size, and gradients add up to the same total; or try"):
        train(changed(dry_steps=1, out=tmp_path / "run"))
    assert [event["event"] for event in read_log(tmp_path / "run" / "log.jsonl")] == ["start"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
    ],
)
def test_running_out_of_memory_names_what_to_lower(
    changed: Change, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    training = Training(changed())

    def fail(*_: Any) -> None:
        torch.rand(1)
        raise error

    monkeypatch.setattr(training, "try_pass", fail)
    generators = torch.get_rng_state()
    with pytest.raises(ValueError, match="batch-size: 2 images of up to 64x64 do not fit on cpu; lower --batch-size,"):
        dry_run(training, 2)
    assert torch.equal(torch.get_rng_state(), generators)


def test_other_errors_of_a_step_keep_their_traceback(changed: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(changed())

    def fail(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(training, "try_pass", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        dry_run(training, 1)


def test_a_container_has_the_room_that_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"this machine's memory": 64 * 2**30, "this container's memory": 2**30}
    monkeypatch.setattr(memory, "process_memory", lambda: free)
    monkeypatch.setattr(memory, "_status", lambda name: 2**20)
    assert memory._room(torch.device("cpu")) == 2**30 + 2**20
    monkeypatch.setattr(memory, "process_memory", dict)
    assert memory._room(torch.device("cpu")) == 0  # not told here: nothing is refused


def test_augmentations_that_crop_or_turn_are_tried_at_any_shape(changed: Change, tmp_path: Path) -> None:
    source = write_images(tmp_path / "data", [(60, 120), (64, 128)])
    for augment, largest in (("light", (64, 128)), ("turns", (128, 128)), ("official", (128, 128))):
        options = at(changed(image_size=128, augment=augment), source)
        assert dry_run(Training(options), 1).largest == largest


SIZES = [1, 2, 3, 4, 6, 8, 16]  # of 16 images, in 16, 8, 6, 4, 3, 2 and 1 passes


@pytest.mark.parametrize("most", [*SIZES, 5, 7, 100])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_largest_batch_that_fits_is_found(
    changed: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, most: int
) -> None:
    source = write_images(tmp_path / "data", [(64, 48)] * 20)
    training = Training(at(changed(total_batch_size=16, batch_size=AUTO), source))
    training.device = torch.device(device)
    tried: list[int] = []

    def taken(_: Training, count: int) -> float:
        tried.append(count)
        return count * GIB

    share = memory._FULL_HOST if device == "cpu" else memory._FULL
    monkeypatch.setattr(memory, "_taken", taken)
    monkeypatch.setattr(memory, "_room", lambda _: int((most + 0.5) * GIB / share))
    line = settle_batch_size(training)
    number = max(size for size in SIZES if size <= most)
    assert training.options.batch.batch_size == number
    assert line is not None
    assert f"{number} image{'s' * (number > 1)} at a time on {device}, about {number}.0 of " in line
    assert tried == [1, 2] if device == "cpu" else len(tried) <= 3
    assert settle_batch_size(training) is None  # found already


def test_processes_take_what_fits_in_all_of_them(changed: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(changed(total_batch_size=8, batch_size=AUTO))
    monkeypatch.setattr(memory, "_taken", lambda *_: 1.0)
    for other, number in ((3, 3), (16, 8)):
        training.options = changed(total_batch_size=8, batch_size=AUTO)
        monkeypatch.setattr(training.group, "gather", lambda mine, other=other: [mine, other])
        settle_batch_size(training)
        assert training.options.batch.batch_size == number
    # one where nothing fits ends all
    training.options = changed(batch_size=AUTO)
    monkeypatch.setattr(training.group, "gather", lambda mine: [mine, 0])
    with pytest.raises(ValueError, match="^batch-size: one image of 64x64 does not fit on cpu"):
        settle_batch_size(training)


def test_an_image_that_does_not_fit_at_all_is_told(changed: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(changed(batch_size=AUTO))
    training.device = torch.device("cuda")
    monkeypatch.setattr(memory, "_taken", lambda *_: float("inf"))
    monkeypatch.setattr(memory, "_room", lambda _: GIB)
    with pytest.raises(ValueError, match="^batch-size: one image of 64x64 does not fit on cuda, .* fill 0.9 GiB; try"):
        settle_batch_size(training)
    monkeypatch.setattr(memory, "_room", lambda _: 0)
    with pytest.raises(ValueError, match="^batch-size: auto needs to know the memory of cuda, .* give a number"):
        settle_batch_size(training)


def test_what_more_images_take_on_a_cpu_is_estimated_well(changed: Change, tmp_path: Path) -> None:
    source = write_images(tmp_path / "data", [(256, 256)] * 8)
    training = Training(at(changed(image_size=256, augment="none", total_batch_size=8), source))
    memory._taken(training, 8)  # what it leaves behind must not count
    one, two, eight = (memory._taken(training, count) for count in (1, 2, 8))
    assert one < two < eight
    assert one + 7 * (two - one) == pytest.approx(eight, rel=0.25)


def test_a_run_finds_its_batch_size_and_keeps_it(changed: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    options = changed(batch_size=AUTO, total_batch_size=4, max_steps=1, tensorboard=False)
    out = train(options)
    assert "batch_size: 4" in (out / "config.yaml").read_text()
    (start, *_) = read_log(out / "log.jsonl")
    assert start["options"]["batch"]["batch_size"] == 4
    # going on, also by the same command line, takes what was found, whatever there is room for by now
    monkeypatch.setattr(memory, "_taken", lambda *_: pytest.fail("searched again"))
    train(changed(options, max_steps=2, resume=out))
    resumed = next(event for event in read_log(out / "log.jsonl") if event["event"] == "resume")
    assert resumed["options"]["batch"]["batch_size"] == 4


def test_the_word_auto_asks_for_it() -> None:
    assert resolve(["--batch-size", "auto"]).batch.batch_size == AUTO
    assert take_settings({"batch_size": "auto"}, "finetune") == {"batch_size": AUTO}
    for word in ("most", "-1", "1.5"):
        with pytest.raises(SystemExit):
            resolve(["--batch-size", word])

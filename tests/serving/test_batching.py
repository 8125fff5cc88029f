"""The queue before the model: what is computed together, what is not computed, and that answers are `predict`'s."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import msdeform
from msdeform.models.inference.image_size import Size
from msdeform.models.inference.predictor import Predictor
from msdeform.train.serving.batching import Batcher, as_predicted
from tests.serving.servers import LIMIT, StandIn, shut


@contextmanager
def batching(model: Predictor, **settings: Any) -> Iterator[Batcher]:
    batcher = Batcher(lambda: model, **{"max_wait": 0.0, **settings})
    batcher.start()
    batcher.loaded.result(LIMIT)
    try:
        yield batcher
    finally:
        if isinstance(model, StandIn):
            model.gate.set()
        batcher.close(LIMIT)


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 200, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["detr_tiny", "deformable_detr_tiny"])
def test_answers_are_those_of_predict(name: str) -> None:
    """Of six images of two sizes, computed in batches; every request has its own settings."""
    torch.manual_seed(0)
    settings = {"attn_backend": "reference"} if name.startswith("deformable") else {}
    model = msdeform.create_model(name, **settings).eval()  # type: ignore[arg-type]
    model.input_size = Size(32, 64)
    images = [noise(*size, seed) for seed, size in enumerate([(32, 48), (40, 40), (32, 48), (64, 96), (40, 40)])]
    asked: list[tuple[float | None, int, float | None]] = [
        *((0.0, 100, None), (0.0, 3, None), (0.02, 40, 0.3), (None, 10, None), (0.0, 50, 0.0))
    ]
    sizes: list[int] = []
    entered, gate = threading.Event(), threading.Event()

    def wait(module: object, arguments: Any) -> None:
        sizes.append(len(arguments[0]))
        entered.set()
        assert gate.wait(LIMIT)

    with batching(model) as batcher:
        hook = model.register_forward_pre_hook(wait)
        first = batcher.submit(noise(32, 32), 100)
        assert entered.wait(LIMIT)
        waiting = [batcher.submit(image, top_k) for image, (_, top_k, _) in zip(images, asked, strict=True)]
        gate.set()
        found = [one.result(LIMIT) for one in waiting]
        first.result(LIMIT)
        hook.remove()
    assert sizes == [1, 3, 2]  # 64 x 96 becomes 32 x 48, too
    for image, whole, (confidence, top_k, nms) in zip(images, found, asked, strict=True):
        kept = as_predicted(whole, confidence, nms, model)
        expected = model.predict(image, confidence=confidence, top_k=top_k, nms=nms)
        assert kept.image_size == expected.image_size
        assert len(kept) == len(expected)
        assert kept.names == expected.names
        torch.testing.assert_close(kept.scores, expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(kept.boxes, expected.boxes, rtol=0, atol=1e-3)


def test_nms_and_thresholds_come_after_the_model() -> None:
    model = StandIn()
    model.thresholds = [0.85, 0.5, 0.1]
    with batching(model) as batcher:
        whole = batcher.submit(noise(32, 32), 100).result(LIMIT)
    assert len(whole) == 3
    for confidence, nms in ((None, None), (None, 0.5), (0.5, 0.5), (0.5, None), (0.0, 0.5)):
        expected = model.predict(noise(32, 32), confidence=confidence, nms=nms)
        kept = as_predicted(whole, confidence, nms, model)
        assert torch.equal(kept.scores, expected.scores)
    assert len(as_predicted(whole, 0.0, 0.5, model)) == 2
    assert as_predicted(whole, None, None, model).names == ["cat", "cow"]


def test_only_images_of_one_size_are_computed_together() -> None:
    model = StandIn()
    with batching(model, max_batch=3) as batcher:
        shut(model)
        found = [batcher.submit(noise(32, 32), 9)]
        assert model.entered.acquire(timeout=LIMIT)
        sizes = [(32, 48), (48, 32), (32, 48), (64, 96), (48, 32), (32, 48)]
        found += [batcher.submit(noise(*size), 9) for size in sizes]
        assert batcher.waiting == 6
        model.gate.set()
        assert [one.result(LIMIT).image_size for one in found] == [(32, 32), *sizes]
    assert model.batches == [[(32, 32)], [(32, 48)] * 3, [(48, 32)] * 2, [(32, 48)]]


def test_what_was_given_up_is_never_computed() -> None:
    model = StandIn()
    with batching(model, max_batch=1) as batcher:
        shut(model)
        first = batcher.submit(noise(32, 32), 9)
        assert model.entered.acquire(timeout=LIMIT)
        second, third = batcher.submit(noise(32, 40), 9), batcher.submit(noise(32, 48), 9)
        assert second.cancel()
        assert not first.cancel(), "it is computed already"
        model.gate.set()
        third.result(LIMIT)
    assert model.batches == [[(32, 32)], [(32, 48)]]


def test_one_image_that_fails_is_no_other_s_failure(capsys: pytest.CaptureFixture[str]) -> None:
    model = StandIn()
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    with batching(model, max_batch=3, max_wait=60.0) as batcher:
        one, two, three = (batcher.submit(image, 9) for image in (noise(32, 32), white, noise(32, 32, 1)))
        assert len(one.result(LIMIT)) == len(three.result(LIMIT)) == 3
        with pytest.raises(RuntimeError, match="fails on white"):
            two.result(LIMIT)
        # the thread goes on
        assert len(model.batches) == 1 + 1 + 3
    assert capsys.readouterr().err == "msdeform serve: RuntimeError: this stand-in fails on white images\n"


def test_a_full_batch_does_not_wait_and_a_lone_image_waits_a_moment() -> None:
    model = StandIn()
    with batching(model, max_batch=2, max_wait=60.0) as batcher:
        for one in [batcher.submit(noise(32, 32), 9) for _ in range(2)]:
            one.result(LIMIT)
    with batching(StandIn(), max_batch=2, max_wait=0.05) as batcher:
        begun = time.monotonic()
        batcher.submit(noise(32, 32), 9).result(LIMIT)
        assert 0.05 <= time.monotonic() - begun < LIMIT


def test_closing_computes_what_waits_and_takes_no_more() -> None:
    model = StandIn()
    with batching(model, max_wait=60.0) as batcher:
        found = [batcher.submit(noise(32, 32), 9) for _ in range(3)]
        batcher.close(LIMIT)
        assert all(one.done() for one in found)
        with pytest.raises(RuntimeError, match="shutting down"):
            batcher.submit(noise(32, 32), 9)


def test_why_there_is_no_model_is_told() -> None:
    def load() -> Predictor:
        raise ValueError("no such weights")

    batcher = Batcher(load)
    batcher.start()
    with pytest.raises(ValueError, match="no such weights"):
        batcher.loaded.result(LIMIT)

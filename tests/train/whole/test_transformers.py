"""Detectors of transformers, tiny and without a network, through all of ``msdeform train`` and what follows it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the package transformers")

from msdeform.cli import main  # noqa: E402
from msdeform.integrations.detectors.detector import TransformersDetector  # noqa: E402
from msdeform.models.inference.image_size import ExactSize  # noqa: E402
from msdeform.train.api import Run  # noqa: E402
from msdeform.train.config.options import TrainOptions  # noqa: E402
from msdeform.train.engine.build import with_model_of_start  # noqa: E402
from msdeform.train.engine.checkpoint import load_checkpoint  # noqa: E402
from msdeform.train.engine.run import train  # noqa: E402
from tests.integrations.architectures import make  # noqa: E402

SIDES = {"lw_detr": 96, "deformable_detr": 96}
"""of images, where they are not of 64 pixels"""
FAMILIES = ["rt_detr_v2", "deimv2", "lw_detr", "deformable_detr"]

Change = Callable[..., TrainOptions]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model's folder, as transformers writes it, with an image processor for squares; 5 classes."""

    def write(name: str) -> Path:
        out = tmp_path_factory.getbasetemp() / "of_transformers" / name
        if not out.exists():
            side = SIDES.get(name, 64)
            processor = transformers.RTDetrImageProcessor(size={"height": side, "width": side}, do_normalize=False)
            make(name, torch.float32).save_pretrained(out)
            processor.save_pretrained(out)
        return out

    return write


@pytest.fixture
def started(changed: Change, folder_of: Callable[[str], Path]) -> Change:
    """The small run, started from a model of transformers."""

    def start(name: str, **settings: Any) -> TrainOptions:
        usual = {"model": "transformers", "override": (), "init_from": folder_of(name), "image_size": None}
        return with_model_of_start(changed(**{**usual, **settings}))

    return start


def losses_of(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"]


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(out)
    return {**state["model"], **{f"ema {name}": tensor for name, tensor in state["ema"]["weights"].items()}}


@pytest.mark.parametrize("name", FAMILIES)
def test_it_trains_resumes_to_the_bit_and_goes_back_to_transformers(
    started: Change, shapes: Path, tmp_path: Path, name: str
) -> None:
    denoising = () if name in ("lw_detr", "deformable_detr") else ("num_denoising=8",)
    options = started(name, override=denoising, ema=0.9, total_batch_size=4, batch_size=2, out=tmp_path / "whole")
    side = SIDES.get(name, 64)
    assert (options.model.model, options.input.size) == ("transformers", ExactSize(side, side))
    whole = train(options)
    assert torch.isfinite(torch.tensor(losses_of(whole))).all()

    stopped = started(name, override=denoising, ema=0.9, total_batch_size=4, batch_size=2, out=tmp_path / "stopped")
    train(
        dataclasses.replace(stopped, run=dataclasses.replace(stopped.run, checkpoint_every=1), batch=one_step(stopped))
    )
    again = dataclasses.replace(stopped, run=dataclasses.replace(stopped.run, resume=tmp_path / "stopped"))
    train(again)
    assert losses_of(tmp_path / "stopped") == losses_of(whole)
    first, second = weights_of(whole), weights_of(tmp_path / "stopped")
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())

    usual = ["--device", "cpu", "--attn-backend", "reference", "--no-progress"]
    assert main(["eval", "--checkpoint", str(whole), "--data", str(shapes), "--workers", "0", *usual]) == 0
    photographs, pictures = str(shapes / "val2017"), str(tmp_path / "pictures")
    assert main(["predict", photographs, "--checkpoint", str(whole), "--out", pictures, *usual]) == 0
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 4

    assert main(["convert", str(whole), str(tmp_path / "back"), "--to", "huggingface"]) == 0
    ours = Run(whole).model
    theirs = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "back").eval()
    assert theirs.config.id2label == dict(enumerate(["disc", "square", "triangle"]))
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        expected = theirs(pixel_values=ours.settings.convert(images, torch.zeros(2, side, side, dtype=torch.bool)))
        found = ours(images)
    torch.testing.assert_close(found["pred_logits"], expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["pred_boxes"], expected.pred_boxes, rtol=0, atol=1e-5)
    loaded = TransformersDetector.from_pretrained(tmp_path / "back")
    assert (loaded.settings, loaded.categories) == (ours.settings, ours.categories)


def one_step(options: TrainOptions) -> Any:
    return dataclasses.replace(options.batch, max_steps=1)

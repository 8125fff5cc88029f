"""A small data set and a small run's settings, which most tests of training start from."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from msdeform.train.config.options import (
    Batch,
    Compute,
    Input,
    Loading,
    Logging,
    Model,
    Optim,
    Run,
    Schedule,
    Source,
    TrainOptions,
)
from msdeform.train.data.synthetic.options import SynthOptions
from msdeform.train.data.synthetic.synth import make_dataset


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic data set: 8 training and 4 validation images of 64 pixels, 3 classes. Not to be written to."""
    out = tmp_path_factory.mktemp("data") / "shapes"
    make_dataset(SynthOptions(out, train=8, val=4, size=64, classes=3, progress=False))
    return out


@pytest.fixture
def options(shapes: Path, tmp_path: Path) -> TrainOptions:
    """Two epochs of four steps of two images, with the tiny model on the reference backend, with dropout.

    A step of so small a model takes about as long on `cpu`, which compiles its kernels in every process first.
    """
    return TrainOptions(
        source=Source(data=shapes),
        input=Input(image_size=64, augment="official"),
        loading=Loading(workers=0),
        model=Model("deformable_detr_tiny", ("dropout=0.1",), "reference", "none"),
        batch=Batch(epochs=2, total_batch_size=2, batch_size=2),
        optim=Optim(lr=1e-3),
        schedule=Schedule("cosine", warmup_steps=2),
        compute=Compute(device="cpu"),
        run=Run(out=tmp_path / "run", dry_steps=0),
        logging=Logging(tensorboard=False, progress=False, log_every=1, pictures=0),
    )


@pytest.fixture
def changed(options: TrainOptions) -> Callable[..., TrainOptions]:
    """The small run with fields replaced, whatever group they are in."""

    def change(base: TrainOptions | None = None, **fields: Any) -> TrainOptions:
        whole = options if base is None else base
        for group in dataclasses.fields(whole):
            part = getattr(whole, group.name)
            mine = {f.name: fields.pop(f.name) for f in dataclasses.fields(part) if f.name in fields}
            whole = dataclasses.replace(whole, **{group.name: dataclasses.replace(part, **mine)})
        assert not fields, f"no such settings: {fields}"
        return whole

    return change


@pytest.fixture
def annotation_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes an annotation file of one 40 x 30 image (id 7) and two categories (ids 3 and 5) with the given boxes."""

    def write(*annotations: dict[str, Any], **replaced: Any) -> Path:
        content: dict[str, Any] = {
            "images": [{"id": 7, "file_name": "seven.png", "width": 40, "height": 30}],
            "categories": [{"id": 5, "name": "cat"}, {"id": 3, "name": "dog"}],
            "annotations": [
                {"id": number, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 10], "iscrowd": 0, **annotation}
                for number, annotation in enumerate(annotations, start=1)
            ],
            **replaced,
        }
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return path

    return write

"""A folder that holds what the pages speak of: DIR, photos, runs/mine and the rest, all small."""

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np

from msdeform.cli import main

IMAGE = "000000900046.jpg"  # of the explanations in docs/explain.md

# names in the pages, and what each is a copy of
COPIES = {
    "undivided/images": "DIR/train2017",
    "undivided/annotations.json": "DIR/annotations/instances_train2017.json",
    "photo.jpg": f"demo/val2017/{IMAGE}",
    "street.jpg": "photo.jpg",
    "photograph.jpg": "photo.jpg",
    "photos": "DIR/val2017",
    "photographs": "photos",
    "weights": "runs/mine",  # of no page: in the place of downloads
    "runs/a": "runs/mine",
    "runs/b": "runs/mine",
    "runs/coco": "runs/mine",
    "runs/demo/training-20261128-061408": "runs/mine",
    "runs/demo/data-1500-150-96-seed0": "demo",
    "runs/bccd/checkpoint-00002000.pt": "runs/mine/best.pt",
    "PekingU/rtdetr_v2_r18vd": "ATTO",
}


def prepare(folder: Path) -> None:
    """Fills an empty folder, in seconds."""
    data = folder / "DIR"
    _msdeform(f"data synth --out {data} --train 12 --val 4 --size 64 --classes 3 --workers 1")
    _msdeform(f"data synth --out {folder / 'demo'} --train 4 --val 50 --size 96 --classes 3 --workers 1")
    _msdeform(f"data convert {data} --to voc --out {folder / 'bccd'}")
    # six decoder layers as in the pages, proposals, which find something early, and a width that transformers can have
    _msdeform(
        f"train --preset debug --data {data} --out {folder / 'runs' / 'mine'} --override dec_layers=6 hidden_dim=128 "
        "with_box_refine=true two_stage=true --max-steps 6 "
        "--device cpu --attn-backend reference --image-size 64 --augment none --pictures 0 --no-tensorboard"
    )
    _video(folder / "clip.mp4")
    _transformers_detector(folder / "ATTO")
    for name, source in COPIES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(folder / source, folder / name)


def copy(source: Path, target: Path) -> None:
    """A file or a folder with all that is in it."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def _msdeform(words: str) -> None:
    if main([*words.split(), "--no-progress"]):
        raise RuntimeError(f"msdeform {words} failed")


def _video(path: Path) -> None:
    from msdeform.train.prediction.video import VideoWriter

    writer = VideoWriter(path, Fraction(25))
    for number in range(10):
        writer.write(np.full((48, 64, 3), 20 * number, np.uint8), Fraction(number, 25))
    writer.close()


def _transformers_detector(folder: Path) -> None:
    """A small detector of transformers with random weights, in the place of published ones."""
    import transformers

    from tests.integrations.architectures import make

    make("rt_detr_v2").float().save_pretrained(folder)
    transformers.RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)

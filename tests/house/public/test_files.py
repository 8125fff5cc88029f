"""Files that version 0.1.0 wrote are read by this one, with the same numbers: a checkpoint, and a folder of weights.

They were made by
    msdeform data synth --out data --train 4 --val 2 --size 64 --classes 3
    msdeform train --data data --model deformable_detr_tiny --out run --max-steps 1 --epochs 1 --batch-size 2
    msdeform convert run model --to msdeform
on a CPU, and what their model answers was recorded then. A new format gets files of its own beside these, which stay.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import msdeform
from msdeform.cli import main

FILES = Path(__file__).with_name("files")
EXPECTED = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))


def image() -> torch.Tensor:
    """A picture that needs no file: waves of another frequency in each channel."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    return torch.stack([(torch.sin(x / (3 + c)) * torch.cos(y / (5 + c)) + 1) / 2 for c in range(3)])


def answers(source: Path) -> dict[str, Any]:
    """Classes' names, and logits and boxes of the first queries."""
    model = msdeform.load_model(source, attn_backend="reference").eval()
    with torch.no_grad():
        outputs = model([image()])
    return {
        "categories": model.categories,
        "logits": outputs["pred_logits"][0, :4].tolist(),
        "boxes": outputs["pred_boxes"][0, :4].tolist(),
    }


@pytest.mark.parametrize("name", ["checkpoint.pt", "model"])
def test_weights_of_an_older_version_give_the_same_numbers(name: str) -> None:
    now = answers(FILES / name)
    assert now["categories"] == EXPECTED["categories"] == ["disc", "square", "triangle"]
    for key in ("logits", "boxes"):
        torch.testing.assert_close(torch.tensor(now[key]), torch.tensor(EXPECTED[key]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint_of_an_older_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the run's settings name its data by a relative path
    images = ["--train", "4", "--val", "2", "--size", "64", "--classes", "3", "--no-progress"]
    assert main(["data", "synth", "--out", "data", *images]) == 0
    Path("run").mkdir()
    shutil.copy(FILES / "checkpoint.pt", "run/checkpoint-00000001.pt")
    assert main(["train", "--resume", "run", "--max-steps", "2", "--epochs", "2"]) == 0
    assert Path("run/checkpoint-00000002.pt").is_file()

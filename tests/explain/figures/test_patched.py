"""The picture of another image's content by layer and head: its numbers, and what the command says of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image

from msdeform.cli import main
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.figures.patched import draw_patched, patch_grid
from tests.explain.models import images, uneven
from tests.explain.planted import PLANTED, SIDE, random_board


def test_a_planted_head_is_one_row_of_the_picture(tmp_path: Path) -> None:
    """The square comes through its head in all layers, and through all heads; through none else."""
    board = random_board(4, 1)
    trace = AttentionTrace(PLANTED["deformable"](), torch.zeros(3, SIDE, SIDE, dtype=torch.uint8))
    before = trace.prediction(board.queries[0], board.labels[0])
    drawing = draw_patched(trace, board.image, before, image="black.png", other_name="square.png")
    change = drawing.numbers["change"]
    assert change.shape == (3, 5)  # two layers and all; four heads and all
    high = change > 0.5
    assert high[2].nonzero()[0].tolist() == [board.labels[0], 4]
    assert not high[:2].any()
    assert drawing.numbers["before"] == before.score
    assert (drawing.numbers["name"][2, board.labels[0]]) == before.name
    grid = patch_grid(trace, board.image, before)
    assert (np.array([[one.score for one in row] for row in grid]) == drawing.numbers["score"]).all()
    picture, numbers = drawing.save(tmp_path / "patched.png", 40)
    assert picture.stat().st_size > 5000
    assert set(np.load(numbers)) == {"change", "score", "iou", "name", "before", "box"}


def test_the_command_patches_what_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = uneven("deformable", dec_layers=2).float()
    model.categories = ["cat", "dog", "cow"]
    model.save_pretrained(tmp_path / "weights")
    for name, size in (("street", (48, 64)), ("other", (48, 64)), ("tall", (64, 48))):
        to_pil_image(images(size, seed=len(name))[0]).save(tmp_path / f"{name}.png")
    known = ["explain", str(tmp_path / "street.png"), "--checkpoint", str(tmp_path / "weights"), "--query", "3"]
    known += ["--image-size", "64", "--no-progress", "--dpi", "40", "--out", str(tmp_path / "out")]
    assert main([*known, "--patch", str(tmp_path / "tall.png")]) == 1
    assert "patch: expected an image that is resized to 64x48 as the first, got 48x64" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*known, "--patch", str(tmp_path / "other.png")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["street-patched-query3.png"]
    assert np.load(tmp_path / "out/street-patched-query3.npz")["change"].shape == (3, 3)
    with pytest.raises(SystemExit):
        main([*known, "--patch", str(tmp_path / "other.png"), "--html"])
    assert "--patch has no effect on that" in capsys.readouterr().err
    for more in (["--target", "x"], ["--by", "pixel"], ["--parity"], ["--ref", "1,2"]):
        with pytest.raises(SystemExit):
            main([*known, "--patch", str(tmp_path / "other.png"), *more])
        told = capsys.readouterr().err
        assert "patch: " in told
        assert f"{more[0]} has no effect on that" in told

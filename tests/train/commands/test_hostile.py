"""Every command that reads weights is given files that would run code or take any memory."""

from pathlib import Path

import pytest

from msdeform.cli import main
from tests.models.weights.hostile import LIES, PICKLES, archive
from tests.models.weights.test_hostile import bounded_memory

COMMANDS = {
    "eval": ["eval", "--checkpoint", "FILE", "--data", "DATA", "--device", "cpu"],
    "predict": ["predict", "IMAGE", "--checkpoint", "FILE", "--out", "OUT", "--device", "cpu"],
    "explain": ["explain", "IMAGE", "--checkpoint", "FILE", "--out", "OUT", "--device", "cpu"],
    "convert": ["convert", "FILE", "OUT", "--to", "msdeform"],
    "export": ["export", "FILE", "OUT/a.pt2"],
    "replay": ["replay", "FILE", "--device", "cpu"],
    "train from": ["train", "--init-from", "FILE", "--data", "DATA", "--out", "OUT", "--device", "cpu"],
    "train on": ["train", "--resume", "FILE"],
    "backbone": ["train", "--model", "detr_tiny", "--backbone-weights", "FILE", "--data", "DATA", "--out", "OUT"],
    "serve": ["serve", "FILE", "--port", "0", "--device", "cpu"],
}


@pytest.mark.parametrize("kind", ["reduce", "stack-global", "expanded", "zip bomb", "nested header", "truncated"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_in_a_sentence(
    command: str, kind: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    file = LIES[kind](tmp_path, marker) if kind in LIES else archive(tmp_path, PICKLES[kind](marker))
    image = next(shapes.rglob("*.jpg"))
    places = {"FILE": file, "DATA": shapes, "IMAGE": image, "OUT": tmp_path / "out"}
    words = [str(places.get(word, word.replace("OUT", str(tmp_path / "out")))) for word in COMMANDS[command]]
    with bounded_memory():
        try:
            status = main(words)
        except SystemExit as ended:
            status = int(ended.code or 0)
    told = capsys.readouterr().err.strip().splitlines()
    assert status in (1, 2), told
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    assert told[-1].startswith(f"msdeform {words[0]}: "), told
    assert str(file) in told[-1], told
    assert told[-1].isprintable()
    assert not any("Traceback" in line for line in told)

"""Pictures are drawn by a thread: few wait for it, what it meets is told, and all are there in the end."""

import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from msdeform.models.inference.detections import Detections
from msdeform.train.prediction import pictures as module
from msdeform.train.prediction.pictures import WAITING, Pictures, with_boxes
from msdeform.train.prediction.sources import Frame, Source

NOTHING = Detections(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), torch.empty(0), (20, 30))


def stills(folder: Path, count: int) -> dict[Source, Path | None]:
    names = [f"{number}.jpg" for number in range(count)]
    return {Source(Path(name), name, name[:-4]): folder / name for name in names}


def test_few_pictures_wait_to_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*words: Any) -> Image.Image:
        time.sleep(0.01)
        return with_boxes(*words)

    monkeypatch.setattr(module, "with_boxes", slowly)
    places = stills(tmp_path, 20)
    held: list[Any] = []
    with Pictures(places) as pictures:
        for source in places:
            frame = Frame(source, torch.zeros(3, 20, 30, dtype=torch.uint8), 1)
            held.append(weakref.ref(frame.pixels))
            pictures.add(frame, NOTHING, None)
            del frame
            assert sum(one() is not None for one in held) <= WAITING + 1
    assert sorted(tmp_path.iterdir()) == sorted(places.values())


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    [(source, _)] = stills(tmp_path, 1).items()
    pictures = Pictures({source: tmp_path / "taken" / "0.jpg"})
    pictures.add(Frame(source, torch.zeros(3, 20, 30, dtype=torch.uint8), 1), NOTHING, None)
    with pytest.raises(OSError, match="taken"), pictures:
        pass

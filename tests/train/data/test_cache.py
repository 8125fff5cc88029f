"""Images kept in memory: the same pixels, one copy for all workers, refused where there is no room."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from msdeform.train.config.options import Input, Loading, Source
from msdeform.train.data import cache as module
from msdeform.train.data.dataset import BadImageError
from msdeform.train.data.loader import training_data

OPTIONS = Input(image_size=64)


@pytest.mark.parametrize("kind", ["files", "pixels"])
@pytest.mark.parametrize(
    ("workers", "context"),
    [
        (0, None),
        (2, "fork"),
        pytest.param(1, "spawn", marks=pytest.mark.slow),  # the process imports torch anew
    ],
)
def test_a_cache_changes_nothing(shapes: Path, tmp_path: Path, kind: str, workers: int, context: str | None) -> None:
    plain = training_data(Source(data=shapes), OPTIONS, Loading(), seed=3)
    data = training_data(Source(data=shapes), OPTIONS, Loading(cache_images=kind), seed=3)
    data.folder = tmp_path  # where no image is
    loader = DataLoader(data, batch_size=None, num_workers=workers, multiprocessing_context=context)
    for (image, target), (other, expected) in zip(loader, plain, strict=True):
        assert torch.equal(image, other)
        assert torch.equal(target["boxes"], expected["boxes"])
    assert data.cache._bytes.is_shared()
    pixels = 8 * 3 * 64 * 64
    files = sum(path.stat().st_size for path in (shapes / "train2017").iterdir())
    assert data.cache.nbytes == (pixels if kind == "pixels" else files)
    assert data.sentences() == [f"keeping 8 images in memory as {kind}, 0 MB"]


def test_what_comes_after_may_write_to_an_image(shapes: Path) -> None:
    data = training_data(Source(data=shapes), OPTIONS, Loading(cache_images="pixels"), seed=3)
    first = data.pixels(0).clone()
    data.pixels(0).zero_()
    assert torch.equal(data.pixels(0), first)


def test_each_process_keeps_its_share(shapes: Path, tmp_path: Path) -> None:
    loading = Loading(cache_images="pixels")
    shares = [training_data(Source(data=shapes), OPTIONS, loading, 3, share=(rank, 3)) for rank in range(3)]
    assert [data.cache._there.sum() for data in shares] == [3, 3, 2]
    plain = training_data(Source(data=shapes), OPTIONS, Loading(), 3)
    for rank, data in enumerate(shares):
        assert all(torch.equal(data.pixels(row), plain.pixels(row)) for row in range(8))  # others' from the disk
        data.folder = tmp_path
        kept = []
        for row in range(8):
            try:
                data.pixels(row)
                kept.append(row)
            except FileNotFoundError:
                pass
        assert kept == list(range(rank, 8, 3))


def test_overfitting_keeps_an_image_once(shapes: Path) -> None:
    options = Input(image_size=64, overfit=2)
    data = training_data(Source(data=shapes), options, Loading(cache_images="pixels"), seed=3)
    assert len(data) == 40
    assert data.cache.nbytes == 2 * 3 * 64 * 64


@pytest.mark.parametrize("kind", ["files", "pixels"])
def test_bad_images_are_told_as_from_the_disk(shapes: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "train2017"
    folder.mkdir()
    for file in (shapes / "train2017").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    first, second, third = sorted(folder.iterdir())[:3]
    first.write_text("no picture")
    second.write_bytes(second.read_bytes()[:-300])
    source = Source(train_images=folder, train_annotations=shapes / "annotations" / "instances_train2017.json")
    whole = third.read_bytes()
    Image.new("RGB", (32, 64)).save(third)
    with pytest.raises(BadImageError, match="is 32 wide and 64 high, but"):
        training_data(source, OPTIONS, Loading(cache_images=kind), seed=3)
    third.write_bytes(whole)
    data = training_data(source, OPTIONS, Loading(cache_images=kind), seed=3)
    for row, file in enumerate((first, second)):
        with pytest.raises(BadImageError, match=f"^image {file} cannot be decoded: "):
            data[row]
    assert data[3][0].shape[0] == 3


def test_a_cache_without_room_is_refused(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 8 * 3 * 64 * 64  # just enough, if nothing else needed memory
    monkeypatch.setattr(module, "free_memory", lambda: {"this machine's memory": 10**9, "/dev/shm": room})
    with pytest.raises(
        ValueError, match=r"cache-images pixels: 8 images take 0 MB, but /dev/shm has 0 MB free; take -"
    ):
        training_data(Source(data=shapes), OPTIONS, Loading(cache_images="pixels"), seed=3)
    monkeypatch.setattr(module, "free_memory", lambda: {"/dev/shm": 2 * room})
    training_data(Source(data=shapes), OPTIONS, Loading(cache_images="pixels"), seed=3)
    # half the images fit, but those of both processes do not
    monkeypatch.setattr(module, "free_memory", lambda: {"/dev/shm": room})
    with pytest.raises(ValueError, match="take --cache-images files or none"):
        training_data(Source(data=shapes), OPTIONS, Loading(cache_images="pixels"), 3, share=(0, 2))


def test_a_cache_whose_room_was_taken_meanwhile_is_refused(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the free memory and the allocation, or where no limit is told."""

    def refuse(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)\nwhere it came from")

    monkeypatch.setattr(module, "free_memory", dict)
    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(
        ValueError, match=r"^cache-images files: the system gives no 0 MB .*device \(28\)\); take --cache"
    ):
        training_data(Source(data=shapes), OPTIONS, Loading(cache_images="files"), seed=3)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this system's shared memory is not seen as files")
def test_a_killed_process_leaves_nothing_in_shared_memory(shapes: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from msdeform.train.data.cache import ImageCache\n"
        "paths = sorted(Path(sys.argv[1]).iterdir())\n"
        "cache = ImageCache('files', paths, [[64, 64]] * len(paths))\n"
        "assert cache._bytes.is_shared()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    before = set(Path("/dev/shm").iterdir())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", script, str(shapes / "train2017")]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == -9, answer.stderr
    assert [path for path in set(Path("/dev/shm").iterdir()) - before if path.name.startswith("torch_")] == []

"""Downloads of weights that are cut off, killed, done at once, damaged, without room: right, or one sentence."""

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from msdeform.models.weights import pretrained
from msdeform.models.weights.pretrained import PUBLISHED, Published, fetch

NAME = "deformable_detr_tiny"
CONTENT = random.Random(0).randbytes(300_000)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes")


@dataclass
class Server:
    """Publishes CONTENT as weights; ``slow`` lets every answer stop in the middle until the client is gone."""

    place: Path = Path()
    slow: bool = False
    cut: bool = False
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    settings = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            settings.asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            half = len(CONTENT) // 2
            self.wfile.write(CONTENT[:half])
            if settings.cut:
                return
            if settings.slow:
                time.sleep(1)
            self.wfile.write(CONTENT[half:])

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    digest = hashlib.sha256(CONTENT).hexdigest()[:8]
    url = f"http://127.0.0.1:{http.server_port}/tiny-{digest}.pth"
    monkeypatch.setitem(PUBLISHED, NAME, Published(None, digest, url=url))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(pretrained.constants, "HF_HUB_OFFLINE", False)
    settings.place = tmp_path / "torch" / "checkpoints" / f"tiny-{digest}.pth"
    yield settings
    http.shutdown()
    http.server_close()


def test_processes_that_download_at_once_all_get_it(server: Server) -> None:
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()

    def work() -> None:
        answers.put(fetch(NAME).read_bytes() == CONTENT)

    processes = [fork.Process(target=work) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert [answers.get() for _ in processes] == [True] * 6
    assert [path.name for path in server.place.parent.iterdir()] == [server.place.name]


def test_a_download_that_was_killed_is_not_taken(server: Server) -> None:
    fork = multiprocessing.get_context("fork")
    server.slow = True
    process = fork.Process(target=fetch, args=(NAME,))
    process.start()
    while not server.asked:
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not server.place.exists()
    server.slow = False
    assert fetch(NAME).read_bytes() == CONTENT


def test_a_download_that_was_cut_off_is_one_sentence(server: Server) -> None:
    server.cut = True
    with pytest.raises(ConnectionError, match="could not be downloaded from http") as caught:
        fetch(NAME)
    assert "\n" not in str(caught.value)
    assert not server.place.exists()


@pytest.mark.parametrize(
    "damage",
    [lambda c: b"", lambda c: c[:1000], lambda c: c[:-1], lambda c: c[:5] + b"\xff" + c[6:], lambda c: c + b"\0"],
    ids=["empty", "truncated", "one byte short", "one byte changed", "one byte more"],
)
def test_a_damaged_file_is_one_sentence_and_not_loaded(server: Server, damage: object) -> None:
    fetch(NAME).write_bytes(damage(CONTENT))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"is not the published file of .*; remove it to have .* fetched again$"):
        fetch(NAME)
    server.place.unlink()
    assert fetch(NAME).read_bytes() == CONTENT


def test_a_place_that_cannot_be_written_is_one_sentence(server: Server) -> None:
    server.place.parent.parent.mkdir()
    server.place.parent.touch()  # a file where the folder would be
    with pytest.raises(ConnectionError, match="could not be downloaded"):
        fetch(NAME)


def test_a_full_disk_is_one_sentence(server: Server) -> None:
    """The system refuses to let a file grow further than half of the weights."""
    import resource

    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, len(CONTENT) // 2))
        try:
            fetch(NAME)
        except ConnectionError as error:
            answers.put(str(error))

    process = fork.Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert "File too large" in answers.get()
    assert not server.place.exists()
    assert fetch(NAME).read_bytes() == CONTENT

"""Requests that are broken in every way a client can break one, among good ones: what does the server answer?"""

import contextlib
import http.client
import itertools
import random
import socket
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ...models.inference.detections import Detections
from ..harness.records import Row
from .server import QUERY, Running, Subject, detect, in_threads, is_right, running

_CLIENTS = 8
_TIMEOUT = 10.0  # seconds of a request; a slow client takes all of them
_MOST_BYTES = 2_000_000
_GOOD = "good"


@dataclass
class Counts:
    """What came of the requests; each is counted once."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By way, and the status or what came instead."""
    wrong: int = 0
    """Good requests whose answer was not the expected one."""
    done: int = 0
    memory: list[float] = field(default_factory=list)
    """The server's resident megabytes at the start, the middle and the end."""


def bomb() -> bytes:
    """A PNG of a few bytes that claims 400 million pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    size = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + pixels + chunk(b"IEND", b"")


def _post(port: int, body: bytes, kind: str = "image/jpeg") -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=6 * _TIMEOUT)
    with contextlib.closing(connection):
        connection.request("POST", QUERY, body, {"Content-Type": kind})
        return str(connection.getresponse().status)


def _begun(port: int, body: bytes, wait: bool) -> str:
    """Sends half of a body, and waits for an answer or goes away."""
    head = (
        f"POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), 6 * _TIMEOUT) as client:
        client.sendall(head.encode() + body[: len(body) // 2])
        return client.recv(4096).partition(b"\r\n")[0].decode().split(" ")[1] if wait else "left"


WAYS: dict[str, Callable[[int, bytes], str]] = {
    "truncated": lambda port, body: _post(port, body[: len(body) // 2]),
    "decompression bomb": lambda port, body: _post(port, bomb(), "image/png"),
    "wrong type": lambda port, body: _post(port, b"{}", "application/json"),
    "no image": lambda port, body: _post(port, b"GIF87a, or so"),
    "empty": lambda port, body: _post(port, b""),
    "too long": lambda port, body: _post(port, bytes(_MOST_BYTES + 1)),
    "slow": lambda port, body: _begun(port, body, wait=True),
    "gone": lambda port, body: _begun(port, body, wait=False),
}


def measured(what: Subject, wanted: Sequence[Detections]) -> Row:
    """The row of a run of good and broken requests."""
    options = what.options
    with running(what, "--timeout", f"{_TIMEOUT:g}", "--max-bytes", str(_MOST_BYTES)) as server:
        counts = Counts()
        _send(what, wanted, server, counts)
        ended = server.process.poll()
        tracebacks = server.tracebacks()
    answers = [[way, answer, count] for (way, answer), count in sorted(counts.answers.items())]
    return {
        "kind": "serve-broken",
        "model": what.model,
        "image": what.image,
        "engine": what.served().computed_by,
        "requests": options.requests,
        "broken": options.broken,
        "answers": answers,
        "wrong": counts.wrong,
        "memory_mb": counts.memory,
        "tracebacks": tracebacks,
        "failure": None if ended is None else f"the server ended with status {ended}",
    }


def _send(what: Subject, wanted: Sequence[Detections], server: Running, counts: Counts) -> None:
    """All requests, from some clients; the order is the same in every run."""
    random_numbers = random.Random(0)
    ways = itertools.cycle(WAYS)
    each = [
        next(ways) if random_numbers.random() < what.options.broken else _GOOD for _ in range(what.options.requests)
    ]
    todo = iter(enumerate(each))
    lock = threading.Lock()

    def memory() -> float:
        return round(server.metric("process_resident_memory_bytes") / 1e6, 1)

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=6 * _TIMEOUT)
        while True:
            with lock:
                place, way = next(todo, (-1, ""))
            if place < 0:
                connection.close()
                return
            picture = place % len(what.bodies)
            right = True
            try:
                if way == _GOOD:
                    status, answer = detect(connection, what.bodies[picture])
                    right = status != 200 or is_right(answer, wanted[picture])
                    came = str(status)
                else:
                    connection.close()  # the server would let go of it while this thread is a slow client
                    came = WAYS[way](server.port, what.bodies[picture])
            except (OSError, http.client.HTTPException, IndexError, ValueError) as error:
                came = type(error).__name__
                connection.close()  # and opened again by the next request
            with lock:
                counts.answers[way, came] += 1
                counts.wrong += not right
                counts.done += 1
                if counts.done == len(each) // 2:
                    counts.memory.append(memory())

    # as large as usual work makes it
    in_threads(_CLIENTS, lambda number: _warm(server, what))
    counts.memory.append(memory())
    in_threads(_CLIENTS, client)
    counts.memory.append(memory())


def _warm(server: Running, what: Subject) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=6 * _TIMEOUT)
    with contextlib.closing(connection):
        for body in what.bodies:
            detect(connection, body)

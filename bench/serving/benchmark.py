"""``msdeform bench serve``: the server's requests a second and latency over loopback, beside a plain loop of `predict`.

Server and clients share this machine, so that clients take a part of its cores.
"""

import http.client
import io
import itertools
import statistics
import threading
import time
from collections.abc import Sequence
from functools import partial

from PIL import Image

from ...common.device import choose_device
from ...models.inference.detections import Detections
from ...models.inference.predictor import Predictor
from ..harness.records import Row
from ..harness.results_file import open_results
from ..harness.tables import aligned
from ..models.resumable import Planned, measure_missing
from ..options import ServeOptions
from .broken import measured
from .server import TOP_K, Subject, detect, expected, in_threads, is_right, open_model, running, subject
from .tables import broken_table, serve_table, summary

_LOOP = "predict, in a loop"
_SERVER = "server"
_REQUEST = 300.0  # seconds


def run(options: ServeOptions) -> int:
    """``msdeform bench serve``: measures, prints, and on request records; returns 1 where a row failed."""
    sources = ("train/serving/*.py", "bench/serving/*.py")
    results = open_results("msdeform bench serve", options, choose_device(options.device), measured=sources)
    with subject(options) as what:
        model = open_model(what)
        wanted = expected(what, model)
        if options.broken:
            key = (what.model, what.image, what.served().computed_by, options.requests, options.broken)
            measure_missing([(("serve-broken", *key), partial(measured, what, wanted))], results, options.minutes)
        else:
            measure_missing(_planned(what, model, wanted), results, options.minutes)
    if rows := results.of("serve"):
        print(aligned(serve_table(rows), 3))
    for row in results.of("serve-broken"):
        print(aligned(broken_table(row), 2) + "\n\n" + summary(row))
    return 1 if any(row["failure"] is not None for row in results.rows) else 0


def _planned(what: Subject, model: Predictor, wanted: Sequence[Detections]) -> Planned:
    key = ("serve", what.model, what.image, what.served().computed_by)
    yield (*key, _LOOP, 1), partial(loop, what, model)
    for clients in what.options.clients:
        yield (*key, _SERVER, clients), partial(load, what, wanted, clients)


def loop(what: Subject, model: Predictor) -> Row:
    """The row of decoding and `predict`, one image after the other, in this process."""
    size, taken = what.served().image_size, []
    begun = time.perf_counter()
    for number in range(what.options.requests):
        start = time.perf_counter()
        image = Image.open(io.BytesIO(what.bodies[number % len(what.bodies)]))
        model.predict(image, confidence=0.0, top_k=TOP_K, size=size)
        taken.append(time.perf_counter() - start)
    return _row(what, _LOOP, 1, taken, time.perf_counter() - begun, batch=1.0, wrong=0, refused=0)


def load(what: Subject, wanted: Sequence[Detections], clients: int) -> Row:
    """The row of so many clients, each of which sends a request when it has the answer of the last."""
    todo, lock = itertools.count(), threading.Lock()
    taken: list[float] = []
    wrong = refused = 0
    start = threading.Barrier(clients)
    begun: list[float] = []

    def client(number: int) -> None:
        nonlocal wrong, refused
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_REQUEST)
        detect(connection, what.bodies[number % len(what.bodies)])  # warms up
        connection.close()  # the server lets go of idle ones, and others may still warm up
        start.wait(_REQUEST)
        begun.append(time.perf_counter())
        while (place := next(todo)) < what.options.requests:
            picture = place % len(what.bodies)
            sent = time.perf_counter()
            status, answer = detect(connection, what.bodies[picture])
            seconds = time.perf_counter() - sent
            right = status != 200 or is_right(answer, wanted[picture])
            with lock:
                taken.append(seconds)
                wrong += not right
                refused += status != 200
        connection.close()

    with running(what, "--max-queue", str(max(64, clients)), "--timeout", str(_REQUEST)) as server:
        before = [server.metric(f"msdeform_batch_images_{part}") for part in ("sum", "count")]
        in_threads(clients, client)
        ended = time.perf_counter()
        after = [server.metric(f"msdeform_batch_images_{part}") for part in ("sum", "count")]
    images, batches = (one - other for one, other in zip(after, before, strict=True))
    batch = round(images / max(1.0, batches), 2)
    return _row(what, _SERVER, clients, taken, ended - min(begun), batch=batch, wrong=wrong, refused=refused)


def _row(
    what: Subject, way: str, clients: int, taken: list[float], seconds: float, *, batch: float, wrong: int, refused: int
) -> Row:
    """``taken`` are the seconds of each request, ``seconds`` those of all."""
    hundredths = statistics.quantiles(taken, n=100, method="inclusive") if len(taken) > 1 else taken * 99
    failure = f"{wrong} wrong answers, {refused} requests refused" if wrong or refused else None
    return {
        "kind": "serve",
        "model": what.model,
        "image": what.image,
        "engine": what.served().computed_by,
        "way": way,
        "clients": clients,
        "requests": len(taken),
        "image_size": what.served().image_size,
        "max_batch": what.options.max_batch,
        "max_wait_ms": what.options.max_wait,
        "per_second": len(taken) / seconds,
        "p50_ms": 1e3 * hundredths[49],
        "p95_ms": 1e3 * hundredths[94],
        "p99_ms": 1e3 * hundredths[98],
        "images_a_batch": batch,
        "failure": failure,
    }

"""What the server counts, in the text format of Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Of one server: a registry of its own, so that two in a process do not mix."""

    def __init__(self, waiting: Callable[[], float], under_way: Callable[[], float]) -> None:
        """``waiting`` tells how many images wait for the model, ``under_way`` how many requests are not answered."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "msdeform_requests", "Requests to /detect, by HTTP status.", ["status"], registry=self._registry
        )
        self.seconds = Histogram(
            "msdeform_request_seconds",
            "Seconds from a request's headers to its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batches = Histogram(
            "msdeform_batch_images",
            "Images of a forward pass.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self._registry,
        )
        self.model = Histogram(
            "msdeform_model_seconds",
            "Seconds of a forward pass, resizing included.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        queue = Gauge("msdeform_queue_images", "Decoded images that wait for the model.", registry=self._registry)
        queue.set_function(waiting)
        inside = Gauge(
            "msdeform_requests_under_way", "Requests that were taken and are not yet answered.", registry=self._registry
        )
        inside.set_function(under_way)

    def answered(self, status: int, seconds: float) -> None:
        self.requests.labels(str(status)).inc()
        self.seconds.observe(seconds)

    def computed(self, images: int, seconds: float) -> None:
        self.batches.observe(images)
        self.model.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)

"""The options of ``msdeform serve``. Nothing here needs PyTorch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ...common.options import (
    Above,
    AtLeast,
    Between,
    Form,
    Metavar,
    Positional,
    Positive,
    ReadPath,
    Repeated,
)
from ...models.options import LoadOptions

Engine = Literal["pytorch", "onnxruntime", "openvino"]
EXPORTED: dict[str, Engine] = {".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "pytorch"}
"""Suffixes of exported detectors, and what runs them."""
TOKEN, TOKEN_IN_WORDS = r"[A-Za-z0-9._~+/=-]{16,}", "16 or more of letters, digits and - . _ ~ + / ="
Token = Annotated[str, Form(TOKEN, TOKEN_IN_WORDS), Metavar("TOKEN")]
MOST_PIXELS = 178_956_970
"""Of an image that Pillow opens at all."""


@dataclass(frozen=True)
class ServeOptions(LoadOptions):
    """Serve a detector over HTTP: POST an image to /detect, read what is found in it."""

    source: Annotated[ReadPath, Positional("SOURCE")]
    """A run's checkpoint, or its folder for its best; official, Hugging Face's or converted weights; or an exported
    file, .onnx, .xml or .pt2."""
    engine: Engine | None = None
    """What computes: for a checkpoint pytorch when not given, and otherwise it is exported first; for an exported file
    what its name says, and openvino takes .onnx as well."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is every address of this machine, which then needs a token."""
    token: Token | None = None
    """What requests must bring, in the header Authorization: Bearer TOKEN. Where other machines reach the address and
    none is given, one is made and printed. The environment variable MSDEFORM_TOKEN gives one unseen by others."""
    allowed_host: Annotated[tuple[str, ...], Repeated()] = ()
    """A name that a proxy on this machine calls this server by; may be repeated."""
    port: Annotated[int, Between(0, 65535, "a port")] = 8000
    """Port to listen at; 0 for any that is free."""
    threads: Positive | None = None
    """Threads of a CPU that one forward pass computes with; PyTorch's own number when not given."""
    max_batch: Positive = 8
    """Most images of one forward pass; only images of one size are computed together, so that none is padded."""
    max_wait: Annotated[float, AtLeast(0, "milliseconds")] = 5.0
    """Milliseconds that an image waits for others to be computed with it."""
    max_queue: Positive = 64
    """Most requests that wait, beside a batch that is computed; one more is answered 503."""
    max_bytes: Positive = 20_000_000
    """Longest body of a request, in bytes; a longer one is answered 413."""
    max_pixels: Annotated[int, Between(1, MOST_PIXELS, "a number of pixels")] = 50_000_000
    """Most pixels of an image, told from its header before it is decoded; a larger one is answered 413."""
    timeout: Annotated[float, Above(0, "seconds")] = 30.0
    """Seconds of a whole request: 408 when its body has not come by then, 504 when its answer has not."""
    grace: Annotated[float, AtLeast(0, "seconds")] = 10.0
    """Seconds that SIGTERM and Ctrl-C leave to requests that were accepted."""

    @property
    def computed_by(self) -> Engine:
        """``engine``, or the usual one of such a source."""
        if self.engine is not None:
            return self.engine
        return EXPORTED.get(self.source.suffix, "pytorch")

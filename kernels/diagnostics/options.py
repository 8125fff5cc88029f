"""Options of ``msdeform info`` and ``msdeform verify``, and the names that they take. Nothing here needs PyTorch."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from ...common.options import Between, Device, Form, Metavar, Options, Positive, Repeated

BackendName = Literal["reference", "gather", "cpu", "triton", "cuda"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
"""in the order of messages and tables"""
AttnBackend = Literal["auto", BackendName]
DtypeName = Literal["float64", "float32", "float16", "bfloat16"]
DTYPES: tuple[DtypeName, ...] = get_args(DtypeName)
Architecture = Annotated[
    str,
    Form(r"(sm_)?(7\d|8\d|9\d|1[0-2]\d)", "a compute capability times ten, such as 80 or 90"),
    Metavar("ARCH"),
]


def capability(architecture: str) -> int:
    """``sm_90`` or ``90`` as a number."""
    return int(architecture.removeprefix("sm_"))


@dataclass(frozen=True)
class InfoOptions(Options):
    """Show each backend of the operator: does it run here, why not, and which one ``auto`` would take for a call.

    The call is the published encoder's unless told otherwise.
    """

    dtype: DtypeName = "float32"
    """Dtype of value."""
    device: Device = "auto"
    """Device of the call; auto: CUDA where there is a GPU."""
    B: Positive | None = None
    """Batch size."""
    Q: Positive | None = None
    """Queries."""
    S: Positive | None = None
    """Pixels of all levels."""
    H: Positive | None = None
    """Heads."""
    D: Positive | None = None
    """Channels of a head."""
    L: Positive | None = None
    """Levels."""
    P: Positive | None = None
    """Points of a query on each level."""

    @property
    def sizes(self) -> dict[str, int]:
        """Those that are given, by their letter in :mod:`.contract`."""
        given = {name: getattr(self, name) for name in ("B", "Q", "S", "H", "D", "L", "P")}
        return {name: size for name, size in given.items() if size is not None}


@dataclass(frozen=True)
class VerifyOptions(Options):
    """Check output and every gradient of each backend that runs here against the float64 reference.

    Without a GPU these are cpu and reference; TRITON_INTERPRET=1 adds triton, run by Triton's slow interpreter.
    With one, --device cpu checks those that take CPU tensors.
    Any option of a shape replaces the default list of cases.
    """

    compiled: bool = False
    """Comes first: execute the kernels as compiled for a GPU on this machine's CPU; has its own --help."""
    backend: Annotated[tuple[BackendName, ...], Repeated()] = ()
    """Only this backend; may be given several times."""
    device: Device = "auto"
    """Device of the calls; auto: CUDA where there is a GPU."""
    dtype: DtypeName | None = None
    """Dtype of value; all when not given."""
    levels: Annotated[str | None, Metavar("HxW,HxW")] = None
    """Level sizes, such as 100x134,50x67,25x34,13x17."""
    batch: Positive | None = None
    """Batch size B."""
    queries: Positive | None = None
    """Queries Q."""
    heads: Positive | None = None
    """Heads H."""
    channels: Positive | None = None
    """Channels D of a head."""
    points: Positive | None = None
    """Points P of a query on each level."""
    seed: Annotated[int, Between(0, 2**63 - 1)] = 0
    """Decides the inputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compiled:
            raise ValueError("compiled: expected right after verify, as in msdeform verify --compiled --arch sm_90")
        if self.levels is not None:
            parse_levels(self.levels)


def parse_levels(text: str) -> tuple[tuple[int, int], ...]:
    """``8x10,4x5`` as (h, w) of each level. Raises ValueError."""
    if not re.fullmatch(r"\d+x\d+(,\d+x\d+)*", text.lower()):
        raise ValueError(f"levels: expected sizes such as 8x10,4x5, got {text!r}")
    h_w = [pair.split("x") for pair in text.lower().split(",")]
    sizes = tuple((int(h), int(w)) for h, w in h_w)
    if min(map(min, sizes)) < 1:
        raise ValueError(f"levels: expected sizes of at least 1, got {text!r}")
    return sizes

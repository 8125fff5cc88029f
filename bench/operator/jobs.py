"""What there is to measure: a job is done in one go and gives a row for each of its keys."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

from ..harness.measure import Ratio, Timing
from ..harness.records import Row
from ..options import FUNCTIONS
from . import bounds, cases
from .workloads import Check

FUSED = FUNCTIONS[1:]
DIRECTIONS = ("forward", "backward", "both")
NO_BACKEND = "none"
"""of a model without deformable attention"""

_TIMING = tuple(field.name for field in fields(Timing))
_RATIO = tuple(field.name for field in fields(Ratio))


@dataclass(frozen=True)
class Operator:
    """One function of one implementation on one case: a row for each direction."""

    kind: ClassVar[str] = "operator"

    case: str
    locations: cases.Locations
    dtype: str
    function: str
    backend: str

    def cells(self) -> list[tuple[object, ...]]:
        """As of :func:`.records.key`, one for each row."""
        lead = (self.kind, self.case, self.locations, self.dtype, self.function)
        return [(*lead, direction, self.backend) for direction in DIRECTIONS]

    def unmeasured(self, failure: str | None) -> list[Row]:
        """Its rows without numbers."""
        case = cases.find(self.case, self.locations)
        shape = {"B": case.B, "Q": case.queries, "S": case.S, "H": case.H, "D": case.D, "L": case.L, "P": case.P}
        more = ("baseline", "peak_mb", "saved_mb", "composed", "setting", "limits")
        numbers = dict.fromkeys((*Check._fields, *_TIMING, *_RATIO, *more))
        row = {"kind": self.kind, **asdict(self), "ours": False, "shape": shape, **numbers, **bounds.UNKNOWN}
        return [{**row, "direction": direction, "failure": failure} for direction in DIRECTIONS]


@dataclass(frozen=True)
class Correctness:
    """One function of one implementation on one case, held against float64 and not timed: a row for each direction."""

    kind: ClassVar[str] = "correctness"

    case: str
    locations: cases.Locations
    dtype: str
    function: str
    backend: str

    def cells(self) -> list[tuple[object, ...]]:
        lead = (self.kind, self.case, self.locations, self.dtype, self.function)
        return [(*lead, direction, self.backend) for direction in DIRECTIONS[:2]]

    def unmeasured(self, failure: str | None) -> list[Row]:
        row = {"kind": self.kind, **asdict(self), "ours": False, **dict.fromkeys(Check._fields)}
        return [{**row, "direction": direction, "failure": failure} for direction in DIRECTIONS[:2]]


@dataclass(frozen=True)
class Kernels:
    """The kernels of a forward and backward of the fused function, by the profiler: one row."""

    kind: ClassVar[str] = "kernels"

    case: str
    dtype: str
    backend: str

    def cells(self) -> list[tuple[object, ...]]:
        return [(self.kind, self.case, self.dtype, self.backend)]

    def unmeasured(self, failure: str | None) -> list[Row]:
        numbers = dict.fromkeys(("total_us", "kernels"))
        return [{"kind": self.kind, **asdict(self), "ours": False, **numbers, "failure": failure}]


@dataclass(frozen=True)
class Model:
    """A detector's speed."""

    kind: ClassVar[str] = "model"

    model: str
    method: str
    backend: str
    dtype: str
    mode: str
    """eager or compiled"""
    batch: int

    def cells(self) -> list[tuple[object, ...]]:
        return [(self.kind, self.model, self.method, self.backend, self.dtype, self.mode, self.batch)]

    def unmeasured(self, failure: str | None) -> list[Row]:
        numbers = dict.fromkeys((*_TIMING, "image", "fps", "peak_mb"))
        return [{"kind": self.kind, **asdict(self), **numbers, "failure": failure}]


@dataclass(frozen=True)
class Training:
    """Training steps of a detector."""

    kind: ClassVar[str] = "training"

    model: str
    method: str
    backend: str
    dtype: str
    """bfloat16: autocast"""
    batch: int

    def cells(self) -> list[tuple[object, ...]]:
        return [(self.kind, self.model, self.method, self.backend, self.dtype, self.batch)]

    def unmeasured(self, failure: str | None) -> list[Row]:
        numbers = dict.fromkeys((*_TIMING, "image", "images_per_second", "hours_per_epoch", "peak_mb"))
        return [{"kind": self.kind, **asdict(self), **numbers, "failure": failure}]


Job = Operator | Correctness | Kernels | Model | Training
KINDS: dict[str, type[Job]] = {kind.kind: kind for kind in (Operator, Correctness, Kernels, Model, Training)}
OF_OPERATOR = (Operator.kind, Correctness.kind, Kernels.kind)
"""kinds of jobs whose backend is a peer of :mod:`.peers`"""


def groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that share a process: those of one backend, the operator's apart from the detectors', in order."""
    found: dict[tuple[bool, str], list[Job]] = {}
    for job in jobs:
        found.setdefault((job.kind in OF_OPERATOR, job.backend), []).append(job)
    return list(found.values())

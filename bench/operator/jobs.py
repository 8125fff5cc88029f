"""What there is to measure: a job is done in one go and gives a row for each of its keys."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

from ...kernels.diagnostics.options import BACKENDS
from ..harness import records
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
class _Job:
    kind: ClassVar[str]
    numbers: ClassVar[tuple[str, ...]]
    """fields of a row that are None until they are measured"""
    directions: ClassVar[tuple[str, ...]] = ()

    def unmeasured(self, failure: str | None) -> list[Row]:
        """Its rows without numbers: one for each direction, or one."""
        row = {"kind": self.kind, **asdict(self), **self._known(), **dict.fromkeys(self.numbers), "failure": failure}
        return [{**row, "direction": direction} for direction in self.directions] or [row]

    def cells(self) -> list[tuple[object, ...]]:
        """As of :func:`.records.key`, one for each row."""
        return [records.key(row) for row in self.unmeasured(None)]

    def _known(self) -> Row:
        return {}


@dataclass(frozen=True)
class _OfFunction(_Job):
    case: str
    locations: cases.Locations
    dtype: str
    function: str
    backend: str

    def _known(self) -> Row:
        return {"ours": False}


@dataclass(frozen=True)
class Operator(_OfFunction):
    """One function of one implementation on one case: a row for each direction."""

    kind: ClassVar[str] = "operator"
    numbers: ClassVar[tuple[str, ...]] = (
        *(*Check._fields, *_TIMING, *_RATIO),
        *("baseline", "peak_mb", "saved_mb", "composed", "setting", "limits"),
        *bounds.FIELDS,
    )
    directions: ClassVar[tuple[str, ...]] = DIRECTIONS

    def _known(self) -> Row:
        return {"ours": False, "shape": cases.find(self.case).shape}


@dataclass(frozen=True)
class Correctness(_OfFunction):
    """One function of one implementation on one case, held against float64 and not timed: a row for each direction."""

    kind: ClassVar[str] = "correctness"
    numbers: ClassVar[tuple[str, ...]] = Check._fields
    directions: ClassVar[tuple[str, ...]] = DIRECTIONS[:2]


@dataclass(frozen=True)
class Kernels(_Job):
    """The kernels of a forward and backward of the fused function, by the profiler: one row."""

    kind: ClassVar[str] = "kernels"
    numbers: ClassVar[tuple[str, ...]] = ("total_us", "kernels")

    case: str
    dtype: str
    backend: str

    def _known(self) -> Row:
        return {"ours": False}


@dataclass(frozen=True)
class Model(_Job):
    """A detector's speed."""

    kind: ClassVar[str] = "model"
    numbers: ClassVar[tuple[str, ...]] = (*_TIMING, "image", "fps", "peak_mb")

    model: str
    method: str
    backend: str
    dtype: str
    mode: str
    """eager or compiled"""
    batch: int


@dataclass(frozen=True)
class Training(_Job):
    """Training steps of a detector."""

    kind: ClassVar[str] = "training"
    numbers: ClassVar[tuple[str, ...]] = (*_TIMING, "image", "images_per_second", "hours_per_epoch", "peak_mb")

    model: str
    method: str
    backend: str
    dtype: str
    """bfloat16: autocast"""
    batch: int


Job = Operator | Correctness | Kernels | Model | Training
KINDS: dict[str, type[Job]] = {kind.kind: kind for kind in (Operator, Correctness, Kernels, Model, Training)}
OF_OPERATOR = (Operator.kind, Correctness.kind, Kernels.kind)
"""kinds of jobs whose backend is one of :mod:`.implementations`"""


def groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that share a process: those of one backend, the operator's apart from the detectors', in order."""
    found: dict[tuple[bool, str], list[Job]] = {}
    for job in jobs:
        found.setdefault((job.kind in OF_OPERATOR, job.backend), []).append(job)
    return list(found.values())


def plan(
    names: Iterable[str],
    locations: Iterable[cases.Locations],
    dtypes: Sequence[str],
    backends: Iterable[str],
    functions: Sequence[str] = FUNCTIONS,
) -> list[Operator]:
    """A job for each combination, a backend's all together. The module is one of ours: it takes our backends only, and
    chooses its own locations."""
    cells = [(name, place, dtype) for name in names for place in locations for dtype in dtypes]
    return [
        Operator(name, place, dtype, function, backend)
        for backend in backends
        for name, place, dtype in cells
        for function in functions
        if function != "MSDeformAttn" or (backend in BACKENDS and place == "grid")
    ]

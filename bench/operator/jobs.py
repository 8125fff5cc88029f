"""What there is to measure: a job is done in one go and gives a row for each of its keys."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from ...kernels.cuda import tiles
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
TIMING = (*Timing.__dataclass_fields__,)
RATIO = (*Ratio.__dataclass_fields__,)


@dataclass(frozen=True)
class _Job:
    kind: ClassVar[str]
    numbers: ClassVar[tuple[str, ...]]
    """fields of a row that are None until they are measured"""
    directions: ClassVar[tuple[str, ...]] = ()

    def unmeasured(self, failure: str | None) -> list[Row]:
        """Its rows without numbers: one for each direction, or one."""
        row = {"kind": self.kind, **asdict(self), **dict.fromkeys(self.numbers), "failure": failure}
        if self.kind in OF_OPERATOR:
            row["ours"] = False
        if isinstance(self, Operator):
            row["shape"] = cases.find(self.case).shape
        return [{**row, "direction": direction} for direction in self.directions] or [row]

    def cells(self) -> list[tuple[object, ...]]:
        """As of :func:`.records.key`, one for each row."""
        return [records.key(row) for row in self.unmeasured(None)]


@dataclass(frozen=True)
class _OfFunction(_Job):
    case: str
    locations: cases.Locations
    dtype: str
    function: str
    backend: str


class Operator(_OfFunction):
    """One function of one implementation on one case: a row for each direction."""

    kind = "operator"
    directions = DIRECTIONS
    numbers = (
        *(*Check._fields, *TIMING, *RATIO, *bounds.FIELDS),
        *("baseline", "peak_mb", "saved_mb", "composed", "setting", "limits"),
    )


class Correctness(_OfFunction):
    """One function of one implementation on one case, held against float64 and not timed: a row for each direction."""

    kind = "correctness"
    directions = DIRECTIONS[:2]
    numbers = Check._fields


@dataclass(frozen=True)
class Kernels(_Job):
    """The kernels of a forward and backward of the fused function, by the profiler: one row."""

    kind = "kernels"
    numbers = ("total_us", "kernels")

    case: str
    dtype: str
    backend: str


@dataclass(frozen=True)
class Model(_Job):
    """A detector's speed."""

    kind = "model"
    numbers = (*TIMING, "image", "fps", "peak_mb")

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

    kind = "training"
    numbers = (*TIMING, "image", "images_per_second", "hours_per_epoch", "peak_mb")

    model: str
    method: str
    backend: str
    dtype: str
    """bfloat16: autocast"""
    batch: int


Job = Operator | Correctness | Kernels | Model | Training
OF_OPERATOR = (Operator.kind, Correctness.kind, Kernels.kind)
"""kinds of jobs whose backend is one of :mod:`.implementations`"""


def takes(backend: str, case: str, dtype: str) -> bool:
    """Whether what a backend is measured for takes a case: without the backward by tiles `triton-tiles` is `triton`."""
    return backend != "triton-tiles" or (cases.find(case).D in tiles.WIDTHS and dtype != "float64")


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
        if takes(backend, name, dtype) and (function != "MSDeformAttn" or (backend in BACKENDS and place == "grid"))
    ]

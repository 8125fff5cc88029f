"""What a run's log.jsonl tells once its repeated steps are sorted out: curves by name, and the settings."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...common.text import suggest
from ..config.options import flatten
from .run_log import read_log

Axis = Literal["step", "epoch", "hours"]
Array = np.ndarray

# beside numbers, what an event of a step or an evaluation holds of itself
_NOT_CURVES = ("event", "step", "epoch", "time", "hours", "steps")
# seconds of a step, which logs without "steps" sum over the steps since the line before
_SECONDS = ("data_s", "step_s")
# settings that say where a run is and how it came to end there, not what it was
PLACES = ("out", "resume")


@dataclass(frozen=True)
class History:
    """A run: its settings, and the events of steps and evaluations, each step once and in order."""

    name: str
    settings: dict[str, Any]
    """Of the run's options, by name; the last resumption's."""
    facts: dict[str, Any]
    """What the run said of itself when it started: attn_backend, device, ..."""
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @classmethod
    def read(cls, run: Path, name: str | None = None) -> "History":
        """Reads the log of a run's folder, or a log.jsonl itself.

        Of steps that were done again after resuming, the last counts; so do the hours, which leave out the time that
        the run stood still.

        Raises:
            FileNotFoundError: there is no log.
            ValueError: there is no step in it.
        """
        path = run / "log.jsonl" if run.is_dir() else run
        if not path.is_file():
            what = f"{run} holds no log.jsonl" if run.is_dir() else f"{run} does not exist"
            raise FileNotFoundError(f"{what}; expected the folder of a run of msdeform train")
        facts: dict[str, Any] = {}
        kept: list[dict[str, Any]] = []
        hours, last, logged = 0.0, math.nan, 0
        for event in read_log(path):
            kind, now = event["event"], event.get("time", math.nan)
            if kind in ("start", "resume"):
                facts, logged = event, event["step"]
                kept = [one for one in kept if one["step"] <= event["step"]] if kind == "resume" else []
                hours = kept[-1]["hours"] if kept else 0.0
            else:
                hours += (now - last) / 3600
            last = now
            if kind == "step":
                done, logged = event["step"] - logged, event["step"]
                if "steps" not in event and done > 1:
                    event |= {name: event[name] / done for name in _SECONDS if name in event}
            if kind in ("step", "epoch"):
                # the AP of each class is a number of its own
                classes = {f"AP/{name}": value for name, value in (event.get("per_class") or {}).items()}
                kept.append({**event, **classes, "hours": hours})
        by_step = [{one["step"]: one for one in kept if one["event"] == kind} for kind in ("step", "epoch")]
        steps, evaluations = ([found[step] for step in sorted(found)] for found in by_step)
        if not steps:
            raise ValueError(f"{path} holds no step to plot")
        return cls(name or _name(run), dict(flatten(facts.get("options", {}))), facts, steps, evaluations)

    def curves(self) -> list[str]:
        """The names that ``curve`` knows."""
        named = (item for event in (*self.steps, *self.evaluations) for item in event.items())
        return list(dict.fromkeys(name for name, value in named if _number(name, value) is not None))

    def curve(self, name: str, axis: Axis = "step") -> tuple[Array, Array]:
        """The points (n,), (n,) of a number of steps (``loss``, ``lr_main``) or evaluations (``AP``, ``val_loss``).

        Without those where it was not logged, or was not a finite number.

        Raises:
            ValueError: the log does not hold the axis.
        """
        numbers = ((event, _number(name, event.get(name))) for event in (*self.steps, *self.evaluations))
        points = [(event, number) for event, number in numbers if number is not None and math.isfinite(number)]
        x = np.array([event["hours" if axis == "hours" else "step"] for event, _ in points], dtype=float)
        if axis == "hours" and np.isnan(x).any():
            raise ValueError(f"x: the log of {self.name} holds no times to take hours from; expected step or epoch")
        return x / self.steps_per_epoch() if axis == "epoch" else x, np.array([number for _, number in points])

    def steps_per_epoch(self) -> float:
        """As the run said; else the most that the epochs of its events allow, which is right where one ends.

        Raises:
            ValueError: the log is too short to tell.
        """
        if "steps_per_epoch" in self.facts:
            return float(self.facts["steps_per_epoch"])
        # a step's epoch is that which it is in, an evaluation's the number of those that are done
        bounds = [(event["step"] - 1) / event["epoch"] for event in self.steps if event.get("epoch")]
        bounds += [event["step"] / event["epoch"] for event in self.evaluations if event.get("epoch")]
        if not bounds:
            raise ValueError(f"x: {self.name} has not come to the end of an epoch; expected step or hours")
        return min(bounds)


def read_all(runs: Sequence[Path]) -> list[History]:
    """The histories of several runs, each under a name of its own.

    Raises:
        ValueError: none is named.
        FileNotFoundError, ValueError: as History.read.
    """
    if not runs:
        raise ValueError("runs: expected at least one folder of a run, got none")
    names = [_name(run) for run in runs]
    return [
        History.read(run, name if names.count(name) == 1 else str(run)) for run, name in zip(runs, names, strict=True)
    ]


def check_curves(names: Iterable[str], histories: Sequence[History]) -> None:
    """Raises ValueError, with the nearest ones, for a name that none of the runs has."""
    known = list(dict.fromkeys(name for history in histories for name in history.curves()))
    for name in names:
        if name not in known:
            every = f"expected some of {', '.join(known)}"
            raise ValueError(suggest(f"terms: no run has logged {name!r}", name, known, every, most=3))


def differences(histories: Sequence[History], ignored: Sequence[str] = PLACES) -> dict[str, list[Any]]:
    """The settings in which runs differ, each with its value in every run."""
    names = dict.fromkeys(name for history in histories for name in history.settings)
    found = {name: [history.settings.get(name) for history in histories] for name in names if name not in ignored}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def grouped(histories: Sequence[History], by: str | None) -> list[list[History]]:
    """The runs that differ in nothing but ``by`` (a setting) and where they are; each alone when it is None."""
    if by is None:
        return [[history] for history in histories]
    groups: list[list[History]] = []
    for history in histories:
        same = (group for group in groups if not differences([group[0], history], (*PLACES, by)))
        if (found := next(same, None)) is None:
            groups.append(found := [])
        found.append(history)
    return groups


def _name(run: Path) -> str:
    whole = run.resolve()
    return whole.name if whole.suffix != ".jsonl" else whole.parent.name


def _number(name: str, value: Any) -> float | None:
    """A value of a curve; None for what is no number. JSON has none that is not finite: the log holds its name."""
    if name in _NOT_CURVES or isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        return None
    # COCO's AP of sizes that nothing annotated has
    return math.nan if value == -1 and name.startswith(("AP", "AR")) else float(value)

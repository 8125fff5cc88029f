"""What a run's log.jsonl tells once its repeated steps are sorted out: curves by name, and the settings."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...common.options import suggest
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
            now = event.get("time", math.nan)
            if event["event"] in ("start", "resume"):
                facts = event
                kept = [one for one in kept if one["step"] <= event["step"]] if event["event"] == "resume" else []
                hours = kept[-1]["hours"] if kept else 0.0
                logged = event["step"]
            else:
                hours += (now - last) / 3600
            last = now
            if event["event"] == "step":
                kept.append({**_of_one_step(event, event["step"] - logged), "hours": hours})
                logged = event["step"]
            elif event["event"] == "epoch":
                kept.append({**event, "hours": hours})
        by_step = [{one["step"]: one for one in kept if one["event"] == kind} for kind in ("step", "epoch")]
        steps, evaluations = ([found[step] for step in sorted(found)] for found in by_step)
        if not steps:
            raise ValueError(f"{path} holds no step to plot")
        settings = dict(flatten(facts.get("options", {})))
        return cls(name or _name(run), settings, facts, steps, [_flat(one) for one in evaluations])

    def curves(self) -> list[str]:
        """The names that ``curve`` knows."""
        events = (*self.steps, *self.evaluations)
        return list(dict.fromkeys(name for event in events for name, value in event.items() if _is_curve(name, value)))

    def curve(self, name: str, axis: Axis = "step") -> tuple[Array, Array]:
        """The points (n,), (n,) of a number of steps (``loss``, ``lr_main``) or evaluations (``AP``, ``val_loss``).

        Without those where it was not logged, or was not a finite number.

        Raises:
            ValueError: the log does not hold the axis.
        """
        points = [event for event in (*self.steps, *self.evaluations) if name in event]
        y = np.array([_number(name, event[name]) for event in points])
        x = self._at(points, axis)
        fine = np.isfinite(y)
        return x[fine], y[fine]

    def _at(self, events: Sequence[dict[str, Any]], axis: Axis) -> Array:
        if axis == "hours":
            hours = np.array([event["hours"] for event in events], dtype=float)
            if np.isnan(hours).any():
                raise ValueError(f"x: the log of {self.name} holds no times to take hours from; expected step or epoch")
            return hours
        steps = np.array([event["step"] for event in events], dtype=float)
        return steps if axis == "step" else steps / self.steps_per_epoch()

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
        found = next(same, None)
        if found is None:
            groups.append([history])
        else:
            found.append(history)
    return groups


def _name(run: Path) -> str:
    whole = run.resolve()
    return whole.name if whole.suffix != ".jsonl" else whole.parent.name


def _of_one_step(event: dict[str, Any], steps: int) -> dict[str, Any]:
    """An event of a step with its seconds as those of one step; ``steps`` were done since the line before."""
    if "steps" in event or steps < 1:
        return event
    return {**event, **{name: event[name] / steps for name in _SECONDS if isinstance(event.get(name), int | float)}}


def _flat(event: dict[str, Any]) -> dict[str, Any]:
    """With the AP of each class as a number of its own, ``AP/NAME``."""
    return {**event, **{f"AP/{name}": value for name, value in (event.get("per_class") or {}).items()}}


def _is_curve(name: str, value: Any) -> bool:
    # JSON has no number that is not finite: the log holds its name
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return name not in _NOT_CURVES and (number or value in ("nan", "inf", "-inf"))


def _number(name: str, value: Any) -> float:
    # COCO's AP of sizes that nothing annotated has
    return math.nan if value is None or (value == -1 and name.startswith(("AP", "AR"))) else float(value)

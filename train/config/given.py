"""What a run that is started from Python is given beside its settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.own import OwnData


@dataclass(frozen=True)
class Given:
    """Objects, which no setting could name."""

    callbacks: Sequence[object] = ()
    """See `monitor.callbacks`."""
    transform: Any = None
    """A pipeline in place of ``--augment``, as `augmentation.pipelines.adapt` takes it."""
    data: OwnData | None = None
    """Data sets in place of ``--data``."""

    def describe(self) -> dict[str, str]:
        """What of it a resumed run must be given again, as a checkpoint tells it."""
        named = {"transform": self.transform, "data": None if self.data is None else self.data.train}
        return {name: type(value).__name__ for name, value in named.items() if value is not None}

    def refuse_what_differs(self, before: Mapping[str, str], run: Path) -> None:
        """Raises ValueError where a run was trained with objects of a script, and these are not of their types."""
        now = self.describe()
        for name in {**before, **now}:
            if before.get(name) != now.get(name):
                raise ValueError(
                    f"{run} was trained with {_told(name, before)}, and is resumed with {_told(name, now)}; give it "
                    f"the same again: msdeform.Run(FOLDER).resume({name}=...)"
                )


def _told(name: str, given: Mapping[str, str]) -> str:
    return f"{name} of a script ({given[name]})" if name in given else f"no {name} of a script"


NOTHING = Given()

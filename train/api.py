"""Training from Python, with the settings of ``msdeform train``.

    run = msdeform.finetune("deformable_detr_r50_two_stage", "data", epochs=20)
    run.metrics["best"]["AP"]
    run.model.predict("photograph.jpg")

A script whose settings have workers must call it under ``if __name__ == "__main__"`` where processes are spawned.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..common.options import HUB_NAME
from ..models.catalog import MODELS, check_model
from ..models.weights.formats import read_source
from .config.options import Recipe, TrainOptions, merged
from .config.presets import preset as preset_of
from .config.resolve import NOT_IN_FILES, checkpoint_options, take_settings
from .engine.build import AnyDetector, load_any_model, with_model_of_start
from .engine.run import train
from .monitor.history import History


@dataclass(frozen=True)
class Run:
    """What a training run left in its folder; ``Run(Path("runs/mine"))`` is one made earlier."""

    folder: Path

    @cached_property
    def model(self) -> AnyDetector:
        """The detector of the highest AP, in evaluation mode on the CPU. Raises as `load_model`."""
        return load_any_model(read_source(self.folder))

    @cached_property
    def history(self) -> History:
        """The curves and settings in the run's log. Raises FileNotFoundError or ValueError where there are none."""
        return History.read(self.folder)

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """``best`` and ``last``: the evaluation of the highest AP, and the newest, with their ``step``; shares of 1.

        Empty for a run that was not evaluated.
        """
        evaluations = self.history.evaluations
        if not evaluations:
            return {}
        return {"best": max(evaluations, key=lambda one: one["AP"]), "last": evaluations[-1]}

    def resume(self, **settings: Any) -> "Run":
        """Resumes the run from its newest checkpoint, with its own settings except those given, such as ``epochs``.

        Raises as `finetune`, and FileNotFoundError where there is no checkpoint.
        """
        given = _checked("resume", settings)
        options = merged(checkpoint_options(self.folder), {**given, "out": None, "resume": str(self.folder)})
        return Run(train(options))


def finetune(
    model: str | Path,
    data: str | Path | None,
    *,
    out: str | Path | None = None,
    preset: str | None = "finetune",
    **settings: Any,
) -> Run:
    """Trains a detector on a data set to the end of the run.

    Args:
        model: a name of `msdeform.list_models()`, whose published weights are downloaded by the preset ``finetune``;
            or a file or folder of weights to start from, of any format, or a run's folder for its best; or OWNER/NAME
            of the Hugging Face Hub.
        data: what ``--data`` takes; None where ``train_images`` and the like name the files.
        out: folder for checkpoints and logs; runs/MODEL-DATE when not given.
        preset: settings to start from, of ``msdeform train --preset list``; None for the defaults.
        settings: any other, by the names of ``msdeform train --help``, with underscores.

    Raises:
        ValueError: unknown settings or values, or wrong data; each message is one sentence.
        FileNotFoundError, ConnectionError: weights or data that are not there.
        RuntimeError: too many steps in a row were not finite; memory, disk or another process failed.
        SystemExit: a signal or Ctrl-C stopped it; all is saved, and `Run.resume` resumes it.
    """
    places = {"data": data, "out": out, **_named_or_weights(model, settings)}
    given = _checked("finetune", {**settings, **places})
    options = TrainOptions() if preset is None else preset_of(preset)
    options = dataclasses.replace(merged(options, given), recipe=Recipe(preset))
    if "model" not in given:
        options = with_model_of_start(options)
    return Run(train(options))


def _named_or_weights(model: str | Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(model, str | Path):
        raise TypeError(f"model: expected a name of msdeform.list_models() or weights, got a {type(model).__name__}")
    if model in MODELS:
        return {"model": model}
    if not Path(model).exists() and not re.fullmatch(HUB_NAME, str(model)):
        if re.fullmatch(r"\w+", str(model)):
            check_model(str(model))
        raise FileNotFoundError(f"model: expected a model's name or weights; {model} does not exist")
    if "init_from" in settings:
        raise ValueError(f"init_from: expected none beside the weights {model}, got {settings['init_from']!r}")
    return {"init_from": model}


def _checked(caller: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, each of its type."""
    for name in settings.keys() & {*NOT_IN_FILES, "preset"}:
        raise ValueError(f"{caller}: {name} is for the command line; Run(FOLDER).resume() resumes a run")
    # as a file of settings would have them: text for paths, lists for tuples
    return take_settings(json.loads(json.dumps(dict(settings), default=str)), caller)

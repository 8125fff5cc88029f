"""Training from Python, with the settings of ``msdeform train``.

    run = msdeform.finetune("deformable_detr_r50_two_stage", "data", epochs=20)
    run.metrics["best"]["AP"]
    run.plot("curves.png")
    run.model.predict("photograph.jpg")

A script whose settings have workers must call it under ``if __name__ == "__main__"`` where processes are spawned.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..common.options import HUB_NAME
from ..models.catalog import MODELS, check_model
from ..models.weights.formats import read_source
from .config.given import Given
from .config.options import PLOT_SUFFIXES, Recipe, TrainOptions, merged
from .config.presets import preset as preset_of
from .config.resolve import NOT_IN_FILES, checkpoint_options, take_settings
from .data.own import OwnData
from .engine.build import AnyDetector, load_any_model, with_model_of_start
from .engine.run import train as run_training
from .monitor.curves import figure_of
from .monitor.history import History
from .visual.charts import save_figure


@dataclass(frozen=True)
class Run:
    """What a training run left in its folder; ``Run("runs/mine")`` is one made earlier."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))  # frozen; text will do

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

    @cached_property
    def settings(self) -> TrainOptions:
        """The settings of its newest checkpoint, which `finetune` takes as `options`. Raises as `load_checkpoint`."""
        return merged(checkpoint_options(self.folder), {"out": None, "resume": None})

    def plot(self, path: str | Path | None = None, curves: Sequence[str] | None = None) -> Any:
        """Draws the run's curves, those named, as ``loss`` or ``AP/cat``, or the usual ones.

        Returns matplotlib's figure, which a notebook shows; and writes it to `path`, a png, svg or pdf, if given.
        Raises ValueError for a curve that the run has not logged, and as `history`.
        """
        if path is not None and Path(path).suffix.lower() not in PLOT_SUFFIXES:
            raise ValueError(f"path: expected a name that ends in {', '.join(PLOT_SUFFIXES)}, got {path}")
        figure = figure_of([self.history], curves)
        if path is not None:
            save_figure(figure, Path(path))
        return figure

    def resume(
        self,
        *,
        callbacks: Sequence[object] = (),
        transform: Any = None,
        data: Any = None,
        categories: Mapping[int, str] | Sequence[str] | None = None,
        **settings: Any,
    ) -> "Run":
        """Resumes the run from its newest checkpoint, with its own settings except those given, such as ``epochs``.

        A run that `transform` or data sets were given to needs them again. Arguments are those of `finetune`.

        Raises as `finetune`, and FileNotFoundError where there is no checkpoint.
        """
        places, own = _data(data, categories)
        given = _checked("resume", {**settings, **places})
        options = merged(self.settings, {**given, "out": None, "resume": str(self.folder)})
        return Run(run_training(options, Given(callbacks, transform, own)))


def finetune(
    model: str | Path,
    data: Any,
    *,
    out: str | Path | None = None,
    preset: str | None = "finetune",
    options: TrainOptions | None = None,
    callbacks: Sequence[object] = (),
    transform: Any = None,
    categories: Mapping[int, str] | Sequence[str] | None = None,
    **settings: Any,
) -> Run:
    """Trains a detector on a data set to the end of the run.

    Args:
        model: a name of `msdeform.list_models()`, whose published weights are downloaded by the preset ``finetune``;
            or a file or folder of weights to start from, of any format, or a run's folder for its best; or OWNER/NAME
            of the Hugging Face Hub.
        data: what ``--data`` takes; None where ``train_images`` and the like name the files. Or a pair of map-style
            Datasets, for training and validation, whose items are (image, target): see `OwnData`.
        out: folder for checkpoints and logs; runs/MODEL-DATE when not given.
        preset: settings to start from, of ``msdeform train --preset list``; None for the defaults.
        options: settings to start from instead of a preset, as `Run.settings` has them.
        callbacks: objects with some of the methods of `msdeform.Callback`.
        transform: in place of ``augment``: a pipeline of ``torchvision.transforms.v2`` or Albumentations, or a function
            (image, target) -> (image, target) on torchvision's tv_tensors. Images are resized for the model after it.
        categories: names of the labels of Datasets that don't tell them.
        settings: any other, by the names of ``msdeform train --help``, with underscores.

    Raises:
        ValueError: unknown settings or values, or wrong data; each message is one sentence.
        FileNotFoundError, ConnectionError: weights or data that are not there.
        RuntimeError: too many steps in a row were not finite; memory, disk, a callback or another process failed.
        SystemExit: a signal or Ctrl-C stopped it; all is saved, and `Run.resume` resumes it.
    """
    found, own = _data(data, categories)
    places = {**found, "out": out, **_named_or_weights(model, settings)}
    given = _checked("finetune", {**settings, **places})
    if transform is not None and "augment" in settings:
        raise ValueError(f"augment: expected none beside transform, got {settings['augment']!r}")
    if options is None:
        options, recipe = TrainOptions() if preset is None else preset_of(preset), Recipe(preset)
    else:
        recipe = options.recipe
        if "model" in given and str(options.model.init_from) not in ("None", "none", "published"):
            options = merged(options, {"init_from": None})  # weights of another model's name
    options = dataclasses.replace(merged(options, given), recipe=recipe)
    if "model" not in given:
        options = with_model_of_start(options)
    return Run(run_training(options, Given(callbacks, transform, own)))


def _data(
    data: Any, categories: Mapping[int, str] | Sequence[str] | None
) -> tuple[dict[str, str | Path | None], OwnData | None]:
    """The setting ``data``, or the data sets that stand in its place."""
    if not isinstance(data, tuple | list):
        if categories is not None:
            raise ValueError("categories: expected none beside data in files, which name their classes")
        return ({} if data is None else {"data": data}), None
    if len(data) != 2:
        raise ValueError(f"data: expected two Datasets, for training and validation, got {len(data)}")
    train, val = data
    return {}, OwnData(train, val, categories)


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

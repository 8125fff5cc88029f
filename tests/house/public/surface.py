"""What semantic versioning covers, one line for each promise, as docs/versions.md describes it.

    python -m tests.house.public.surface    # writes recorded.txt anew; a removal that breaks the rules is refused

The lines:

    name ms_deform_attn                        what `import msdeform` offers
    argument ms_deform_attn value at 1         one that must be given, and may be given by its place
    argument ms_deform_attn backend=           one that may be left out, and has no place
    method Run.resume                          with its arguments, as of a function
    command train --data                       a command's option, or argument
    model deformable_detr_r50                  what `create_model` makes
    backend cpu                                what `backend=` takes
    format msdeform-checkpoint-1               the mark in a file that later versions read
    export images -> boxes labels scores       what exported files take and give, by name
    result predictions.csv x0                  what `msdeform predict` writes of a detection
"""

import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import msdeform
from msdeform.cli import COMMANDS
from msdeform.kernels.registry import AUTO, BACKENDS
from msdeform.models.export.form import Form
from msdeform.models.inference.detections import Detections
from msdeform.models.weights.formats import FORMAT, TRAINING_FORMAT
from msdeform.train.data.annotations import Category
from msdeform.train.prediction.results import COLUMNS, CocoWriter
from msdeform.train.prediction.sources import Frame, Source

RECORD = Path(__file__).with_name("recorded.txt")
# instruments of the project: their options may change in any version
NOT_COVERED = ("bench", "table", "verify --compiled")
# beside `msdeform.__all__`: module -> names that the pages tell people to import, and what a detector offers
DOCUMENTED = {
    "integrations.detrex": ("MultiScaleDeformableAttention",),
    "integrations.extension": ("install_extension",),
    "integrations.mmcv": ("MultiScaleDeformableAttention", "register"),
    "integrations.transformers": ("register",),
    "kernels.compat": ("MSDeformAttnFunction", "MultiScaleDeformableAttnFunction"),
    "models.inference.detections": ("Detections",),
    "models.inference.predictor": ("Predictor.predict", "Predictor.predict_each"),
}


def _arguments(name: str, function: Callable[..., object]) -> Iterator[str]:
    parameters = [one for one in inspect.signature(function).parameters.values() if one.name != "self"]
    for place, one in enumerate(parameters, start=1):
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        optional = "=" if one.default is not one.empty else ""
        where = f" at {place}" if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) else ""
        yield f"argument {name} {stars}{one.name}{optional}{where}"


def _names() -> Iterator[str]:
    named = {name: getattr(msdeform, name) for name in msdeform.__all__}
    for module, those in DOCUMENTED.items():
        named |= {f"{module}.{name}": attrgetter(name)(import_module(f"msdeform.{module}")) for name in those}
    for name, value in named.items():
        yield f"name {name}"
        if not inspect.isclass(value):
            yield from _arguments(name, value)
            continue
        if "__init__" in vars(value):
            yield from _arguments(name, value)
        for member in vars(value):
            if not member.startswith("_"):
                yield f"method {name}.{member}"
                if inspect.isfunction(function := getattr(value, member)):
                    yield from _arguments(f"{name}.{member}", function)


def _commands() -> Iterator[str]:
    for name, command in COMMANDS.items():
        if name.startswith(NOT_COVERED):
            continue
        yield f"command {name}"
        yield from (f"command {name} {option.flag}" for option in command.known_options())


def _files() -> Iterator[str]:
    yield from (f"format {FORMAT}", f"format {TRAINING_FORMAT}")
    for pixels, top_k in itertools.product((False, True), (None, 100)):
        form = Form((640, 640), top_k=top_k, pixels=pixels)
        yield f"export {' '.join(form.inputs)} -> {' '.join(form.outputs)}"
    yield from (f"result predictions.csv {column}" for column in COLUMNS)
    found = Detections(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long), torch.zeros(1), (8, 8), ["name"])
    with TemporaryDirectory() as folder:
        with CocoWriter(Path(folder), [Category(1, "name")]) as writer:
            writer.add(
                Frame(Source(Path("image.jpg"), "image.jpg", "image"), torch.zeros(3, 8, 8), image_id=1), found, None
            )
        [result] = json.loads((Path(folder) / writer.written).read_text())
    yield from (f"result predictions.json {key}" for key in result)


def surface() -> set[str]:
    """The lines that hold now."""
    rest = [f"model {name}" for name in msdeform.list_models()] + [f"backend {name}" for name in (AUTO, *BACKENDS)]
    return {*_names(), *_commands(), *_files(), *rest}


def recorded() -> tuple[str, dict[str, str]]:
    """The version that the record was written at, and its lines: each with the version that deprecated it, or ""."""
    first, *lines = RECORD.read_text(encoding="utf-8").splitlines()
    parted = (line.partition("  # deprecated in ") for line in lines)
    return first.removeprefix("# version "), {line: since for line, _, since in parted}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def broken(now: set[str], then: dict[str, str], version: str, version_then: str) -> list[str]:
    """What this version takes away from the recorded one, against the rules of docs/versions.md.

    A new major version may remove anything; a minor one what an earlier minor version deprecated. An argument that may
    be left out now is kept; a new one of an old function that must be given breaks its callers.
    """
    if numbers(version)[0] > numbers(version_then)[0]:
        return []
    kept = now | {line.replace("=", "", 1) for line in now}
    removed = {line for line in then if line not in kept}
    allowed = {line for line in removed if then[line] and numbers(then[line])[:2] < numbers(version)[:2]}
    old = {line.partition(" ")[2] for line in then if line.startswith(("name ", "method "))}
    added = [line.split() for line in now - then.keys() if line.startswith("argument ")]
    wanted = {
        name: function for _, function, name, *_ in added if function in old and name[-1] != "=" and name[0] != "*"
    }
    # one that was optional is among the removed
    wanted = {name: function for name, function in wanted.items() if not any(name + "=" in line for line in removed)}
    return [
        *sorted(removed - allowed),
        *sorted(f"argument {function} {name} must be given now" for name, function in wanted.items()),
    ]


def unannounced(then: dict[str, str], changelog: str) -> list[str]:
    """The deprecated lines whose last name no section "Deprecated" of the changelog holds."""
    sections = re.findall(r"^### Deprecated\n(.*?)(?=^##|\Z)", changelog, re.MULTILINE | re.DOTALL)
    names = {line: re.sub(r"[=*]| at \d+$", "", line).split()[-1] for line, since in then.items() if since}
    return [line for line, name in names.items() if f"`{name}`" not in "".join(sections)]


def main() -> int:
    """Exit status 1 where something was removed that may not be."""
    now, (version_then, then) = surface(), recorded()
    lost = broken(now, then, msdeform.__version__, version_then)
    if lost:
        print("\n".join(["removed against docs/versions.md:", *lost]), file=sys.stderr)
        return 1
    lines = [f"{line}  # deprecated in {then[line]}" if then.get(line) else line for line in sorted(now)]
    RECORD.write_text("\n".join([f"# version {msdeform.__version__}", *lines]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

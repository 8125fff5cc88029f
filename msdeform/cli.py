"""The ``msdeform`` command: one word for each thing it does.

A command is a dataclass of options and a function ``run(options) -> int`` that returns its exit status. The module of
the options imports no PyTorch, and that of the function is imported only after the command line was found right, so
that ``--help`` and mistakes are answered at once. Exit status 2 means that the command line was wrong, or a file that
it names; 1 that the work failed, told in one sentence (``MSDEFORM_DEBUG=1`` shows the traceback); 130 that Ctrl-C
stopped it, 143 that SIGTERM did; 141 that whoever read the output went away.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import FrameType
from typing import Any

from . import __version__
from .common.command_line import parse
from .common.fields import Option, named, options_of
from .common.text import either, printable, suggest


@dataclass(frozen=True)
class Command:
    """One command: ``module:name`` of its options and of its function, and its line in ``msdeform --help``.

    ``parse`` names a function ``(words, program) -> options`` where there is more to it than `command_line.parse`.
    """

    options: str
    run: str
    summary: str
    parse: str | None = None

    def read(self, words: list[str], program: str) -> Any:
        """The options that the words after the command's name say; ends the process for ``--help`` and mistakes."""
        if self.parse is not None:
            return _load(self.parse)(words, program)
        return parse(_load(self.options), words, program)

    def known_options(self) -> list[Option]:
        return list(options_of(_load(self.options)))

    def load(self) -> Callable[[Any], int]:
        """The function that does it."""
        return _load(self.run)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"{__package__}.{module}"), name)


# what `msdeform bench` is followed by: its function, in `bench`; the options of first-call are FirstCallOptions
_BENCH = {
    "accelerate": ("models.commands:accelerate", "time models of transformers before and after msdeform.accelerate"),
    "compare": ("report.compare:run", "what became slower between two commits, machines or backends"),
    "cpu": ("cpu.cpu:run", "time the operator's backends and other implementations on a CPU, all in turn, by threads"),
    "cpu-code": ("cpu.code:run", "count the instructions that the kernels for CPUs spend on a point"),
    "deploy": ("models.commands:deploy", "time a detector in PyTorch, onnxruntime and OpenVINO, beside each other"),
    "dispatch": ("cpu.dispatch:run", "time what a call costs the host, in stages; no GPU needed"),
    "explain": ("models.commands:explain", "time relevance beside the model's own passes, and the memory it adds"),
    "explain-eval": ("models.commands:explain_eval", "judge a detector's heat maps beside each other, over seeds"),
    "exports": ("models.commands:exports", "run exported detectors in onnxruntime and OpenVINO, beside their models"),
    "first-call": (
        "cpu.first_call:run",
        "time the operator's first call in a new process, beside its second, on a CPU",
    ),
    "instructions": ("static.instructions:run", "count what the compiled kernels execute, on a CPU"),
    "model": ("static.commands:model", "predict what bounds each kernel on an H200 from its counts"),
    "recipes": ("models.commands:recipes", "train on photographs with several recipes and seeds: what helps?"),
    "render": ("report.render:run", "draw the documentation's tables and plots anew from the recorded rows"),
    "roofline": ("report.roofline:run", "draw recorded speeds under what the device could do"),
    "seeds": ("models.commands:seeds", "train on every backend with several seeds: do their APs agree?"),
    "serve": (
        "serving.benchmark:run",
        "requests a second and latency of the HTTP server, and answers to broken requests",
    ),
    "startup": ("cpu.startup:run", "CPU time of each command's --help and of its answers to mistakes"),
    "training": ("models.commands:training", "time the loading of images, and the stages of a training step"),
}

COMMANDS = {
    "info": Command(
        "kernels.diagnostics.options:InfoOptions",
        "kernels.diagnostics.info:info",
        "show each backend of the operator: does it run here, and why not",
    ),
    "verify": Command(
        "kernels.diagnostics.options:VerifyOptions",
        "kernels.diagnostics.verify:verify",
        "check every backend that runs here against the others, gradients included",
    ),
    "verify --compiled": Command(
        "bench.options:VerifyCompiledOptions",
        "bench.static.commands:verify_compiled",
        "check the kernels as compiled for a GPU, executed on this CPU",
    ),
    "train": Command(
        "train.config.options:TrainOptions",
        "train.commands.train:run",
        "train a detector on photographs with boxes, in COCO's, YOLO's or Pascal VOC's format",
        parse="train.config.resolve:resolve",
    ),
    "replay": Command(
        "train.commands.options:ReplayOptions",
        "train.commands.replay:run",
        "do a training step again whose loss was not finite, and say where that began",
    ),
    "eval": Command(
        "train.commands.options:EvalOptions", "train.commands.evaluate:run", "COCO metrics of a checkpoint"
    ),
    "predict": Command(
        "train.commands.options:PredictOptions",
        "train.commands.predict:run",
        "detect objects in images, videos and webcams: pictures with boxes, and files of results",
    ),
    "explain": Command(
        "explain.options:ExplainOptions",
        "explain.explain:run",
        "what a detector attended to in an image: points, maps, heads off, a page",
    ),
    "explain-eval": Command(
        "explain.options:ExplainEvalOptions",
        "explain.commands:explain_eval",
        "judge heat maps of detections: do they beat maps that explain nothing?",
    ),
    "explore": Command(
        "explain.options:ExploreOptions",
        "explain.commands:explore",
        "look at uploaded images in the browser, and switch heads off; on this machine",
    ),
    "plot": Command(
        "train.commands.options:PlotOptions",
        "train.commands.plot:run",
        "draw the curves of training runs side by side, and print what came of them",
    ),
    "serve": Command(
        "train.serving.options:ServeOptions",
        "train.serving.command:run",
        "serve a detector over HTTP: POST an image, read what is found in it",
    ),
    "convert": Command(
        "models.options:ConvertOptions",
        "models.weights.convert:run",
        "convert weights: official, Hugging Face's, our own, a run's checkpoint",
    ),
    "export": Command(
        "models.options:ExportOptions",
        "models.export.command:run",
        "write a detector as a torch.export program or in ONNX, and check its numbers",
    ),
    "data show": Command(
        "train.commands.options:ShowOptions",
        "train.commands.show:run",
        "draw images of a data set as training sees them; classes and sizes in numbers",
    ),
    "data check": Command(
        "train.data.preparation.options:CheckOptions",
        "train.commands.check_data:run",
        "list what looks like a mistake in a data set: boxes, labels, images, the split",
    ),
    "data convert": Command(
        "train.data.preparation.options:ConvertDataOptions",
        "train.commands.convert_data:run",
        "write a data set anew in the format of COCO, YOLO or Pascal VOC",
    ),
    "data synth": Command(
        "train.data.synthetic.options:SynthOptions", "train.commands.synth:run", "make a synthetic COCO-format data set"
    ),
    "bench": Command(
        "bench.options:OperatorsOptions",
        "bench.operator.operators:run",
        "time the operator's backends and other implementations, after checking them",
    ),
    **{
        f"bench {name}": Command(f"bench.options:{name.title().replace('-', '')}Options", f"bench.{run}", summary)
        for name, (run, summary) in _BENCH.items()
    },
    "ablate": Command(
        "explain.options:AblateOptions",
        "explain.commands:ablate",
        "switch attention heads off, and measure what that does over a data set",
    ),
    "table": Command(
        "bench.options:TableOptions",
        "bench.models.commands:table",
        "the detectors' published size, FLOPs and speed, and ours beside them",
    ),
    "demo": Command(
        "train.commands.options:DemoOptions",
        "train.commands.demo:run",
        "make data, train a small detector, evaluate it and draw what it finds",
    ),
    "version": Command("cli:VersionOptions", "cli:print_version", "print the version"),
}

# what a user can get wrong, told in one sentence; anything else is a defect of ours and keeps its traceback
USER_ERRORS = (ValueError, TypeError, OSError, NotImplementedError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class VersionOptions:
    """Print the version of this package."""


def print_version(options: VersionOptions) -> int:
    """``msdeform version``."""
    print(__version__)
    return 0


GROUPS = {
    "start": ("demo", "data show", "data check", "data convert", "data synth"),
    "detectors": ("train", "eval", "predict", "serve", "plot", "replay", "convert", "export"),
    "explanations": ("explain", "explore", "ablate", "explain-eval"),
    "the operator": ("info", "verify", "verify --compiled"),
    "measurements": ("table", *(name for name in COMMANDS if name.split()[0] == "bench")),
    "": ("version",),
}


def help_text(names: Collection[str] = tuple(COMMANDS)) -> str:
    """What ``msdeform --help`` prints: every command in a line each, or some, by what they are for."""
    width = max(map(len, names))
    lines: list[str] = []
    for title, group in GROUPS.items():
        shown = [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in group if name in names]
        lines += [*([f"{title}:"] if title else []), *shown, ""] if shown else []
    return "\n".join(
        [
            "usage: msdeform COMMAND [OPTIONS]",
            "",
            "Multi-scale deformable attention on interchangeable backends, and the detectors built on it.",
            "",
            *lines,
            "msdeform COMMAND --help lists the options of a command.",
        ]
    )


def _usage_error(sentence: str) -> int:
    print(f"msdeform: {sentence}", file=sys.stderr)
    return 2


def _find_command(words: list[str]) -> tuple[str, list[str]] | None:
    """The command that ``words`` starts with, and the words left for it."""
    for length in (2, 1):  # the longest name first
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    return None


def _unknown_command(words: list[str]) -> str:
    typed = words[0]
    group = [name for name in COMMANDS if name.startswith(f"{typed} ")]
    if group:  # `msdeform data`, or `msdeform data syth`
        after = f"got '{' '.join(words[:2])}'" if len(words) > 1 else "got nothing after it"
        return f"'{typed}' is followed by {either([name.split()[1] for name in group])}; {after}"
    return suggest(f"unknown command '{typed}'", typed, COMMANDS, "msdeform --help lists the commands", most=3)


def _explain(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return (
            f"this command needs the package {error.name}, which is not installed; "
            "pip install 'msdeform[train]' brings all that training and drawing need"
        )
    if isinstance(error, OSError) and error.strerror is not None:  # the system's: "[Errno 28] No space ..."
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror[:1].lower()}{error.strerror[1:]}"
    if isinstance(error, MemoryError):
        return f"there is not enough memory for this{f': {error}' if str(error) else ''}"
    return str(error) or type(error).__name__


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    Args:
        argv: the words after ``msdeform``; those of this process when None.
    """
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():
            raise
        # `msdeform train --help | head -1`: nobody reads any more, and nobody is told so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _unread() -> bool:
    """Has the reader of this process's output gone away?"""
    try:
        waiting = select.poll()
        waiting.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError):  # no poll on this system, or no file behind the output
        return False
    return any(event & select.POLLERR for _, event in waiting.poll(0))


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """While the block runs, SIGTERM ends it as an exception does, so that files are finished or removed."""
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if words[0] == "--version":
        return print_version(VersionOptions())
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if {"-h", "--help"} & {*words[1:2]} and words[0] not in COMMANDS and group:  # `msdeform data --help`
        print(help_text(group))
        return 0
    found = _find_command(words)
    if found is None:
        return _usage_error(_unknown_command(words))
    name, rest = found
    if rest and not rest[0].startswith("-") and any(other.startswith(f"{name} ") for other in COMMANDS):
        return _usage_error(_unknown_command([name, rest[0]]))  # `msdeform bench comapre`
    # read by OpenMP when torch is loaded: a thread that waits its turn by spinning takes the core from the one it
    # waits for; a small model on two cores, one of them busy, trained eight times slower (0.9 against 7.4 images/s)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command, program = COMMANDS[name], f"msdeform {name}"
    try:
        options = command.read(rest, program)
        with _ended_by_sigterm():
            return command.load()(options)
    except KeyboardInterrupt:
        print(f"{program}: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (*USER_ERRORS, ImportError) as error:
        # a sentence about an optional package carries no name; an import that Python itself refuses does
        absent = error.name if isinstance(error, ImportError) else None
        ours = absent is not None and (absent.startswith("msdeform") or not isinstance(error, ModuleNotFoundError))
        if ours or os.environ.get("MSDEFORM_DEBUG") == "1":
            raise
        sentence = printable(named(_explain(error), command.known_options()))
        print(f"{program}: {sentence}", file=sys.stderr)
        return 1

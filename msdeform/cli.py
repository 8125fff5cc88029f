"""The ``msdeform`` command: one word for each thing it does, each in a module that is imported only when called.

A command is a function ``main(argv: list[str] | None) -> int`` that returns its exit status. Exit status 2 means the
command line was wrong, 1 that something it named was wrong (told in one sentence; set ``MSDEFORM_DEBUG=1`` for the
traceback), 130 that Ctrl-C stopped it.
"""

import difflib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from . import __version__


@dataclass(frozen=True)
class Command:
    """One command: the module and function that do it, and the line ``msdeform --help`` prints."""

    module: str
    summary: str
    function: str = "main"

    def load(self) -> Callable[[list[str] | None], int]:
        return getattr(import_module(f"{__package__}.{self.module}"), self.function)


COMMANDS = {
    "info": Command("kernels.info", "show each backend of the operator: does it run here, and why not"),
    "verify": Command("kernels.verify", "check every backend that runs here against the others, gradients included"),
    "verify --compiled": Command("bench.ptx.verify", "check the kernels as compiled for a GPU, executed on this CPU"),
    "train": Command("train.loop", "train a detector on a COCO-format data set"),
    "replay": Command("train.replay", "do a training step again whose loss was not finite, and say where that began"),
    "eval": Command("train.evaluate", "COCO metrics of a checkpoint"),
    "predict": Command("train.predict", "detect objects in images: pictures with boxes, and COCO-results JSON"),
    "explain": Command("explain.command", "what a detector attended to in an image: points, maps, heads off, a page"),
    "explain-eval": Command("explain.judge", "judge heat maps of detections: do they beat maps that explain nothing?"),
    "explore": Command(
        "explain.explore", "look at uploaded images in the browser, and switch heads off; on this machine"
    ),
    "plot": Command("train.plot", "draw the curves of training runs side by side, and print what came of them"),
    "convert": Command("models.conversion", "convert weights: official, Hugging Face's, our own, a run's checkpoint"),
    "export": Command("models.export", "write a detector as a torch.export program or in ONNX, and check its numbers"),
    "data show": Command("train.show", "draw images of a data set as training sees them; classes and sizes in numbers"),
    "data synth": Command("train.synth", "make a synthetic COCO-format data set"),
    "bench": Command("bench.operators", "time the operator's backends and their peers, after checking them"),
    "bench compare": Command("bench.compare", "what became slower between two commits, machines or backends"),
    "bench dispatch": Command("bench.dispatch", "time what a call costs the host, in stages; no GPU needed"),
    "bench explain": Command("bench.explain", "time relevance beside the model's own passes, and the memory it adds"),
    "bench instructions": Command("bench.instructions", "count what the compiled kernels execute, on a CPU"),
    "bench model": Command("bench.model", "predict what bounds each kernel on an H200 from its counts"),
    "bench render": Command("bench.render", "draw the documentation's tables and plots anew from the recorded rows"),
    "bench roofline": Command("bench.roofline", "draw recorded speeds under what the device could do"),
    "bench seeds": Command("bench.seeds", "train on every backend with several seeds: do their APs agree?"),
    "bench training": Command("bench.training", "time the loading of images, and the stages of a training step"),
    "ablate": Command("explain.ablate", "switch attention heads off, and measure what that does over a data set"),
    "table": Command("bench.table", "the detectors' published size, FLOPs and speed, and ours beside them"),
    "demo": Command("train.demo", "make data, train a small detector, evaluate it and draw what it finds"),
    "version": Command("cli", "print the version", "print_version"),
}

# what a user can get wrong, told in one sentence; anything else is a defect of ours and keeps its traceback
USER_ERRORS = (ValueError, TypeError, OSError, NotImplementedError, RuntimeError)


def print_version(argv: list[str] | None = None) -> int:
    """``msdeform version``."""
    if argv and argv[0] not in ("-h", "--help"):
        return _usage_error(f"version: takes no arguments, got {' '.join(argv)}")
    print(__version__)
    return 0


def help_text() -> str:
    """What ``msdeform --help`` prints: every command in a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: msdeform COMMAND [OPTIONS]",
            "",
            "Multi-scale deformable attention on interchangeable backends, and the detectors built on it.",
            "",
            *lines,
            "",
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
        return f"'{typed}' is followed by {' or '.join(name.split()[1] for name in group)}; {after}"
    first = difflib.get_close_matches(typed, COMMANDS, n=3, cutoff=0.6)
    near = first or difflib.get_close_matches(typed, [name.split()[-1] for name in COMMANDS], n=3, cutoff=0.6)
    near = [next(name for name in COMMANDS if word in (name, name.split()[-1])) for word in near]
    advice = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "msdeform --help lists the commands"
    return f"unknown command '{typed}'; {advice}"


def _explain(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return (
            f"this command needs the package {error.name}, which is not installed; "
            "pip install 'msdeform[train]' brings all that training and drawing need"
        )
    return str(error) or type(error).__name__


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    Args:
        argv: the words after ``msdeform``; those of this process when None.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if words[0] == "--version":
        return print_version()
    found = _find_command(words)
    if found is None:
        return _usage_error(_unknown_command(words))
    name, rest = found
    if rest and not rest[0].startswith("-") and any(other.startswith(f"{name} ") for other in COMMANDS):
        return _usage_error(_unknown_command([name, rest[0]]))  # `msdeform bench comapre`
    # read by OpenMP when torch is loaded: a thread that waits its turn by spinning takes the core from the one it
    # waits for; a small model on two cores, one of them busy, trained eight times slower (0.9 against 7.4 images/s)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return COMMANDS[name].load()(rest)
    except KeyboardInterrupt:
        print(f"msdeform {name}: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except (*USER_ERRORS, ModuleNotFoundError) as error:
        ours = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("msdeform")
        if ours or os.environ.get("MSDEFORM_DEBUG") == "1":
            raise
        print(f"msdeform {name}: {_explain(error)}", file=sys.stderr)
        return 1

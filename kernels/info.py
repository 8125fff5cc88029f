"""``msdeform info``: every backend, whether it runs here, why not, and what ``auto`` would take."""

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from . import registry
from .arguments import Parser
from .contract import Inputs
from .triton.interpreter import interpreting
from .verify import DTYPES


def describe(inputs: Inputs) -> str:
    """The report as text."""
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for package in ("torch", "triton", "cuda-core"):
        lines.append(f"{package} {_version(package)}")
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        lines.append(f"device {torch.cuda.get_device_name()}, compute capability {capability[0]}.{capability[1]}")
    else:
        lines.append(f"device: no CUDA device (PyTorch built for CUDA {torch.version.cuda or 'none'})")
    if interpreting():
        lines.append("TRITON_INTERPRET is set: Triton kernels run in Triton's interpreter")
    lines.append("")
    for verdict in registry.report(inputs):
        lines.append(f"{verdict.name:<10} {'runs' if verdict.reason is None else 'does not run'}: {verdict.summary}")
        if verdict.reason is not None:
            lines.append(f"{'':<10} because {verdict.reason}")
        elif verdict.auto_reason is not None:
            lines.append(f"{'':<10} not chosen by auto: {verdict.auto_reason}")
    lines.append("")
    setting = registry.current_setting()
    if setting != registry.AUTO:
        lines.append(f"{registry.VARIABLE} asks for {setting!r}")
    lines.append(f"auto takes {registry.resolve(inputs, registry.AUTO)!r} for {inputs.describe()}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = Parser(
        prog="msdeform info",
        description="Show each backend of the operator: does it run here, why not, and which one auto would take for "
        "a call (the published encoder's unless told otherwise).",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of value (default: float32)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name in ("B", "Q", "S", "H", "D", "L", "P"):
        parser.add_argument(f"--{name}", type=int, metavar="N")
    options = parser.parse_args(argv)
    dims = {name: getattr(options, name) for name in ("B", "Q", "S", "H", "D", "L", "P")}
    given = {name: size for name, size in dims.items() if size is not None}
    print(describe(registry.example_inputs(options.device, DTYPES[options.dtype], **given)))
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())

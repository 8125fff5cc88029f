"""``msdeform info``: every backend, whether it runs here, why not, and what ``auto`` would take."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from ...common.device import choose_device
from .. import registry
from ..contract import Inputs
from ..triton.interpreter import interpreting
from .options import InfoOptions


def describe(inputs: Inputs) -> str:
    """The report as text."""
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for package in ("torch", "llvmlite", "triton", "cuda-core"):
        lines.append(f"{package} {_version(package)}")
    lines.append(_processor())
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


def info(options: InfoOptions) -> int:
    """``msdeform info``."""
    device = choose_device(options.device)
    print(describe(registry.example_inputs(device, getattr(torch, options.dtype), **options.sizes)))
    return 0


def _processor() -> str:
    """What the backend ``cpu`` has to work with."""
    threads = f"threads {torch.get_num_threads()}, by torch.set_num_threads"
    if registry.unavailable("cpu") is not None:  # it is LLVM that knows the processor
        return f"processor: {threads}"
    from llvmlite.binding import get_host_cpu_name

    from ..cpu.emit import vector_bytes

    return f"processor: {get_host_cpu_name()}, vectors of {8 * vector_bytes()} bits; {threads}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

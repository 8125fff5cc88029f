"""What the registry knows of the CPU backend; importing it costs no llvmlite."""

import re
from collections.abc import Mapping

from ..backend import Backend, Functions, import_failure, too_wide
from ..contract import Inputs

OLDEST = (0, 46)  # of llvmlite; pyproject.toml asks for the same
_GAIN = "CPU tensors then run on kernels compiled for this processor, many times faster than `reference`"


def unavailable() -> str | None:
    try:
        import llvmlite
        import llvmlite.binding as llvm

        processor = _unfit(llvm.get_process_triple(), llvm.get_host_cpu_features())  # the first calls load LLVM
    except Exception as error:  # a broken installation raises whatever it likes
        missing = isinstance(error, ModuleNotFoundError) and error.name == "llvmlite"
        remedy = "pip install 'msdeform[cpu]'" if missing else "pip install --force-reinstall llvmlite"
        return f"{import_failure('llvmlite', 'llvmlite', error)} ({remedy}; {_GAIN})"
    return _too_old(llvmlite.__version__) or processor


def _too_old(version: str) -> str | None:
    """Why a version of llvmlite does not do, or None where it does; what no number begins is taken as new enough."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) >= OLDEST:
        return None
    oldest = ".".join(map(str, OLDEST))
    return f"llvmlite: expected version {oldest} or newer, got {version} (pip install 'llvmlite>={oldest}'; {_GAIN})"


def _unfit(triple: str, features: Mapping[str, bool]) -> str | None:
    """Why a processor does not do, from LLVM's name of the platform, such as x86_64-unknown-linux-gnu."""
    architecture = triple.split("-", 1)[0]
    if architecture not in ("x86_64", "aarch64", "arm64"):
        return f"expected an x86-64 or a 64-bit Arm processor, got {architecture}"
    if architecture == "x86_64" and not features.get("f16c"):
        return "the processor has no F16C instructions, which x86 processors have had since 2013"
    return None


def refuses(inputs: Inputs) -> str | None:
    if inputs.device_type != "cpu":
        return f"the tensors are on {inputs.device_type}, not on the CPU"
    if inputs.S >= 2**31:
        return f"the levels have S={inputs.S} pixels together, and the most is {2**31 - 1}"
    return too_wide(inputs)


def load() -> Functions:
    from ..autograd import Operator
    from .launch import prepare_backward, prepare_forward

    return Functions(*(Operator("cpu", fused, prepare_forward, prepare_backward, ("CPU",)) for fused in (False, True)))


BACKEND = Backend("cpu", 10, "compiled for this processor by LLVM, forward and backward", unavailable, refuses, load)

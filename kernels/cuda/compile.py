"""From CUDA C++ to a kernel that can be launched: NVRTC through cuda.core, and a cache of what it made.

NVRTC and the CUDA headers arrive with PyTorch's own dependencies, so nothing is built at installation and nothing
depends on PyTorch's version. Compilation needs no GPU. A cubin takes about half a second, and is kept in
``$MSDEFORM_CACHE``, or ``$XDG_CACHE_HOME/msdeform``, or ``~/.cache/msdeform``.

Importing this module costs neither torch nor cuda.core.
"""

import hashlib
import importlib.util
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...common.files import atomic_file

if TYPE_CHECKING:
    import torch

SOURCE = Path(__file__).with_name("msda.cu")
FORWARD, BACKWARD = "msda_forward", "msda_backward"

_OLDEST = (0, 5)  # cuda.core; before, what is used here stood in cuda.core.experimental
_C_TYPES = {"float64": "double", "float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}
_log = logging.getLogger("msdeform")
_broken: dict[str, str] = {}  # why cuda.core failed to import, once it has
_loaded: dict[tuple[int, "Dtypes"], "Kernels"] = {}


class Dtypes(NamedTuple):
    """The dtypes that one compilation is made for, by their torch names (``float32``)."""

    value: str
    locations: str
    weights: str

    @property
    def accumulate(self) -> str:
        return "float64" if "float64" in self else "float32"

    @classmethod
    def of(cls, value: "torch.Tensor", locations: "torch.Tensor", weights: "torch.Tensor") -> "Dtypes":
        return cls(*(str(tensor.dtype).removeprefix("torch.") for tensor in (value, locations, weights)))


class Kernels(NamedTuple):
    """What cuda.core launches."""

    forward: Any
    backward: Any


def unavailable() -> str | None:
    """Why the CUDA backend cannot run on this machine, in one sentence, or None if it can."""
    import torch

    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device was found"
    return _compiler_unavailable()


def _compiler_unavailable() -> str | None:
    """Why nothing can be compiled here; a device is another matter."""
    if "cuda.core" in _broken:
        return _broken["cuda.core"]
    try:
        installed = importlib.util.find_spec("cuda.core") is not None
    except ModuleNotFoundError:  # not even the parent package
        installed = False
    if not installed:
        return "cuda.core is not installed (pip install 'cuda-core[cu13]')"
    try:
        import cuda.core
        import cuda.pathfinder
    except Exception as error:
        _broken["cuda.core"] = f"cuda.core is installed but fails to import: {type(error).__name__}: {error}"
        _log.warning("the cuda backend is off: %s", _broken["cuda.core"])
        return _broken["cuda.core"]
    return _too_old(str(getattr(cuda.core, "__version__", "0")))


def _too_old(version: str) -> str | None:
    """Why a version of cuda.core does not do, or None where it does; what no number begins is taken as new enough."""
    numbers = re.match(r"(\d+)(?:\.(\d+))?", version)
    if numbers is None or tuple(int(number or 0) for number in numbers.groups()) >= _OLDEST:
        return None
    oldest = ".".join(map(str, _OLDEST))
    return f"cuda.core: expected version {oldest} or newer, got {version} (pip install --upgrade 'cuda-core[cu13]')"


def kernels(device: int, dtypes: Dtypes) -> Kernels:
    """The two kernels for a CUDA device and a combination of dtypes, loaded once per process."""
    key = (device, dtypes)
    if key not in _loaded:
        import torch
        from cuda.core import ObjectCode

        major, minor = torch.cuda.get_device_capability(device)
        code = ObjectCode.from_cubin(cubin(f"sm_{major}{minor}", dtypes))
        _loaded[key] = Kernels(code.get_kernel(FORWARD), code.get_kernel(BACKWARD))
    return _loaded[key]


def cubin(arch: str, dtypes: Dtypes) -> bytes:
    """Machine code for an architecture such as ``sm_90``, from the cache or from NVRTC; needs no GPU.

    Raises:
        RuntimeError: cuda.core or the CUDA headers are missing, or NVRTC refuses the architecture; its log is in the
            message.
    """
    reason = _compiler_unavailable()
    if reason is not None:
        raise RuntimeError(f"cuda backend: cannot compile for {arch}: {reason}")
    options = _options(arch, dtypes)
    path = _cache_path(arch, dtypes, options)
    code = _read(path)
    if code is None:
        code = _compile(arch, options)
        _write(path, code)
    return code


def cache_dir() -> Path:
    """Where cubins are kept."""
    if override := os.environ.get("MSDEFORM_CACHE"):
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "msdeform"


def _options(arch: str, dtypes: Dtypes) -> dict[str, Any]:
    """Keyword arguments of cuda.core's ProgramOptions, the place of the headers aside."""
    macros = {
        "VALUE_T": dtypes.value,
        "LOCATION_T": dtypes.locations,
        "WEIGHT_T": dtypes.weights,
        "ACCUMULATE_T": dtypes.accumulate,
    }
    return {
        "arch": arch,
        "std": "c++17",
        "define_macro": [(macro, _C_TYPES[dtype]) for macro, dtype in macros.items()],
    }


def _compile(arch: str, options: dict[str, Any]) -> bytes:
    from cuda.core import Program, ProgramOptions
    from cuda.pathfinder import find_nvidia_header_directory

    headers = find_nvidia_header_directory("cudart")
    if headers is None:
        raise RuntimeError(
            f"cuda backend: cannot compile for {arch}: the CUDA headers (cuda_fp16.h) were not found; they come with "
            "pip install nvidia-cuda-runtime"
        )
    try:
        program = Program(SOURCE.read_text(), "c++", ProgramOptions(include_path=[headers], **options))
        return bytes(program.compile("cubin").code)
    except Exception as error:  # the classes differ between releases of cuda.core; the log is in the message
        log = str(error).rstrip("\0\n")
        raise RuntimeError(f"cuda backend: NVRTC failed for {arch}: {log}") from error


def _cache_path(arch: str, dtypes: Dtypes, options: dict[str, Any]) -> Path:
    """The file of one compilation: its name changes with all that could change its content."""
    import cuda.core
    from cuda.bindings import nvrtc

    status, *version = nvrtc.nvrtcVersion()
    identity = repr((SOURCE.read_text(), options, cuda.core.__version__, int(status), version))
    key = hashlib.sha256(identity.encode()).hexdigest()[:24]
    return cache_dir() / "cuda" / f"msda-{arch}-{'-'.join(dtypes)}-{key}.cubin"


def _read(path: Path) -> bytes | None:
    """A cached cubin, or None where there is none or it is not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    """Keep a cubin behind its SHA-256. Another process sees the whole file or none; a cache that cannot be written
    costs the next process a compilation, and no more."""
    try:
        with atomic_file(path) as file:
            file.write(hashlib.sha256(code).digest() + code)
    except OSError as error:
        _log.warning("the cuda backend cannot keep its compiled kernels in %s: %s", path.parent, error)

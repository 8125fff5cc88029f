"""From CUDA C++ to a kernel that can be launched: NVRTC through cuda.core, and a cache of what it made.

NVRTC and the CUDA headers arrive with PyTorch's own dependencies, so nothing is built at installation and nothing
depends on PyTorch's version. Compilation needs no GPU. A cubin takes half a second to two, and is kept in
``$MSDEFORM_CACHE``, or ``$XDG_CACHE_HOME/msdeform``, or ``~/.cache/msdeform``. A kept one is loaded only where no other
account could have written it, and its checksum, over its name too, is right; otherwise it is compiled again.

Importing this module costs neither torch nor cuda.core.
"""

import hashlib
import importlib.util
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...common.trusted import read_trusted, write_trusted

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "msda.cu"
_SHARED_SOURCE = FOLDER / "common.cuh"
FORWARD, BACKWARD = "msda_forward", "msda_backward"

_OLDEST = (0, 5)  # cuda.core; before, what is used here stood in cuda.core.experimental
C_TYPES = {"float64": "double", "float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}
_log = logging.getLogger("msdeform")
_broken: dict[str, str] = {}  # why cuda.core failed to import, once it has
_told: set[str] = set()  # warnings, each once
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
    """Machine code of the two kernels of ``msda.cu``, as of :func:`machine_code`."""
    return machine_code(arch, SOURCE, macros_of(dtypes), "-".join(dtypes))


def machine_code(arch: str, source: Path, macros: Mapping[str, Any], label: str) -> bytes:
    """Machine code for an architecture such as ``sm_90``, from the cache or from NVRTC; needs no GPU.

    Args:
        arch: the architecture.
        source: a file of CUDA C++ in this folder.
        macros: what it is compiled for.
        label: that a kept file is known by.

    Raises:
        RuntimeError: cuda.core or the CUDA headers are missing, or NVRTC refuses the architecture; its log is in the
            message.
    """
    reason = _compiler_unavailable()
    if reason is not None:
        raise RuntimeError(f"cuda backend: cannot compile for {arch}: {reason}")
    options = options_of(arch, macros)
    path = _cache_path(f"{source.stem}-{arch}-{label}", source, options)
    code = _read(path)
    if code is None:
        code = _compile(arch, source, options)
        _write(path, code)
    return code


def cache_dir() -> Path | None:
    """Where cubins are kept; None where no folder is named and this account has none."""
    if override := os.environ.get("MSDEFORM_CACHE"):
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # its specification has relative ones ignored
        return Path(base) / "msdeform"
    home = os.path.expanduser("~")
    return Path(home) / ".cache" / "msdeform" if os.path.isabs(home) else None


def macros_of(dtypes: Dtypes) -> dict[str, str]:
    """What ``msda.cu`` is compiled for."""
    names = {"VALUE_T": dtypes.value, "LOCATION_T": dtypes.locations, "WEIGHT_T": dtypes.weights}
    return {macro: C_TYPES[dtype] for macro, dtype in (names | {"ACCUMULATE_T": dtypes.accumulate}).items()}


def options_of(arch: str, macros: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of cuda.core's ProgramOptions, the places of headers aside."""
    return {"arch": arch, "std": "c++17", "define_macro": [(name, str(value)) for name, value in macros.items()]}


def _compile(arch: str, source: Path, options: dict[str, Any]) -> bytes:
    from cuda.core import Program, ProgramOptions
    from cuda.pathfinder import find_nvidia_header_directory

    headers = find_nvidia_header_directory("cudart")
    if headers is None:
        raise RuntimeError(
            f"cuda backend: cannot compile for {arch}: the CUDA headers (cuda_fp16.h) were not found; they come with "
            "pip install nvidia-cuda-runtime"
        )
    try:
        places = [headers, str(FOLDER)]
        program = Program(source.read_text(), "c++", ProgramOptions(include_path=places, **options))
        return bytes(program.compile("cubin").code)
    except Exception as error:  # the classes differ between releases of cuda.core; the log is in the message
        log = str(error).rstrip("\0\n")
        raise RuntimeError(f"cuda backend: NVRTC failed for {arch}: {log}") from error


def _cache_path(label: str, source: Path, options: dict[str, Any]) -> Path | None:
    """The file of one compilation: its name changes with all that could change its content."""
    folder = cache_dir()
    if folder is None:
        return None
    import cuda.core
    from cuda.bindings import nvrtc

    status, *version = nvrtc.nvrtcVersion()
    texts = [file.read_text() for file in (source, _SHARED_SOURCE)]
    identity = repr((*texts, options, cuda.core.__version__, int(status), version))
    key = hashlib.sha256(identity.encode()).hexdigest()[:24]
    return folder / "cuda" / f"{label}-{key}.cubin"


def _digest(path: Path, code: bytes) -> bytes:
    """SHA-256 of a cubin and of its file's name: a file that was renamed is not what it is called."""
    return hashlib.sha256(path.name.encode() + b"\0" + code).digest()


def _read(path: Path | None) -> bytes | None:
    """A cached cubin, or None where there is none, it is not what was written, or another account could have."""
    if path is None:
        return None
    try:
        content = read_trusted(path)
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if _digest(path, code) == digest else None


def _write(path: Path | None, code: bytes) -> None:
    """Keep a cubin behind its digest. Another process sees the whole file or none; a cache that cannot be written
    costs the next process a compilation, and no more."""
    if path is None:
        _warn("the cuda backend keeps no compiled kernels: this account has no home folder; MSDEFORM_CACHE names one")
        return
    try:
        write_trusted(path, _digest(path, code) + code)
    except OSError as error:
        _warn(f"the cuda backend cannot keep its compiled kernels in {path.parent}: {error}")


def _warn(sentence: str) -> None:
    if sentence not in _told:
        _told.add(sentence)
        _log.warning("%s", sentence)

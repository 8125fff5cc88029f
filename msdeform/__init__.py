"""MSDeform: multi-scale deformable attention on interchangeable backends, and the detectors built on it.

In a checkout the code lives in top-level folders (``kernels/``, ``models/``, ``train/``, ...) whose bare names
would collide with other packages; this bridge makes them importable as ``msdeform.kernels`` and so on. A wheel
maps the same names at build time (``pyproject.toml``), and the bridge then adds nothing.

Public names resolve lazily: ``import msdeform`` costs neither torch nor Triton.
"""

from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

__version__ = "1.0.0"

_root = _Path(__file__).resolve().parent.parent
if (_root / "kernels" / "api.py").is_file():
    __path__.append(str(_root))  # a checkout: msdeform.kernels is the folder kernels/

if _TYPE_CHECKING:
    from .integrations.accelerate import accelerate
    from .kernels.api import fused_ms_deform_attn, ms_deform_attn
    from .kernels.registry import load_operators, use_backend
    from .models.attention import MSDeformAttn
    from .models.catalog import list_models
    from .models.zoo import create_criterion, create_model, from_pretrained, load_model
    from .train.api import Run, finetune
    from .train.monitor.callbacks import Callback

_public = {
    "Callback": "train.monitor.callbacks",
    "MSDeformAttn": "models.attention",
    "Run": "train.api",
    "accelerate": "integrations.accelerate",
    "create_criterion": "models.zoo",
    "create_model": "models.zoo",
    "finetune": "train.api",
    "from_pretrained": "models.zoo",
    "fused_ms_deform_attn": "kernels.api",
    "list_models": "models.catalog",
    "load_model": "models.zoo",
    "load_operators": "kernels.registry",
    "ms_deform_attn": "kernels.api",
    "use_backend": "kernels.registry",
}

__all__ = [
    "Callback",
    "MSDeformAttn",
    "Run",
    "accelerate",
    "create_criterion",
    "create_model",
    "finetune",
    "from_pretrained",
    "fused_ms_deform_attn",
    "list_models",
    "load_model",
    "load_operators",
    "ms_deform_attn",
    "use_backend",
]


def __getattr__(name: str) -> _Any:
    if name not in _public:
        raise AttributeError(f"module 'msdeform' has no attribute {name!r}; it offers {', '.join(sorted(_public))}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_public[name]}"), name)
    globals()[name] = value  # the next access is a plain attribute
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_public])

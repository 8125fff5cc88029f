"""The suites of tests that other projects have of this operator, and how ours gets into the place of theirs."""

import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import ModuleType

import torch

from msdeform import ms_deform_attn
from msdeform.integrations import detrex, mmcv
from msdeform.integrations.accelerate import accelerate, restore
from msdeform.integrations.extension import DETREX, MMCV, OFFICIAL, install_extension
from msdeform.integrations.forms import OurOperator
from msdeform.integrations.fused import FusedForward
from msdeform.integrations.places import find_places

Edit = tuple[str, str]
"""a regular expression, and what stands in place of each match"""

reached: Counter[str] = Counter()
"""How often the models of transformers called our operator."""

TO_CPU: tuple[Edit, ...] = (
    (r"\.cuda\(\)", ""),
    (r"(['\"])cuda(:0)?\1", "'cpu'"),
    (r"not IS_CUDA_AVAILABLE", "False"),
    (r"not torch\.cuda\.is_available\(\) or ", ""),
    (
        r"from torch\.cuda\.amp import autocast",
        "from functools import partial; autocast = partial(torch.autocast, 'cpu')",
    ),
)
"""What brings tests that ask for a GPU to a CPU."""


@dataclass(frozen=True)
class Suite:
    """Tests of another project, in a clone of it."""

    repository: str
    """OWNER/NAME, which is also where the clone lies in the folder of all clones"""
    tests: tuple[str, ...]
    """files in it"""
    ours: str
    """what of ours they test"""
    put: Callable[[Path], None]
    """makes it stand in the place of theirs; takes the clone"""
    paths: tuple[str, ...] = (".",)
    """folders in it from which the tests import"""
    run_by: str | None = None
    """a file of this folder that turns checks of theirs into tests"""
    in_place: bool = False
    """whether the tests import their neighbours, and so are run where they lie, unchanged"""
    full_jacobians: bool = True
    """whether gradients of more than 256 channels are checked in every direction; some take 18 GB for that"""


def edited(text: str) -> str:
    """A file of tests as it is run on this machine: as it is, where there is a GPU."""
    for pattern, replacement in () if torch.cuda.is_available() else TO_CPU:
        text = re.sub(pattern, replacement, text)
    return text


def _package(name: str, folder: Path) -> None:
    """A package without the code of its ``__init__``, which imports more than its tests need."""
    module = sys.modules[name] = ModuleType(name)
    module.__path__ = [str(folder)]


def _mmcv_extension(_: Path) -> None:
    install_extension(MMCV)


def _mmcv_module(_: Path) -> None:
    install_extension(MMCV)
    from mmcv.ops import multi_scale_deform_attn as theirs

    # their PyTorch function stays, as what ours is held against
    theirs.MultiScaleDeformableAttention = mmcv.MultiScaleDeformableAttention
    theirs.MultiScaleDeformableAttnFunction = mmcv.MultiScaleDeformableAttnFunction


def _detrex_extension(clone: Path) -> None:
    _package("detrex", clone / "detrex")
    _package("detrex.layers", clone / "detrex/layers")
    install_extension(DETREX)


def _detrex_module(clone: Path) -> None:
    _detrex_extension(clone)
    from detrex.layers import multi_scale_deform_attn as theirs

    theirs.MultiScaleDeformableAttnFunction = detrex.MultiScaleDeformableAttnFunction


def _official(_: Path) -> None:
    install_extension(OFFICIAL)


def _roulbac(_: Path) -> None:
    def multi_scale_deformable_attention(value, shapes, starts, locations, weights, *, fp32_grad_accum=None):  # type: ignore[no-untyped-def]
        return ms_deform_attn(value, shapes, locations, weights, level_start_index=starts)

    module = sys.modules["msda_triton"] = ModuleType("msda_triton")
    vars(module)["multi_scale_deformable_attention"] = multi_scale_deformable_attention


def _rziga(clone: Path) -> None:
    """Its functions of PyTorch stay; ours stands for its kernels.

    They have two modes that our operator has not, both changes of the coordinates: ``align_corners`` scales them, and
    ``border`` moves them to the centres of the outermost pixels.
    """
    _package("msda_triton", clone / "src/msda_triton")
    kernels = sys.modules["msda_triton.kernels"] = ModuleType("msda_triton.kernels")
    for name in ("fwd", "bwd"):
        setattr(kernels, f"triton_multi_scale_deformable_attention_{name}", None)
    theirs = importlib.import_module("msda_triton.frontend")

    def ours(img, img_shapes, points, weights, padding_mode, align_corners):  # type: ignore[no-untyped-def]
        size = img_shapes.flip(-1).to(points.dtype)[:, None]  # (L, 1, 2), width and height
        if align_corners:
            points = (points * (size - 1) + 0.5) / size
        if padding_mode == "border":
            points = torch.minimum(torch.maximum(points, 0.5 / size), 1 - 0.5 / size)
        return ms_deform_attn(img, img_shapes, points, weights).unflatten(-1, (img.shape[2], -1))

    theirs.triton_multiscale_deformable_attention = ours


def _transformers(_: Path) -> None:
    """Every model is accelerated at the end of its constructor, if it has the operator."""
    from transformers import PreTrainedModel

    post_init = PreTrainedModel.post_init

    @wraps(post_init)
    def accelerated(self):  # type: ignore[no-untyped-def]
        post_init(self)
        restore(self)  # of a model inside, which was finished before
        if find_places(self) and (report := accelerate(self)).left:
            raise AssertionError(str(report))

    PreTrainedModel.post_init = accelerated
    operator, fused = OurOperator.__call__, FusedForward.fused

    def counted_operator(self, *args):  # type: ignore[no-untyped-def]
        reached["operator"] += self.backend == "auto"  # the small examples run on the reference
        return operator(self, *args)

    def counted_fused(self, backend, *args, **kwargs):  # type: ignore[no-untyped-def]
        reached["fused"] += backend == "auto"
        return fused(self, backend, *args, **kwargs)

    OurOperator.__call__, FusedForward.fused = counted_operator, counted_fused  # type: ignore[method-assign]


_MMCV = ("open-mmlab/mmcv", ("tests/test_ops/test_ms_deformable_attn.py",))
_DETREX = ("IDEA-Research/detrex", ("tests/test_ms_deform_attn.py",))
_DETECTORS = ("deformable_detr", "rt_detr", "rt_detr_v2", "d_fine", "deimv2", "lw_detr", "rf_detr")
_DOCUMENTS = ("pp_doclayout_v2", "pp_doclayout_v3", "pp_doclayout_v4")
_WITH_TEXT = ("grounding_dino", "mm_grounding_dino", "omdet_turbo")
_MODELS = (*_DETECTORS, *_DOCUMENTS, *_WITH_TEXT, "mask2former", "oneformer")

SUITES: dict[str, Suite] = {
    "mmcv": Suite(*_MMCV, "the extension", _mmcv_extension),
    "mmcv-module": Suite(*_MMCV, "the module and the function", _mmcv_module),
    "detrex": Suite(*_DETREX, "the extension", _detrex_extension, full_jacobians=False),
    "detrex-function": Suite(*_DETREX, "the function", _detrex_module, full_jacobians=False),
    "official": Suite(
        "fundamentalvision/Deformable-DETR",
        ("models/ops/test.py",),
        "the extension",
        _official,
        ("models/ops",),
        "official_checks.py",
        full_jacobians=False,
    ),
    "roulbac": Suite("roulbac/msda-triton", ("tests/test_msda.py",), "the operator", _roulbac, ("tests",)),
    "rziga": Suite("rziga/msda-triton", ("tests/test_msda.py",), "the operator", _rziga),
    "transformers": Suite(
        "huggingface/transformers",
        tuple(f"tests/models/{name}/test_modeling_{name}.py" for name in _MODELS),
        "accelerate",
        _transformers,
        in_place=True,
    ),
}

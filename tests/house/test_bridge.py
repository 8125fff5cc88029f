"""`import msdeform` costs nothing, offers the public names, and hides nobody else's package."""

import subprocess
import sys
from pathlib import Path

import pytest

import msdeform
from tests.house.project import ROOT

TRAINING_ONLY = (
    "llvmlite", "torchvision", "PIL", "faster_coco_eval", "matplotlib", "pycocotools", "rich", "safetensors", "scipy",
    "tensorboard",
)  # fmt: skip


def python(code: str, cwd: Path = ROOT) -> str:
    answer = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_import_costs_neither_torch_nor_triton() -> None:
    heavy = "{'torch', 'triton', 'numpy', 'torchvision', 'cuda', 'llvmlite'} & set(sys.modules)"
    assert python(f"import sys, msdeform; dir(msdeform); print({heavy} or 'light')") == "light"


def test_registry_imports_no_backend() -> None:
    loaded = "{'triton', 'cuda.core', 'torchvision', 'llvmlite'} & set(sys.modules)"
    assert python(f"import torch, sys, msdeform.kernels.registry; print({loaded} or 'none')") == "none"


def test_public_names_resolve() -> None:
    for name in msdeform.__all__:
        assert callable(getattr(msdeform, name)), name
    assert set(msdeform.__all__) <= set(dir(msdeform))


def test_unknown_name_is_an_attribute_error_that_lists_the_known() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'ms_deform_atn'; it offers .*ms_deform_attn"):
        _ = msdeform.ms_deform_atn


def test_the_operator_runs_without_the_training_packages() -> None:
    code = f"""
import sys
for name in {TRAINING_ONLY!r}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
import torch, msdeform
module = msdeform.MSDeformAttn(32, n_levels=1, n_heads=2, n_points=2)
output = module(torch.rand(1, 3, 32), torch.rand(1, 3, 1, 2), torch.rand(1, 20, 32), ((4, 5),))
print(tuple(output.shape))
from msdeform.kernels.diagnostics import info
"""
    assert python(code) == "(1, 3, 32)"


@pytest.mark.parametrize("name", ["kernels", "models", "train", "bench", "triton", "cuda"])
def test_bare_names_find_the_real_package(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("WHOSE = 'theirs'\n")
    # the root comes first on the path, their package last: a folder without __init__.py must give way
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r}); sys.path = [p for p in sys.path if 'site-packages' not in p]"
    )
    assert python(f"{code}; import {name}; print({name}.WHOSE)") == "theirs"


def test_bare_triton_is_triton() -> None:
    pytest.importorskip("triton")
    assert "site-packages" in python("import triton; print(triton.__file__)")


@pytest.mark.parametrize("name", ["kernels", "models", "train", "bench"])
def test_no_code_of_ours_under_a_bare_name(name: str) -> None:
    found = python(f"import importlib.util as u; s = u.find_spec({name!r}); print(s.origin if s else None)")
    # an installed package of that name is somebody else's
    assert "site-packages" in found or not found.startswith(str(ROOT)), found

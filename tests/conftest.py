"""Which tests can run in this process: a GPU, Triton's interpreter and ahead-of-time compilation exclude each other.

Every skip gives its reason, so that a green run also says what it did not prove.
"""

import os
from pathlib import Path

import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


def why_no_gpu() -> str | None:
    """Why tests marked `gpu` cannot run here, or None where they can."""
    if INTERPRETING:
        return "needs the device; this process runs Triton's interpreter (TRITON_INTERPRET=1)"
    import torch

    if torch.version.cuda is None:
        return f"needs a CUDA device; torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return "needs a CUDA device; torch finds none on this machine"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {
        "gpu": why_no_gpu() if any(item.get_closest_marker("gpu") for item in items) else None,
        "interpreter": None if INTERPRETING else "needs TRITON_INTERPRET=1, set before the process starts: `make test`",
        "compiled": "executes compiled code, which a process with TRITON_INTERPRET=1 cannot" if INTERPRETING else None,
        "aot": "compiles ahead of time, which a process with TRITON_INTERPRET=1 cannot" if INTERPRETING else None,
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """Real images; beside the checkout where they are to be had at all."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "coco-mini"
    if not folder.is_dir():
        pytest.skip("the COCO sample ../shared/data/coco-mini is not on this machine")
    return folder


@pytest.fixture(scope="session")
def bccd() -> Path:
    """Photographs of blood cells in Pascal VOC's format; beside the checkout where they are to be had at all."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "bccd"
    if not folder.is_dir():
        pytest.skip("the photographs ../shared/data/bccd are not on this machine")
    return folder

"""Our Triton kernels are compiled into the checked cache and loaded from there, and nothing else changes.

What the cache itself withstands is in tests/kernels/caches. Cannot share a process with Triton's interpreter.
"""

import logging
import os
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.compiled
pytest.importorskip("triton")

from triton import knobs  # noqa: E402
from triton.runtime.cache import FileCacheManager, get_cache_manager  # noqa: E402

from msdeform.bench.static.ptx.triton_driver import executing, idling  # noqa: E402
from msdeform.kernels.api import ms_deform_attn  # noqa: E402
from msdeform.kernels.backend import Call  # noqa: E402
from msdeform.kernels.triton import cache  # noqa: E402
from msdeform.kernels.triton.forward import forward_kernel  # noqa: E402
from msdeform.kernels.triton.launch import prepare_forward  # noqa: E402

LEVELS = (3, 4, 1, 2)
TENSORS = (torch.randn(1, 14, 2, 4), torch.rand(1, 5, 2, 2, 1, 2), torch.rand(1, 5, 2, 2, 1))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(cache, "_own", {})
    return tmp_path / "kernels"


def run() -> None:
    """A forward through our launcher, compiled or loaded anew, executed and held against the reference."""
    forward_kernel.device_caches.clear()  # what this process has in memory
    with executing() as device:
        output = prepare_forward(LEVELS, TENSORS)(LEVELS, TENSORS)
    assert len(device.launches) == 1
    levels = torch.tensor(LEVELS).view(-1, 2)
    torch.testing.assert_close(output, ms_deform_attn(TENSORS[0], levels, *TENSORS[1:], backend="reference"))


def test_a_damaged_kernel_is_compiled_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hits: list[bool] = []
    monkeypatch.setattr(knobs.compilation, "listener", lambda **told: hits.append(told["cache_hit"]))
    run()
    assert [path.name for path in folder.iterdir()] == ["msdeform"]
    run()
    assert hits == [False, True]
    (ptx,) = folder.rglob("*.ptx")
    code = ptx.read_text()
    assert "add.f32" in code or "fma.rn.f32" in code
    # code that runs, and adds nothing up
    planted = code.replace("fma.rn.f32", "mul.rn.f32 //")
    ptx.write_text(planted if planted != code else code.replace("add.f32", "sub.f32"))
    run()
    assert hits == [False, True, False]
    assert ptx.read_text() == code
    run()
    assert hits == [False, True, False, True]


def test_a_cache_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "kernels"))
    monkeypatch.setattr(cache, "_own", {})
    with caplog.at_level(logging.WARNING, logger="msdeform"):
        run()
        run()
    (record,) = caplog.records
    assert record.getMessage().startswith(f"compiled Triton kernels cannot be kept in {tmp_path / 'file'}")
    (own,) = cache._own.values()
    assert own.stat().st_mode & 0o777 == 0o700


def test_an_account_without_a_home_folder_leaves_nothing_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton makes a folder called ~ in the current one."""
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setattr(knobs.cache_knobs.__dict__["home_dir"], "default", "~/")
    monkeypatch.setattr(cache, "_own", {})
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING, logger="msdeform"), cache.checked_cache():
        get_cache_manager("00").put(b"code", "k.cubin")
    assert "this account has no home folder; TRITON_CACHE_DIR names another" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_others_keep_their_manager(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside our launches Triton is as it was; one that somebody chose is used for our kernels, too."""
    before = dict(os.environ)
    with cache.checked_cache():
        assert isinstance(get_cache_manager("00"), cache.CheckedCache)
        with cache.checked_cache():
            assert isinstance(get_cache_manager("00"), cache.CheckedCache)
        assert isinstance(get_cache_manager("00"), cache.CheckedCache)
    assert type(get_cache_manager("00")) is FileCacheManager
    assert dict(os.environ) == before
    monkeypatch.setenv("TRITON_CACHE_MANAGER", "triton.runtime.cache:FileCacheManager")
    with cache.checked_cache():
        assert type(get_cache_manager("00")) is FileCacheManager


def test_the_folder_of_kernels_holds_nothing_unchecked(folder: Path) -> None:
    """Every file has its checksum beside it."""
    forward_kernel.device_caches.clear()
    with idling():
        call = Call(TENSORS[0], None, *TENSORS[1:])
        prepare_forward(LEVELS, tuple(tensor for tensor in call if tensor is not None))(LEVELS, TENSORS)
    files = {path for path in folder.rglob("*") if path.is_file()}
    plain = {path for path in files if path.suffix != ".sha256"}
    assert len(plain) >= 7
    assert files == plain | {path.with_name(f"{path.name}.sha256") for path in plain}

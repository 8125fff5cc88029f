"""Files that a reader of weights must refuse: pickles that run code, archives and headers that lie. Payloads only make
an empty file, the marker, in the folder of the test."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Make = Callable[[Path, Path], Path]
"""(folder, marker) to the file."""


class Reduces:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


class SetsState:
    """An object whose state is set by code of its own."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["marker"]).touch()


def touch(marker: str) -> None:
    Path(marker).touch()


def _shell(marker: Path) -> bytes:
    return f"touch '{marker}'".encode().replace(b"'", b"\\'")


PICKLES: dict[str, Callable[[Path], bytes]] = {
    "reduce": lambda marker: b"cos\nsystem\n(S'" + _shell(marker) + b"'\ntR.",
    "inst": lambda marker: b"(S'" + _shell(marker) + b"'\nios\nsystem\n.",
    "obj": lambda marker: b"(cos\nsystem\nS'" + _shell(marker) + b"'\no.",
    "build": lambda marker: pickle.dumps(SetsState(str(marker)), 2),
    "stack-global": lambda marker: pickle.dumps(Reduces(touch, str(marker)), 4),
    "exec": lambda marker: pickle.dumps(Reduces(exec, f"open({str(marker)!r}, 'w')"), 2),
    # an allowed class, of which another attribute is asked
    "attribute": lambda marker: b"cbuiltins\ngetattr\n(cargparse\nNamespace\nS'__init__'\ntR.",
    # torch's own function that unpickles bytes
    "bytes": lambda marker: pickle.dumps(
        Reduces(torch.storage._load_from_bytes, saved(Reduces(touch, str(marker)))), 2
    ),
    "hub": lambda marker: pickle.dumps(Reduces(torch.hub._load_local, str(marker.parent), "entry"), 2),
    "in-a-dictionary": lambda marker: pickle.dumps({"model": {"a": Reduces(touch, str(marker))}}, 2),
    "in-a-namespace": lambda marker: pickle.dumps({"model": {}, "args": SetsState(str(marker))}, 2),
    "as-a-key": lambda marker: pickle.dumps({(1, Reduces(touch, str(marker))): 2}, 2),
}


def bare(folder: Path, content: bytes) -> Path:
    return _written(folder / "bare.pt", content)


def legacy(folder: Path, content: bytes) -> Path:
    """As torch.save wrote until version 1.6: a magic number, versions, the object, the keys of storages."""
    head = [pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return _written(folder / "legacy.pth", b"".join(head) + content + pickle.dumps([], 2))


def archive(folder: Path, content: bytes) -> Path:
    """As torch.save writes now."""
    path = folder / "archive.pt"
    with zipfile.ZipFile(path, "w") as file:
        for name, entry in (("data.pkl", content), ("version", b"3\n"), ("byteorder", b"little")):
            file.writestr(f"archive/{name}", entry)
    return path


def tar(folder: Path, content: bytes) -> Path:
    """As torch.save wrote before version 0.1.10."""
    path = folder / "tar.pth"
    with tarfile.open(path, "w") as file:
        for name, entry in (("sys_info", pickle.dumps({}, 2)), ("pickle", content), ("storages", pickle.dumps(0, 2))):
            info = tarfile.TarInfo(name)
            info.size = len(entry)
            file.addfile(info, io.BytesIO(entry))
    return path


CONTAINERS = {"bare": bare, "legacy": legacy, "archive": archive, "tar": tar}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def rezipped(content: bytes, change: Callable[[str, bytes], tuple[str, bytes]], compression: int = 0) -> bytes:
    """An archive anew, each entry as `change` makes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(out, "w", compression) as after:
        for name in before.namelist():
            after.writestr(*change(name, before.read(name)))
    return out.getvalue()


_STATE = {"class_embed.weight": torch.zeros(3, 8), "bbox_embed.layers.0.weight": torch.ones(8, 8)}


def _bomb(folder: Path, marker: Path) -> Path:
    """Two gigabytes of zeros in two megabytes."""
    path = folder / "bomb.pt"
    with (
        zipfile.ZipFile(io.BytesIO(saved(_STATE))) as before,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after,
    ):
        for name in before.namelist():
            if not name.endswith("data/0"):
                after.writestr(name, before.read(name))
                continue
            with after.open(name, "w", force_zip64=True) as entry:
                for _ in range(2048):
                    entry.write(bytes(2**20))
    return path


def _declared(folder: Path, marker: Path) -> Path:
    """The directory says that an entry has 2**31 bytes, and the file ends long before."""
    content = bytearray(saved(_STATE))
    at = content.index(b"PK\x01\x02")
    content[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    return _written(folder / "declared.pt", bytes(content))


def _outside(folder: Path, marker: Path) -> Path:
    changed = rezipped(saved(_STATE), lambda name, entry: (f"../../{marker.name}/{name}", entry))
    return _written(folder / "outside.pt", changed)


def _link(folder: Path, marker: Path) -> Path:
    """The entry of a storage is a symbolic link."""
    path = folder / "link.pt"
    with zipfile.ZipFile(io.BytesIO(saved(_STATE))) as before, zipfile.ZipFile(path, "w") as after:
        for name in before.namelist():
            info = zipfile.ZipInfo(name)
            linked = name.endswith("data/0")
            info.external_attr = (0o120777 if linked else 0o100644) << 16
            after.writestr(info, b"/etc/passwd" if linked else before.read(name))
    return path


def _huge_storage(folder: Path, marker: Path) -> Path:
    """A file of the old format whose storage would take 4 * 10**15 bytes."""
    file = io.BytesIO()
    torch.save({"a": torch.zeros(1234)}, file, _use_new_zipfile_serialization=False)
    changed = file.getvalue().replace(b"M\xd2\x04", b"\x8a\x07" + (10**15).to_bytes(7, "little"))
    return _written(folder / "huge.pth", changed)


def _safetensors(header: Any, data: bytes = bytes(64), length: int | None = None) -> Make:
    def make(folder: Path, marker: Path) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        head = struct.pack("<Q", len(text) if length is None else length)
        return _written(folder / "model.safetensors", head + text + data)

    return make


def _entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _saved(name: str, content: Callable[[], Any]) -> Make:
    return lambda folder, marker: _written(folder / name, saved(content()))


LIES: dict[str, Make] = {
    "zip bomb": _bomb,
    "zip of a declared size": _declared,
    "zip with names outside": _outside,
    "zip with a link": _link,
    "truncated": lambda folder, marker: _written(folder / "cut.pt", saved(_STATE)[:-100]),
    "storage of another size": lambda folder, marker: _written(
        folder / "size.pt",
        rezipped(saved(_STATE), lambda name, entry: (name, entry[:9] if name.endswith("data/0") else entry)),
    ),
    "legacy storage of petabytes": _huge_storage,
    "expanded": _saved("expanded.pt", lambda: {"a.weight": torch.zeros(1).expand(10**12)}),
    "one storage, many tensors": _saved(
        "shared.pt", lambda: {f"{n}.weight": tensor for tensor in [torch.zeros(9999)] for n in range(999)}
    ),
    "sparse": _saved("sparse.pt", lambda: {"a": torch.sparse_coo_tensor([[0], [0]], [1.0], (2, 2))}),
    "without numbers": _saved("meta.pt", lambda: {"a": torch.empty(10**12, device="meta")}),
    "a module": lambda folder, marker: _written(folder / "module.pt", saved(torch.nn.Linear(2, 2))),
    "header of 10**18 bytes": _safetensors({}, length=10**18),
    "header that ends early": _safetensors({"a": _entry(0, 16, [4])}, length=9),
    "negative offsets": _safetensors({"a": _entry(-64, 0, [16])}),
    "offsets past the end": _safetensors({"a": _entry(0, 10**12, [10**12 // 4])}),
    "overlapping tensors": _safetensors({"a": _entry(0, 64, [16]), "b": _entry(32, 64, [8])}),
    "shape of other bytes": _safetensors({"a": _entry(0, 64, [2**62, 4])}),
    "unknown type": _safetensors({"a": _entry(0, 64, [16], "PICKLE")}),
    "duplicate keys": _safetensors(
        b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}'
    ),
    "NaN in the header": _safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,64]}}'),
    "nested header": _safetensors(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "pickle called safetensors": lambda folder, marker: _written(
        folder / "pickle.safetensors", PICKLES["reduce"](marker)
    ),
    "a script of torch": lambda folder, marker: _scripted(folder / "script.pt"),
}


def _scripted(path: Path) -> Path:
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), path)
    return path

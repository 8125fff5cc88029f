"""Files of tensors, read without running any code that they might hold."""

import argparse
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ...common.text import printable

# how often all bytes of a file may stand in its tensors: names share a tensor, such as the heads of six layers
_MOST_SHARED = 16
_EXPORTED = (".onnx", ".xml", ".pt2", ".tflite")


def read_file(path: Path, kind: str = "checkpoint") -> Any:
    """What a ``.safetensors`` file, or a file that `torch.save` wrote, holds; tensors are on the CPU.

    Raises FileNotFoundError where there is none, ValueError for one that is damaged or no ``kind`` of file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{kind} {path} {'is no file' if path.exists() else 'does not exist'}")
    if path.suffix in _EXPORTED:
        raise ValueError(f"{path} is an exported file, whose weights cannot be loaded: name what it was exported from")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _check_not_compressed(path)
        # the official code keeps its command line beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(content, path.stat().st_size)
        return content
    except Exception as error:  # reading a damaged file raises nearly anything
        line = printable(str(error).split("\n")[0][:500])
        # an error that names a key alone says nothing
        reason = type(error).__name__ if isinstance(error, KeyError) or not line else line
        raise ValueError(f"{kind} {path} is damaged or not a {kind}: {reason}") from error


def _check_not_compressed(path: Path) -> None:
    """Raises ValueError for an archive whose content is larger than itself: `torch.save` compresses nothing."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise ValueError(f"it is compressed, {unpacked} bytes in {path.stat().st_size}; torch.save compresses nothing")


def _check_tensors(content: Any, file_size: int) -> None:
    """Raises ValueError for tensors that a few bytes describe, or that operators trust instead of checking."""
    total = 0
    for tensor in tensors_in(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
            raise ValueError("expected tensors with all of their numbers, got a sparse, quantised or empty one")
        total += tensor.nbytes
    if total > _MOST_SHARED * file_size:
        raise ValueError(f"its tensors take {total} bytes, and it has {file_size}")


def tensors_in(content: Any) -> Iterator[Tensor]:
    """Every tensor in dictionaries and lists, at any depth; of one object that stands in several places, once."""
    waiting, seen = [content], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, dict | list | tuple | set | argparse.Namespace) and id(one) not in seen:
            seen.add(id(one))
            inside = vars(one) if isinstance(one, argparse.Namespace) else one
            waiting.extend(inside.values() if isinstance(inside, dict) else inside)


def is_state_dict(content: Any) -> TypeGuard[dict[str, Tensor]]:
    """Is it a dictionary of nothing but tensors?"""
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )

"""Files of tensors, read without running any code that they might hold."""

import argparse
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

_EXPORTED = (".onnx", ".xml", ".pt2", ".tflite")


def read_file(path: Path, kind: str = "checkpoint") -> Any:
    """What a ``.safetensors`` file, or a file that `torch.save` wrote, holds; tensors are on the CPU.

    Raises FileNotFoundError where there is none, ValueError for one that is damaged or no ``kind`` of file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{kind} {path} does not exist")
    if path.suffix in _EXPORTED:
        raise ValueError(f"{path} is an exported file, whose weights cannot be loaded: name what it was exported from")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # the official code keeps its command line beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # reading a damaged file raises nearly anything
        line = str(error).split("\n")[0]
        # an error that names a key alone says nothing
        reason = type(error).__name__ if isinstance(error, KeyError) or not line else line
        raise ValueError(f"{kind} {path} is damaged or not a {kind}: {reason}") from error


def is_state_dict(content: Any) -> TypeGuard[dict[str, Tensor]]:
    """Is it a dictionary of nothing but tensors?"""
    return isinstance(content, dict) and all(isinstance(tensor, Tensor) for tensor in content.values())

"""Where it runs: the device that a name stands for."""

import torch


def choose_device(name: str) -> torch.device:
    """``auto``, or a device that is there.

    Raises:
        ValueError: the device is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    try:
        torch.empty(0, device=device)  # mps, xpu and others, which PyTorch knows by name wherever it runs
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: expected one that this PyTorch runs on, got {name!r} ({reason})") from error
    return device

"""Weights for a backbone alone: torchvision's, trained on ImageNet, or a file's."""

from pathlib import Path

import torchvision
from torch import Tensor, nn

from ..configs import TORCHVISION
from .files import is_state_dict, read_file


def load_backbone_weights(body: nn.Module, name: str, weights: str | Path) -> None:
    """Fill the `body` of a backbone with ``"imagenet"`` weights from torchvision, or with a local file's.

    A file is what torchvision publishes, a state dict by ``torch.save`` (or ``.safetensors``), whose classifier is
    ignored. Raises FileNotFoundError for a missing file, ValueError for one that does not fit or a name without
    published weights, and ConnectionError if the download fails.
    """
    state = _published(name) if weights == "imagenet" else _read(Path(weights))
    state = {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
    try:
        body.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).split("\n\t", 1)[-1]
        raise ValueError(f"backbone_weights: {weights} does not hold the weights of {name}: {reason}") from None


def _published(name: str) -> dict[str, Tensor]:
    if name not in TORCHVISION:
        raise ValueError(
            f"backbone_weights: torchvision publishes ImageNet weights of {', '.join(TORCHVISION)}, not of {name}"
        )
    # the first version, as in the published results; the second trains longer and with other augmentation
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return weights.get_state_dict(progress=False)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"backbone_weights: the ImageNet weights of {name} could not be downloaded from {weights.url} ({error}); "
            "fetch that file elsewhere and name it: backbone_weights=PATH, or --backbone-weights PATH"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"backbone_weights: expected 'imagenet' or a file of weights, found no file {path}")
    try:
        state = read_file(path, "file of weights")
    except ValueError as error:
        raise ValueError(f"backbone_weights: {error}") from error
    if not is_state_dict(state):
        raise ValueError(f"backbone_weights: expected a state dict in {path}, a dict of tensors, got another object")
    return state

"""Does a map show what the model has learned, and of which class? Maps of other weights and of other classes."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .measures import Array, noised

M = TypeVar("M", bound=nn.Module)
Similarity = Callable[[Array, Array], float]
_RESETS = ("reset_parameters", "_reset_parameters")


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's, of two maps of one shape; 0 where one of them is constant, and so has no order."""
    from scipy.stats import spearmanr

    a, b = np.ravel(a), np.ravel(b)
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def random_logit(
    explain: Callable[[int], Array],
    label: int,
    classes: int,
    *,
    similarity: Similarity = rank_correlation,
    seed: int | Sequence[int] = 0,
) -> float:
    """How alike the maps of a detection's class and of another class of the same query are (RandomLogit).

    Sixt et al. 2020, "When explanations lie". From -1 to 1 by rank correlation; 1 is of a method that does not look at
    the class, and lower is better. Classes that look alike may well have the same map: low is not always right.

    Args:
        explain: the map (H, W) of a class.
        label: the detection's class.
        classes: how many there are; the other one is drawn from them.
        similarity: of two maps.
        seed: of the other class.

    Raises:
        ValueError: there is no other class.
    """
    if classes < 2 or not 0 <= label < classes:
        raise ValueError(f"label: expected one of at least 2 classes, got class {label} of {classes}")
    other = int(np.random.default_rng(seed).integers(classes - 1))
    return similarity(explain(label), explain(other + (other >= label)))


def smoothed(
    explain: Callable[[Tensor], Array | None],
    image: Tensor,
    *,
    samples: int = 8,
    magnitude: float = 0.1,
    seed: int = 0,
    scaled: bool = True,
) -> Array:
    """The mean (H, W) of the maps of an image under noise (SmoothGrad, Smilkov et al. 2017).

    Args:
        explain: the map (H, W) of an image like `image`; None where there is none, which is left out.
        image: (3, H, W) uint8, or floats from 0 to 1.
        samples: how many maps; the last is of the image itself.
        magnitude: the noise is normal, of this share of the difference between the image's largest and least value.
        seed: of the noise.
        scaled: divide maps by their sum first, so that a large one is not all that counts.

    Raises:
        ValueError: no samples, or no map of the image itself.
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    generator = np.random.default_rng(seed)
    deviation = magnitude * float(image.max() - image.min())
    noise = (deviation * generator.standard_normal(tuple(image.shape)) for _ in range(samples - 1))
    maps = [heat for one in noise if (heat := explain(noised(image, one))) is not None]
    last = explain(image)
    if last is None:
        raise ValueError("explain: expected a map of the image without noise, got None")
    maps.append(last)
    return np.mean([heat / (np.sum(heat) or 1) if scaled else heat for heat in maps], axis=0)


def smooth_mprt(
    explain: Callable[[M, Tensor], Array | None],
    model: M,
    scrambled: Sequence[M],
    image: Tensor,
    *,
    similarity: Similarity = rank_correlation,
    samples: int = 8,
    magnitude: float = 0.1,
    seed: int = 0,
    scaled: bool = True,
) -> list[float]:
    """How alike the maps of a trained model and of randomised ones are, noise averaged away (Smooth MPRT).

    Hedström et al. 2023, "Sanity checks revisited". Maps of random weights are noisy, and noise by itself lowers the
    similarity; with the mean over `samples` noisy images, the same ones for every model, that flatters no method. With
    one sample it is the plain model parameter randomisation test (Adebayo et al. 2018). From -1 to 1 by rank
    correlation; near 0 is good, 1 is of a method that shows nothing of what was learned.

    Args:
        explain: the map (H, W) of a model and an image like `image`; None where there is none, which is left out. Find
            the detection by its class and box: a detector that makes its queries of pixels numbers them anew.
        model: the trained one.
        scrambled: the others, as `randomised` gives them for 1, 2, ... layers.
        image: (3, H, W) uint8, or floats from 0 to 1.
        similarity: of two maps.
        samples, magnitude, seed, scaled: as of `smoothed`.

    Returns:
        The similarity to each of `scrambled`.
    """

    def smooth(one: M) -> Array:
        noise: dict[str, Any] = {"samples": samples, "magnitude": magnitude, "seed": seed}
        return smoothed(lambda x: explain(one, x), image, scaled=scaled, **noise)

    trained = smooth(model)
    return [similarity(trained, smooth(other)) for other in scrambled]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder's layers of any DETR, of transformers too. Raises ValueError for another model."""
    layers = getattr(getattr(getattr(model, "transformer", None), "decoder", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"model: expected a DETR, which has a decoder to explain, got {type(model).__name__}")
    return layers


def randomised(model: M, *, layers: int | None = None, seed: int = 0) -> M:
    """A copy of a DETR whose decoder's last `layers`, or all, are as before training (Adebayo et al. 2018).

    A map that stays as it was does not show what the model has learned. Every module of these layers draws its first
    weights anew, in the last layer first, so that a seed gives it the same weights however many are drawn; of
    transformers' models as their authors draw them. What stays trained is shared with the model, which is left alone,
    as is torch's generator.

    Raises:
        ValueError: a model without a decoder, or with fewer layers; or nothing in it says how a weight is drawn.
    """
    stack = decoder_layers(model)
    layers = len(stack) if layers is None else layers
    if not 0 <= layers <= len(stack):
        raise ValueError(f"layers: expected 0 to {len(stack)}, got {layers}")
    fresh = {id(parameter) for layer in stack[len(stack) - layers :] for parameter in layer.parameters()}
    shared = {id(parameter): parameter for parameter in model.parameters() if id(parameter) not in fresh}
    again = copy.deepcopy(model, memo=dict(shared))
    inner = getattr(again, "model", None)
    of_authors = getattr(inner, "_init_weights", None)  # how a model of transformers draws the weights of a module
    drawn = decoder_layers(again)[len(stack) - layers :]
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        for layer in reversed(drawn):
            for parameter in layer.parameters():
                parameter.fill_(torch.nan)  # whatever is left of it was not drawn
            for module in reversed(list(layer.modules())):  # the parts before the whole
                _draw(module, of_authors)
    for place, layer in enumerate(drawn, len(stack) - layers):
        left = [name for name, parameter in layer.named_parameters() if parameter.isnan().any()]
        if left:
            raise ValueError(
                f"model: expected modules that can draw their first weights, got none for {left[0]} of decoder layer "
                f"{place} of {type(inner or again).__name__}"
            )
    return again


def _draw(module: nn.Module, of_authors: Callable[[nn.Module], Any] | None) -> None:
    for reset in _RESETS:
        if hasattr(module, reset):
            getattr(module, reset)()
    if of_authors is not None:
        of_authors(module)

"""Does a map stay as it is when the image changes by less than one sees?"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .measures import Array, checked, noised


class Stability(NamedTuple):
    """How much a map changes under noise, 0 for one that stays; NaN where the detection was always lost."""

    maximum: float
    """The largest relative change of the map (maximum sensitivity, Yeh et al. 2019)."""
    average: float
    """The mean relative change (average sensitivity)."""
    input: float
    """The largest relative change of the map by that of the image (relative input stability, Agarwal et al. 2022)."""
    output: float
    """The largest relative change of the map by the change of the logits (relative output stability)."""
    lost: int
    """Noisy images in which the detection was lost; nothing above is of them."""


def stability(
    explain: Callable[[Tensor], tuple[Array, Array] | None],
    image: Tensor,
    *,
    samples: int = 6,
    radius: float = 4.0,
    seed: int = 0,
    scaled: bool = True,
    least_heat: float = 0.01,
    least_grey: float = 1.0,
) -> Stability:
    """How much the map of a detection changes when its image changes a little; low is good, and 0 is the least.

    Maximum and average sensitivity are ||m' - m|| / ||m|| of the maps m and m' of the image and of noisy ones, by
    Euclidean norms (Yeh et al. 2019, "On the (in)fidelity and sensitivity of explanations"). Relative input stability
    is ||(m' - m) / m|| / ||(x' - x) / x||, pixel by pixel, and relative output stability ||(m' - m) / m|| / ||h' - h||
    with the logits h (Agarwal et al. 2022, "Rethinking stability for attribution-based explanations"). A map that says
    nothing is the most stable of all: read these beside measures of faithfulness.

    Agarwal et al. divide by each pixel of the map, and Quantus by 1e-6 where it is zero. Maps of attention are zero in
    most places, where a change of any size would then be all that counts; so both divisions are by `least` at least.

    Args:
        explain: of an image like `image`, the map (H, W), at least 0, and the logits (classes,) of the detection; None
            where there is no such detection any more. Find it by its class and box: a detector that makes its queries
            of pixels numbers them anew in every image.
        image: (3, H, W) uint8, or floats from 0 to 1.
        samples: noisy images.
        radius: of the noise, uniform from -radius to radius, in grey levels of 255. 4 is about what compression
            changes (a JPEG of good quality), which one does not see and which should move no detection: what moves is
            the map's own doing.
        seed: of the noise.
        scaled: divide maps by their sum first, as everything here takes no notice of their scale.
        least_heat: what a pixel of the map counts at least when divided by, a share of the map's largest.
        least_grey: what a pixel of the image counts at least when divided by, in grey levels.

    Raises:
        ValueError: there is no detection in the image itself; or a map is none, or of another shape.
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    if radius <= 0:
        raise ValueError(f"radius: expected grey levels above 0, got {radius}")
    found = explain(image)
    if found is None:
        raise ValueError("explain: expected a map of the image without noise, got None")
    heat, logits = _map_of(found, None, scaled), np.asarray(found[1], dtype=np.float64)
    # floats from 0 to 1, in grey levels
    unit = 255.0 if image.is_floating_point() else 1.0
    generator = np.random.default_rng(seed)
    grey = unit * image.double().cpu().numpy()
    changes: list[tuple[float, float, float]] = []
    for _ in range(samples):
        noisy = noised(image, generator.uniform(-radius, radius, tuple(image.shape)) / unit)
        found = explain(noisy)
        if found is None:
            continue
        change = _map_of(found, heat.shape, scaled) - heat
        relative = float(np.linalg.norm(change / np.maximum(heat, least_heat * heat.max())))
        of_image = float(np.linalg.norm((unit * noisy.double().cpu().numpy() - grey) / np.maximum(grey, least_grey)))
        of_logits = float(np.linalg.norm(np.asarray(found[1], dtype=np.float64) - logits))
        changes.append(
            (
                float(np.linalg.norm(change) / np.linalg.norm(heat)),
                relative / _some(of_image),
                relative / _some(of_logits),
            )
        )
    lost = samples - len(changes)
    if not changes:
        return Stability(np.nan, np.nan, np.nan, np.nan, lost)
    of_map, by_input, by_output = np.array(changes).T
    return Stability(float(of_map.max()), float(of_map.mean()), float(by_input.max()), float(by_output.max()), lost)


def _map_of(found: tuple[Array, Array], shape: tuple[int, ...] | None, scaled: bool) -> Array:
    heat = checked(found[0], shape)
    return heat / heat.sum() if scaled else heat


def _some(size: float) -> float:
    """As a divisor: a change of nothing counts as a very small one, as in Quantus."""
    return size or 1e-6

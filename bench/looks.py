"""Where the queries of an encoder look: drawn as :mod:`.cases` draws inputs, or by a detector that was trained."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels.contract import Sizes
from ..kernels.reference import extents, locate
from .cases import Case, make_inputs

_HEIGHT, _WIDTH = 800, 1066
_SCENE = 128  # pixels, for weights that do not say what they were trained on; what `msdeform data synth` draws


@dataclass(frozen=True, eq=False)
class Look:
    """One call of the operator, as far as a cache sees it. Shape letters as in :mod:`msdeform.kernels.contract`."""

    case: str
    locations: str
    """how they came about: grid, uniform or trained"""
    sizes: Sizes
    points: np.ndarray
    """(B, Q, H, L, P, 2) float32, xy, normalised to each level; Q is the pixels of all levels"""
    D: int


def drawn(case: Case) -> Look:
    """The benchmark's own inputs of an encoder's case."""
    inputs = make_inputs(case, torch.float32, torch.device("cpu"), seed=0)
    return Look(case.name, case.locations, case.sizes, inputs.sampling_locations.numpy(), case.D)


def trained(checkpoint: Path, image: Path | None = None) -> list[Look]:
    """Where each layer of a trained encoder looks, on one image within 800x1066.

    Args:
        checkpoint: as `msdeform predict` takes it: a run, a file of one, official or converted weights.
        image: a file; without one, scenes of `msdeform data synth` side by side, each as large as those that the model
            was trained on: enlarging one would show it shapes of a size that it never saw.

    Raises:
        FileNotFoundError, ValueError: as train.checkpoint.load_trained; ValueError for a model whose encoder has no
            deformable attention.
    """
    from ..models.deformable_transformer import EncoderLayer
    from ..models.images import Size, read_image
    from ..train.checkpoint import load_trained

    one = load_trained(checkpoint, torch.device("cpu"), "reference")
    layers = [module.self_attn for module in one.model.modules() if isinstance(module, EncoderLayer)]
    if not layers:
        raise ValueError(f"checkpoint {checkpoint}: {one.name} has no encoder with deformable attention")
    pixels = mosaic(one.options.input.image_size or _SCENE) if image is None else read_image(image)
    looks: list[Look] = []
    name = one.name if one.step is None else f"{one.name}, step {one.step}"

    def keep(module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor, Sizes]) -> None:
        query, reference, _, sizes = inputs
        assert isinstance(module, type(layers[0]))
        shape = (module.n_heads, module.n_levels, module.n_points, 2)
        offsets = module.sampling_offsets(query).unflatten(-1, shape)
        points = locate(reference.float(), offsets.float(), extents(sizes, query.device, torch.float32))
        looks.append(Look(name, "trained", tuple(sizes), points.numpy(), module.d_model // module.n_heads))

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        one.model.predict(pixels, size=Size(_HEIGHT, _WIDTH))
    finally:
        for hook in hooks:
            hook.remove()
    return looks


def mosaic(scene: int) -> Tensor:
    """An image (3, 800, 1066) uint8 of synthetic scenes of `scene` pixels, seeded."""
    from ..train.synth import make_scene

    generator = np.random.default_rng(0)
    down, across = -(-_HEIGHT // scene), -(-_WIDTH // scene)
    lines = [
        np.concatenate([make_scene(generator, scene, n_classes=5).pixels for _ in range(across)], 1)
        for _ in range(down)
    ]
    return torch.from_numpy(np.concatenate(lines)[:_HEIGHT, :_WIDTH]).permute(2, 0, 1).contiguous()

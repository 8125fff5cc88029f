"""Step 5: the reference.

The loops of step 4 are right and very slow. PyTorch's grid_sample does the sampling of a whole level in one call, so
the operator becomes one loop over levels. It is the form of most model code that runs without a compiled extension,
and MSDeform's backend `reference`, which every fast kernel is compared with. What it costs is memory: every sample is
stored before it is added up.
"""

import torch
import torch.nn.functional as F
from step04_heads_and_levels import SHAPES, ms_deform_attn, random_inputs
from torch import Tensor

import msdeform


def reference(value: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor) -> Tensor:
    """Value (B, S, H, D), locations (B, Q, H, L, P, 2), weights (B, Q, H, L, P) -> output (B, Q, H*D)."""
    B, _, H, D = value.shape
    Q = weights.shape[1]
    output = value.new_zeros(B * H, D, Q)
    levels = value.split([h * w for h, w in shapes], dim=1)
    for level, (height, width) in enumerate(shapes):
        # grid_sample knows images with channels: each head of each photograph is one
        image = levels[level].permute(0, 2, 3, 1).reshape(B * H, D, height, width)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # (B*H, Q, P, 2), from -1 to 1
        samples = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        output += (samples * weights[:, :, :, level].transpose(1, 2).reshape(B * H, 1, Q, -1)).sum(-1)
    return output.view(B, H * D, Q).transpose(1, 2)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-12)


if __name__ == "__main__":
    samples = [random_inputs(seed) for seed in range(3)]
    loops = torch.stack([ms_deform_attn(value, SHAPES, *rest) for value, *rest in samples])
    value, locations, weights = (torch.stack(tensors) for tensors in zip(*samples, strict=True))
    ours = reference(value, SHAPES, locations, weights)
    backend = msdeform.ms_deform_attn(value, SHAPES, locations, weights, backend="reference")
    print(f"three photographs at once: {tuple(ours.shape)}")
    print(f"like the loops of step 4, up to 1e-12:           {close(ours, loops)}")
    print(f"like MSDeform's backend reference, up to 1e-12:  {close(ours, backend)}")

    # how much is stored on the way, in float32, for one photograph of 800 x 1066 pixels in Deformable DETR's encoder
    sizes = ((100, 134), (50, 67), (25, 34), (13, 17))
    H, D, P = 8, 32, 4
    Q = S = sum(h * w for h, w in sizes)
    value_bytes, output_bytes, sample_bytes = S * H * D * 4, Q * H * D * 4, Q * H * D * P * 4
    print("\nMB for an encoder's photograph:")
    print(f"  value                       {value_bytes / 1e6:6.1f}")
    print(f"  output                      {output_bytes / 1e6:6.1f}")
    print(f"  samples of one level        {sample_bytes / 1e6:6.1f}")
    print(
        f"  samples of all four levels  {len(sizes) * sample_bytes / 1e6:6.1f}   (autograd keeps them for the backward)"
    )

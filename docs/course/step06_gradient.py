"""Step 6: the gradient by hand.

Let g be the gradient of the output of one query and head: D numbers. A point has the weight a and reads four pixels v
with shares c, so it adds a * (sum of c * v) to the output. Its gradients are:

    of each pixel     a * c * g                            a row of D numbers, added up where the pixel is
    of the weight     sum of c * (g . v)                   g . v is a dot product over the channels
    of the place      a * sum of (slope of c) * (g . v)    once along x, once along y

A share is a product of two tents, (1 - |dx|) * (1 - |dy|). A tent rises with slope 1 and falls with slope -1.
"""

from typing import Any

import torch
from step04_heads_and_levels import SHAPES, random_inputs
from torch import Tensor

import msdeform


def corners(locations: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each (Q, H, L, P, 4), of a point's four pixels: the number among all pixels, share, its slopes along x and y."""
    size = torch.tensor([(w, h) for h, w in SHAPES]).view(-1, 1, 1, 2)
    start = torch.tensor([0, *(h * w for h, w in SHAPES[:-1])]).cumsum(0).view(-1, 1, 1)
    place = (locations[..., None, :] * size) - 0.5
    pixel = place.floor() + torch.tensor([(0, 0), (1, 0), (0, 1), (1, 1)])  # (Q, H, L, P, 4, 2): column, row
    inside = ((pixel >= 0) & (pixel < size)).all(-1)
    tent_x, tent_y = (1 - (place - pixel).abs()).unbind(-1)
    # a pixel to the left of the place loses share when the place moves right; a location of 1 is `size` pixels
    slope_x, slope_y = (torch.where(pixel > place, 1.0, -1.0) * size).unbind(-1)
    number = start + pixel[..., 1].long() * size[..., 0] + pixel[..., 0].long()
    return number * inside, tent_x * tent_y * inside, slope_x * tent_y * inside, tent_x * slope_y * inside


class Attention(torch.autograd.Function):
    """Step 4 for value (S, H, D), locations (Q, H, L, P, 2) and weights (Q, H, L, P), with its gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, weights)  # the inputs are enough; no sample is kept
        number, share, _, _ = corners(locations)
        head = torch.arange(value.shape[1]).view(-1, 1, 1, 1)
        rows = value[number, head]  # (Q, H, L, P, 4, D): the pixels v
        return torch.einsum("qhlp,qhlpc,qhlpcd->qhd", weights, share, rows).flatten(1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        value, locations, weights = ctx.saved_tensors
        number, share, slope_x, slope_y = corners(locations)
        head = torch.arange(value.shape[1]).view(-1, 1, 1, 1)
        g = grad_output.view(*weights.shape[:2], -1)  # (Q, H, D)

        dots = torch.einsum("qhd,qhlpcd->qhlpc", g, value[number, head])  # four dot products for each point
        grad_weights = (share * dots).sum(-1)
        grad_x = weights * (slope_x * dots).sum(-1)
        grad_y = weights * (slope_y * dots).sum(-1)

        grad_value = torch.zeros_like(value)
        addends = torch.einsum("qhlp,qhlpc,qhd->qhlpcd", weights, share, g)
        # many points read one pixel, so their addends have to be accumulated, not assigned
        grad_value.index_put_((number, head.expand_as(number)), addends, accumulate=True)
        return grad_value, torch.stack([grad_x, grad_y], -1), grad_weights


if __name__ == "__main__":
    value, locations, weights = (tensor.requires_grad_() for tensor in random_inputs(seed=0))
    grad_output = torch.linspace(-1, 1, 5 * 8, dtype=torch.float64).view(5, 8)
    output = Attention.apply(value, locations, weights)
    ours = torch.autograd.grad(output, (value, locations, weights), grad_output)
    theirs = torch.autograd.grad(
        msdeform.ms_deform_attn(value[None], SHAPES, locations[None], weights[None], backend="reference")[0],
        (value, locations, weights),
        grad_output,
    )
    print("gradients by hand, beside PyTorch's autograd through grid_sample, up to 1e-12:")
    for name, a, b in zip(("value", "locations", "weights"), ours, theirs, strict=True):
        print(f"  {name:<10} {tuple(a.shape)!s:<18} {torch.allclose(a, b, rtol=0, atol=1e-12)}")
    checked = torch.autograd.gradcheck(Attention.apply, (value, locations, weights))
    print(f"beside finite differences (gradcheck): {checked}")

    # what a gradient of the place means: move one point along x by a thousandth and see
    moved = locations.detach().clone()
    moved[0, 0, 0, 0, 0] += 1e-3
    change = ((Attention.apply(value, moved, weights) - output) * grad_output).sum().item()
    print(
        f"\none location moved by 0.001: predicted {1e-3 * ours[1][0, 0, 0, 0, 0].item():+.6f}, happened {change:+.6f}"
    )

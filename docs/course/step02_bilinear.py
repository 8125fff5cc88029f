"""Step 2: bilinear sampling by hand.

A linear layer does not give whole numbers, so a place lies between pixels. Its value is a mix of the four pixels
around it. A pixel's share is the area of the rectangle opposite to it: the nearer the place, the larger the share.
Pixels outside the map count as zero.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

value = 10 * torch.arange(6.0)[:, None] + torch.arange(8.0)  # the map of step 1: row 2, column 3 holds 23


def neighbours(x: float, y: float) -> list[tuple[int, int, float]]:
    """Column, row and share of the four pixels around a place. A pixel's centre has whole coordinates."""
    column, row = math.floor(x), math.floor(y)
    fx, fy = x - column, y - row  # how far the place has gone to the right and down
    return [
        (column, row, (1 - fx) * (1 - fy)),
        (column + 1, row, fx * (1 - fy)),
        (column, row + 1, (1 - fx) * fy),
        (column + 1, row + 1, fx * fy),
    ]


def bilinear(image: Tensor, x: float, y: float) -> Tensor:
    """The image between its pixels; zeros outside."""
    height, width = image.shape
    total = image.new_zeros(())
    for column, row, share in neighbours(x, y):
        if 0 <= column < width and 0 <= row < height:
            total = total + share * image[row, column]
    return total


def pixel_coordinate(location: float, size: int) -> float:
    """From a location, 0 at one edge of the map and 1 at the other, to pixels (align_corners=False).

    A pixel is a square with its centre in the middle: the first centre lies half a pixel from the edge.
    """
    return location * size - 0.5


def show(x: float, y: float) -> None:
    print(f"\nat x = {x}, y = {y}:")
    for column, row, share in neighbours(x, y):
        inside = 0 <= column < 8 and 0 <= row < 6
        print(
            f"  row {row}, column {column}: {'outside, 0' if not inside else f'{value[row, column]:02.0f}'} * {share}"
        )
    print(f"  sum {bilinear(value, x, y)}")


show(2.25, 1.5)  # between four pixels; the map is 10*y + x, so the sum has to be 17.25
show(7.5, 3.0)  # half a pixel past the last column: half of the sample comes from outside

print("\nlocation 0 is the left edge, 1 the right edge:")
for location in (0.0, 0.0625, 0.5, 1.0):
    print(f"  location {location:<6} -> x = {pixel_coordinate(location, 8)}")

# PyTorch calls this grid_sample. Its coordinates run from -1 to 1. A thousand places, some of them outside:
torch.manual_seed(0)
image = torch.rand(6, 8, dtype=torch.float64)
locations = torch.rand(1000, 2, dtype=torch.float64) * 1.4 - 0.2
grid = (2 * locations - 1).view(1, 1, 1000, 2)
theirs = F.grid_sample(image[None, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False).flatten()
ours = torch.stack([bilinear(image, pixel_coordinate(x, 8), pixel_coordinate(y, 6)) for x, y in locations.tolist()])
print(f"\n1000 places like grid_sample, up to 1e-12: {torch.allclose(ours, theirs, rtol=0, atol=1e-12)}")

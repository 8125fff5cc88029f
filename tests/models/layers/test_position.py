import math

import torch

from msdeform.models.layers.position import sine_of_boxes, sine_of_pixels


def literal_sine(x, channels):
    """Channel i is the sine, or for odd i the cosine, of 2 pi x / 10000^(2 floor(i/2) / channels)."""
    return [
        (math.cos if i % 2 else math.sin)(2 * math.pi * x / 10000 ** (2 * (i // 2) / channels)) for i in range(channels)
    ]


def test_pixels_of_a_padded_map():
    height, width, valid_height, valid_width, channels = 3, 4, 2, 3, 8
    mask = torch.ones(1, height, width, dtype=torch.bool)
    mask[0, :valid_height, :valid_width] = False
    sines = sine_of_pixels(mask, 2 * channels, dtype=torch.float64).view(height, width, 2 * channels)
    assert sines.isfinite().all()
    for i in range(valid_height):
        for j in range(valid_width):
            y, x = (i + 0.5) / (valid_height + 1e-6), (j + 0.5) / (valid_width + 1e-6)
            expected = torch.tensor(literal_sine(y, channels) + literal_sine(x, channels), dtype=torch.float64)
            torch.testing.assert_close(sines[i, j], expected, atol=1e-12, rtol=0)


def test_positions_do_not_depend_on_padding():
    alone = sine_of_pixels(torch.zeros(1, 2, 3, dtype=torch.bool), 16)
    mask = torch.ones(1, 5, 6, dtype=torch.bool)
    mask[0, :2, :3] = False
    padded = sine_of_pixels(mask, 16).view(5, 6, 16)[:2, :3].reshape(1, 6, 16)
    torch.testing.assert_close(padded, alone)


def test_boxes():
    boxes = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]], dtype=torch.float64)
    expected = torch.tensor([c for x in (0.1, 0.2, 0.3, 0.4) for c in literal_sine(x, 6)], dtype=torch.float64)
    torch.testing.assert_close(sine_of_boxes(boxes, 12)[0, 0], expected)

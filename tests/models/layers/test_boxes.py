import pytest
import torch

from msdeform.models.layers.boxes import cxcywh_to_xyxy, generalized_iou, xyxy_to_cxcywh


def literal_giou(a, b):
    overlap = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return overlap / union - (hull - union) / hull


def test_conversions_are_each_others_inverse():
    boxes = torch.tensor([[0.5, 0.4, 0.2, 0.6], [10.0, 20.0, 4.0, 8.0]], dtype=torch.float64)
    corners = cxcywh_to_xyxy(boxes)
    torch.testing.assert_close(corners[0].tolist(), [0.4, 0.1, 0.6, 0.7])
    torch.testing.assert_close(xyxy_to_cxcywh(corners), boxes)


def test_giou_of_pairs_matches_the_definition():
    generator = torch.Generator().manual_seed(0)
    a = cxcywh_to_xyxy(torch.rand(7, 4, generator=generator, dtype=torch.float64) + 0.01)
    b = cxcywh_to_xyxy(torch.rand(5, 4, generator=generator, dtype=torch.float64) + 0.01)
    expected = [[literal_giou(x, y) for y in b.tolist()] for x in a.tolist()]
    torch.testing.assert_close(generalized_iou(a[:, None], b[None]).tolist(), expected)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], 1.0),
        ([0, 0, 1, 1], [3, 0, 4, 1], -0.5),
        ([0, 0, 1, 1], [0, 1, 1, 2], 0.0),
        ([0.3, 0.3, 0.3, 0.3], [0.3, 0.3, 0.3, 0.3], 0.0),
    ],
    ids=["same", "apart", "touching", "no area"],
)
def test_giou_of_known_pairs(a, b, expected):
    first = torch.tensor(a, dtype=torch.float32, requires_grad=True)
    value = generalized_iou(first, torch.tensor(b, dtype=torch.float32))
    assert value.item() == pytest.approx(expected)
    value.backward()
    assert first.grad.isfinite().all()

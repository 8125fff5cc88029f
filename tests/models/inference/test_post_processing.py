import pytest
import torch

from msdeform.models.inference.post_processing import post_process


def example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 5, generator=generator)
    boxes = torch.rand(2, 7, 4, generator=generator)
    return {"pred_logits": logits, "pred_boxes": boxes}, torch.tensor([[100, 200], [30, 40]])


def test_the_best_pairs_of_query_and_class_in_pixels():
    outputs, sizes = example()
    results = post_process(outputs, sizes, top_k=12)
    assert len(results) == 2
    for image, result in enumerate(results):
        height, width = sizes[image].tolist()
        pairs = [
            (outputs["pred_logits"][image, q, c].sigmoid().item(), c, outputs["pred_boxes"][image, q].tolist())
            for q in range(7)
            for c in range(5)
        ]
        pairs.sort(key=lambda pair: -pair[0])
        assert result["scores"].tolist() == pytest.approx([score for score, _, _ in pairs[:12]])
        assert result["labels"].tolist() == [label for _, label, _ in pairs[:12]]
        corners = [
            [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            for _, _, (x, y, w, h) in pairs[:12]
        ]
        torch.testing.assert_close(result["boxes"], torch.tensor(corners), atol=1e-4, rtol=1e-5)


def test_detections_answer_as_the_official_dictionaries_do():
    outputs, sizes = example()
    found = post_process(outputs, sizes, top_k=12)[1]
    assert (len(found), found.image_size, found.names) == (12, (30, 40), [])
    assert dict(found) == {"scores": found.scores, "labels": found.labels, "boxes": found.boxes} == dict(found.items())
    assert len(found.at_least(0.7)) == int((found["scores"] >= 0.7).sum()) < 12
    with pytest.raises(KeyError, match="expected scores, labels, boxes, got 'score'"):
        found["score"]


def test_fewer_pairs_than_asked_for():
    assert [len(result["scores"]) for result in post_process(*example())] == [35, 35]


def test_low_precision_becomes_at_least_float32():
    outputs, sizes = example()
    result = post_process({name: tensor.bfloat16() for name, tensor in outputs.items()}, sizes)[0]
    assert result["scores"].dtype == result["boxes"].dtype == torch.float32


def test_bad_arguments():
    outputs, sizes = example()
    with pytest.raises(ValueError, match=r"target_sizes: expected \(B=2, 2\), height and width, got \(1, 2\)"):
        post_process(outputs, sizes[:1])
    with pytest.raises(ValueError, match="top_k: expected at least 1, got 0"):
        post_process(outputs, sizes, top_k=0)

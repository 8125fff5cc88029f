"""Pictures and paddings that an exported detector is compared on."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from msdeform.models.export.check import boundaries, like_a_photograph, map_sizes, paddings, photographs
from msdeform.models.export.export import compare, export
from msdeform.models.export.form import Form
from msdeform.models.export.program import exportable
from msdeform.models.families import deformable_detr
from msdeform.models.layers.batch import shrink_mask
from msdeform.models.zoo import create_model

SIZE = (60, 90)
FOUR_LEVELS = [(8, 12), (4, 6), (2, 3), (1, 2)]


def four_levels() -> deformable_detr.DeformableDetr:
    torch.manual_seed(0)
    model = create_model("deformable_detr_tiny", num_feature_levels=4, num_classes=3, attn_backend="reference")
    assert isinstance(model, deformable_detr.DeformableDetr)
    return model.eval()


@pytest.mark.parametrize("full", [32, 60, 75, 96, 250, 333])
def test_a_mask_changes_beside_the_boundaries_and_nowhere_else(full: int) -> None:
    maps = [-(-full // stride) for stride in (8, 16, 32, 64)]
    masks = {
        real: [shrink_mask(torch.arange(full)[None, None] >= real, (1, n)) for n in maps] for real in range(full + 1)
    }
    changes = {
        real
        for real in range(1, full)
        if any(not torch.equal(one, other) for one, other in zip(masks[real], masks[real + 1], strict=True))
    }
    assert set(boundaries(full, maps)) == {real for change in changes for real in (change, change + 1)}


def test_maps_are_those_of_the_model() -> None:
    assert map_sizes(four_levels(), SIZE) == FOUR_LEVELS
    assert map_sizes(create_model("detr_tiny"), SIZE) == [(2, 3)]


def test_stripes_tell_any_two_rows_and_any_two_columns_apart() -> None:
    first, cuts = paddings(SIZE, FOUR_LEVELS)
    assert not (first[0][0] | first[0][1]).any()
    for axis, size in enumerate(SIZE):
        codes = torch.stack([padding[axis].flatten() for padding in first[1:]])
        assert len(torch.unique(codes, dim=1)[0]) == size
    assert len(cuts) == max(len(boundaries(full, [one[axis] for one in FOUR_LEVELS])) for axis, full in enumerate(SIZE))


def wrong(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """As ONNX's Resize takes them: divided by the rounded scale, in float32."""
    rows, columns = (
        (torch.arange(short).float() / (torch.tensor(float(short)) / full)).floor().long()
        for full, short in zip(mask.shape[1:], size, strict=True)
    )
    return mask[:, rows][:, :, columns]


def test_a_mask_of_other_pixels_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without padding both are the same, so that such a check lets the fault through."""
    model, picture = four_levels(), like_a_photograph(SIZE)
    program = exportable(model, Form(SIZE, dynamic=()))

    def call(*inputs: torch.Tensor) -> list[torch.Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(deformable_detr, "shrink_mask", wrong)
            return list(program(*inputs))

    whole = (torch.zeros(60, 1, dtype=torch.bool), torch.zeros(90, dtype=torch.bool))
    inputs = program.padded(picture[None], [whole])
    for one, other in zip(program(*inputs), call(*inputs), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="the exported program differs from the model by"):
        compare(program, call, [picture])
    with pytest.raises(ValueError, match="the exported program differs from the model by"):
        compare(program, call, [picture], checks=0)  # stripes find it by themselves


def test_queries_of_two_stages_are_compared_with_the_nearest() -> None:
    torch.manual_seed(0)
    slim = {"num_classes": 3, "enc_layers": 1, "dec_layers": 1, "attn_backend": "reference"}
    model = create_model("deformable_detr_mini", **slim).eval()
    program = exportable(model, Form((64, 64), dynamic=()))

    def swapped(*inputs: torch.Tensor) -> list[torch.Tensor]:
        order = torch.arange(60)
        order[[3, 4]] = order[[4, 3]]
        return [output[:, order] for output in program(*inputs)]

    def lost(*inputs: torch.Tensor) -> list[torch.Tensor]:
        return [output[:, [*range(59), 0]] for output in program(*inputs)]

    assert compare(program, swapped, [like_a_photograph((64, 64))], checks=2).difference == 0
    with pytest.raises(ValueError, match="the exported program differs"):
        compare(program, lost, [like_a_photograph((64, 64))], checks=2)


def test_a_made_picture_has_the_spectrum_of_a_photograph() -> None:
    image = like_a_photograph((128, 160))
    assert image.shape == (3, 128, 160)
    assert torch.equal(image, like_a_photograph((128, 160)))
    low, high = F.avg_pool2d(image, 8), image[:, 1:] - image[:, :-1]
    assert low.std() > 0.6 * image.std()  # white noise: an eighth
    assert high.std() < 0.8 * image.std()  # white noise: 1.4


def test_photographs_come_from_a_file_or_a_folder(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (50, 40), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [tuple(image.shape) for image in photographs(tmp_path, (64, 96))] == [(3, 64, 96)] * 2
    assert len(photographs(tmp_path / "b.png", (64, 96))) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="images: folder .* holds no image"):
        photographs(tmp_path / "empty", (64, 96))


def test_an_export_is_compared_on_the_photographs_named(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (50, 40), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    form = Form((64, 96), batch=2, dynamic=())
    found = export(create_model("detr_tiny"), tmp_path / "out.pt2", form, images=tmp_path, checks=1)
    # three without padding, seven of stripes, one boundary, and one that fills the last batch
    assert (found.compared, found.boundaries) == (3 + 7 + 1 + 1, (1, 4))

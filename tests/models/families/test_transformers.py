"""Our detectors against transformers' with the same random weights, read from the files that it writes.

Where transformers departs from the official code:

- positions of proposals are computed in float32 whatever the model's dtype (two-stage); ours are rounded alike here,
  and without that the two differ by float32's error (a test);
- the class heads of a refining detector are one, unless ``tie_word_embeddings=False``; published files have several,
  and transformers then keeps them apart (a test);
- DETR with ``auxiliary_loss`` feeds each layer the normed output of the one before, officially only the heads see it:
  here it is off, so DETR's inner layers are compared by their effect on the last;
- with a ResNet of transformers' own, the whole backbone is frozen, not stem and first stage: here nothing is;
- two-stage fails, as the official code does, on an image with fewer pixels than proposals; ours takes them all.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msdeform.models.families import deformable_transformer
from msdeform.models.weights.formats import check_fit, config_of_source, read_source, save_huggingface
from msdeform.models.zoo import build_model
from tests.models import huggingface
from tests.models.huggingface import VARIANTS, batch, dilated, randomise, shorten_resnet50, theirs

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture
def _float32_sines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds the positions of proposals as transformers does."""
    exact = deformable_transformer.sine_of_boxes
    monkeypatch.setattr(
        deformable_transformer, "sine_of_boxes", lambda boxes, width: exact(boxes.float(), width).to(boxes.dtype)
    )


float32_sines = pytest.mark.usefixtures("_float32_sines")


def ours(folder: Path) -> nn.Module:
    """The detector that a folder of transformers' describes, with its weights, in float64 and evaluation."""
    source = read_source(folder)
    assert source.format == "huggingface"
    model = build_model(config_of_source(source), attn_backend="reference").double().eval()
    check_fit(model.state_dict(), source.weights, folder)
    model.load_state_dict(source.weights)
    return model.requires_grad_(True)


def outputs_of_theirs(model: Any, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Every prediction: of each decoder layer, and of the encoder in two stages."""
    deformable = model.config.model_type == "deformable_detr"
    # it computes inner layers' predictions only with labels
    labels = [
        {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]], dtype=images.dtype)}
    ] * len(images)
    out = model(pixel_values=images, pixel_mask=(~mask).long(), labels=labels if deformable else None)
    layers = [*(out.auxiliary_outputs or []), {"logits": out.logits, "pred_boxes": out.pred_boxes}]
    found = {f"logits {i}": layer["logits"] for i, layer in enumerate(layers)}
    found |= {f"boxes {i}": layer["pred_boxes"] for i, layer in enumerate(layers)}
    if deformable and model.config.two_stage:
        found |= {"encoder's logits": out.enc_outputs_class, "encoder's boxes": out.enc_outputs_coord_logits.sigmoid()}
    return found


def outputs_of_ours(model: nn.Module, images: Tensor, mask: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    out = model((images, mask))
    layers = [*out["aux_outputs"], out][-sum(name.startswith("boxes") for name in like) :]
    found = {f"logits {i}": layer["pred_logits"] for i, layer in enumerate(layers)}
    found |= {f"boxes {i}": layer["pred_boxes"] for i, layer in enumerate(layers)}
    if "enc_outputs" in out:
        encoder = out["enc_outputs"]
        found |= {"encoder's logits": encoder["pred_logits"], "encoder's boxes": encoder["pred_boxes"]}
    return found


def difference(mine: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    assert mine.keys() == others.keys()
    return max(float((mine[name] - others[name]).abs().max()) for name in others)


def backward(outputs: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(3)
    total = torch.zeros((), dtype=torch.float64)
    for name in sorted(outputs):
        weight = torch.randn(outputs[name].shape, generator=generator, dtype=torch.float64)
        total = total + (outputs[name] * weight).sum()
    total.backward()


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each variant of the family; those with DC5 on a ResNet-50 of few blocks."""
    if dilated(request.param):
        shorten_resnet50(monkeypatch)
    return str(request.param)


@float32_sines
def test_outputs_and_gradients_agree(variant: str, tmp_path: Path) -> None:
    other = theirs(variant, auxiliary_loss=not variant.startswith("detr"))
    other.save_pretrained(tmp_path / "weights")  # type: ignore[operator]
    mine = ours(tmp_path / "weights")
    images, mask = batch()
    assert mask.any(), "one image is padded"

    expected = outputs_of_theirs(other.requires_grad_(True), images, mask)
    found = outputs_of_ours(mine, images, mask, expected)
    for name, tensor in expected.items():
        assert tensor.std() > 0.01, f"{name}: random weights should not give constants"
        torch.testing.assert_close(found[name], tensor, **CLOSE, msg=lambda text, n=name: f"{n}: {text}")

    backward(expected)
    backward(found)
    # gradients take the weights' place and the weights' way: through the file and the converter
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    other.save_pretrained(tmp_path / "gradients")  # type: ignore[operator]
    gradients = read_source(tmp_path / "gradients").weights
    for name, parameter in mine.named_parameters(remove_duplicate=False):
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-7, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}"
        )


def parts(model: nn.Module) -> Iterator[tuple[str, list[Tensor]]]:
    """Every submodule that has parameters or statistics of its own, and those."""
    for name, module in model.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own:
            yield name, own


@float32_sines
@pytest.mark.parametrize(
    "variant", [pytest.param(one, marks=[pytest.mark.slow] if dilated(one) else []) for one in VARIANTS], indirect=True
)  # DC5 has the parts of the others, in a larger backbone: ten seconds each
def test_no_part_can_be_lost_unnoticed(variant: str, tmp_path: Path) -> None:
    other = theirs(variant, auxiliary_loss=not variant.startswith("detr"))
    other.save_pretrained(tmp_path)  # type: ignore[operator]
    mine = ours(tmp_path)
    images, mask = batch(sizes=((48, 64), (64, 48)))
    unnoticed = []
    with torch.no_grad():
        expected = outputs_of_theirs(other, images, mask)
        assert difference(outputs_of_ours(mine, images, mask, expected), expected) < 1e-10
        for name, own in parts(mine):
            kept = [tensor.clone() for tensor in own]
            for tensor in own:
                tensor.zero_()
            if difference(outputs_of_ours(mine, images, mask, expected), expected) < 1e-6:
                unnoticed.append(name)
            for tensor, before in zip(own, kept, strict=True):
                tensor.copy_(before)
        assert difference(outputs_of_ours(mine, images, mask, expected), expected) < 1e-10
    assert unnoticed == []


def test_transformers_computes_positions_of_proposals_in_float32(tmp_path: Path) -> None:
    other = theirs("two-stage", auxiliary_loss=True)
    other.save_pretrained(tmp_path)  # type: ignore[operator]
    images, mask = batch()
    with torch.no_grad():
        expected = outputs_of_theirs(other, images, mask)
        found = outputs_of_ours(ours(tmp_path), images, mask, expected)
    assert 1e-10 < difference(found, expected) < 1e-5


@pytest.mark.parametrize("variant", ["multi-scale", "detr"])
def test_published_backbones_are_timms(variant: str, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    other = theirs(variant, backbone="resnet18")
    other.save_pretrained(tmp_path)  # type: ignore[operator]
    images, mask = batch(sizes=((64, 96),))
    mine = ours(tmp_path)
    with torch.no_grad():
        expected = outputs_of_theirs(other, images, mask)
        assert difference(outputs_of_ours(mine, images, mask, expected), expected) < 1e-10


@float32_sines
@pytest.mark.parametrize(
    "config",
    [
        {"family": "deformable_detr", "num_feature_levels": 2},
        {"family": "deformable_detr", "with_box_refine": True},
        {"family": "deformable_detr", "with_box_refine": True, "two_stage": True},
        {"family": "deformable_detr", "backbone": "resnet18", "num_feature_levels": 1},
        {"family": "detr", "position_embedding": "learned"},
        {"family": "detr", "backbone": "resnet18"},
    ],
    ids=lambda config: " ".join(str(value) for value in config.values()),
)
def test_transformers_reads_what_we_write(config: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    shape = {"num_classes": 6, "num_queries": 8, "enc_layers": 1, "dec_layers": 2, "hidden_dim": huggingface.WIDTH}
    shape |= {"dim_feedforward": 40, "nheads": 4, "backbone": "resnet10_tiny", "backbone_frozen": True}
    mine = build_model({**shape, **config}, attn_backend="reference").double().eval()
    randomise(mine)
    save_huggingface(tmp_path, mine.state_dict(), mine.require_config().to_dict())
    other, log = transformers.AutoModelForObjectDetection.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float64, local_files_only=True
    )
    assert not log["missing_keys"]
    assert not log["unexpected_keys"]
    assert not log["mismatched_keys"]
    images, mask = batch(sizes=((64, 96), (96, 64)))
    with torch.no_grad():
        expected = outputs_of_theirs(other.eval(), images, mask)
        assert difference(outputs_of_ours(mine, images, mask, expected), expected) < 1e-10
    if config.get("with_box_refine"):
        heads = [head.weight for head in other.class_embed]
        assert not torch.equal(heads[0], heads[1]), "heads of their own stay apart"

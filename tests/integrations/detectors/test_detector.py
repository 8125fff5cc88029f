"""Detectors of transformers as ours: the same numbers, every layer's, their images, and what cannot be one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from msdeform.integrations.detectors.detector import TransformersDetector  # noqa: E402
from msdeform.integrations.detectors.image_settings import ImageSettings  # noqa: E402
from msdeform.integrations.detectors.predictions import _own_heads  # noqa: E402
from msdeform.models.inference.image_size import ExactSize, Size  # noqa: E402
from msdeform.models.inference.images import IMAGENET_MEAN, IMAGENET_STD, normalise  # noqa: E402
from tests.integrations.architectures import inputs_of, make  # noqa: E402

# those that the installed transformers has; before it had v4, PP-DocLayout v3 of random weights answered NaN
DETECTORS = [
    name
    for name, config in {
        **{"deformable_detr": "DeformableDetr", "deformable_detr two-stage": "DeformableDetr", "rt_detr": "RTDetr"},
        **{"rt_detr_v2": "RTDetrV2", "d_fine": "DFine", "deimv2": "Deimv2", "lw_detr": "LwDetr", "rf_detr": "RfDetr"},
        **{"pp_doclayout_v2": "PPDocLayoutV2", "pp_doclayout_v3": "PPDocLayoutV4"},
    }.items()
    if hasattr(transformers, f"{config}Config")
]
IMAGENET = ImageSettings(Size(64, 128), IMAGENET_MEAN, IMAGENET_STD)


def detector(name: str, settings: ImageSettings = IMAGENET, **changes: Any) -> TransformersDetector:
    return TransformersDetector(make(name), settings, attn_backend="reference", **changes).eval()


def layers_by_heads(name: str, model: Any, pixels: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What each decoder layer predicts, by a copy of the model that is cut behind it."""
    found = []
    for count in range(1, len(model.model.decoder.layers) + 1):
        cut = make(name)
        decoder: Any = cut.get_submodule("model.decoder")
        decoder.layers = decoder.layers[:count]
        if hasattr(decoder, "eval_idx"):
            decoder.eval_idx = count - 1
        outputs = cut(**pixels)
        found.append((outputs.logits, outputs.pred_boxes))
    return found


@pytest.mark.parametrize("name", DETECTORS)
def test_every_layer_predicts_what_the_model_cut_behind_it_predicts(name: str) -> None:
    given = inputs_of(name)
    batch, valid = given["pixel_values"], given.get("pixel_mask", torch.ones_like(given["pixel_values"][:, 0]))
    with torch.no_grad():
        outputs = detector(name)((batch, valid == 0))
        expected = layers_by_heads(name, make(name), given)
    layers = [*outputs["aux_outputs"], outputs]
    assert len(layers) == len(expected) == 2
    for layer, (logits, boxes) in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer["pred_logits"], logits, rtol=0, atol=1e-9)
        torch.testing.assert_close(layer["pred_boxes"], boxes, rtol=0, atol=1e-9)
    assert not torch.equal(layers[0]["pred_logits"], layers[1]["pred_logits"])


@pytest.mark.parametrize("name", ["deformable_detr", "deformable_detr two-stage"])
def test_a_later_layers_box_is_relative_to_the_reference_before_it(name: str) -> None:
    """What is computed for the last layer, too, is what the model answers."""
    model: Any = make(name)
    with torch.no_grad():
        outputs = model(**inputs_of(name))
        hidden, refined = outputs.intermediate_hidden_states, outputs.intermediate_reference_points
        logits, boxes = _own_heads(model, hidden, outputs.init_reference_points, refined)[-1]
    torch.testing.assert_close(logits, outputs.logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(boxes, outputs.pred_boxes, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", DETECTORS)
def test_queries_are_made_of_the_pixels_that_are_told(name: str) -> None:
    one = detector(name)
    assert one.two_stage is (name not in ("deformable_detr", "lw_detr", "rf_detr"))
    pixels = inputs_of(name)["pixel_values"]
    with torch.no_grad():
        outputs, theirs = one(pixels), make(name)(pixel_values=pixels)
    assert ("proposals" in outputs) is one.two_stage
    if name == "deformable_detr two-stage":
        boxes = theirs.enc_outputs_coord_logits.gather(1, outputs["proposals"][..., None].expand(-1, -1, 4))
        torch.testing.assert_close(boxes.sigmoid(), theirs.init_reference_points, rtol=0, atol=1e-9)
    elif one.two_stage:
        logits = theirs.enc_outputs_class.gather(1, outputs["proposals"][..., None].expand(-1, -1, 5))
        torch.testing.assert_close(logits, theirs.enc_topk_logits, rtol=0, atol=1e-9)


def test_the_decoder_is_in_evaluation_mode_again() -> None:
    one = detector("d_fine")
    with torch.no_grad():
        one([inputs_of("d_fine")["pixel_values"][0]])
    assert not any(module.training for module in one.modules())


@pytest.mark.parametrize("kind", ["RTDetrImageProcessor", "DeformableDetrImageProcessor"])
@pytest.mark.parametrize("shape", [(48, 64), (70, 61)])
def test_images_are_what_the_processor_makes_of_them(kind: str, shape: tuple[int, int]) -> None:
    processor = getattr(transformers, kind)()
    image = torch.randint(0, 256, (3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
    settings = ImageSettings.of(processor)
    assert settings.size is not None
    size = settings.size.fit(*shape)
    assert theirs.shape[1:] == size
    resized = processor.resize(image[None], transformers.image_utils.SizeDict(height=size[0], width=size[1]))[0]
    mask = torch.zeros(1, *size, dtype=torch.bool)
    torch.testing.assert_close(settings.convert(normalise(resized)[None], mask)[0], theirs, rtol=0, atol=1e-5)


def test_padding_is_zero_in_the_ranges_of_others() -> None:
    settings = ImageSettings.of(transformers.RTDetrImageProcessor())
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[..., 4:] = True
    made = settings.convert(torch.zeros(1, 3, 4, 6), mask)
    assert not made[..., 4:].any()
    torch.testing.assert_close(made[0, :, 0, 0], torch.tensor(IMAGENET_MEAN))


def test_a_size_of_unknown_keys_is_refused() -> None:
    processor = transformers.RTDetrImageProcessor()
    processor.size = {"max_height": 3, "max_width": 4}
    with pytest.raises(ValueError, match="image processor: expected a size of height and width, .* got .*max_height"):
        ImageSettings.of(processor)


def test_an_exact_size_stretches() -> None:
    size = ExactSize(320, 640)
    assert size.fit(100, 900) == (320, 640) == (size.height, size.width)
    assert (size.short, size.longest) == (320, 640)
    assert size == ExactSize(320, 640) != ExactSize(640, 320)


def saved(folder: Path) -> Path:
    model: Any = make("rt_detr", torch.float32)
    with torch.no_grad():
        for head in model.model.decoder.class_embed:
            head.weight *= 30  # scores that rounding cannot bring into another order
    model.save_pretrained(folder)
    transformers.RTDetrImageProcessor(size={"height": 96, "width": 160}).save_pretrained(folder)
    return folder


def test_a_folder_gives_the_same_detections_as_transformers(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    image = torch.randint(0, 256, (3, 96, 160), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    one = TransformersDetector.from_pretrained(folder)
    found = one.predict(image, confidence=0, top_k=12)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(images=image, return_tensors="pt"))
    (expected,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(96, 160)])
    torch.testing.assert_close(found.scores, expected["scores"][:12], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.boxes, expected["boxes"][:12], rtol=0, atol=1e-2)
    assert found.labels.tolist() == expected["labels"][:12].tolist()
    assert one.categories == [f"LABEL_{label}" for label in range(5)]
    assert one.input_size == ExactSize(96, 160)


def test_what_is_no_setting_is_refused() -> None:
    model = make("rt_detr")
    with pytest.raises(TypeError, match="settings: expected ImageSettings, as .* gives, got RTDetrImageProcessor"):
        TransformersDetector(model, transformers.RTDetrImageProcessor())  # type: ignore[arg-type]
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("make_one", "sentence"),
    [
        (lambda: make("grounding_dino"), "GroundingDinoForObjectDetection needs text beside the image"),
        pytest.param(
            lambda: make("pp_doclayout_v4"),
            "PPDocLayoutV4ForObjectDetection detects corners",
            marks=pytest.mark.skipif(not hasattr(transformers, "PPDocLayoutV4Config"), reason="transformers is older"),
        ),
        (
            lambda: transformers.YolosForObjectDetection(
                transformers.YolosConfig(
                    hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=[32, 32]
                )
            ),
            r"YolosForObjectDetection has no deformable attention \(\d+ modules\); expected one such as",
        ),
    ],
)
def test_what_cannot_be_one_is_refused(make_one: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TransformersDetector(make_one(), IMAGENET)


def test_a_folder_without_a_processor_is_refused(tmp_path: Path) -> None:
    make("rt_detr", torch.float32).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match="has no preprocessor_config.json, which says .*: save the model's image processor there$",
    ):
        TransformersDetector.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="has no preprocessor_config.json that can be read, .*there \\(.+\\)$"):
        TransformersDetector.from_pretrained(tmp_path)


def test_a_number_is_the_side_of_a_square_for_a_model_of_squares(tmp_path: Path) -> None:
    one = TransformersDetector.from_pretrained(saved(tmp_path))
    seen: list[tuple[int, ...]] = []
    one.model.register_forward_pre_hook(
        lambda _, args, given: seen.append(tuple(given["pixel_values"].shape[2:])), with_kwargs=True
    )
    image = torch.zeros(3, 70, 100, dtype=torch.uint8)
    one.predict(image)
    one.predict(image, size=128)
    assert seen == [(96, 160), (128, 128)]
    with pytest.raises(ValueError, match="size: RTDetrForObjectDetection takes sides that are multiples of 32 pixels"):
        one.predict(image, size=100)


def test_what_is_no_detector_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is bert; expected a detector with deformable attention"):
        TransformersDetector.from_pretrained(tmp_path)
    make("grounding_dino").config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is grounding-dino, which needs text"):
        TransformersDetector.from_pretrained(tmp_path)


def test_what_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder of transformers or OWNER/NAME"):
        TransformersDetector.from_pretrained(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read by transformers: "):
        TransformersDetector.from_pretrained(tmp_path)

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network\nand much more")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(ConnectionError, match=r"owner/name is no local folder, and .* \(no network\)$"):
        TransformersDetector.from_pretrained("owner/name")
    monkeypatch.setattr("msdeform.integrations.detectors.detector.find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="owner/name needs the package transformers, which is not installed"):
        TransformersDetector.from_pretrained("owner/name")


def test_the_model_stays_a_module_with_its_weights() -> None:
    one = detector("lw_detr")
    assert isinstance(one.model, nn.Module)
    assert one.model.state_dict().keys() == make("lw_detr").state_dict().keys()
    assert one.replaced.replaced == 2

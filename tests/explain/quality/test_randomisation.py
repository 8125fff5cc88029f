"""Maps of other weights and of other classes: what is drawn anew, similarities that are known, Quantus's numbers."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from torch import nn

from msdeform.explain.core.maps import heat_map
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.quality.randomisation import (
    decoder_layers,
    random_logit,
    randomised,
    rank_correlation,
    smooth_mprt,
    smoothed,
)
from tests.explain.planted import planted_deformable_detr, planted_detr, random_board
from tests.explain.quality.quantus_numbers import of_quantus
from tests.models.tiny import tiny

SHAPE = (8, 10)
IMAGE = torch.randint(0, 256, (3, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_rank_correlation() -> None:
    heat = np.random.default_rng(0).random(SHAPE)
    assert rank_correlation(heat, heat**3) == pytest.approx(1)
    assert rank_correlation(heat, -heat) == pytest.approx(-1)
    assert rank_correlation(heat, np.ones(SHAPE)) == 0


@pytest.mark.parametrize("family", ["detr", "deformable", "two-stage", "demo"])
def test_the_decoder_is_randomised_and_nothing_else(family) -> None:
    model = tiny(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    again = randomised(model, seed=1)
    assert torch.initial_seed() == 5
    torch.testing.assert_close(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(5)))
    changed = {name for name, tensor in again.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("transformer.decoder.layers.") for name in changed)
    trained = dict(model.named_parameters())
    for name, parameter in again.named_parameters():  # what stays is not there twice
        assert (parameter is trained[name]) is not name.startswith("transformer.decoder.layers."), name
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_cascade_keeps_what_it_has_drawn() -> None:
    model = planted_detr()
    one, both = (randomised(model, layers=layers).transformer.decoder.layers for layers in (1, 2))
    trained = model.transformer.decoder.layers
    for name, parameter in one[1].named_parameters():
        assert torch.equal(parameter, dict(both[1].named_parameters())[name])
    assert torch.equal(one[0].linear1.weight, trained[0].linear1.weight)
    assert not torch.equal(both[0].linear1.weight, trained[0].linear1.weight)
    assert one[1].linear1.weight.dtype == torch.float64


TRANSFORMERS = ("deformable_detr", "rt_detr", "d_fine", "deimv2", "lw_detr", "rf_detr")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_decoder_of_a_model_of_transformers_is_drawn_as_its_authors_do(name) -> None:
    model: Any = _of_transformers(name)
    with torch.no_grad():  # weights that no fresh model has
        for parameter in decoder_layers(model).parameters():
            parameter.uniform_(-0.9, 0.9)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    again = randomised(model, seed=1)
    assert torch.initial_seed() == 5
    layers = {id(parameter) for parameter in decoder_layers(again).parameters()}
    for key, parameter in again.named_parameters():
        assert parameter.isfinite().all()
        assert torch.equal(parameter, before[key]) is (id(parameter) not in layers), key
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    # offsets are a fixed pattern at first, and norms are one
    transformers = pytest.importorskip("transformers")
    fresh = transformers.AutoModelForObjectDetection.from_config(model.model.config).double().state_dict()
    drawn = again.model.state_dict()
    constant = [key for key in fresh if ".decoder.layers." in key and ("sampling_offsets" in key or "norm" in key)]
    assert len(constant) > 4 * len(decoder_layers(model))
    for key in constant:
        torch.testing.assert_close(drawn[key], fresh[key], msg=key)


@pytest.mark.parametrize("name", ["deformable_detr", "deimv2"])
def test_a_copy_computes_with_its_own_weights(name) -> None:
    """Our operator stands in modules of transformers, and must not remember those that it was put into."""
    model = _of_transformers(name)
    with torch.no_grad():
        for parameter in decoder_layers(model).parameters():
            parameter.uniform_(-0.3, 0.3)
    again = randomised(model)
    same: Any = _of_transformers(name)
    same.load_state_dict(again.state_dict())
    images = [torch.randn(3, 96, 160, generator=torch.Generator().manual_seed(1)).double()]
    with torch.no_grad():
        expected, found, trained = (one(images)["pred_logits"] for one in (same, again, model))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert (found - trained).abs().max() > 1e-3


def _of_transformers(name: str) -> nn.Module:
    pytest.importorskip("transformers")
    from msdeform.integrations.detectors.detector import TransformersDetector
    from msdeform.integrations.detectors.image_settings import ImageSettings
    from msdeform.models.inference.image_size import ExactSize
    from tests.integrations.architectures import make

    height, width = {"lw_detr": (96, 96), "rf_detr": (64, 128)}.get(name, (96, 160))
    settings = ImageSettings(ExactSize(height, width), (0.0,) * 3, (1.0,) * 3)
    return TransformersDetector(make(name, torch.float64), settings, attn_backend="reference").eval()


def test_a_weight_that_nothing_draws_is_told() -> None:
    """It would stay as trained, and a map that shows it would count as one that shows nothing."""
    model = planted_detr()
    model.transformer.decoder.layers[1].linear1.extra = nn.Parameter(torch.ones(3))
    assert randomised(model, layers=0) is not model
    with pytest.raises(ValueError, match=r"got none for linear1\.extra of decoder layer 1 of Detr"):
        randomised(model, layers=1)
    assert model.transformer.decoder.layers[1].linear1.extra.eq(1).all()


def test_random_logit() -> None:
    heats = np.random.default_rng(0).random((4, *SHAPE))
    assert random_logit(lambda _: heats[0], 1, 4) == pytest.approx(1)  # a method that ignores the class
    assert abs(np.mean([random_logit(heats.__getitem__, label, 4, seed=label) for label in range(4)])) < 0.2
    asked: list[int] = []

    def similarity(a, b):
        asked.append(int(b[0, 0]))
        return float(a[0, 0])

    for label in range(3):
        asked.clear()
        for seed in range(30):
            heat = random_logit(lambda one: np.full(SHAPE, one), label, 3, similarity=similarity, seed=seed)
            assert heat == label
        assert set(asked) == {0, 1, 2} - {label}


def test_a_map_of_attention_ignores_the_class_and_relevance_does_not() -> None:
    model, board = planted_deformable_detr(), random_board(2, squares=3)
    trace = AttentionTrace(model, board.image)
    query, label = board.queries[0], board.labels[0]

    def explain(method):
        return lambda one: heat_map(trace, trace.prediction(query, one), method).numpy()

    assert random_logit(explain("raw"), label, 3) == pytest.approx(1)
    assert random_logit(explain("relevance"), label, 3) < 0.5


def test_smoothed_maps_are_means_over_noise() -> None:
    seen: list[torch.Tensor] = []

    def explain(image):
        seen.append(image)
        return image.double().mean(0).numpy()

    found = smoothed(explain, IMAGE, samples=5, magnitude=0.2, seed=3, scaled=False)
    assert len(seen) == 5
    assert torch.equal(seen[-1], IMAGE)
    np.testing.assert_allclose(found, torch.stack(seen).double().mean((0, 1)).numpy())
    each = [one.double().mean(0) for one in seen]
    found = smoothed(explain, IMAGE, samples=5, magnitude=0.2, seed=3)
    np.testing.assert_allclose(found, torch.stack([one / one.sum() for one in each]).mean(0).numpy())
    lost = iter([None, torch.ones(8, 10).numpy(), None, torch.eye(8, 10).numpy()])
    found = smoothed(lambda _: next(lost), IMAGE, samples=4)
    np.testing.assert_allclose(found, (np.ones((8, 10)) / 80 + np.eye(8, 10) / 8) / 2)
    with pytest.raises(ValueError, match="expected a map of the image without noise"):
        smoothed(lambda _: None, IMAGE, samples=2)
    middle = torch.full((3, 60, 60), 128, dtype=torch.uint8)
    middle[:, 0, :2] = torch.tensor([78, 178], dtype=torch.uint8)
    seen.clear()
    smoothed(explain, middle, samples=3, magnitude=0.2)
    deviation = (seen[0].double() - middle.double()).std()
    assert deviation == pytest.approx(0.2 * 100, rel=0.05)
    assert smoothed(explain, IMAGE, samples=1, scaled=False).tolist() == explain(IMAGE).tolist()
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        smoothed(explain, IMAGE, samples=0)


def test_noise_averaged_away_flatters_nobody() -> None:
    """Two models with the same map and noise of their own in it: less alike than their means are."""
    heat = np.random.default_rng(0).random(SHAPE)

    def explain(model, image):
        seed = int(image.long().sum()) + 1000 * model.out_features
        return heat + 0.5 * np.random.default_rng(seed).standard_normal(SHAPE)

    models = [nn.Linear(1, size) for size in (1, 2, 3)]
    one = smooth_mprt(explain, models[0], models[1:], IMAGE, samples=1)
    many = smooth_mprt(explain, models[0], models[1:], IMAGE, samples=20)
    assert len(one) == len(many) == 2
    assert max(one) < 0.7
    assert min(many) > 0.8
    assert one[0] == rank_correlation(explain(models[0], IMAGE), explain(models[1], IMAGE))


def test_relevance_of_random_layers_is_another_map() -> None:
    """Of the layers that are drawn anew, in a cascade; of none, it is the same."""
    model, board = planted_deformable_detr(), random_board(1, squares=2)

    def explain(one, image):
        trace = AttentionTrace(one, image)
        return heat_map(trace, trace.prediction(board.queries[0], board.labels[0]), "relevance").numpy()

    scrambled = [randomised(model, layers=layers) for layers in range(3)]
    none, *rest = smooth_mprt(explain, model, scrambled, board.image, samples=2)
    assert none == pytest.approx(1)
    assert max(rest) < 0.9


class Gradient(nn.Module):
    """Logits of an image, and a map of it that depends on the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3 * 8 * 10, 6), nn.Linear(6, 2)

    def forward(self, images):
        return self.last(self.first(images.flatten(1)).tanh())


def gradient(model, images, labels):
    """(B, 1, H, W)"""
    images = torch.as_tensor(np.asarray(images), dtype=torch.float64).requires_grad_()
    score = model.double()(images)[torch.arange(len(images)), torch.as_tensor(labels)]
    (slope,) = torch.autograd.grad(score.sum(), images)
    return slope.abs().sum(1, keepdim=True).numpy()


@pytest.mark.filterwarnings("ignore")
def test_random_logit_is_that_of_quantus() -> None:
    model, image = Gradient().double().eval(), IMAGE.double() / 255

    def ask(quantus):
        return quantus.RandomLogit(
            similarity_func=quantus.functions.similarity_func.correlation_spearman,
            **{"num_classes": 2, "normalise": False, "abs": False, "disable_warnings": True},
        )(
            model=model,
            x_batch=image.numpy()[None],
            y_batch=np.array([1]),
            a_batch=gradient(model, image[None], [1]),
            explain_func=lambda model, inputs, targets, **_: gradient(model, inputs, targets),
            channel_first=True,
            device="cpu",
        )

    ours = random_logit(lambda label: gradient(model, image[None], [label])[0, 0], 1, 2)
    assert ours == pytest.approx(float(of_quantus("random logit", ask).squeeze()), abs=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_smooth_mprt_is_that_of_quantus(monkeypatch) -> None:
    """With the random weights that it draws, and the same noise for every one."""
    model, samples, image = Gradient().eval(), 4, IMAGE.float() / 255 * 0.2 + 0.4  # noise does not leave the range
    generator = np.random.default_rng(9)
    noise = [generator.standard_normal(tuple(image.shape)) for _ in range(samples - 1)]

    def explain(one, inputs):
        """As it does: it takes no notice of explain_func."""
        return Saliency(one).attribute(inputs[None].float().requires_grad_(), target=1).mean(1)[0].numpy()

    other, scrambled = copy.deepcopy(model), []
    for layer in (other.last, other.first):
        torch.manual_seed(43)
        layer.reset_parameters()
        scrambled.append(copy.deepcopy(other))
    ours = smooth_mprt(explain, model, scrambled, image, samples=samples, seed=9, scaled=False)

    def ask(quantus):
        calls = iter(range(999))
        monkeypatch.setattr(np.random, "randn", lambda *shape: noise[next(calls) % (samples - 1)].reshape(shape))
        settings = {"layer_order": "top_down", "normalise": False, "abs": False, "disable_warnings": True}
        measure = quantus.SmoothMPRT(seed=42, nr_samples=samples, noise_magnitude=0.1, **settings)
        given = {"model": model, "x_batch": image.numpy()[None], "y_batch": np.array([1])}
        how = {"explain_func": quantus.explain, "explain_func_kwargs": {"method": "Saliency"}}
        found = measure(**given, **how, channel_first=True, device="cpu")
        return [values[0] for name, values in found.items() if name != "original"]

    np.testing.assert_allclose(ours, of_quantus("smooth MPRT", ask), atol=1e-6)


def test_wrong_arguments_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="layers: expected 0 to 2, got 3"):
        randomised(planted_detr(), layers=3)
    with pytest.raises(ValueError, match="expected a DETR, which has a decoder to explain, got FasterRcnn"):
        decoder_layers(tiny("faster r-cnn"))
    with pytest.raises(ValueError, match="label: expected one of at least 2 classes, got class 0 of 1"):
        random_logit(lambda _: np.ones(SHAPE), 0, 1)

"""How much maps change under noise: maps whose changes are known, and Quantus's numbers."""

import numpy as np
import pytest
import torch

from msdeform.explain.core.maps import heat_map
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.quality.measures import noised
from msdeform.explain.quality.robustness import Stability, stability
from tests.explain.planted import planted_deformable_detr, random_board
from tests.explain.quality.quantus_numbers import of_quantus

IMAGE = torch.randint(20, 236, (3, 9, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def grey(image):
    return image.double().mean(0).numpy() / 255


def explain(image):
    """A map that follows the image, and logits that do."""
    heat = grey(image) ** 3
    return heat, np.array([heat.sum(), heat[0, 0] - heat[3, 3], 1.0])


def noisy_images(image, samples, radius, seed):
    generator = np.random.default_rng(seed)
    return [noised(image, generator.uniform(-radius, radius, tuple(image.shape))) for _ in range(samples)]


def test_a_map_that_stays_is_perfectly_stable() -> None:
    found = stability(lambda image: (np.arange(108.0).reshape(9, 12), grey(image)[0]), IMAGE)
    assert found == Stability(0, 0, 0, 0, 0)


def test_the_change_of_a_map_that_doubles() -> None:
    """The map of the image is 1, that of a noisy one 2, and its logits move by 0.5."""

    def doubled(image):
        same = torch.equal(image, IMAGE)
        return np.full((9, 12), 2.0 - same), np.array([0.0, 3.0 if same else 3.5])

    found = stability(doubled, IMAGE, samples=2, seed=3, scaled=False)
    assert found.maximum == found.average == pytest.approx(1)
    assert found.output == pytest.approx(np.sqrt(108) / 0.5)
    changes = [
        np.linalg.norm((noisy.double() - IMAGE.double()) / IMAGE.double()) for noisy in noisy_images(IMAGE, 2, 4, 3)
    ]
    assert found.input == pytest.approx(np.sqrt(108) / min(changes))
    # its scale is the method's own
    assert stability(doubled, IMAGE).maximum == pytest.approx(0, abs=1e-12)


def test_the_largest_is_not_the_mean() -> None:
    calls = iter(range(9))
    heats = [1.0, 1.1, 1.4]

    def growing(_):
        return np.full((9, 12), heats[next(calls)]), np.zeros(2)

    found = stability(growing, IMAGE, samples=2, scaled=False)
    assert found.maximum == pytest.approx(0.4)
    assert found.average == pytest.approx(0.25)


def test_noise_has_the_radius_and_stays_in_range() -> None:
    seen = []

    def watch(image):
        seen.append(image)
        return np.ones((9, 12)), np.zeros(1)

    for image in (IMAGE, torch.full_like(IMAGE, 254), torch.zeros_like(IMAGE)):
        seen.clear()
        stability(watch, image, samples=20, radius=3.0)
        assert all(one.dtype == torch.uint8 for one in seen)
        difference = torch.stack(seen).int() - image.int()
        assert difference.min() == (0 if image.max() == 0 else -3)
        assert difference.max() == (1 if image.min() == 254 else 3)
    seen.clear()
    stability(watch, IMAGE.float() / 255, samples=20, radius=3.0)
    difference = 255 * (torch.stack(seen) - IMAGE.float() / 255)
    assert 2.9 < difference.max() < 3.01


def test_noisy_images_without_the_detection_are_left_out_and_counted() -> None:
    calls = iter(range(99))

    def found_every_other_time(image):
        return explain(image) if next(calls) % 2 == 0 else None

    half = stability(found_every_other_time, IMAGE, samples=5)
    assert half.lost == 3
    assert 0 < half.average < 1
    never = stability(lambda image: explain(image) if torch.equal(image, IMAGE) else None, IMAGE, samples=4)
    assert never.lost == 4
    assert np.isnan(never[:4]).all()


def test_what_is_divided_by_zero() -> None:
    """A pixel where the map is zero counts as the least there is, and an image that stays as one that nearly does."""
    first = np.zeros((9, 12))
    first[4, 4] = 2.0

    def explain(image):
        heat = first.copy()
        heat[0, 0] = 0.0 if torch.equal(image, IMAGE) else 0.1
        return heat, np.zeros(2)

    found = stability(explain, IMAGE, samples=1, scaled=False, least_heat=0.05)
    assert found.output == pytest.approx(1 / 1e-6)  # a change of 0.1, of 0.05 * 2; of logits that stay
    dark = stability(lambda image: explain(image + 1), torch.zeros_like(IMAGE), samples=1, scaled=False)
    assert np.isfinite(dark).all()


def test_the_planted_detector_is_stable() -> None:
    """Its attention follows the evidence alone: four grey levels of 255 move it by about as much as the image."""
    model, board = planted_deformable_detr(), random_board(1, squares=2)
    query, label = board.queries[0], board.labels[0]

    def explain(image):
        trace = AttentionTrace(model, image)
        prediction = trace.prediction(query, label)
        lost = prediction.score < 0.5
        logits = trace.outputs["pred_logits"][0, query].detach().numpy()
        return None if lost else (heat_map(trace, prediction, "relevance").numpy(), logits)

    found = stability(explain, board.image, samples=3)
    assert found.lost == 0
    assert 0 < found.average <= found.maximum < 0.02
    wide = stability(explain, board.image, samples=3, radius=40)
    assert wide.lost == 3 or wide.maximum > found.maximum


@pytest.mark.filterwarnings("ignore")
def test_numbers_are_those_of_quantus() -> None:
    samples, radius, seed = 4, 4.0, 7
    noisy = [image.double().numpy()[None] for image in noisy_images(IMAGE, samples, radius, seed)]
    found = stability(
        explain, IMAGE, samples=samples, radius=radius, seed=seed, scaled=False, least_heat=1e-9, least_grey=1e-6
    )

    class Logits(torch.nn.Module):
        def forward(self, images):
            return torch.stack([torch.from_numpy(explain(image)[1]) for image in images])

    def explained(model, inputs, targets, **_):
        return np.stack([explain(torch.as_tensor(image))[0][None] for image in inputs])

    def number(metric):
        waiting = iter(noisy)
        measure = metric(
            nr_samples=samples,
            perturb_func=lambda arr, **_: next(waiting).reshape(arr.shape),
            normalise=False,
            abs=False,
            return_aggregate=False,
            disable_warnings=True,
            return_nan_when_prediction_changes=False,
        )
        image = IMAGE.double().numpy()[None]
        scores = measure(
            model=Logits().eval(),
            x_batch=image,
            y_batch=np.array([0]),
            a_batch=explained(None, image, None),
            explain_func=explained,
            device="cpu",
            channel_first=True,
        )
        return float(np.asarray(scores).squeeze())

    names = ("MaxSensitivity", "AvgSensitivity", "RelativeInputStability", "RelativeOutputStability")
    theirs = of_quantus("stability", lambda quantus: [number(getattr(quantus, name)) for name in names])
    np.testing.assert_allclose([found.maximum, found.average, found.input, found.output], theirs, rtol=1e-6)


def test_wrong_arguments_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        stability(explain, IMAGE, samples=0)
    with pytest.raises(ValueError, match="radius: expected grey levels above 0, got -1"):
        stability(explain, IMAGE, radius=-1)
    with pytest.raises(ValueError, match="explain: expected a map of the image without noise, got None"):
        stability(lambda _: None, IMAGE)

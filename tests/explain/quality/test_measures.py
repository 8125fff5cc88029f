"""The measures on maps and scores whose answers are known."""

import itertools

import numpy as np
import pytest
import torch

from msdeform.explain.quality.measures import (
    box_map,
    checked,
    compactness,
    detection_score,
    energy,
    energy_elsewhere,
    filled,
    inside,
    perturbation_curve,
    pointing,
    rank_accuracy,
)
from tests.explain.quality.quantus_numbers import of_quantus

SHAPE = (8, 10)
BOX = (2, 1, 5, 4)  # 3 x 3 pixels


def spot(row, column, value=1.0):
    heat = np.zeros(SHAPE)
    heat[row, column] = value
    return heat


def brightness(images):
    return images.double().mean((1, 2, 3)) / 255


def white(share):
    """An image whose first pixels, row by row, are white."""
    image = torch.zeros(3, *SHAPE, dtype=torch.uint8)
    image.view(3, -1)[:, : round(share * 80)] = 255
    return image


@pytest.mark.parametrize(("kind", "auc"), [("deletion", 0.125), ("insertion", 0.375)])
@pytest.mark.parametrize(("steps", "batch_size"), [(4, 8), (12, 8), (12, 3), (8, 1)])
def test_the_curve_of_a_score_that_is_known(kind, auc, steps, batch_size) -> None:
    """Half of the image is white, and the map says so: the mean falls to zero with half of the pixels, or rises."""
    image = white(0.5)
    heat = image[0].double().numpy()
    curve = perturbation_curve(
        brightness, image, heat, kind, baseline=torch.zeros_like(image), steps=steps, batch_size=batch_size
    )
    np.testing.assert_allclose(curve.shares, np.linspace(0, 1, steps + 1) ** 2, atol=0.5 / 80)
    gone = np.minimum(curve.shares, 0.5)
    np.testing.assert_allclose(curve.scores, 0.5 - gone if kind == "deletion" else gone)
    # the corner at a half is cut, by less with more steps
    assert curve.auc == pytest.approx(auc, abs=0.3 / steps**2)


def test_the_area_is_over_shares_and_not_over_steps() -> None:
    image = white(1.0)
    curve = perturbation_curve(brightness, image, np.ones(SHAPE), "deletion", baseline=torch.zeros_like(image), steps=3)
    assert curve.auc == pytest.approx(0.5)


def test_a_wrong_map_is_worse_by_deletion_and_insertion() -> None:
    image = white(0.25)
    right = image[0].double().numpy()
    aucs = {}
    for kind, heat in itertools.product(("deletion", "insertion"), (right, 255 - right, np.zeros(SHAPE))):
        curve = perturbation_curve(brightness, image, heat, kind, baseline=torch.zeros_like(image))
        aucs.setdefault(kind, []).append(curve.auc)
    assert aucs["deletion"][0] < aucs["deletion"][2] < aucs["deletion"][1]
    assert aucs["insertion"][0] > aucs["insertion"][2] > aucs["insertion"][1]


def test_pixels_equally_hot_go_at_random_and_not_row_by_row() -> None:
    image, fill = white(0.5), torch.zeros(3, *SHAPE, dtype=torch.uint8)
    curves = [
        perturbation_curve(brightness, image, np.ones(SHAPE), "deletion", baseline=fill, seed=seed).scores
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(curves[0], curves[1])
    assert (curves[0] != curves[2]).any()
    assert 0.15 < curves[0][8] < 0.4  # of 35 pixels; row by row it would be 0.06


def test_the_score_follows_box_and_class() -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 4, 2], [6, 6, 8, 8]]], dtype=torch.float64)
    probabilities = torch.tensor([[[0.1, 0.5], [0.8, 0.2], [1.0, 1.0]]], dtype=torch.float64)
    assert detection_score(probabilities, boxes, (0, 0, 4, 4), 0).tolist() == pytest.approx([0.4])  # half of 0.8
    assert detection_score(probabilities, boxes, (0, 0, 4, 4), 1).tolist() == pytest.approx([0.5])
    assert detection_score(probabilities, boxes, (20, 20, 24, 24), 1).tolist() == [0.0]


def test_pointing_and_energy() -> None:
    region = inside(BOX, SHAPE)
    assert region.sum() == 9
    assert pointing(spot(1, 2), region) == 1
    assert pointing(spot(0, 2), region) == 0
    assert pointing(spot(1, 2) + spot(0, 0), region) == 0.5  # of two hottest, one
    assert energy(spot(1, 2, 3.0) + spot(0, 0), region) == 0.75
    # what is in both boxes is the object's own
    assert energy_elsewhere(spot(1, 2) + spot(1, 6, 3.0), BOX, [(4, 1, 8, 4), (2, 1, 4, 3)]) == 0.75
    assert energy_elsewhere(spot(1, 2), BOX, []) == 0


def test_rank_accuracy() -> None:
    region = inside(BOX, SHAPE)
    assert rank_accuracy(region + 0.0, region) == 1
    assert rank_accuracy(1.0 - region, region) == 0
    heat = np.zeros(SHAPE)
    heat[region] = np.arange(9) + 1.0
    heat[0, :4] = 5.5  # hotter than five pixels of the region
    assert rank_accuracy(heat, region) == pytest.approx(5 / 9)
    # four hottest, two of them in the region; the other five from 76 equally hot ones, of which seven are
    some = spot(0, 0) + spot(0, 1) + spot(1, 2) + spot(1, 3)
    assert rank_accuracy(some, region) == pytest.approx((2 + 5 * 7 / 76) / 9)
    at_random = [rank_accuracy(np.random.default_rng(seed).random(SHAPE), region) for seed in range(400)]
    assert np.mean(at_random) == pytest.approx(9 / 80, abs=0.02)
    assert np.isnan(rank_accuracy(heat, np.zeros(SHAPE, dtype=bool)))
    assert rank_accuracy(heat, np.ones(SHAPE, dtype=bool)) == 1


@pytest.mark.filterwarnings("ignore")
def test_what_is_in_the_region_is_as_in_quantus() -> None:
    heats = np.random.default_rng(3).random((6, 1, *SHAPE))
    regions = np.random.default_rng(4).random((6, 1, *SHAPE)) < 0.3
    for ours, metric in (
        (rank_accuracy, "RelevanceRankAccuracy"),
        (energy, "RelevanceMassAccuracy"),
        (pointing, "PointingGame"),
    ):

        def ask(quantus, metric=metric):
            settings = {"normalise": False, "abs": False, "disable_warnings": True, "return_aggregate": False}
            return getattr(quantus, metric)(**settings)(
                model=torch.nn.Identity().eval(),
                x_batch=heats,
                y_batch=np.zeros(6, dtype=int),
                a_batch=heats,
                s_batch=regions,
                channel_first=True,
                device="cpu",
            )

        found = [ours(heat[0], region[0]) for heat, region in zip(heats, regions, strict=True)]
        np.testing.assert_allclose(found, of_quantus(metric, ask), atol=1e-6)


def test_a_map_of_nothing_is_a_flat_one() -> None:
    region = inside(BOX, SHAPE)
    for heat in (np.zeros(SHAPE), np.full(SHAPE, 5.0)):
        assert pointing(heat, region) == pytest.approx(9 / 80)
        assert energy(heat, region) == pytest.approx(9 / 80)
        assert rank_accuracy(heat, region) == pytest.approx(9 / 80)
        assert compactness(heat) == pytest.approx(0.5)


def test_compactness() -> None:
    assert compactness(spot(3, 3)) == pytest.approx(0.5 / 80)
    assert compactness(spot(3, 3) + spot(0, 0)) == pytest.approx(1 / 80)
    assert compactness(spot(3, 3, 3.0) + spot(0, 0)) == pytest.approx(2 / 3 / 80)


def test_a_scale_changes_no_measure() -> None:
    heat, region = np.random.default_rng(0).random(SHAPE), inside(BOX, SHAPE)
    for measure in (
        lambda h: pointing(h, region),
        lambda h: energy(h, region),
        lambda h: rank_accuracy(h, region),
        compactness,
    ):
        assert measure(1e-9 * heat) == pytest.approx(measure(heat))


def test_the_box_baseline_is_in_the_box() -> None:
    heat = box_map(SHAPE, BOX)
    assert energy(heat, inside(BOX, SHAPE)) == pointing(heat, inside(BOX, SHAPE)) == 1
    assert box_map(SHAPE, (2.6, 3.6, 2.8, 3.8))[3, 2] > 0  # no centre of a pixel in it
    assert box_map(SHAPE, (-9, -9, -8, -8)).sum() > 0
    assert (heat == heat.max()).sum() == 1


def test_the_centre_baseline_is_hottest_in_the_middle() -> None:
    heat = box_map(SHAPE, (0, 0, SHAPE[1], SHAPE[0]))
    assert set(zip(*np.nonzero(np.isclose(heat, heat.max())), strict=True)) == set(itertools.product((3, 4), (4, 5)))


def test_what_stands_in_for_pixels() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[0, :, :30] = 200
    mean = filled(image, "mean")
    assert mean.shape == image.shape
    assert mean.flatten(1).unique(dim=1).tolist() == [[100], [0], [0]]
    blurred = filled(image)
    assert blurred[1:].eq(0).all()
    row = blurred[0, 20].int()
    assert row.diff().max() <= 0  # no new edge
    assert row.diff().min() > -25
    assert row[0] > 190
    assert row[-1] < 10
    with pytest.raises(ValueError, match="fill: expected blur or mean, got 'black'"):
        filled(image, "black")
    assert filled(image[:, :1, :1]).shape == (3, 1, 1)


def test_wrong_arguments_get_a_sentence() -> None:
    image = white(0.5)
    with pytest.raises(ValueError, match=r"heat: expected \(8, 10\), got \(10, 8\)"):
        perturbation_curve(brightness, image, np.ones((10, 8)), "deletion", baseline=image)
    with pytest.raises(ValueError, match="baseline: expected"):
        perturbation_curve(brightness, image, np.ones(SHAPE), "deletion", baseline=image[:, 1:])
    for heat in (np.full(SHAPE, np.nan), -np.ones(SHAPE)):
        with pytest.raises(ValueError, match="heat: expected finite numbers of at least 0"):
            checked(heat)

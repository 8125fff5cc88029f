"""Pixels filled in from their neighbours, and ROAD: images whose filling is known, and Quantus's numbers."""

import numpy as np
import pytest
import torch

from msdeform.explain.core.maps import heat_map
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.quality.road import SHARES, impute, road
from msdeform.models.inference.images import normalise
from tests.explain.planted import GAIN, PLANTED, THRESHOLD, random_board
from tests.explain.quality.patches import shuffled
from tests.explain.quality.quantus_numbers import of_quantus

SHAPE = (12, 15)


def brightness(images):
    return images.double().mean((1, 2, 3)) / 255


def block(top, bottom, left, right):
    region = np.zeros(SHAPE, dtype=bool)
    region[top:bottom, left:right] = True
    return region


def test_a_slope_is_filled_in_as_it_was() -> None:
    """The mean of its neighbours is a pixel's own value on a slope."""
    slope = np.stack([np.add.outer(3.0 * np.arange(12), 2.0 * np.arange(15)), np.full(SHAPE, 7.0)])
    region = block(2, 9, 3, 14) & (np.random.default_rng(0).random(SHAPE) < 0.8)
    np.testing.assert_allclose(impute(slope, region), slope, atol=1e-9)
    assert impute(slope, np.zeros(SHAPE, dtype=bool)).tolist() == slope.tolist()


def test_a_single_pixel_by_hand() -> None:
    image = np.zeros((1, 3, 3))
    image[0, 0] = [12, 6, 0]  # 12 / 12 + 6 / 6 of the middle pixel's eight neighbours
    middle = np.zeros((3, 3), dtype=bool)
    middle[1, 1] = True
    assert impute(image, middle)[0, 1, 1] == pytest.approx(2)
    corner = np.zeros((3, 3), dtype=bool)
    corner[0, 0] = True  # of three neighbours, two of 1 / 6 and one of 1 / 12
    assert impute(image, corner)[0, 0, 0] == pytest.approx(6 / 6 / (5 / 12))


def test_noise_is_on_what_is_filled_in_alone() -> None:
    image, region = np.full((3, *SHAPE), 100.0), block(1, 11, 1, 14)
    noisy = impute(image, region, noise=5.0)
    assert (noisy[:, ~region] == 100).all()
    assert noisy[:, region].std() == pytest.approx(5, rel=0.1)
    assert noisy.mean() == pytest.approx(100, abs=1)


def test_noise_is_a_share_of_the_whole_range() -> None:
    seen: list[torch.Tensor] = []

    def score(images):
        seen.extend(images)
        return brightness(images)

    road(score, torch.full((3, 40, 40), 128, dtype=torch.uint8), np.ones((40, 40)), shares=(0, 0.5), noise=0.04)
    changed = seen[1] != 128
    assert changed.float().mean() == pytest.approx(0.5, abs=0.03)  # but for noise that is rounded to none
    assert seen[1][changed].double().std() == pytest.approx(0.04 * 255, rel=0.05)


@pytest.mark.parametrize(("order", "scores"), [("hottest", (0.25, 0.1875, 0, 0)), ("coldest", (0.25, 0.25, 0.25, 1))])
def test_the_curve_of_a_score_that_is_known(order, scores) -> None:
    """A quarter of the image is white, at its left end: filled in from the right it is black, and the rest from it
    is white."""
    image = torch.zeros(3, 8, 40, dtype=torch.uint8)
    image[:, :, :10] = 255
    heat = np.zeros((8, 40))
    # the white column at the border first, and the black one at the end last: five columns between white and black
    # are filled in from both, half as bright
    heat[:, :10] = 50 + np.arange(10)
    heat[:, 10:] = np.arange(30)[::-1]
    curve = road(brightness, image, heat, shares=(0, 0.125, 0.5, 0.75), order=order, noise=0)
    np.testing.assert_allclose(curve.shares, (0, 0.125, 0.5, 0.75))
    np.testing.assert_allclose(curve.scores, scores, atol=0.002)


def test_noise_and_ties_are_those_of_the_seed() -> None:
    image = torch.randint(0, 256, (3, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    curves = [
        road(brightness, image, np.ones(SHAPE), seed=seed, batch_size=size) for seed, size in ((0, 8), (0, 3), (1, 8))
    ]
    np.testing.assert_array_equal(curves[0].scores, curves[1].scores)
    assert (curves[0].scores[1:] != curves[2].scores[1:]).any()
    assert curves[0].scores[0] == brightness(image[None])
    distinct = np.random.default_rng(0).random(SHAPE)
    assert (np.diff([road(brightness, image, distinct, seed=seed).scores[1:] for seed in (0, 1)], axis=0) != 0).any()
    assert len(curves[0].shares) == len(SHARES)
    flat = type(curves[0])(np.array([0.0, 0.3, 0.9]), np.array([0.5, 0.5, 0.5]))
    assert flat.auc == pytest.approx(0.5)


@pytest.mark.parametrize("family", PLANTED)
def test_the_map_of_a_planted_detector_beats_its_permutations(family) -> None:
    model, board = PLANTED[family](), random_board(4, squares=2)
    query, label = board.queries[0], board.labels[0]

    @torch.no_grad()
    def score(images):
        logits = model([normalise(image).double() for image in images])["pred_logits"][:, query, label]
        return logits / GAIN + THRESHOLD  # the share of the colour around the query

    trace = AttentionTrace(model, board.image)
    heat = heat_map(trace, trace.prediction(query, label), "relevance").numpy()
    others = [shuffled(heat, seed) for seed in range(4)]
    shares = (0, 0.05, 0.15, 0.3)
    first = [road(score, board.image, one, shares=shares).scores.mean() for one in (heat, *others)]
    assert first[0] < min(first[1:])
    last = [road(score, board.image, one, shares=shares, order="coldest").scores.mean() for one in (heat, *others)]
    assert last[0] > max(last[1:])
    # the square is gone with its hottest pixels, and stays with the coldest
    assert first[0] < 0.5
    assert last[0] > 0.95


@pytest.mark.filterwarnings("ignore")
def test_what_is_filled_in_is_as_in_quantus() -> None:
    image = np.random.default_rng(0).random((3, *SHAPE))
    for seed, share in ((1, 0.05), (2, 0.5), (3, 0.97)):
        region = np.random.default_rng(seed).random(SHAPE) < share

        def ask(_, region=region, seed=seed):
            from quantus.functions.perturb_func import noisy_linear_imputation

            found = []
            for noise in (0, 0.1):
                np.random.seed(seed)  # noqa: NPY002  (the generator that quantus draws from)
                found.append(noisy_linear_imputation(image, np.nonzero(region.ravel())[0], noise=noise)[:, region])
            return np.stack(found)[..., :8]

        theirs = of_quantus(f"imputed {share}", ask)
        for noise, values in zip((0, 0.1), theirs, strict=True):
            same = np.random.RandomState(seed)
            ours = impute(image, region, noise=noise, generator=same)
            np.testing.assert_allclose(ours[:, region][:, :8], values, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_road_is_that_of_quantus() -> None:
    """Theirs is the share of images whose class stays: of a score that is 1 while it does, the same."""
    generator = np.random.default_rng(5)
    images = torch.from_numpy(generator.integers(0, 256, (5, 1, 16, 20), dtype=np.uint8))
    heats = generator.random((5, 16, 20))
    weights = torch.from_numpy(generator.standard_normal((2, 16, 20)))

    class Model(torch.nn.Module):
        def forward(self, batch):
            return (batch.double()[:, 0, None] * weights).sum((2, 3))

    model, percentages = Model().eval(), list(range(5, 100, 10))
    labels = model(images).argmax(1)

    def ask(quantus):
        settings = {"noise": 0.0, "normalise": False, "abs": False, "disable_warnings": True}
        found = quantus.ROAD(percentages=percentages, return_aggregate=False, **settings)(
            model=model,
            x_batch=images.double().numpy(),
            y_batch=labels.numpy(),
            a_batch=heats[:, None],
            channel_first=True,
            device="cpu",
        )
        return list(found.values())

    shares = [percentage / 100 for percentage in percentages]
    ours = np.mean(
        [
            road(
                lambda x, label=label: (model(x).argmax(1) == label).double(), image, heat, shares=shares, noise=0
            ).scores
            for image, heat, label in zip(images, heats, labels, strict=True)
        ],
        0,
    )
    assert 0 < ours.min() < ours.max() < 1.01
    np.testing.assert_allclose(ours, of_quantus("road", ask), atol=1e-6)


def test_wrong_arguments_get_a_sentence() -> None:
    image = torch.zeros(3, *SHAPE, dtype=torch.uint8)
    with pytest.raises(ValueError, match="order: expected hottest or coldest, got 'morf'"):
        road(brightness, image, np.ones(SHAPE), order="morf")
    for shares in ((0.5,), (0.1, 1.0), (0.2, 0.1), (-0.1, 0.5)):
        with pytest.raises(ValueError, match="shares: expected at least two, rising from 0 to less than 1"):
            road(brightness, image, np.ones(SHAPE), shares=shares)
    with pytest.raises(ValueError, match="removed: expected a pixel that is left"):
        impute(np.zeros((3, 4, 4)), np.ones((4, 4), dtype=bool))
    with pytest.raises(ValueError, match=r"removed: expected \(4, 4\) like image, got \(4, 5\)"):
        impute(np.zeros((3, 4, 4)), np.ones((4, 5), dtype=bool))

"""Sensitivity-n and infidelity: scores that are sums over pixels, maps that say nothing, and Quantus's numbers."""

import numpy as np
import pytest
import torch

from msdeform.explain.core.maps import heat_map
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.quality.faithfulness import (
    Removals,
    infidelity,
    random_squares,
    random_subsets,
    remove,
    sensitivity_n,
    squares,
)
from msdeform.models.inference.images import normalise
from tests.explain.planted import PLANTED, random_board
from tests.explain.quality.patches import shuffled
from tests.explain.quality.quantus_numbers import of_quantus

SHAPE = (24, 32)
GRID = 8
GENERATOR = np.random.default_rng(0)
WEIGHTS = GENERATOR.random((3, *SHAPE))
IMAGE = torch.from_numpy(GENERATOR.integers(0, 256, (3, *SHAPE), dtype=np.uint8))
BLACK = torch.zeros_like(IMAGE)
PATCHES = squares(SHAPE, GRID)


def linear(images):
    return (torch.from_numpy(WEIGHTS) * images.double() / 255).sum((1, 2, 3))


def effects(image):
    """What each pixel adds to the linear score, (H, W)."""
    return (WEIGHTS * image.double().numpy() / 255).sum(0)


@pytest.fixture(scope="module")
def subsets():
    return remove(linear, IMAGE, PATCHES, random_subsets(GRID**2, (2, 8, 30), 40), baseline=BLACK)


@pytest.fixture(scope="module")
def squared():
    return remove(linear, IMAGE, PATCHES, random_squares(GRID, 60), baseline=BLACK, batch_size=7)


def test_the_map_of_a_linear_score_is_perfectly_faithful(subsets, squared) -> None:
    heat = effects(IMAGE)
    assert sensitivity_n(subsets, heat) == pytest.approx(1)
    for removals in (subsets, squared):
        assert infidelity(removals, heat) == pytest.approx(0, abs=1e-12)
        assert infidelity(removals, heat, scaled=False) == pytest.approx(0, abs=1e-12)


def test_a_scale_changes_neither(subsets, squared) -> None:
    heat = GENERATOR.random(SHAPE)
    assert sensitivity_n(subsets, 1e-6 * heat) == pytest.approx(sensitivity_n(subsets, heat))
    assert infidelity(squared, 1e-6 * heat) == pytest.approx(infidelity(squared, heat))
    assert infidelity(squared, 1e-6 * heat, scaled=False) != pytest.approx(infidelity(squared, heat, scaled=False))


def test_the_opposite_of_what_is_true(subsets, squared) -> None:
    heat = effects(IMAGE)
    opposite = heat.max() - heat
    assert sensitivity_n(subsets, opposite) == pytest.approx(-1)
    rising = Removals(squared.patches, squared.removed, -squared.drops)
    assert infidelity(rising, heat) == 1  # no factor of at least 0 is better than nothing
    assert infidelity(squared, heat) < infidelity(squared, opposite) < 1


def test_maps_of_nothing_and_of_chance(subsets) -> None:
    # patches of the same size
    assert sensitivity_n(subsets, np.ones(SHAPE)) == sensitivity_n(subsets, np.zeros(SHAPE)) == 0
    at_random = [sensitivity_n(subsets, np.random.default_rng(seed).random(SHAPE)) for seed in range(40)]
    assert abs(np.mean(at_random)) < 0.05
    assert np.std(at_random) < 0.2
    still = Removals(subsets.patches, subsets.removed, np.zeros(len(subsets.drops)))
    assert np.isnan(sensitivity_n(still, effects(IMAGE)))
    assert np.isnan(infidelity(still, effects(IMAGE)))


def test_subsets_of_different_sizes_are_not_compared() -> None:
    """Among sets of one size the map knows nothing; over all, larger sets lose more."""
    patches, removed = (
        squares((2, 2), 2),
        np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1]], dtype=bool),
    )
    heat = np.array([[1.0, 2.0], [3.0, 5.0]])
    assert sensitivity_n(Removals(patches, removed, np.array([0.2, 0.1, 0.9, 0.8])), heat) == pytest.approx(-1)
    assert sensitivity_n(Removals(patches, removed, np.array([0.1, 0.2, 0.9, 0.8])), heat) == pytest.approx(0)


def test_infidelity_by_hand() -> None:
    """Sums 1 and 2 of drops 2 and 1: the best factor is 4 / 5, errors are 1.2 and -0.6, of squares that sum to 5."""
    removals = Removals(squares((1, 2), 1) + np.arange(2), np.eye(2, dtype=bool), np.array([2.0, 1.0]))
    heat = np.array([[1.0, 2.0]])
    assert infidelity(removals, heat, scaled=False) == pytest.approx((1 + 1) / 2)
    assert infidelity(removals, heat) == pytest.approx((1.2**2 + 0.6**2) / 5)


def test_what_is_removed() -> None:
    assert squares((4, 6), 2).tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 3, 3, 3]] * 2
    chosen = random_subsets(50, (3, 20), 4, seed=1)
    assert chosen.sum(1).tolist() == [3] * 4 + [20] * 4
    assert len({tuple(row) for row in chosen.tolist()}) == 8
    assert np.array_equal(chosen, random_subsets(50, (3, 20), 4, seed=1))
    sides = set()
    for one in random_squares(10, 200).reshape(-1, 10, 10):
        down, across = one.any(1), one.any(0)
        assert one.sum() == down.sum() ** 2 == across.sum() ** 2
        assert np.diff(np.nonzero(down)[0], prepend=np.argmax(down) - 1).max() == 1
        sides.add(int(down.sum()))
    assert sides == {1, 2, 3, 4, 5}
    assert random_squares(10, 200).any(0).all()  # every patch is removed once
    assert random_squares(1, 2).all()


def test_the_score_is_asked_for_images_with_the_baseline_in_the_patches() -> None:
    seen = []

    def score(images):
        seen.extend(images)
        return images.double().mean((1, 2, 3))

    removed = random_subsets(GRID**2, (5,), 5)
    baseline = torch.full_like(IMAGE, 9)
    found = remove(score, IMAGE, PATCHES, removed, baseline=baseline, batch_size=2)
    assert torch.equal(seen[0], IMAGE)
    for image, one, drop in zip(seen[1:], removed, found.drops, strict=True):
        gone = torch.from_numpy(one[PATCHES])
        assert torch.equal(image[:, gone], baseline[:, gone])
        assert torch.equal(image[:, ~gone], IMAGE[:, ~gone])
        assert drop == pytest.approx(float(IMAGE.double().mean() - image.double().mean()))


@pytest.mark.parametrize("family", PLANTED)
def test_the_map_of_a_planted_detector_beats_its_permutations(family) -> None:
    model, board = PLANTED[family](), random_board(4, squares=2)
    query, label = board.queries[0], board.labels[0]

    @torch.no_grad()
    def logit(images):
        return model([normalise(image).double() for image in images])["pred_logits"][:, query, label]

    patches, removed = squares((64, 64), 8), np.concatenate([random_subsets(64, (4, 16), 25), random_squares(8, 50)])
    removals = remove(logit, board.image, patches, removed, baseline=torch.zeros_like(board.image), batch_size=25)
    heat = heat_map(AttentionTrace(model, board.image), _of(model, board), "relevance").numpy()
    # a colour's share counts once in each of nine cells
    assert sensitivity_n(removals, heat) > 0.9
    assert infidelity(removals, heat) < 0.1
    others = [shuffled(heat, seed) for seed in range(5)]
    assert sensitivity_n(removals, heat) > max(sensitivity_n(removals, one) for one in others)
    assert infidelity(removals, heat) < min(infidelity(removals, one) for one in others)


def _of(model, board):
    return AttentionTrace(model, board.image).prediction(board.queries[0], board.labels[0])


def test_a_map_that_is_nothing_where_something_was_removed_tells_nothing() -> None:
    heat = np.zeros(SHAPE)
    heat[0, 0] = 1
    removed = np.zeros((3, GRID**2), dtype=bool)
    removed[:, [20, 30, 40]] = np.eye(3, dtype=bool)
    removals = remove(linear, IMAGE, PATCHES, removed, baseline=BLACK)
    assert infidelity(removals, heat) == 1
    assert sensitivity_n(removals, heat) == 0


@pytest.mark.filterwarnings("ignore")
def test_infidelity_is_that_of_quantus() -> None:
    """It removes one square after the other and puts none back, and multiplies the map by what removal changes."""
    shape, side = (16, 16), 4
    generator = np.random.default_rng(2)
    image = torch.from_numpy(generator.integers(1, 256, (1, *shape), dtype=np.uint8))
    heat = generator.standard_normal(shape)
    weights = torch.from_numpy(generator.standard_normal(shape))

    def score(images):
        return (weights * images.double()).sum((1, 2, 3)).sin() + images.double().mean((1, 2, 3)) / 255

    class Two(torch.nn.Module):
        def forward(self, images):
            return torch.stack([score(images), -score(images)], 1)

    def ask(quantus):
        measure = quantus.Infidelity(
            perturb_patch_sizes=[side],
            n_perturb_samples=1,
            perturb_baseline="black",
            perturb_func_kwargs={},
            normalise=False,
            abs=False,
            disable_warnings=True,
        )
        return measure(
            model=Two().eval(),
            x_batch=image.double().numpy()[None],
            y_batch=np.array([0]),
            a_batch=heat[None, None],
            channel_first=True,
            device="cpu",
        )

    black = torch.full_like(image, int(image.min()))  # theirs is the image's least value
    removals = remove(score, image, squares(shape, 4), np.tri(16, dtype=bool), baseline=black)
    ours = infidelity(removals, heat * (image - black)[0].double().numpy(), scaled=False)
    assert ours == pytest.approx(float(of_quantus("infidelity", ask)[0]), rel=1e-6)


def test_wrong_arguments_get_a_sentence(subsets) -> None:
    with pytest.raises(ValueError, match="grid: expected 1 to 24 patches along a side of this image, got 25"):
        squares(SHAPE, 25)
    with pytest.raises(ValueError, match="sizes: expected 1 to 3 of 4 patches, got 2, 4"):
        random_subsets(4, (2, 4), 5)
    removed = random_subsets(GRID**2, (2,), 3)
    with pytest.raises(ValueError, match=r"baseline: expected \(3, 24, 32\) like image, got \(3, 23, 32\)"):
        remove(linear, IMAGE, PATCHES, removed, baseline=BLACK[:, 1:])
    with pytest.raises(ValueError, match=r"patches: expected \(24, 32\) like image, got \(23, 32\)"):
        remove(linear, IMAGE, PATCHES[1:], removed, baseline=BLACK)
    with pytest.raises(ValueError, match=r"removed: expected \(N, 64\), a column for each patch, got \(3, 63\)"):
        remove(linear, IMAGE, PATCHES, removed[:, 1:], baseline=BLACK)
    for scaled in (True, False):
        with pytest.raises(ValueError, match=r"heat: expected \(24, 32\), got \(2, 2\)"):
            infidelity(subsets, np.ones((2, 2)), scaled=scaled)
    with pytest.raises(ValueError, match="heat: expected finite numbers of at least 0"):
        sensitivity_n(subsets, -np.ones(SHAPE))

"""Means, intervals and comparisons of scores whose answers are known."""

import numpy as np
import pytest
from PIL import Image

from msdeform.explain.quality.scores import MEASURES, Scores, bootstrap, save_chart, table, verdict

NAN = np.nan


def scores_of(seed=0, n=60):
    """A method better than random in everything, and one that is the same but for noise."""
    generator = np.random.default_rng(seed)
    base = generator.random(n)
    values = {}
    for name, measure in MEASURES.items():
        noise = 0.01 * generator.standard_normal((n, 3))
        gain = np.array([0.1 * measure.better, 0.0, 0.0])
        values[name] = base[:, None] + noise - noise.mean(0) + gain
    values["compactness"][:] = NAN
    return Scores(("good", "same", "random"), ("random",), values, np.repeat(np.arange(n // 2), 2), seed)


def test_the_interval_of_independent_values_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    mean, low, high = bootstrap(values, np.arange(400))
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert (high + low) / 2 == pytest.approx(mean, abs=0.01)


def test_detections_of_one_image_are_drawn_together() -> None:
    values = np.random.default_rng(0).standard_normal(100)
    single = bootstrap(values, np.arange(100))
    fourfold = bootstrap(values.repeat(4), np.arange(100).repeat(4))
    assert fourfold.mean == pytest.approx(single.mean)
    assert fourfold.high - fourfold.low == pytest.approx(single.high - single.low, rel=0.05)


def test_what_does_not_apply_is_left_out() -> None:
    assert bootstrap(np.array([1.0, NAN, 3.0]), np.array([0, 0, 1])).mean == 2
    assert str(bootstrap(np.array([NAN]), np.array([0]))) == "-"
    mean, low, _ = bootstrap(np.array([1.0, 3.0]), np.array([7, 7]))
    assert mean == 2
    assert np.isnan(low), "of one image there is no interval"
    assert str(bootstrap(np.array([1.0, 3.0]), np.array([7, 7]))) == "2.000"
    one = scores_of()
    assert verdict(one.of(one.images == 0)) == ["of one image alone nothing can be said of what beats what"]


def test_pairs_tell_apart_what_intervals_of_means_do_not() -> None:
    scores = scores_of()
    for name, measure in MEASURES.items():
        if measure.better:
            good, random = (scores.interval(name, one) for one in ("good", "random"))
            assert good.low < random.high, "the intervals overlap"
            assert good.high > random.low
            assert scores.beats(name, "good", "random")
        assert not scores.beats(name, "same", "random")
        assert not scores.beats(name, "random", "good")


def test_the_verdict_names_what_beats_and_what_does_not() -> None:
    lines = verdict(scores_of())
    all_of_them = "deletion: random; insertion: random; pointing: random; energy in box: random"
    assert lines[0] == f"good beats, by {all_of_them}; energy in others: random"
    assert lines[1].startswith("same beats, by deletion: no baseline; insertion: no baseline;")
    assert lines[2].endswith(
        "by deletion: good; insertion: good; pointing: good; energy in box: good; energy in others: good"
    )


def test_table_and_picture(tmp_path) -> None:
    scores = scores_of()
    lines = table(scores)
    assert len(lines) == 4
    assert lines[0].split()[:2] == ["deletion", "(low)"]
    assert "compactness" not in lines[0], "a column of nothing"
    assert str(scores.interval("insertion", "same")) in lines[2]
    curves = np.random.default_rng(0).random((3, 5))
    shares = np.linspace(0, 1, 5).tolist()
    save_chart(tmp_path / "scores.png", scores, shares, {"deletion": curves, "insertion": curves}, "three")
    with Image.open(tmp_path / "scores.png") as picture:
        assert min(picture.size) > 300
    assert [file.name for file in tmp_path.iterdir()] == ["scores.png"]


def test_a_part_of_the_detections() -> None:
    scores = scores_of()
    few = scores.of(scores.images < 3)
    assert len(few.images) == 6
    np.testing.assert_array_equal(few.values["deletion"], scores.values["deletion"][:6])

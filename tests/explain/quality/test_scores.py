"""Means, intervals and comparisons of scores whose answers are known."""

from typing import Any

import numpy as np
import pytest

from msdeform.explain.options import MEASURE_GROUPS
from msdeform.explain.quality.scores import MEASURES, beats, bootstrap, chart, lines, summarise, table, told, verdict

NAN = np.nan
NAMES = ("good", "same", "random")


def rows(n: int = 60) -> list[dict[str, Any]]:
    """Scores of a method better than random in everything, and of one that is the same but for noise."""
    generator = np.random.default_rng(0)
    base = generator.random(n)
    found: list[dict[str, Any]] = [
        {"image_id": place // 2, "scores": {name: {} for name in NAMES}} for place in range(n)
    ]
    for measure, (_, better, _) in MEASURES.items():
        noise = 0.01 * generator.standard_normal((n, 3))
        values = base[:, None] + noise - noise.mean(0) + np.array([0.1 * better, 0.0, 0.0])
        for row, numbers in zip(found, values.tolist(), strict=True):
            for name, number in zip(NAMES, numbers, strict=True):
                row["scores"][name][measure] = None if measure == "compactness" else number
    return found


SUMMARY = summarise(rows(), ["random"])


def test_the_interval_of_independent_values_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    mean, low, high = np.array(bootstrap(values, np.arange(400)), dtype=float)
    assert mean == pytest.approx(values.mean(), abs=1e-6)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert (high + low) / 2 == pytest.approx(mean, abs=0.01)


def test_detections_of_one_image_are_drawn_together() -> None:
    values = np.random.default_rng(0).standard_normal(100)
    single = np.array(bootstrap(values, np.arange(100)), dtype=float)
    fourfold = np.array(bootstrap(values.repeat(4), np.arange(100).repeat(4)), dtype=float)
    assert fourfold[0] == pytest.approx(single[0])
    assert fourfold[2] - fourfold[1] == pytest.approx(single[2] - single[1], rel=0.05)


def test_what_does_not_apply_is_left_out() -> None:
    assert bootstrap(np.array([1.0, NAN, 3.0]), np.array([0, 0, 1]))[0] == 2
    assert told(bootstrap(np.array([NAN]), np.array([0]))) == "-"
    of_one_image = bootstrap(np.array([1.0, 3.0]), np.array([7, 7]))
    assert of_one_image == [2, None, None]
    assert told(of_one_image) == "2.000"
    one = summarise([row for row in rows() if row["image_id"] == 0], ["random"])
    assert one["detections"] == 2
    assert verdict(one) == ["of one image alone nothing can be said of what beats what"]


def test_pairs_tell_apart_what_intervals_of_means_do_not() -> None:
    for name, measure in MEASURES.items():
        if measure.better:
            (_, good_low, good_high), (_, low, high) = (SUMMARY["intervals"][one][name] for one in ("good", "random"))
            assert good_low < high, "the intervals overlap"
            assert good_high > low
            assert beats(SUMMARY, name, "good", "random")
            assert not beats(SUMMARY, name, "same", "random")
    worse = summarise(rows(), ["good"])
    assert not any(beats(worse, name, "random", "good") for name, measure in MEASURES.items() if measure.better)


def test_the_verdict_names_what_beats_and_what_does_not() -> None:
    shown = verdict(SUMMARY)
    scored = [measure.title for measure in MEASURES.values() if measure.better]
    assert shown[0] == f"good beats, by {'; '.join(f'{title}: random' for title in scored)}"
    assert shown[1].startswith("same beats, by deletion: no baseline; insertion: no baseline;")
    assert shown[2].endswith(f", by {'; '.join(f'{title}: good' for title in scored)}")


def test_table_and_picture() -> None:
    shown = table(SUMMARY)
    assert len(shown) == 5 * len(MEASURE_GROUPS) - 1  # the names, a line for each of three, and one between groups
    assert [line.split()[0] for line in shown[::5]] == list(MEASURE_GROUPS)
    assert shown[0].split()[1:3] == ["deletion", "(low)"]
    assert "compactness" not in "".join(shown), "a column of nothing"
    assert told(SUMMARY["intervals"]["same"]["insertion"]) in shown[2]
    curves = np.random.default_rng(0).random((3, 5))
    figure = chart(SUMMARY, np.linspace(0, 1, 5).tolist(), {"deletion": curves, "insertion": curves}, "three")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["deletion: low is good", "insertion: high is good"]
    assert titles[-1] == "insertion: score by share of pixels"
    assert len(titles) == len(MEASURES) - 1 + 2
    assert np.allclose([line.get_ydata() for line in figure.axes[-1].lines], curves)


def test_what_was_not_measured_has_no_column_and_no_verdict() -> None:
    some = [{**row, "scores": {name: {"energy": of["energy"]} for name, of in row["scores"].items()}} for row in rows()]
    summary = summarise(some, ["random"])
    assert [line.split()[0] for line in table(summary)] == ["place", *NAMES]
    assert verdict(summary)[0] == "good beats, by energy in box: random"


def test_measures_without_a_good_end_have_no_verdict() -> None:
    scored = [
        row | {"scores": {name: {"largest_change": 0.1} for name in NAMES}, "rank_correlations": {}} for row in rows()
    ]
    summary = summarise(scored, ["random"])
    assert verdict(summary) == []
    found = {"seconds_per_image": None, "summary": {"all": summary}, "decoder_layers_randomised": []}
    printed = lines(found | {"detections": scored})
    assert printed[0].startswith("all images scored before; ")
    assert "what beats what" not in "".join(printed)

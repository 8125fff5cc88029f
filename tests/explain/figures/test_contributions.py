"""The picture of what each attention adds: its bars and marks are what `completeness` finds."""

from pathlib import Path

import numpy as np
import pytest

from msdeform.explain.core.completeness import completeness
from msdeform.explain.core.trace import AttentionTrace
from msdeform.explain.figures.contributions import draw_contributions
from tests.explain.models import images, uneven


@pytest.mark.parametrize(("kind", "target"), [("detr", "class"), ("two-stage", "w")])
def test_bars_and_marks_are_what_was_found(kind: str, target: str, tmp_path: Path) -> None:
    trace = AttentionTrace(uneven(kind, dec_layers=2), images((48, 64))[0], size=64)
    prediction = trace.prediction(3)
    found = completeness(trace, prediction, target)
    drawing = draw_contributions(trace, prediction, target, image="street.jpg")
    (axes,) = drawing.figure.axes
    kept, lost = ([bar.get_width() for bar in bars] for bars in axes.containers)
    assert kept == [one.kept for one in found]
    assert lost == [one.lost for one in found]
    assert min(kept) >= 0 >= max(lost)
    assert sum(kept) > 0
    sums, marks = (line.get_xdata() for line in axes.lines[:2])
    np.testing.assert_array_equal(sums, [one.first_order for one in found])
    np.testing.assert_array_equal(marks, [np.nan if one.change is None else one.change for one in found])
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "encoder layer 0, self-attention"
    assert names[-2:] == ["decoder layer 1, cross-attention", "all of the decoder's cross-attention"]
    assert ("logit" in axes.get_xlabel()) == (target == "class")
    _, numbers = drawing.save(tmp_path / "contributions.png", 40)
    assert np.load(numbers)["sites"].tolist() == [one.sites for one in found]

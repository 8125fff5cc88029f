"""The checks of Deformable DETR's ``models/ops/test.py`` as tests: it prints what they find, and has no assertion."""

import official  # type: ignore[import-not-found]  # a copy of their file
import pytest


@pytest.mark.parametrize("precision", ["double", "float"])
def test_forward(precision, capsys):  # type: ignore[no-untyped-def]
    getattr(official, f"check_forward_equal_with_pytorch_{precision}")()
    assert capsys.readouterr().out.startswith("* True")


@pytest.mark.parametrize("channels", [30, 32, 64, 71, 1025, 2048, 3096])
def test_gradient(channels, capsys):  # type: ignore[no-untyped-def]
    official.check_gradient_numerical(channels, True, True, True)
    assert capsys.readouterr().out.startswith("* True")

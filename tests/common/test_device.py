"""The device that a name stands for, or a sentence that says what is wrong with the name."""

import pytest
import torch

from msdeform.common.device import choose_device


def test_what_is_there_is_chosen() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gpu", "device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("cuda:99", "device: cuda:99 is not there; this machine has "),
        pytest.param(
            "mps",
            "device: expected one that this PyTorch runs on, got 'mps' (",
            marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="PyTorch runs on mps here"),
        ),
    ],
)
def test_what_is_not_there_is_named(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="device") as raised:
        choose_device(name)
    assert str(raised.value).startswith(sentence)

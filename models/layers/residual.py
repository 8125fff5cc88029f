"""What all layers of the transformers have in common."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualLayer(nn.Module):
    """A layer of sublayers, each with dropout, sum and norm, the last of them a feed-forward network.

    Norms stand after each sum, as published, or with `pre_norm` before each sublayer. A subclass makes ``linear1``,
    ``linear2``, ``dropout`` and the norms itself, in the order of its official state dict.
    """

    linear1: nn.Linear
    linear2: nn.Linear
    dropout: nn.Dropout
    pre_norm: bool

    def residual(self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """x (B, n, C) and what `sublayer` makes of it, shaped alike."""
        if self.pre_norm:
            return x + self.dropout(sublayer(norm(x)))
        return norm(x + self.dropout(sublayer(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """(..., C), computed from each (C,) alone."""
        return self.linear2(self.dropout(F.relu(self.linear1(x))))

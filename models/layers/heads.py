"""What every DETR predicts with: a linear layer for the classes, three with ReLU for the box."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

# the probability every class starts with under a focal loss (Lin et al. 2017, section 3.3)
PRIOR = 0.01


def class_head(hidden_dim: int, num_classes: int, *, focal: bool) -> nn.Linear:
    """(..., C) to class logits: one sigmoid a class, or a softmax over the classes and, last, none of them."""
    if not focal:
        return nn.Linear(hidden_dim, num_classes + 1)
    head = nn.Linear(hidden_dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - PRIOR) / PRIOR))
    return head


class BoxHead(nn.Module):
    """Three linear layers with ReLU between them: (..., C) to (..., 4) box logits."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden_dim, out) for out in (hidden_dim, hidden_dim, 4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)

"""Which pixels a detection depends on, through every attention: the rules of Chefer et al. 2021, section 3, per target.

With ``y`` the target's number, ``A`` an attention after its softmax and ``G = dy/dA``, a layer is the matrix
``C = mean over heads of (A * G)+``. In the encoder ``R_ii = I``, then ``R_ii += C R_ii``. In the decoder ``R_qq = I``,
``R_qi = 0``; self-attention ``R_qq += C R_qq``, ``R_qi += C R_qi``; cross-attention
``R_qi += N(R_qq)^T C N(R_ii)`` with ``N(R) = I + rownorm(R - I)``. The map of query t is row t of ``R_qi``.

Only that row is made, never ``R_ii``, which at 800x1333 is 2 GB. The rules are linear in the rows on their left, so the
row is carried from the last layer to the first as a vector: ``x C`` a layer. What rownorm divides by needs one more
walk: ``d = (R_ii - I) 1``, by ``d += C (d + 1)``. Of deformable attention, whose ``A`` has a point's weight times its
bilinear coefficients as entries, the operator itself makes both products (`attention.PointMatrix`).

``rownorm`` makes the part that the encoder moves as large as the part that it leaves where it is, however little of the
target passes through its attention: half of a map is what the encoder's rules spread. With ``rollout`` the encoder is
gone through by its attention itself instead, half of each layer passing by (Abnar & Zuidema 2020); the decoder's rules
stay as they are.

A row of ``R - I`` that is zero, of a query that attends to nothing that matters, is normalised to zero. The authors'
code divides by zero there, and then leaves the whole layer out; ``parity=True`` does the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..options import By
from .attention import Matrix, applied, times
from .capture import Gradients, Tape


@dataclass(frozen=True, eq=False)
class Factors:
    """``C`` of every attention of a detector, layer by layer."""

    encoder: list[Matrix]
    decoder_self: list[Tensor]
    decoder_cross: list[Matrix]
    rollout: bool = False
    """Are the encoder's its attention alone, to be rolled out?"""


def factors(
    tape: Tape,
    gradients: dict[str, Gradients],
    image: int = 0,
    *,
    by: By = "point",
    head: int | None = None,
    rollout: bool = False,
) -> Factors:
    """`Gradients.factor` of every site of a tape; `head` is that of the decoder's cross-attention.

    With `rollout` those of the encoder are its attention, mean over heads.

    A site that the target does not depend on is a matrix of zeros.
    """
    found: dict[tuple[str, str], list[Any]] = {}
    for name, record in tape.items():
        here = gradients.get(name) or Gradients(record, torch.zeros_like(record.weights))
        # a target that a site's weights do not change does not change by its entries either
        how = by if name in gradients else "point"
        if rollout and record.site.stack == "encoder":
            made = record.matrix(image)
        else:
            made = here.factor(image, by=how, head=head if record.site.kind == "cross" else None)
        found.setdefault((record.site.stack, record.site.kind), []).append(made)
    return Factors(found.get(("encoder", "self"), []), found["decoder", "self"], found["decoder", "cross"], rollout)


def relevance(c: Factors, queries: Sequence[int] | Tensor, *, by_layer: bool = False, parity: bool = False) -> Tensor:
    """Rows of ``R_qi``: (n queries, S), or (n, decoder layers, S) by the layer whose cross-attention brought them.

    With factors of one target's gradients ask for its query; with those of the sum of several targets for all of
    theirs at once, which is quicker and mixes what they depend on together.
    """
    rows = torch.as_tensor(queries)
    first = c.decoder_self[0]
    eye = torch.eye(len(first), dtype=first.dtype, device=first.device)
    # N(R_qq) after each layer's self-attention; None where parity leaves the layer out. R - I is carried, not R: its
    # rows may be so small that taking I away afterwards would leave rounding
    rest = torch.zeros_like(eye)
    norms: list[Tensor | None] = []
    for among in c.decoder_self:
        rest = rest + among + among @ rest
        total = rest.sum(-1, keepdim=True)
        norms.append(None if parity and bool((total == 0).any()) else eye + _quotient(rest, total))
    # what of each layer's addition reaches the rows that are asked for, from the last layer to the first
    left = eye[rows]
    layers: list[Tensor] = []
    for among, across, norm in zip(c.decoder_self[::-1], c.decoder_cross[::-1], norms[::-1], strict=True):
        layers.append(times(torch.zeros_like(left) if norm is None else left @ norm.T, across))
        left = left + left @ among
    W = torch.stack(layers[::-1], 1)  # (n, layers, S)
    W = W if by_layer else W.sum(1)
    found = _rolled_out(W, c.encoder) if c.rollout else _through_encoder(W, c.encoder, parity=parity)
    return found.cpu()


def _rolled_out(W: Tensor, encoder: Sequence[Matrix]) -> Tensor:
    """Rows W (..., S) through the encoder's attention, from the last layer to the first."""
    for one in reversed(encoder):
        W = (W + times(W, one)) / 2
    return W


def _through_encoder(W: Tensor, encoder: Sequence[Matrix], *, parity: bool) -> Tensor:
    """``W N(R_ii)`` for rows W (..., S); W itself where no encoder attends."""
    if not encoder:
        return W
    d = W.new_zeros(W.shape[-1])  # (R_ii - I) 1
    for one in encoder:
        d = d + applied(one, d + 1)
    if parity and bool((d == 0).any()):
        return torch.zeros_like(W)
    r = _quotient(W, d)
    x = torch.zeros_like(r)  # r (R_ii - I)
    for one in reversed(encoder):
        x = x + times(r + x, one)
    return W + x


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))

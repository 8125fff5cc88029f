"""Which pixels a detection depends on, through every attention: the rules of Chefer et al. 2021, section 3, per target.

With ``y`` the target's number, ``A`` an attention after its softmax and ``G = dy/dA``, a layer is the matrix
``C = mean over heads of (A * G)+``. In the encoder ``R_ii = I``, then ``R_ii += C R_ii``. In the decoder ``R_qq = I``,
``R_qi = 0``; self-attention ``R_qq += C R_qq``, ``R_qi += C R_qi``; cross-attention
``R_qi += N(R_qq)^T C N(R_ii)`` with ``N(R) = I + rownorm(R - I)``. The map of query t is row t of ``R_qi``.

Only that row is made, never ``R_ii``, which at 800x1333 is 2 GB. The rules are linear in the rows on their left, so the
row is carried from the last layer to the first as a vector: ``x C`` a layer. What rownorm divides by needs one more
walk: ``d = (R_ii - I) 1``, by ``d += C (d + 1)``. Deformable attention, whose ``A`` has a point's weight times its
bilinear coefficients as entries (`attention.corners`), is carried the same way, sparse.

A row of ``R - I`` that is zero, of a query that attends to nothing that matters, is normalised to zero. The authors'
code divides by zero there, and then leaves the whole layer out; ``parity=True`` does the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from ..options import By
from .attention import Shapes, allowed_coefficients, corners
from .calls import DeformableCall
from .capture import Gradients, Tape

# dense, or sparse by rows; on the CPU, where sparse products of rows from the left are fast in both directions
Factor = Tensor | csr_array


def times(x: Tensor, factor: Factor) -> Tensor:
    """``x @ factor`` for rows x (..., Q): (..., S)."""
    if isinstance(factor, Tensor):
        return x @ factor
    rows = torch.from_numpy(np.ascontiguousarray((factor.T @ x.flatten(0, -2).numpy().T).T))
    return rows.view(*x.shape[:-1], factor.shape[1])


def applied(factor: Factor, u: Tensor) -> Tensor:
    """``factor @ u`` for u (S,): (Q,)."""
    return factor @ u if isinstance(factor, Tensor) else torch.from_numpy(factor @ u.numpy())


def _sparse(parts: Sequence[tuple[Tensor, Tensor, Tensor]], shapes: Shapes) -> csr_array:
    """(Q, S) of the `_entries` of its rows."""
    index, entries, counts = (torch.cat(pieces).cpu().numpy() for pieces in zip(*parts, strict=True))
    starts = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
    return csr_array((entries, index, starts), shape=(len(counts), sum(h * w for h, w in shapes)))


def factor(gradients: Gradients, image: int = 0, *, by: By = "point", head: int | None = None) -> Factor:
    """``C`` of one attention for one image of the batch, (Q, S): mean over heads of (A * G)+, or that of one head.

    By ``point``, the positive part is of a point's weight times its derivative, which its coefficients then share out;
    by ``pixel``, of each entry of A times its own. They agree where points lie on pixel centres. Dense attention has
    entries alone.
    """
    asked = (image, by, head)
    if asked not in gradients.factors:
        gradients.factors[asked] = _factor(gradients, image, by, slice(None) if head is None else slice(head, head + 1))
    return gradients.factors[asked]


def _factor(gradients: Gradients, image: int, by: By, heads: slice) -> Factor:
    record = gradients.record
    if not isinstance(record.call, DeformableCall):
        return (record.weights[image, heads] * gradients.weights[image, heads]).clamp(min=0).mean(0).cpu()
    weights, locations = record.weights[image, :, heads], record.locations[image, :, heads]
    slopes = (gradients.weights if by == "point" else gradients.products)[image, :, heads]
    mask = None if record.call.mask is None else record.call.mask[image]
    # some rows at a time stay in the cache
    parts = zip(weights.split(_ROWS), locations.split(_ROWS), slopes.split(_ROWS), strict=True)
    return _sparse([_entries(*part, record.call.shapes, mask) for part in parts], record.call.shapes)


_ROWS = 1024


def _entries(
    weights: Tensor, locations: Tensor, slopes: Tensor, shapes: Shapes, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of some rows: where (n,), how much (n,), and how many entries a row has (Q,).

    weights (Q, H, L, P), locations (Q, H, L, P, 2), slopes (Q, H, L, P) of points or (Q, H, L, P, 4) of pixels.
    """
    by_pixel = slopes.dim() > weights.dim()
    # an entry of A is not negative, so that the positive part is its derivative's
    slopes = slopes.clamp(min=0)
    amount = weights * (slopes.sum(-1) if by_pixel else slopes)
    # the others, about half of them, would be entries of nothing
    row, _, level, _ = places = amount.nonzero(as_tuple=True)
    index, coefficient = corners(locations[places], shapes, level)
    coefficient = allowed_coefficients(index[None], coefficient[None], None if mask is None else mask[None])[0]
    amount = weights[places][:, None] * slopes[places] if by_pixel else amount[places][:, None]
    entries = amount * coefficient / weights.shape[1]
    return index.flatten(), entries.flatten(), torch.bincount(row, minlength=len(weights)) * 4


@dataclass(frozen=True, eq=False)
class Factors:
    """``C`` of every attention of a detector, layer by layer."""

    encoder: list[Factor]
    decoder_self: list[Tensor]
    decoder_cross: list[Factor]


def factors(
    tape: Tape, gradients: dict[str, Gradients], image: int = 0, *, by: By = "point", head: int | None = None
) -> Factors:
    """`factor` of every site of a tape; `head` is that of the decoder's cross-attention.

    A site that the target does not depend on is a matrix of zeros, and left out of the encoder.
    """
    encoder, among, across = [], [], []
    for name, record in tape.items():
        found = gradients.get(name)
        site = record.site
        if site.stack == "encoder":
            if found is not None:
                encoder.append(factor(found, image, by=by))
        elif site.kind == "self":
            Q = record.weights.shape[-1]
            made = torch.zeros(Q, Q, dtype=record.weights.dtype) if found is None else factor(found, image)
            assert isinstance(made, Tensor)
            among.append(made)
        else:
            across.append(_nothing(tape, name) if found is None else factor(found, image, by=by, head=head))
    return Factors(encoder, among, across)


def _nothing(tape: Tape, name: str) -> Factor:
    record = tape[name]
    if not isinstance(record.call, DeformableCall):
        return torch.zeros(record.weights.shape[2:], dtype=record.weights.dtype)
    return csr_array(
        (record.weights.shape[1], sum(h * w for h, w in record.call.shapes)), dtype=record.weights.cpu().numpy().dtype
    )


def relevance(c: Factors, queries: Sequence[int] | Tensor, *, by_layer: bool = False, parity: bool = False) -> Tensor:
    """Rows of ``R_qi``: (n queries, S), or (n, decoder layers, S) by the layer whose cross-attention brought them.

    With factors of one target's gradients ask for its query; with those of the sum of several targets for all of
    theirs at once, which is quicker and mixes what they depend on together.
    """
    rows = torch.as_tensor(queries)
    eye = torch.eye(len(c.decoder_self[0]), dtype=c.decoder_self[0].dtype)
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
    return _through_encoder(W if by_layer else W.sum(1), c.encoder, parity=parity)


def _through_encoder(W: Tensor, encoder: Sequence[Factor], *, parity: bool) -> Tensor:
    """``W N(R_ii)`` for rows W (..., S)."""
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

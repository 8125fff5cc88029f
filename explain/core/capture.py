"""What a model's attentions looked at, recorded while it runs.

    with capture(model, "decoder.*.cross") as tape:
        outputs = model(images)
    tape["decoder.5.cross"].locations

While a block records, attention computes its locations and weights as a step of its own, and the backend's operator
takes them: records are the same on every backend, and of what ran.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ...models.attention import Shapes
from ...models.inference.predictor import Predictor
from ...models.layers.geometry import at_least_float32
from ..options import By
from .attention import Matrix, corner_products, corners, point_matrix
from .opening import Inside, opened, replace
from .sites import Site, find_sites, in_range


@dataclass(frozen=True, eq=False)
class Record:
    """One call of one attention. B images, Q queries (those chosen, if rows were), S keys, H heads."""

    site: Site
    weights: Tensor
    """After the softmax: of points (B, Q, H, L, P), of dense attention (B, H, Q, S); at least float32."""
    mask: Tensor | None
    """(B, S), bool, True where padded; None where nothing is."""
    parts: dict[str, Any]
    """What not every record has, by the names of the properties."""
    graph: dict[str, GradientEdge] = field(default_factory=dict)
    """Places in the model's graph, by their names in `Gradients`; empty where gradients were not asked for.

    A place holds no tensor: the heads' outputs, as large as the values, are made and let go as without a record.
    """

    @property
    def shapes(self) -> Shapes:
        """(h, w) of each level of deformable attention; ValueError for dense attention, which knows no map."""
        return self._deformable("shapes")

    @property
    def reference(self) -> Tensor:
        """Reference points (B, Q, L, 2 or 4) of deformable attention, normalised to each padded level."""
        return self._deformable("reference")

    @property
    def locations(self) -> Tensor:
        """Sampling locations (B, Q, H, L, P, 2), xy, normalised to each padded level, at least float32."""
        return self._deformable("locations")

    def _deformable(self, part: str) -> Any:
        if part not in self.parts:
            raise ValueError(f"{self.site.name} attends to every key: it has no {part}")
        return self.parts[part]

    def value(self) -> Tensor:
        """What is weighed, (B, S, H, D), at least float32. ValueError where gradients were not asked for."""
        if "value" not in self.parts:
            raise ValueError(f"{self.site.name}: values are recorded by capture(..., gradients=True) alone")
        return at_least_float32(self.parts["value"])

    def heads(self, head: int | None) -> slice:
        """Of one head, or of all for None. ValueError for one that is not there."""
        if head is None:
            return slice(None)
        return slice(in_range(head, self.site.heads, "head"), head + 1)

    def dense(self, rows: Tensor | None = None) -> Tensor:
        """The attention matrix (B, H, Q, S): weights times bilinear coefficients, summed up where points share pixels.

        `rows` picks among the record's queries, which the encoder of a large image needs: all of its rows are GB.
        Padded pixels are attended to by nobody.
        """
        keep = slice(None) if rows is None else rows
        if not self.site.deformable:
            return self.weights[:, :, keep]
        size, images = sum(h * w for h, w in self.shapes), []
        for image, (weights, locations) in enumerate(zip(self.weights[:, keep], self.locations[:, keep], strict=True)):
            index, coefficient = corners(locations, self.shapes, self._mask(image))
            amount = (weights[..., None] * coefficient).flatten(2)
            made = amount.new_zeros(*weights.shape[:2], size).scatter_add_(2, index.flatten(2).long(), amount)
            images.append(made.transpose(0, 1))
        return torch.stack(images)

    def _mask(self, image: int) -> Tensor | None:
        return None if self.mask is None else self.mask[image]

    def matrix(self, image: int = 0, *, head: int | None = None, slopes: Tensor | None = None) -> Matrix:
        """(Q, S) of one image: the mean over heads, or one head; dense, or of deformable attention as its points.

        With `slopes`, of (A * slope)+; they are shaped as the weights or, for the four pixels of each point apart, as
        `Gradients.products`.
        """
        heads = self.heads(head)
        if not self.site.deformable:
            weights = self.weights[image, heads]
            return (weights if slopes is None else (weights * slopes[image, heads]).clamp(min=0)).mean(0)
        rows = (image, slice(None), heads)
        slopes = None if slopes is None else slopes[rows]
        return point_matrix(self.weights[rows], self.locations[rows], self.shapes, self._mask(image), slopes)

    def tensors(self) -> list[Tensor]:
        """All that the record holds."""
        held = [self.weights, self.mask, *self.parts.values()]
        return [one for one in held if isinstance(one, Tensor)]


@dataclass(eq=False)
class Gradients:
    """Derivatives of a scalar at one site, as the model's own backward on its own backend made them."""

    record: Record
    weights: Tensor
    """dy/d(weight), shaped as the record's weights."""
    locations: Tensor | None = None
    """dy/d(location), (B, Q, H, L, P, 2), of deformable attention; None where not asked for."""
    heads: Tensor | None = None
    """dy/d(output before its projection), (B, Q, H, D); None where not asked for."""
    _factors: dict[tuple[Any, ...], Matrix] = field(default_factory=dict, init=False)

    @cached_property
    def products(self) -> Tensor:
        """dy/dA at the four pixels around each point, ``g_q . v_j``: (B, Q, H, L, P, 4), of deformable attention."""
        record = self.record
        if self.heads is None:
            raise ValueError("products: expected gradients of heads, too; ask for gradients(y, heads=True)")
        index, _ = corners(record.locations, record.shapes)
        each = [corner_products(*one) for one in zip(record.value(), self.heads, index.flatten(3), strict=True)]
        return torch.stack(each).view(index.shape)

    def factor(self, image: int = 0, *, by: By = "point", head: int | None = None) -> Matrix:
        """(A * G)+ for one image of the batch, (Q, S): mean over heads, or that of one head.

        By ``point``, the positive part is of a point's weight times its derivative, which its coefficients then share
        out; by ``pixel``, of each entry of A times its own. They agree where points lie on pixel centres. Dense
        attention has entries alone.
        """
        asked = (image, by, head)
        if asked not in self._factors:
            slopes = self.products if by == "pixel" and self.record.site.deformable else self.weights
            self._factors[asked] = self.record.matrix(image, head=head, slopes=slopes)
        return self._factors[asked]


class Tape(Mapping[str, Record]):
    """The records of a block, by site, in the order of the layers; of several calls of a site the last."""

    def __init__(self, wanted: list[Site]) -> None:
        self._sites, self._records = wanted, dict[str, Record]()
        self.seeds: Tensor | None = None
        """(B, Q), for two-stage detectors: the encoder's pixel, of all levels, that each query came from."""

    def __getitem__(self, name: str) -> Record:
        if name in self._records:
            return self._records[name]
        if any(site.name == name for site in self._sites):
            raise KeyError(f"{name} did not run while the tape recorded")
        raise KeyError(f"site {name!r} was not recorded; the tape has {', '.join(self) or 'none'}")

    def __iter__(self) -> Iterator[str]:
        return (site.name for site in self._sites if site.name in self._records)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def nbytes(self) -> int:
        """Memory of all that the tape holds, in bytes; what several records share is counted once."""
        storages = [tensor.untyped_storage() for record in self.values() for tensor in record.tensors()]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def keep(self, site: Site, rows: Tensor | None, gradients: bool, inside: Inside) -> None:
        """Records what an attention computed; of `rows` (n,) alone, where given, and with its graph if asked to."""
        # without heads' outputs and values where nothing is to be derived
        found = {"weights": inside.weights, "locations": inside.locations}
        parts: dict[str, Any] = {"value": inside.value.detach()} if gradients else {}
        if inside.reference is not None:
            found["reference"], parts["shapes"] = inside.reference, inside.shapes
        held = {name: tensor.detach() for name, tensor in found.items() if tensor is not None}
        if rows is not None:
            axis = 1 if site.deformable else 2
            size = inside.weights.shape[axis]
            if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < size:
                got = f"{int(rows.min())} to {int(rows.max())}"
                raise ValueError(f"rows: expected from 0 to {size - 1} for {site.name}, got {got}")
            held = {name: tensor.index_select(axis, rows.to(tensor.device)) for name, tensor in held.items()}
        derived = {"weights": inside.weights, "locations": inside.locations, "heads": inside.out}
        graph = {
            name: get_gradient_edge(tensor)
            for name, tensor in derived.items()
            if gradients and tensor is not None and tensor.requires_grad
        }
        self._records[site.name] = Record(site, held.pop("weights"), inside.mask, parts | held, graph)

    def watch(self, choose: Any, logits: Tensor) -> Tensor:
        """Of a two-stage detector the pixels that it chooses, which become the seeds."""
        self.seeds = choose(logits)
        return self.seeds

    def gradients(self, y: Tensor, *, locations: bool = True, heads: bool = True) -> dict[str, Gradients]:
        """Derivatives of a scalar of the model's outputs at every site; its graph stays for the next.

        Those of weights are always made; those of locations and of the heads' outputs, which are four times as large,
        where asked for. Sites that `y` does not depend on are left out, as those behind a detach: a decoder that
        refines boxes passes no gradient from a layer to the next through its references.

        Raises ValueError if the tape was not made with ``gradients=True``, or `y` has no graph.
        """
        wanted = {"weights": True, "locations": locations, "heads": heads}
        places = [
            (name, part, at) for name, record in self.items() for part, at in record.graph.items() if wanted[part]
        ]
        if not places:
            raise ValueError("gradients: expected a tape of capture(..., gradients=True), with gradients on")
        if y.numel() != 1 or not y.requires_grad:
            raise ValueError(
                f"y: expected one number computed from the model's outputs, with its graph, got {tuple(y.shape)}"
                + ("" if y.requires_grad else " without a graph")
            )
        found = torch.autograd.grad(y.sum(), [at for *_, at in places], retain_graph=True, allow_unused=True)
        parts: dict[str, dict[str, Tensor]] = {}
        for (name, part, _), grad in zip(places, found, strict=True):
            if grad is not None:
                wide = at_least_float32(grad)
                shaped = wide.unflatten(-1, (self[name].site.heads, -1)) if part == "heads" else wide
                parts.setdefault(name, {})[part] = shaped
        return {name: Gradients(self[name], **made) for name, made in parts.items() if "weights" in made}


@contextmanager
def capture(
    model: nn.Module, sites: str = "decoder.*.cross", *, rows: Tensor | None = None, gradients: bool = False
) -> Iterator[Tape]:
    """Records the attentions of a model while the block runs.

    Args:
        model: any with `sites.sites`; not one that torch.compile made.
        sites: patterns of `sites.find_sites`.
        rows: (n,) int64, which pixels of the encoder to keep as queries; all when None. A decoder layer takes about
            0.5 MB at 300 queries and an encoder layer 35 MB at 800x1333, which is 22,000 pixels; `Tape.nbytes` says
            what a tape takes.
        gradients: keep locations and weights as parts of the model's graph, for `Tape.gradients`; the model must run
            with gradients on.

    Raises ValueError, listing the sites, for a pattern that matches none.
    """
    wanted = find_sites(model, sites)
    if gradients and rows is not None:
        raise ValueError("rows: a gradient needs every row of an attention; leave rows or gradients out")
    tape = Tape(wanted)
    listeners = [
        (site, partial(tape.keep, site, rows if site.stack == "encoder" else None, gradients)) for site in wanted
    ]
    with ExitStack() as stack:
        stack.enter_context(opened(listeners))
        for module in model.modules():
            if getattr(module, "two_stage", False) and hasattr(module, "choose_proposals"):
                stack.callback(replace(module, "choose_proposals", partial(tape.watch, module.choose_proposals)))
        yield tape


@contextmanager
def held_seeds(model: nn.Module, seeds: Tensor | None) -> Iterator[None]:
    """A two-stage detector of ours makes its queries of these pixels (B, Q), not of those it would choose, unless None.

    So that a query is the same one before and after something is changed. One of transformers chooses within its own
    code, and goes on to do so.
    """
    with ExitStack() as stack:
        for module in model.modules():
            # a detector of transformers only tells what its model has chosen
            tells = isinstance(module, Predictor)
            if seeds is not None and not tells and getattr(module, "two_stage", False):
                stack.callback(replace(module, "choose_proposals", lambda _: seeds))
        yield


def same_pixel(before: Mapping[str, Any], after: Mapping[str, Any], query: int) -> bool:
    """Is a query made of the same pixel, in two outputs of one image? So it is where queries are made of none."""
    one, other = before.get("proposals"), after.get("proposals")
    return one is None or other is None or int(one[0, query]) == int(other[0, query])

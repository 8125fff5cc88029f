"""What a model's attentions looked at, recorded while it runs.

    with capture(model, "decoder.*.cross") as tape:
        outputs = model(images)
    tape["decoder.5.cross"].locations

A record keeps a call's inputs, and computes locations, weights and dense attention from them when asked. The kernel
that ran is not asked for anything: records are the same on every backend, and a fused kernel stays fused.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...models.layers.geometry import at_least_float32
from .attention import Shapes, allowed_coefficients, corner_products, corners, scatter
from .calls import DeformableCall, DenseCall, read_call
from .interventions import Edit, Inside, Listener, active, edited_sample, edited_weights, opened
from .sites import Site, find_sites


@dataclass(eq=False)
class Record:
    """One call of one attention. B images, Q queries (those chosen, if rows were), S keys, H heads."""

    site: Site
    call: DeformableCall | DenseCall
    edits: tuple[Edit, ...]
    rows: Tensor | None
    """(Q,), which of the call's queries were kept; None for all."""
    autocast: torch.dtype | None
    inside: Inside | None = None
    """Part of the model's graph; None where gradients were not asked for."""
    _sampled: tuple[Tensor, Tensor] | None = None

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def shapes(self) -> Shapes | None:
        """(h, w) of each level of deformable attention; None for dense attention, which knows no map."""
        return self.call.shapes if isinstance(self.call, DeformableCall) else None

    @property
    def mask(self) -> Tensor | None:
        """(B, S), bool, True where padded; None where nothing is."""
        if isinstance(self.call, DeformableCall):
            return self.call.mask
        allowed = self.call.allowed
        return None if allowed.all() else ~allowed[:, 0, 0]

    @property
    def reference(self) -> Tensor:
        """Reference points (B, Q, L, 2 or 4) of deformable attention, normalised to each padded level."""
        return self._deformable("reference points").reference

    @property
    def locations(self) -> Tensor:
        """Sampling locations (B, Q, H, L, P, 2), xy, normalised to each padded level, at least float32."""
        self._deformable("sampling locations")
        return self._sample[0]

    @cached_property
    def weights(self) -> Tensor:
        """After the softmax: of points (B, Q, H, L, P), of dense attention (B, H, Q, S); at least float32."""
        if isinstance(self.call, DeformableCall):
            return self._sample[1]
        if self.inside is not None:
            return self.inside.weights.detach()
        with self._as_it_ran():
            weights = edited_weights(self.call, self.edits)
        return weights if self.rows is None else weights[:, :, self.rows]

    @property
    def heads(self) -> int:
        return self.site.heads

    def dense(self, rows: Tensor | None = None) -> Tensor:
        """The attention matrix (B, H, Q, S): weights times bilinear coefficients, summed up where points share pixels.

        `rows` picks among the record's queries, which the encoder of a large image needs: all of its rows are GB.
        Padded pixels are attended to by nobody.
        """
        keep = slice(None) if rows is None else rows
        if not isinstance(self.call, DeformableCall):
            return self.weights[:, :, keep]
        locations, weights = self.locations[:, keep], self.weights[:, keep]
        index, coefficient = corners(locations, self.call.shapes)
        amount = weights[..., None] * allowed_coefficients(index, coefficient, self.call.mask)
        B, Q, H = weights.shape[:3]
        size = sum(h * w for h, w in self.call.shapes)
        dense = scatter(index.view(B, Q * H, -1), amount.view(B, Q * H, -1), size)
        return dense.view(B, Q, H, size).transpose(1, 2)

    def value(self) -> Tensor:
        """What is weighed, (B, S, H, D), at least float32. ValueError where gradients were not asked for."""
        if self.call.inputs is None:
            raise ValueError(f"{self.name}: values are recorded by capture(..., gradients=True) alone")
        with self._as_it_ran():
            return at_least_float32(self.call.value())

    def tensors(self) -> list[Tensor]:
        """All that the record holds."""
        call = self.call
        held = [call.query, call.inputs, *(self._sampled or ())]
        held += [call.reference, call.mask] if isinstance(call, DeformableCall) else [call.key, call.forbidden]
        if self.inside is not None:
            held += [self.inside.weights, self.inside.locations, self.inside.out]
        return [tensor for tensor in held if tensor is not None]

    @property
    def _sample(self) -> tuple[Tensor, Tensor]:
        if self._sampled is None:
            assert isinstance(self.call, DeformableCall)
            with self._as_it_ran():
                self._sampled = edited_sample(self.call, self.edits)
        return self._sampled

    def choose(self, rows: Tensor) -> "Record":
        """The same for some of the queries, without what the others need."""
        size = self.call.query.shape[1]
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < size:
            raise ValueError(
                f"rows: expected from 0 to {size - 1} for {self.name}, got {int(rows.min())} to {int(rows.max())}"
            )
        if not isinstance(self.call, DeformableCall):
            return replace(self, rows=rows)
        # before rows are dropped: a shuffled query has another's locations
        sampled = (self._sample[0][:, rows], self._sample[1][:, rows]) if self.edits else None
        call = replace(self.call, query=self.call.query[:, rows], reference=self.call.reference[:, rows])
        return replace(self, call=call, rows=rows, _sampled=sampled)

    def _deformable(self, what: str) -> DeformableCall:
        if not isinstance(self.call, DeformableCall):
            raise ValueError(f"{self.name} attends to every key: it has no {what}")
        return self.call

    @contextmanager
    def _as_it_ran(self) -> Iterator[None]:
        """In the precision of the recorded call, without a graph."""
        kind = self.call.query.device.type
        cast = (
            torch.autocast(kind, dtype=self.autocast, cache_enabled=False)
            if self.autocast
            else torch.autocast(kind, enabled=False)
            if torch.is_autocast_enabled(kind)
            else nullcontext()
        )
        with torch.no_grad(), cast:
            yield


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
    factors: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    """What `relevance.factor` made of them."""

    @cached_property
    def products(self) -> Tensor:
        """dy/dA at the four pixels around each point, ``g_q . v_j``: (B, Q, H, L, P, 4), of deformable attention."""
        record = self.record
        if self.heads is None:
            raise ValueError("products: expected gradients of heads, too; ask for gradients(y, heads=True)")
        index, _ = corners(record.locations, record._deformable("points").shapes)
        each = [corner_products(*one) for one in zip(record.value(), self.heads, index.flatten(3), strict=True)]
        return torch.stack(each).view(index.shape)


class Tape(Mapping[str, Record]):
    """The records of a block, by site, in the order of the layers; of several calls of a site the last."""

    def __init__(self, wanted: list[Site]) -> None:
        self._sites, self._records = wanted, dict[str, Record]()
        self.seeds: Tensor | None = None
        """(B, Q), for two-stage detectors: the encoder's pixel, of all levels, that each query came from."""

    def keep(self, record: Record) -> None:
        self._records[record.name] = record

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
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for record in self._records.values()
            for tensor in record.tensors()
        }
        return sum(storages.values())

    def gradients(self, y: Tensor, *, locations: bool = True, heads: bool = True) -> dict[str, Gradients]:
        """Derivatives of a scalar of the model's outputs at every site; its graph stays for the next.

        Those of weights are always made; those of locations and of the heads' outputs, which are four times as large,
        where asked for. Sites that `y` does not depend on are left out, as those behind a detach: a decoder that
        refines boxes passes no gradient from a layer to the next through its references.

        Raises ValueError if the tape was not made with ``gradients=True``, or `y` has no graph.
        """
        inside = {name: record.inside for name, record in self.items() if record.inside is not None}
        if not inside:
            raise ValueError("gradients: expected a tape of capture(..., gradients=True), with gradients on")
        if y.numel() != 1 or not y.requires_grad:
            raise ValueError(
                f"y: expected one number computed from the model's outputs, with its graph, got {tuple(y.shape)}"
                + ("" if y.requires_grad else " without a graph")
            )
        places: list[tuple[str, str, Tensor]] = []
        for name, one in inside.items():
            places.append((name, "weights", one.weights))
            if locations and one.locations is not None:
                places.append((name, "locations", one.locations))
            if heads:
                places.append((name, "heads", one.out))
        found = torch.autograd.grad(y.sum(), [at for *_, at in places], retain_graph=True, allow_unused=True)
        parts: dict[str, dict[str, Any]] = {}
        for (name, part, _), grad in zip(places, found, strict=True):
            if grad is not None:
                wide = at_least_float32(grad)
                shaped = wide.unflatten(-1, (self[name].heads, -1)) if part == "heads" else wide
                parts.setdefault(name, {})[part] = shaped
        return {
            name: Gradients(self[name], made["weights"], made.get("locations"), made.get("heads"))
            for name, made in parts.items()
            if "weights" in made
        }


@contextmanager
def capture(
    model: nn.Module, sites: str = "decoder.*.cross", *, rows: Tensor | None = None, gradients: bool = False
) -> Iterator[Tape]:
    """Records the attentions of a model while the block runs.

    Args:
        model: any with `MSDeformAttn` or `nn.MultiheadAttention` inside; not one that torch.compile made.
        sites: patterns of `sites.find_sites`.
        rows: (n,) int64, which pixels of the encoder to keep as queries; all when None. A decoder layer takes about
            0.5 MB at 300 queries of 256 channels and an encoder layer 23 MB at 800x1333, which is 22,000 pixels;
            `Tape.nbytes` says what a tape takes.
        gradients: keep locations and weights as parts of the model's graph, for `Tape.gradients`. Fused kernels then
            run as two steps, so that there is something to derive by; the model must run with gradients on.

    Raises ValueError, listing the sites, for a pattern that matches none.
    """
    wanted = find_sites(model, sites)
    if gradients and rows is not None:
        raise ValueError("rows: a gradient needs every row of an attention; leave rows or gradients out")
    tape = Tape(wanted)
    with ExitStack() as stack:
        if gradients:
            listeners = [(site.module, _listener(tape, site)) for site in wanted]
            stack.enter_context(opened(listeners=listeners))
            wanted = []
        for site in wanted:
            hook = _recorder(tape, site, rows if site.stack == "encoder" else None)
            stack.callback(site.module.register_forward_hook(hook, with_kwargs=True).remove)
        for module in model.modules():
            if getattr(module, "two_stage", False) and hasattr(module, "choose_proposals"):
                stack.enter_context(_watch_seeds(module, tape))
        yield tape


def _recorder(tape: Tape, site: Site, rows: Tensor | None) -> Any:
    """A forward hook that keeps a call's inputs."""

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        call = _without_graph(read_call(module, args, kwargs))
        if isinstance(call, DeformableCall):
            call = replace(call, inputs=None)  # locations and weights need none of it
        kept = Record(site, call, active(module), None, _autocast(call))
        tape.keep(kept if rows is None else kept.choose(rows))

    return record


def _listener(tape: Tape, site: Site) -> Listener:
    """Keeps what a module computed, with its graph."""

    def listen(inside: Inside) -> None:
        call = _without_graph(inside.call)
        kept = inside if inside.weights.requires_grad else None
        sampled = None if inside.locations is None else (inside.locations.detach(), inside.weights.detach())
        tape.keep(Record(site, call, active(site.module), None, _autocast(call), kept, sampled))

    return listen


def _without_graph(call: DeformableCall | DenseCall) -> DeformableCall | DenseCall:
    detached: dict[str, Any] = {name: held.detach() for name, held in vars(call).items() if isinstance(held, Tensor)}
    return replace(call, **detached)


def _autocast(call: DeformableCall | DenseCall) -> torch.dtype | None:
    kind = call.query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


@contextmanager
def _watch_seeds(module: Any, tape: Tape) -> Iterator[None]:
    choose = module.choose_proposals

    def watched(logits: Tensor) -> Tensor:
        tape.seeds = choose(logits)
        return tape.seeds

    module.choose_proposals = watched
    try:
        yield
    finally:
        del module.choose_proposals
